#include "kernels/recurrent.h"

#include <type_traits>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/rows.h"
#include "kernels/recurrent_math.h"

namespace ulp::cpu {
namespace {

/// Rounds runs of elements; nothing for F64.
class Roundings {
 public:
  Roundings(const RecurrentRounding& r) : quantiser_(r.format, r.key) {}
  /// Elements from `index` on, made canonical by who made them.
  template <class T>
  void apply(T* values, int64_t n, int64_t index) const {
    if constexpr (std::is_same_v<T, float>) {
      if (!quantiser_.active()) return;
      for (int64_t i = 0; i < n; i += kBlock)
        quantiser_.apply(values + i, std::min(kBlock, n - i), index + i);
    }
  }

 private:
  BlockQuantiser quantiser_;
};

template <class T>
T* written(const Tensor& t) {
  Tensor handle = t;
  return handle.mutable_data<T>();
}
/// The values, or null for zeros.
template <class T>
const T* maybe(const Tensor& t) {
  return t.defined() ? t.data<T>() : nullptr;
}
template <class T>
const T* row_of(const T* values, int64_t row, int64_t columns) {
  return values == nullptr ? nullptr : values + row * columns;
}

template <class T>
void lstm_step_of(const LstmStepArgs& a) {
  const int64_t rows = a.c.size(0), width = a.c.size(1);
  const bool cell = a.part != LstmPart::Hidden, hidden = a.part != LstmPart::Cell;
  const T* x = cell ? a.input.data<T>() : nullptr;
  const T* u = cell ? a.hidden.data<T>() : nullptr;
  const T* before = cell ? a.c_before.data<T>() : nullptr;
  T* const saved = written<T>(a.saved);
  T* const c_out = cell ? written<T>(a.c) : nullptr;
  const T* const c_in = cell ? c_out : a.c.data<T>();
  T* const h_out = hidden ? written<T>(a.h) : nullptr;
  const Interior interior(a.interior.format, a.interior.key, a.trace);
  const Roundings cells(a.cell), states(a.state);
  for_rows(rows, 16 * width, [&](int64_t n) {
    T* const s = saved + n * 5 * width;
    if (cell) {
      const T* xn = x + n * 4 * width;
      const T* un = u + n * 4 * width;
      const T* cb = before + n * width;
      T* const c = c_out + n * width;
      with_isa([=]() ULP_INLINE {
        for (int64_t j = 0; j < 4 * width; ++j) s[j] = canonical(xn[j] + un[j]);
      });
      interior.apply(0, s, 4 * width, n * 4 * width);
      with_isa([=]() ULP_INLINE {
        for (int64_t j = 0; j < 2 * width; ++j) s[j] = sigmoid_of(s[j]);
        for (int64_t j = 2 * width; j < 3 * width; ++j) s[j] = tanh_of(s[j]);
        for (int64_t j = 3 * width; j < 4 * width; ++j) s[j] = sigmoid_of(s[j]);
      });
      interior.apply(1, s, 4 * width, n * 4 * width);
      with_isa([=]() ULP_INLINE {
        for (int64_t j = 0; j < width; ++j)
          c[j] = canonical(recurrent::new_cell(s[j], s[width + j], s[2 * width + j], cb[j]));
      });
      cells.apply(c, width, n * width);
    }
    if (!hidden) return;
    const T* const c = c_in + n * width;
    T* const tc = s + 4 * width;
    T* const h = h_out + n * width;
    const T* const o = s + 3 * width;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < width; ++j) tc[j] = tanh_of(c[j]);
    });
    interior.apply(2, tc, width, n * width);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < width; ++j) h[j] = canonical(o[j] * tc[j]);
    });
    states.apply(h, width, n * width);
  });
}

/// The sum of those that there are, from the left.
template <class T>
void add_gradients(T* to, int64_t n, const T* a, const T* b, const T* c) {
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < n; ++j) to[j] = a == nullptr ? T(0) : canonical(a[j]);
    if (b != nullptr)
      for (int64_t j = 0; j < n; ++j) to[j] = canonical(a == nullptr ? b[j] : to[j] + b[j]);
    if (c != nullptr)
      for (int64_t j = 0; j < n; ++j)
        to[j] = canonical(a == nullptr && b == nullptr ? c[j] : to[j] + c[j]);
  });
}

template <class T>
void lstm_step_backward_of(const LstmStepBackwardArgs& a) {
  const int64_t rows = a.c_before.size(0), width = a.c_before.size(1);
  const T *gy = maybe<T>(a.grad_y), *gh = maybe<T>(a.grad_h), *gc = maybe<T>(a.grad_c);
  const T *saved = a.saved.data<T>(), *before = a.c_before.data<T>();
  T *const gates = written<T>(a.gates), *const out = written<T>(a.grad_c_before);
  const Roundings states(a.state), formats(a.gates_format), cells(a.cell);
  parallel_for(
      rows, std::max<int64_t>(1, kGrain / (128 * width)), [&](int64_t first, int64_t last) {
        std::vector<T> total(static_cast<size_t>(width));
        T* const dh = total.data();
        for (int64_t n = first; n < last; ++n) {
          add_gradients<T>(dh, width, row_of(gy, n, width), row_of(gh, n, width), nullptr);
          states.apply(dh, width, n * width);
          const T *s = saved + n * 5 * width, *cb = before + n * width, *dc = row_of(gc, n, width);
          T *const to = gates + n * 4 * width, *const dcb = out + n * width;
          with_isa([=]() ULP_INLINE {
            for (int64_t j = 0; j < width; ++j) {
              const auto g = recurrent::lstm_gradient(dh[j], dc == nullptr ? T(0) : dc[j], s[j],
                                                      s[width + j], s[2 * width + j],
                                                      s[3 * width + j], s[4 * width + j], cb[j]);
              to[j] = canonical(g.i);
              to[width + j] = canonical(g.f);
              to[2 * width + j] = canonical(g.g);
              to[3 * width + j] = canonical(g.o);
              dcb[j] = canonical(g.c_before);
            }
          });
          formats.apply(to, 4 * width, n * 4 * width);
          cells.apply(dcb, width, n * width);
        }
      });
}

