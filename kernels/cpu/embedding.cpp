#include "kernels/embedding.h"

#include <memory>
#include <type_traits>

#include "core/sum.h"
#include "kernels/cpu/image_blocks.h"
#include "kernels/cpu/rows.h"
#include "kernels/embedding_math.h"

namespace ulp::cpu {
namespace {

/// make(row, column, n, values) for pieces of at most kBlock neighbours of each row, then writes them.
template <class T, class Make>
void for_row_pieces(int64_t rows, int64_t columns, const Result<T>& result, const Make& make) {
  for_rows(rows, columns, [&](int64_t row) {
    Values<T> values;
    for (int64_t column = 0; column < columns; column += kBlock) {
      const int64_t n = std::min(kBlock, columns - column);
      make(row, column, n, values.data());
      result.write(row * columns + column, n, values.data());
    }
  });
}

template <class T>
T nan_of() {
  return static_cast<T>(float_of(kNanBits));
}

template <class T>
void embedding_of(const EmbeddingArgs& args) {
  const int64_t rows = args.out.size(0), columns = args.out.size(1), count = args.table.size(0);
  const int32_t* tokens = args.tokens.data<int32_t>();
  const Result<T> result(args.out, args.output, args.key);
  for_row_pieces<T>(rows, columns, result, [&](int64_t row, int64_t column, int64_t n, T* values) {
    const int32_t token = tokens[row];
    if (token < 0 || token >= count) {
      std::fill(values, values + n, nan_of<T>());
      return;
    }
    Values<T> buffer;
    const T* from = read_values(args.table, token * columns + column, n, buffer.data());
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < n; ++i) values[i] = canonical(from[i]);
    });
  });
}

constexpr int64_t kColumns = 64;  // columns summed together
template <class T>
using Lanes = std::array<std::array<T, kColumns>, kSumLanes>;

/// The tree over the first `used` lanes; the others are +0, which adds nothing to sums that began with +0.
template <class T>
void add_lanes(Lanes<T>& lanes, int64_t used, int64_t n, T* out) {
  auto* lane = lanes.data();
  with_isa([=]() ULP_INLINE {
    for (int64_t width = kSumLanes / 2; width > 0; width /= 2)
      for (int64_t l = 0; l < width && l + width < used; ++l)
        for (int64_t i = 0; i < n; ++i)
          lane[l][static_cast<size_t>(i)] += lane[l + width][static_cast<size_t>(i)];
    for (int64_t i = 0; i < n; ++i) out[i] = lane[0][static_cast<size_t>(i)];
  });
}

/// out[i] = Σ of element `column + i` of `count` ≤ kSumChunk rows, row(k) being the k-th one's number.
template <class T>
void sum_chunk_of(const Tensor& grad, const int32_t* rows, int64_t count, int64_t column, int64_t n,
                  T* out) {
  Lanes<T> lanes;
  const int64_t used = std::min(count, kSumLanes);
  std::fill(lanes.begin(), lanes.begin() + std::max<int64_t>(used, 1), std::array<T, kColumns>{});
  std::array<T, kColumns> buffer;
  for (int64_t k = 0; k < count; ++k) {
    const T* from;
    const int64_t at = rows[k] * grad.size(1) + column;
    if constexpr (std::is_same_v<T, double>)
      from = grad.data<double>() + at;
    else
      from = read_block(grad.raw(), grad.dtype(), at, n, buffer.data());
    T* sums = lanes[static_cast<size_t>(k % kSumLanes)].data();
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < n; ++i) sums[i] += from[i];
    });
  }
  add_lanes(lanes, used, n, out);
}

