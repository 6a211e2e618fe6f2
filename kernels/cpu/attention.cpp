#include "kernels/attention.h"

#include <optional>
#include <type_traits>
#include <vector>

#include "core/scalar_math.h"
#include "kernels/cpu/image_blocks.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/strict_sum.h"
#include "kernels/matmul_unit.h"

namespace ulp::cpu {
namespace {

/// Matrix b of a contiguous (B, rows, columns), turned or not.
Matrix matrix_of(const Tensor& t, bool turned, int64_t b) {
  Matrix m;
  m.dtype = t.dtype();
  m.data = static_cast<const char*>(t.raw()) +
           b * t.size(1) * t.size(2) * static_cast<int64_t>(size_of(t.dtype()));
  m.row_step = turned ? 1 : t.size(2);
  m.column_step = turned ? t.size(2) : 1;
  return m;
}

Tensor view_of(const Tensor& t, bool turned, int64_t b) {
  const Tensor one = t.slice(0, b, b + 1).reshape({t.size(1), t.size(2)});
  return turned ? one.transpose(0, 1) : one;
}

/// The elements of a contiguous tensor: any float, or doubles.
template <class T>
class Numbers {
 public:
  explicit Numbers(const Tensor& t) : data_(t.raw()), dtype_(t.dtype()) {}
  /// x[0 … n) = those from `begin` on.
  void read(int64_t begin, int64_t n, T* x) const {
    if constexpr (std::is_same_v<T, double>) {
      std::copy_n(static_cast<const double*>(data_) + begin, n, x);
    } else {
      for (int64_t i = 0; i < n; i += kBlock) {
        const int64_t count = std::min(kBlock, n - i);
        const float* const from = read_block(data_, dtype_, begin + i, count, x + i);
        if (from != x + i) std::copy_n(from, count, x + i);
      }
    }
  }

 private:
  const void* data_;
  DType dtype_;
};

/// The values of a row and what becomes of them.
template <class T>
class RowOf {
 public:
  explicit RowOf(const MaskedRows& r, const InteriorTrace& trace = {})
      : visible_(r),
        scores_(r.scores),
        scale_(static_cast<T>(r.scale)),
        score_(r.score, r.score_key),
        interior_(r.interior, r.interior_key, trace) {}

  int64_t keys() const { return visible_.keys; }
  int64_t visible(int64_t row) const { return visible_(row); }

  /// p[j] for the n ≥ 1 keys that the row sees.
  void probabilities(int64_t row, int64_t n, T* p) const {
    const int64_t index = row * visible_.keys;
    scores_.read(index, n, p);
    round(score_, p, n, index);
    const T scale = scale_;
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < n; ++j) p[j] = p[j] * scale;
    });
    const T most = largest_of(p, n);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < n; ++j) p[j] = canonical(p[j] - most);
    });
    interior_.apply(0, p, n, index);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < n; ++j) p[j] = exp_of(p[j]);
    });
    interior_.apply(1, p, n, index);
    T sum = strict_sum(p, n);
    interior_.apply(2, &sum, 1, row);
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < n; ++j) p[j] = canonical(p[j] / sum);
    });
  }

  /// Of a row that sees n keys nothing else is rounded.
  void note_gaps(int64_t row, int64_t n) const {
    for (size_t draw = 0; draw < 2; ++draw)
      interior_.gap(draw, visible_.keys - n, row * visible_.keys + n);
    if (n == 0) interior_.gap(2, 1, row);
  }

  static void round(const BlockQuantiser& q, float* x, int64_t n, int64_t index) {
    for (int64_t i = 0; i < n; i += kBlock) q.apply(x + i, std::min(kBlock, n - i), index + i);
  }
  static void round(const BlockQuantiser&, double*, int64_t, int64_t) {}

 private:
  Visible visible_;
  Numbers<T> scores_;
  T scale_;
  BlockQuantiser score_;
  Interior interior_;
};

/// Word: as large as a score, in all of whose types the bits of +0 are zeros.
template <class Word>
void mask_scores_of(const MaskedRows& r) {
  const Visible visible(r);
  Tensor scores = r.scores;
  auto* const x = static_cast<Word*>(scores.mutable_raw());
  parallel_for(scores.size(0) * scores.size(1),
               std::max<int64_t>(1, kGrain / std::max<int64_t>(1, visible.keys)),
               [&](int64_t first, int64_t last) {
                 for (int64_t row = first; row < last; ++row)
                   std::fill(x + row * visible.keys + visible(row), x + (row + 1) * visible.keys,
                             Word(0));
               });
}

/// Writes a row whose first n values are given, times a factor; the others are 0.
template <class T>
void write_row(const Result<T>& out, int64_t index, int64_t n, std::vector<T>& values, T factor) {
  const auto keys = static_cast<int64_t>(values.size());
  if (factor != T(1)) {
    T* const x = values.data();
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < n; ++j) x[j] = canonical(x[j] * factor);
    });
  }
  std::fill(values.begin() + n, values.end(), T(0));
  for (int64_t i = 0; i < keys; i += kBlock)
    out.write(index + i, std::min(kBlock, keys - i), values.data() + i);
}

