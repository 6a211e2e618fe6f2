#include <vector>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/strict_sum.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

/// Σ x² of at most kSumChunk elements from `begin` on.
double squares_of_chunk(const Tensor& tensor, int64_t begin, int64_t n) {
  std::array<float, kSumChunk> buffer;
  const float* x = buffer.data();
  if (tensor.dtype() == DType::F32)
    x = tensor.data<float>() + begin;
  else
    for (int64_t at = 0; at < n; at += kBlock)
      read_block(tensor.raw(), tensor.dtype(), begin + at, std::min(kBlock, n - at),
                 buffer.data() + at);
  double result = 0;
  double* out = &result;
  with_isa([=]() ULP_INLINE {
    *out = sum_chunk<double>(n, [=](int64_t i) ULP_INLINE {
      const auto value = static_cast<double>(x[i]);
      return value * value;
    });
  });
  return result;
}

double squares_of(const Tensor& tensor) {
  const int64_t n = tensor.numel();
  std::vector<double> chunks(static_cast<size_t>((n + kSumChunk - 1) / kSumChunk));
  parallel_for(
      static_cast<int64_t>(chunks.size()), kGrain / kSumChunk, [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c)
          chunks[static_cast<size_t>(c)] =
              squares_of_chunk(tensor, c * kSumChunk, std::min(kSumChunk, n - c * kSumChunk));
      });
  return strict_sum(chunks.data(), static_cast<int64_t>(chunks.size()));
}

}  // namespace

void check_gradients(Stream stream, const CheckGradientsArgs& args) {
  check_check_gradients(stream, args);
  std::vector<double> sums;
  for (const Tensor& gradient : args.gradients) sums.push_back(squares_of(gradient));
  settle_gradients(*args.state, strict_sum(sums.data(), static_cast<int64_t>(sums.size())),
                   args.policy);
}

void settle_scalings(Stream stream, const SettleScalingsArgs& args) {
  check_settle_scalings(stream, args);
  for (const KeptScaling& s : args.scalings) {
    Tensor now = s.now, kept = s.kept;
    const bool skipped = args.state->found_inf != 0;
    const float* from = skipped ? kept.data<float>() : now.data<float>();
    float* to = skipped ? now.mutable_data<float>() : kept.mutable_data<float>();
    std::copy_n(from, now.numel(), to);
  }
}

}  // namespace ulp::cpu
