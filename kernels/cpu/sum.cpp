#include <array>
#include <vector>

#include "core/bits.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/strict_sum.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

constexpr int64_t kColumns = 64;  // columns summed together

/// out[i] = Σ_a in[a·stride + i] over at most kSumChunk rows, for n ≤ kColumns columns.
template <class T>
void sum_columns(const T* in, int64_t rows, int64_t stride, int64_t n, T* out) {
  std::array<std::array<T, kColumns>, kSumLanes> lanes{};
  auto* lane = lanes.data();
  with_isa([=]() ULP_INLINE {
    for (int64_t a = 0; a < rows; ++a) {
      T* sums = lane[a % kSumLanes].data();
      const T* row = in + a * stride;
      for (int64_t i = 0; i < n; ++i) sums[i] += row[i];
    }
    for (int64_t width = kSumLanes / 2; width > 0; width /= 2)
      for (int64_t l = 0; l < width; ++l)
        for (int64_t i = 0; i < n; ++i)
          lane[l][static_cast<size_t>(i)] += lane[l + width][static_cast<size_t>(i)];
    for (int64_t i = 0; i < n; ++i) out[i] = lane[0][static_cast<size_t>(i)];
  });
}

/// out (inner) = sums of the columns of in (rows, inner).
template <class T>
void sum_rows(const T* in, int64_t rows, int64_t inner, T* out) {
  if (inner == 1) {
    *out = canonical(strict_sum(in, rows));
    return;
  }
  const int64_t chunks = (rows + kSumChunk - 1) / kSumChunk;
  std::vector<T> partial(chunks > 1 ? static_cast<size_t>(chunks * inner) : 0);
  T* sums = chunks > 1 ? partial.data() : out;
  const int64_t column_blocks = (inner + kColumns - 1) / kColumns;
  const int64_t tasks = column_blocks * std::max<int64_t>(chunks, 1);
  const int64_t grain =
      std::max<int64_t>(1, kGrain / std::max<int64_t>(1, kColumns * std::min(rows, kSumChunk)));
  parallel_for(tasks, grain, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t chunk = task / column_blocks, column = task % column_blocks * kColumns;
      sum_columns(in + chunk * kSumChunk * inner + column,
                  std::min(kSumChunk, rows - chunk * kSumChunk), inner,
                  std::min(kColumns, inner - column), sums + chunk * inner + column);
    }
  });
  if (chunks > 1) return sum_rows(sums, chunks, inner, out);
  for (int64_t i = 0; i < inner; ++i) out[i] = canonical(out[i]);
}

template <class T>
void run(const T* in, const SumArgs& args, T* out) {
  // One long vector: its chunks in parallel, then the vector of their sums.
  if (args.inner == 1 && args.outer == 1 && args.axis > kSumChunk) {
    std::vector<T> chunks(static_cast<size_t>((args.axis + kSumChunk - 1) / kSumChunk));
    parallel_for(static_cast<int64_t>(chunks.size()), 4, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c)
        chunks[static_cast<size_t>(c)] =
            strict_sum(in + c * kSumChunk, std::min(kSumChunk, args.axis - c * kSumChunk));
    });
    *out = canonical(strict_sum(chunks.data(), static_cast<int64_t>(chunks.size())));
    return;
  }
  const auto one = [&](int64_t o) {
    sum_rows(in + o * args.axis * args.inner, args.axis, args.inner, out + o * args.inner);
  };
  if (args.outer == 1) return one(0);
  parallel_for(args.outer,
               std::max<int64_t>(1, kGrain / std::max<int64_t>(1, args.axis * args.inner)),
               [&](int64_t first, int64_t last) {
                 for (int64_t o = first; o < last; ++o) one(o);
               });
}

/// The sums times args.factor.
template <class T>
void run_scaled(const T* in, const SumArgs& args, T* out) {
  run(in, args, out);
  const T factor = static_cast<T>(args.factor);
  if (factor == 1) return;
  for (int64_t i = 0; i < args.out.numel(); ++i) out[i] = canonical(out[i] * factor);
}

}  // namespace

void sum(Stream stream, const SumArgs& args) {
  check_kernel_tensor("sum", stream, args.in, args.in.shape());
  check_kernel_tensor("sum", stream, args.out, args.out.shape());
  ULP_CHECK(args.in.numel() == args.outer * args.axis * args.inner &&
                args.out.numel() == args.outer * args.inner,
            "sum: ({}, {}, {}) does not describe an input of shape {} and an output of shape {}",
            args.outer, args.axis, args.inner, args.in.shape(), args.out.shape());
  Tensor out = args.out;
  if (args.in.dtype() == DType::F64)
    return run_scaled(args.in.data<double>(), args, out.mutable_data<double>());
  if (args.in.dtype() == DType::F32)
    return run_scaled(args.in.data<float>(), args, out.mutable_data<float>());
  const std::vector<float> in = args.in.to_floats();
  run_scaled(in.data(), args, out.mutable_data<float>());
}

}  // namespace ulp::cpu
