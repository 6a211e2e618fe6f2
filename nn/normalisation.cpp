#include "nn/normalisation.h"

#include <cmath>

#include "core/error.h"

namespace ulp::nn {
namespace {

/// Mean and variance of the values channel, channel + stride, …
struct Moments {
  double mean = 0, variance = 0;
};

Moments moments_of(const uint8_t* values, int64_t count, int64_t channel, int64_t stride) {
  uint64_t sum = 0, squares = 0, n = 0;
  for (int64_t i = channel; i < count; i += stride, ++n) {
    sum += values[i];
    squares += uint64_t{values[i]} * values[i];
  }
  // n Σ x² − (Σ x)², exactly.
  __extension__ using Wide = unsigned __int128;
  const Wide spread = Wide{n} * squares - Wide{sum} * sum;
  const auto count_of = static_cast<double>(n);
  return {static_cast<double>(sum) / count_of, static_cast<double>(spread) / (count_of * count_of)};
}

Moments moments_of(const float* values, int64_t count, int64_t channel, int64_t stride) {
  double sum = 0;
  int64_t n = 0;
  for (int64_t i = channel; i < count; i += stride, ++n) sum += static_cast<double>(values[i]);
  const double mean = sum / static_cast<double>(n);
  double squares = 0;
  for (int64_t i = channel; i < count; i += stride) {
    const double d = static_cast<double>(values[i]) - mean;
    squares += d * d;
  }
  return {mean, squares / static_cast<double>(n)};
}

}  // namespace

Normalisation channel_statistics(const Dataset& data) {
  const Tensor& images = data.train.images;
  const int64_t channels = data.sample_shape[2];
  const double scale = static_cast<double>(data.scale);
  Normalisation result;
  for (int64_t c = 0; c < channels; ++c) {
    const Moments m = images.dtype() == DType::U8
                          ? moments_of(images.data<uint8_t>(), images.numel(), c, channels)
                          : moments_of(images.data<float>(), images.numel(), c, channels);
    ULP_CHECK(m.variance > 0 && std::isfinite(m.variance),
              "{}: channel {} has a standard deviation of {} over the training samples, which "
              "nothing can be divided by; give mean and std",
              data.name, c, std::sqrt(m.variance) * scale);
    result.mean.push_back(m.mean * scale);
    result.std.push_back(std::sqrt(m.variance) * scale);
  }
  return result;
}

void check_normalisation(const Normalisation& n, int64_t channels) {
  const auto wanted = static_cast<size_t>(channels);
  ULP_CHECK(n.mean.size() == wanted && n.std.size() == wanted,
            "normalisation: {} means and {} standard deviations for images of {} channels",
            n.mean.size(), n.std.size(), channels);
  for (size_t c = 0; c < wanted; ++c) {
    ULP_CHECK(std::abs(n.mean[c]) <= 1e30,
              "normalisation: the mean of channel {} must lie in -1e30 … 1e30, got {}", c,
              n.mean[c]);
    // The factor 1 / std is fp32.
    ULP_CHECK(n.std[c] >= 1e-30 && n.std[c] <= 1e30,
              "normalisation: the standard deviation of channel {} must lie in 1e-30 … 1e30, got "
              "{}",
              c, n.std[c]);
  }
}

}  // namespace ulp::nn