/// The same for any count: chunks, then a vector of their sums. group_tokens takes no more than a chunk of chunks of chunks.
template <class T>
void sum_rows_of(const Tensor& grad, const int32_t* rows, int64_t count, int64_t column, int64_t n,
                 T* out) {
  if (count <= kSumChunk) return sum_chunk_of<T>(grad, rows, count, column, n, out);
  int64_t part = kSumChunk;  // what one element of the vector above the chunks stands for
  while (part * kSumChunk < count) part *= kSumChunk;
  Lanes<T> lanes{};
  for (int64_t begin = 0, k = 0; begin < count; begin += part, ++k) {
    std::array<T, kColumns> sum;
    sum_rows_of<T>(grad, rows + begin, std::min(part, count - begin), column, n, sum.data());
    T* sums = lanes[static_cast<size_t>(k % kSumLanes)].data();
    for (int64_t i = 0; i < n; ++i) sums[i] += sum[static_cast<size_t>(i)];
  }
  add_lanes(lanes, kSumLanes, n, out);
}

template <class T>
void embedding_backward_of(const EmbeddingBackwardArgs& args) {
  const int64_t tokens = args.out.size(0), columns = args.out.size(1);
  const int32_t *order = args.order.data<int32_t>(), *starts = args.starts.data<int32_t>();
  const Result<T> result(args.out, args.output, args.key);
  const int64_t blocks = (columns + kColumns - 1) / kColumns, tasks = tokens * blocks;
  const int64_t grain = std::max<int64_t>(1, kGrain / 4 * tasks / (args.grad.numel() + 1));
  parallel_for(tasks, grain, [&](int64_t first, int64_t last) {
    std::array<T, kColumns> sum;
    for (int64_t task = first; task < last; ++task) {
      const int64_t token = task / blocks, column = task % blocks * kColumns;
      const int64_t n = std::min(kColumns, columns - column);
      sum_rows_of<T>(args.grad, order + starts[token], starts[token + 1] - starts[token], column, n,
                     sum.data());
      for (int64_t i = 0; i < n; ++i)
        sum[static_cast<size_t>(i)] = canonical(sum[static_cast<size_t>(i)]);
      result.write(token * columns + column, n, sum.data());
    }
  });
}

template <class T>
void rotary_of(const RotaryArgs& args) {
  const int64_t length = args.in.size(1), heads = args.in.size(2), size = args.in.size(3);
  const int64_t half = size / 2;
  const T* turns = args.turns.data<T>();
  const T sign = args.inverse ? T(-1) : T(1);
  const Result<T> result(args.out, args.output, args.key);
  for_rows(args.in.size(0) * length * heads, size, [&](int64_t row) {
    const T* turn = turns + row / heads % length * size;
    for (const bool second : {false, true})
      for (int64_t column = 0; column < half; column += kBlock) {
        const int64_t n = std::min(kBlock, half - column);
        Values<T> own_buffer, other_buffer, values;
        const int64_t at = row * size + column;
        const T* x = read_values(args.in, at + (second ? half : 0), n, own_buffer.data());
        const T* y = read_values(args.in, at + (second ? 0 : half), n, other_buffer.data());
        const T* cs = turn + 2 * column;
        const T own_sign = second ? -sign : sign;
        T* to = values.data();
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i)
            to[i] =
                canonical(functors::first_turned(x[i], y[i], cs[2 * i], own_sign * cs[2 * i + 1]));
        });
        result.write(at + (second ? half : 0), n, to);
      }
  });
}

template <class T>
void swiglu_of(const SwigluArgs& args) {
  const int64_t columns = args.out.size(1);
  const Result<T> result(args.out, args.output, args.key);
  for_row_pieces<T>(args.out.size(0), columns, result,
                    [&](int64_t row, int64_t column, int64_t n, T* values) {
                      Values<T> gates, inputs;
                      const int64_t at = row * 2 * columns + column;
                      const T* a = read_values(args.in, at, n, gates.data());
                      const T* b = read_values(args.in, at + columns, n, inputs.data());
                      with_isa([=]() ULP_INLINE {
                        for (int64_t i = 0; i < n; ++i)
                          values[i] = canonical(functors::swiglu_of(a[i], b[i]));
                      });
                    });
}