template <class T>
void gru_step_of(const GruStepArgs& a) {
  const int64_t rows = a.h_before.size(0), width = a.h_before.size(1);
  const T *x = a.input.data<T>(), *u = a.hidden.data<T>(), *before = a.h_before.data<T>();
  T *const saved = written<T>(a.saved), *const out = written<T>(a.h);
  const Interior interior(a.interior.format, a.interior.key, a.trace);
  const Roundings states(a.state);
  for_rows(rows, 12 * width, [&](int64_t n) {
    const T *xn = x + n * 3 * width, *un = u + n * 3 * width, *hb = before + n * width;
    T *const s = saved + n * 4 * width, *const h = out + n * width;
    const int64_t two = 2 * width, at = n * 3 * width;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < two; ++j) s[j] = canonical(xn[j] + un[j]);
      for (int64_t j = 0; j < width; ++j) s[two + width + j] = canonical(un[two + j]);
    });
    interior.apply(0, s, two, at);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < two; ++j) s[j] = sigmoid_of(s[j]);
    });
    interior.apply(1, s, two, at);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < width; ++j)
        s[two + j] = canonical(fma_of(s[j], un[two + j], xn[two + j]));
    });
    interior.apply(0, s + two, width, at + two);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < width; ++j) s[two + j] = tanh_of(s[two + j]);
    });
    interior.apply(1, s + two, width, at + two);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < width; ++j)
        h[j] = canonical(recurrent::new_state(s[width + j], s[two + j], hb[j]));
    });
    states.apply(h, width, n * width);
  });
}

template <class T>
void gru_step_backward_of(const GruStepBackwardArgs& a) {
  const int64_t rows = a.h_before.size(0), width = a.h_before.size(1);
  const T *gy = maybe<T>(a.grad_y), *gh = maybe<T>(a.grad_h), *gd = maybe<T>(a.grad_direct);
  const T *saved = a.saved.data<T>(), *before = a.h_before.data<T>();
  T *const by_input = written<T>(a.input_gates), *const by_hidden = written<T>(a.hidden_gates),
           *const direct = written<T>(a.direct);
  const Roundings states(a.state), inputs(a.input_format), hiddens(a.hidden_format);
  parallel_for(rows, std::max<int64_t>(1, kGrain / (96 * width)), [&](int64_t first, int64_t last) {
    std::vector<T> total(static_cast<size_t>(width));
    T* const dh = total.data();
    for (int64_t n = first; n < last; ++n) {
      add_gradients<T>(dh, width, row_of(gy, n, width), row_of(gh, n, width), row_of(gd, n, width));
      states.apply(dh, width, n * width);
      const T *s = saved + n * 4 * width, *hb = before + n * width;
      const int64_t at = n * 3 * width;
      T *const dx = by_input + at, *const du = by_hidden + at, *const dd = direct + n * width;
      with_isa([=]() ULP_INLINE {
        for (int64_t j = 0; j < width; ++j) {
          const auto g = recurrent::gru_gradient(dh[j], s[j], s[width + j], s[2 * width + j],
                                                 s[3 * width + j], hb[j]);
          dx[j] = du[j] = canonical(g.r);
          dx[width + j] = du[width + j] = canonical(g.z);
          dx[2 * width + j] = canonical(g.n);
          du[2 * width + j] = canonical(g.hidden_n);
          dd[j] = canonical(g.direct);
        }
      });
      inputs.apply(dx, 3 * width, at);
      hiddens.apply(du, 3 * width, at);
    }
  });
}

}  // namespace

void lstm_step(Stream stream, const LstmStepArgs& args) {
  check_lstm_step(stream, args);
  args.c.dtype() == DType::F64 ? lstm_step_of<double>(args) : lstm_step_of<float>(args);
}

void lstm_step_backward(Stream stream, const LstmStepBackwardArgs& args) {
  check_lstm_step_backward(stream, args);
  args.c_before.dtype() == DType::F64 ? lstm_step_backward_of<double>(args)
                                      : lstm_step_backward_of<float>(args);
}

void gru_step(Stream stream, const GruStepArgs& args) {
  check_gru_step(stream, args);
  args.h_before.dtype() == DType::F64 ? gru_step_of<double>(args) : gru_step_of<float>(args);
}

void gru_step_backward(Stream stream, const GruStepBackwardArgs& args) {
  check_gru_step_backward(stream, args);
  args.h_before.dtype() == DType::F64 ? gru_step_backward_of<double>(args)
                                      : gru_step_backward_of<float>(args);
}

}  // namespace ulp::cpu
