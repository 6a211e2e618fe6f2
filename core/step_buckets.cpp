#include "core/step_buckets.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace ulp {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// What find answers for x.
int32_t count_of(const std::vector<float>& steps, float x) {
  return static_cast<int32_t>(std::upper_bound(steps.begin() + 1, steps.end(), x) - steps.begin()) -
         1;
}

/// The numbers of a bucket.
struct Range {
  float least, most;
};

Range range_of(const StepBuckets& b, int32_t bucket) {
  const bool negative = bucket > b.last;
  const int32_t own = negative ? bucket - b.last - 1 : bucket;
  const auto edge = [&](int32_t at) {
    return float_of(static_cast<uint32_t>(b.first + at) << b.shift);
  };
  const float low = own == 0 ? 0.0f : edge(own);
  const float high = own == b.last ? kInfinity : float_of(bits_of(edge(own + 1)) - 1);
  return negative ? Range{-high, -low} : Range{low, high};
}

/// Buckets of so many bits of the significand; false if they are too many.
bool divide(const std::vector<float>& steps, int32_t bits, StepBuckets& b) {
  float small = kInfinity, large = 0;
  for (size_t i = 1; i < steps.size(); ++i) {
    if (steps[i] != 0) small = std::min(small, std::abs(steps[i]));
    large = std::max(large, std::abs(steps[i]));
  }
  small = std::min(small, large);
  b.shift = 23 - bits;
  b.first = std::max(0, static_cast<int32_t>(bits_of(small) >> b.shift) - 1);
  b.last = static_cast<int32_t>(bits_of(large) >> b.shift) - b.first;
  if (2 * (b.last + 1) > StepBuckets::kBuckets) return false;
  int32_t most = 0;  // steps within a bucket
  for (int32_t bucket = 0; bucket < 2 * (b.last + 1); ++bucket) {
    const Range r = range_of(b, bucket);
    most = std::max(most, count_of(steps, r.most) - count_of(steps, r.least));
  }
  b.width = 1;
  while (b.width <= most) b.width *= 2;
  return true;
}

}  // namespace

StepTable make_step_table(const std::vector<float>& steps) {
  constexpr auto kSteps = static_cast<size_t>(StepBuckets::kSteps);
  ULP_ASSERT(!steps.empty() && steps.size() <= kSteps);
  StepTable table;
  StepBuckets next;
  table.buckets.width = 2 * StepBuckets::kSteps;
  for (int32_t bits = 0; bits <= 23 && divide(steps, bits, next); ++bits)
    if (next.width < table.buckets.width) table.buckets = next;
  const StepBuckets& b = table.buckets;
  table.starts.assign(static_cast<size_t>(StepBuckets::kBuckets), 0);
  // No comparison reads beyond the last step.
  for (int32_t bucket = 0; bucket < 2 * (b.last + 1); ++bucket)
    table.starts[static_cast<size_t>(bucket)] = static_cast<uint8_t>(
        std::min(count_of(steps, range_of(b, bucket).least), StepBuckets::kSteps - b.width));
  table.steps = steps;
  table.steps.resize(kSteps, kInfinity);
  return table;
}

}  // namespace ulp