/// body(row, values) for each row, with room for its values.
template <class T, class Body>
void for_masked_rows(const MaskedRows& r, const Body& body) {
  const int64_t rows = r.scores.size(0) * r.scores.size(1), keys = r.scores.size(2);
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, 8 * keys)),
               [&](int64_t first, int64_t last) {
                 std::vector<T> values(static_cast<size_t>(keys));
                 for (int64_t row = first; row < last; ++row) body(row, values);
               });
}

template <class T>
void masked_softmax_of(const MaskedSoftmaxArgs& args) {
  const RowOf<T> rows(args.rows, args.trace);
  const Result<T> out(args.out, args.output, args.key);
  for_masked_rows<T>(args.rows, [&](int64_t row, std::vector<T>& p) {
    const int64_t n = rows.visible(row);
    if (n > 0) rows.probabilities(row, n, p.data());
    rows.note_gaps(row, n);
    write_row(out, row * rows.keys(), n, p, static_cast<T>(args.factor));
  });
}

template <class T>
void masked_softmax_backward_of(const MaskedSoftmaxBackwardArgs& args) {
  const RowOf<T> rows(args.rows);
  const Result<T> out(args.out, args.output, args.key);
  const BlockQuantiser gradient(args.gradient, args.gradient_key);
  const Numbers<T> grad(args.grad);
  std::optional<Result<T>> kept;
  if (args.p.defined()) kept.emplace(args.p, args.p_output, args.p_key);
  const T scale = static_cast<T>(args.rows.scale), factor = static_cast<T>(args.factor);
  for_masked_rows<T>(args.rows, [&](int64_t row, std::vector<T>& values) {
    const int64_t n = rows.visible(row), index = row * rows.keys();
    T* p = values.data();
    if (n > 0) {
      thread_local std::vector<T> more;
      more.resize(static_cast<size_t>(2 * n));
      T *g = more.data(), *products = g + n;
      rows.probabilities(row, n, p);
      if (kept) {
        thread_local std::vector<T> copy;
        copy = values;
        write_row(*kept, index, n, copy, factor);
      }
      grad.read(index, n, g);
      RowOf<T>::round(gradient, g, n, index);
      with_isa([=]() ULP_INLINE {
        for (int64_t j = 0; j < n; ++j) products[j] = g[j] * p[j];
      });
      const T sum = strict_sum(products, n);
      with_isa([=]() ULP_INLINE {
        for (int64_t j = 0; j < n; ++j) p[j] = canonical(p[j] * (g[j] - sum) * scale);
      });
    } else if (kept) {
      write_row(*kept, index, n, values, factor);
    }
    write_row(out, index, n, values, factor);
  });
}

}  // namespace

void batched_matmul(Stream stream, const BatchedMatmulArgs& args) {
  const BatchedExtents e = check_batched_matmul(stream, args);
  ULP_CHECK(args.math == Math::Strict,
            "batched_matmul: {} math needs CUDA; on the CPU ask for strict math",
            to_string(args.math));
  if (args.out.numel() == 0) return;
  if (args.a.dtype() == DType::F64) {
    for (int64_t b = 0; b < e.count; ++b) {
      MatmulArgs one;
      one.a = view_of(args.a, args.turn_a, b);
      one.b = view_of(args.b, args.turn_b, b);
      one.out = view_of(args.out, false, b);
      one.factor = args.factor;
      matmul(stream, one);
    }
    return;
  }
  Tensor out = args.out;
  if (out.dtype() != DType::F32) out = Tensor::empty(out.shape(), DType::F32, kCpu);
  float* const sums = out.mutable_data<float>();
  const Finish finish({}, args.factor, {}, args.output, {});
  constexpr int64_t kWork = 1 << 18;  // multiply-adds that pay for waking a thread
  parallel_for(e.count, std::max<int64_t>(1, kWork / std::max<int64_t>(1, e.m * e.n * e.k)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b) {
                   Product p{};
                   p.a = matrix_of(args.a, args.turn_a, b);
                   p.b = matrix_of(args.b, args.turn_b, b);
                   p.m = e.m;
                   p.k = e.k;
                   p.n = p.out_step = e.n;
                   p.out = sums + b * e.m * e.n;
                   p.sums = args.sums;
                   p.sums.matrix += b;
                   multiply(p, finish);
                 }
               });
  if (args.out.dtype() != DType::F32) narrow(out, args.out);
}

void mask_scores(Stream stream, const MaskScoresArgs& args) {
  check_mask_scores(stream, args);
  if (args.rows.scores.numel() == 0) return;
  switch (size_of(args.rows.scores.dtype())) {
    case 1: return mask_scores_of<uint8_t>(args.rows);
    case 2: return mask_scores_of<uint16_t>(args.rows);
    case 4: return mask_scores_of<uint32_t>(args.rows);
    default: return mask_scores_of<uint64_t>(args.rows);
  }
}

void masked_softmax(Stream stream, const MaskedSoftmaxArgs& args) {
  check_masked_softmax(stream, args);
  if (args.out.numel() == 0) return;
  args.rows.scores.dtype() == DType::F64 ? masked_softmax_of<double>(args)
                                         : masked_softmax_of<float>(args);
}

void masked_softmax_backward(Stream stream, const MaskedSoftmaxBackwardArgs& args) {
  check_masked_softmax_backward(stream, args);
  if (args.out.numel() == 0) return;
  args.grad.dtype() == DType::F64 ? masked_softmax_backward_of<double>(args)
                                  : masked_softmax_backward_of<float>(args);
}

}  // namespace ulp::cpu