template <class T>
void swiglu_backward_of(const SwigluBackwardArgs& args) {
  const int64_t columns = args.grad.size(1);
  const Result<T> result(args.out, args.output, args.key);
  for_rows(args.grad.size(0), 2 * columns, [&](int64_t row) {
    Values<T> gates, inputs, grads, values;
    for (const bool second : {false, true})
      for (int64_t column = 0; column < columns; column += kBlock) {
        const int64_t n = std::min(kBlock, columns - column);
        const int64_t at = row * 2 * columns + column;
        const T* a = read_values(args.in, at, n, gates.data());
        const T* b = read_values(args.in, at + columns, n, inputs.data());
        const T* g = read_values(args.grad, row * columns + column, n, grads.data());
        T* to = values.data();
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i)
            to[i] = canonical(second ? functors::swiglu_value_gradient(a[i], g[i])
                                     : functors::swiglu_gate_gradient(a[i], b[i], g[i]));
        });
        result.write(at + (second ? columns : 0), n, to);
      }
  });
}

}  // namespace

void group_tokens(Stream stream, const GroupTokensArgs& args) {
  check_group_tokens(stream, args);
  Tensor order_tensor = args.order, starts_tensor = args.starts;
  int32_t *order = order_tensor.mutable_data<int32_t>(),
          *starts = starts_tensor.mutable_data<int32_t>();
  const int64_t n = args.tokens.numel(), tokens = args.starts.numel() - 1;
  const int32_t* token = args.tokens.data<int32_t>();
  const auto place_of = [&](int64_t i) {  // those that are none come last
    return static_cast<size_t>(token[i] < 0 || token[i] >= tokens ? tokens : token[i]);
  };
  std::vector<int32_t> next(static_cast<size_t>(tokens) + 2);
  for (int64_t i = 0; i < n; ++i) ++next[place_of(i) + 1];
  for (size_t v = 1; v < next.size(); ++v) next[v] += next[v - 1];
  for (int64_t v = 0; v <= tokens; ++v) starts[v] = next[static_cast<size_t>(v)];
  for (int64_t i = 0; i < n; ++i) order[next[place_of(i)]++] = static_cast<int32_t>(i);
}

void gather_windows(Stream stream, const GatherWindowsArgs& args) {
  check_gather_windows(stream, args);
  Tensor out_tensor = args.out, label_tensor = args.labels;
  int32_t *out = out_tensor.mutable_data<int32_t>(), *labels = label_tensor.mutable_data<int32_t>();
  const int64_t begin = (args.state == nullptr ? args.begin : args.state->batch_offset) +
                        (args.epoch == nullptr ? 0 : args.epoch->batch_offset);
  const int64_t length = args.length(), windows = args.windows();
  const RandomSource random = args.random ? RandomSource(args.key) : RandomSource();
  const auto gather = [&](const auto* text) {
    for_rows(windows, length, [&](int64_t n) {
      const auto* from =
          text + window_start(args.random, random, begin + n, args.text.numel(), length);
      for (int64_t t = 0; t < length; ++t) {
        out[n * length + t] = from[t];
        labels[n * length + t] = from[t + 1];
      }
    });
  };
  if (args.text.dtype() == DType::U8)
    gather(args.text.data<uint8_t>());
  else
    gather(args.text.data<int32_t>());
  if (args.state != nullptr) args.state->batch_offset += windows;
}

#define ULP_DEFINE(name, Args)                                                         \
  void name(Stream stream, const Args& args) {                                         \
    check_##name(stream, args);                                                        \
    args.out.dtype() == DType::F64 ? name##_of<double>(args) : name##_of<float>(args); \
  }
ULP_DEFINE(embedding, EmbeddingArgs)
ULP_DEFINE(embedding_backward, EmbeddingBackwardArgs)
ULP_DEFINE(rotary, RotaryArgs)
ULP_DEFINE(swiglu, SwigluArgs)
ULP_DEFINE(swiglu_backward, SwigluBackwardArgs)

}  // namespace ulp::cpu
