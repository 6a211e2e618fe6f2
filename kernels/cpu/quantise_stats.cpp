#include "kernels/cpu/quantise_stats.h"

#include <algorithm>

#include "core/sum.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/strict_sum.h"

namespace ulp::cpu {
namespace {

/// The largest |x| and |y − x| of a run, and how many elements became zero.
struct Most {
  uint32_t x = 0, error = 0;
  int32_t underflow = 0;
};

ULP_HD Most most_of(const float* x, const float* y) {
  uint32_t most_x = 0, most_error = 0;
  int32_t underflow = 0;
  for (int64_t i = 0; i < kStatsRun; ++i) {
    const uint32_t a = bits_of(x[i]) & ~kSignBit, e = bits_of(y[i] - x[i]) & ~kSignBit;
    const uint32_t b = bits_of(y[i]) & ~kSignBit;
    most_x = a > most_x ? a : most_x;
    most_error = e > most_error ? e : most_error;
    underflow += static_cast<int32_t>(b == 0) & static_cast<int32_t>(a != 0);
  }
  return {most_x, most_error, underflow};
}

/// The halving tree over 2 · kWidth sums.
template <int64_t kWidth = kStatsLanes / 2>
ULP_HD float sum_stats_lanes(float* lane) {
  for (int64_t l = 0; l < kWidth; ++l) lane[l] += lane[l + kWidth];
  if constexpr (kWidth > 1) return sum_stats_lanes<kWidth / 2>(lane);
  return lane[0];
}

ULP_HD StatsSums sums_of(const float* x, const float* y, const Most& most) {
  const float scale = stats_scale(most.x), error_scale = stats_scale(most.error);
  alignas(64) float error[kStatsLanes], square_error[kStatsLanes], square[kStatsLanes];
  for (int64_t l = 0; l < kStatsLanes; ++l) {
    StatsSums lane;
#pragma GCC unroll 4
    for (int64_t row = 0; row < kStatsRun; row += kStatsLanes)
      lane.add(x[l + row] * scale, (y[l + row] - x[l + row]) * error_scale);
    error[l] = lane.error;
    square_error[l] = lane.square_error;
    square[l] = lane.square;
  }
  return {sum_stats_lanes(error), sum_stats_lanes(square_error), sum_stats_lanes(square)};
}

/// Counts what is not finite in a run and puts zeros in its place.
void count_others(const float* x, const float* y, bool gaps, float* to_x, float* to_y,
                  QuantiseStats& own) {
  for (int64_t i = 0; i < kStatsRun; ++i) {
    const uint32_t a = bits_of(x[i]) & ~kSignBit, e = bits_of(y[i] - x[i]) & ~kSignBit;
    const bool finite = e < kInfinityBits, gap = gaps && bits_of(x[i]) == kGapBits;
    own.count -= gap ? 1 : 0;
    own.underflow -= gap && y[i] == 0.0f ? 1 : 0;  // as one that became zero it was counted
    own.nan += a > kInfinityBits && !gap ? 1 : 0;
    own.infinite += a == kInfinityBits ? 1 : 0;
    own.finite -= finite ? 0 : 1;
    own.amax_bits = a < kInfinityBits ? std::max(own.amax_bits, a) : own.amax_bits;
    to_x[i] = finite ? x[i] : 0.0f;
    to_y[i] = finite ? y[i] : 0.0f;
  }
}

}  // namespace

void StatsWalk::add(const float* x, const float* y, int64_t n) {
  own_.count += n;
  own_.finite += n;
  const int64_t run = at_ / kStatsRun, place = at_ % kStatsRun;
  at_ += n;
  if (n == kStatsRun) return add_run(x, y, run);
  std::copy(x, x + n, x_ + place);
  std::copy(y, y + n, y_ + place);
  if (place + n == kStatsRun) add_run(x_, y_, run);
}

void StatsWalk::add_run(const float* x, const float* y, int64_t run) {
  Most most;
  StatsSums sums;
  const auto measure = [&most, &sums](const float* from_x, const float* from_y) {
    Most* most_at = &most;
    StatsSums* sums_at = &sums;
    with_isa([=]() ULP_INLINE {
      *most_at = most_of(from_x, from_y);
      if (most_at->error < kInfinityBits) *sums_at = sums_of(from_x, from_y, *most_at);
    });
  };
  measure(x, y);
  own_.underflow += most.underflow;
  if (most.error >= kInfinityBits) {
    float finite_x[kStatsRun], finite_y[kStatsRun];
    count_others(x, y, sum_->gaps_, finite_x, finite_y, own_);
    measure(finite_x, finite_y);
  }
  own_.amax_bits = std::max(own_.amax_bits, most.x);
  const double unit = stats_unit(most.x), error_unit = stats_unit(most.error);
  const auto at = static_cast<size_t>(run);
  sum_->error_[at] = sums.error * error_unit;
  sum_->square_error_[at] = sums.square_error * (error_unit * error_unit);
  sum_->square_[at] = sums.square * (unit * unit);
}

void StatsWalk::finish() {
  if (sum_ == nullptr || own_.count == 0) return;
  if (const int64_t place = at_ % kStatsRun; place != 0) {
    std::fill(x_ + place, x_ + kStatsRun, 0.0f);
    std::fill(y_ + place, y_ + kStatsRun, 0.0f);
    add_run(x_, y_, at_ / kStatsRun);
  }
  const std::lock_guard lock(sum_->mutex_);
  QuantiseStats& all = sum_->counts_;
  all.count += own_.count;
  all.overflow += own_.overflow;
  all.underflow += own_.underflow;
  all.nan += own_.nan;
  all.infinite += own_.infinite;
  all.finite += own_.finite;
  all.amax_bits = std::max(all.amax_bits, own_.amax_bits);
}

StatsSum::StatsSum(int64_t elements, bool gaps) : gaps_(gaps) {
  const auto runs = static_cast<size_t>((elements + kStatsRun - 1) / kStatsRun);
  for (std::vector<double>* sums : {&error_, &square_error_, &square_}) sums->resize(runs);
}

QuantiseStats StatsSum::total() const {
  QuantiseStats all = counts_;
  const auto runs = static_cast<int64_t>(square_.size());
  all.error = strict_sum(error_.data(), runs);
  all.square_error = strict_sum(square_error_.data(), runs);
  all.square = strict_sum(square_.data(), runs);
  return all;
}

}  // namespace ulp::cpu
