#include "kernels/cpu/quantise_stats.h"

#include <algorithm>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/strict_sum.h"

namespace ulp::cpu {
namespace {

struct Lanes {
  double *error, *square_error, *square;
};

ULP_HD void add_row(const float* x, const float* y, const uint8_t* clamped, int64_t n, Lanes to,
                    QuantiseStats& own) {
  int32_t overflow = 0, underflow = 0, nan = 0, infinite = 0, finite = 0;
  uint32_t amax = own.amax_bits;
#pragma GCC ivdep
  for (int64_t l = 0; l < n; ++l) {
    const StatsTerms t = stats_terms(x[l], y[l]);
    to.error[l] += t.error;
    to.square_error[l] += t.square_error;
    to.square[l] += t.square;
    overflow += clamped[l];
    underflow += t.underflow ? 1 : 0;
    nan += t.nan ? 1 : 0;
    infinite += t.infinite ? 1 : 0;
    finite += t.finite ? 1 : 0;
    amax = t.finite_bits > amax ? t.finite_bits : amax;
  }
  own.overflow += overflow;
  own.underflow += underflow;
  own.nan += nan;
  own.infinite += infinite;
  own.finite += finite;
  own.amax_bits = amax;
}

}  // namespace

void StatsRun::add(const float* x, const float* y, const uint8_t* clamped, int64_t n) {
  const int64_t first = at_ % kSumLanes;
  QuantiseStats* own = &own_;
  const Lanes lanes{error_, square_error_, square_};
  with_isa([=]() ULP_INLINE {
    QuantiseStats sum = *own;
    int64_t lane = first;
    for (int64_t done = 0; done < n;) {
      const Lanes to{lanes.error + lane, lanes.square_error + lane, lanes.square + lane};
      const int64_t count = kSumLanes - lane < n - done ? kSumLanes - lane : n - done;
      add_row(x + done, y + done, clamped + done, count, to, sum);
      done += count;
      lane = 0;
    }
    *own = sum;
  });
  at_ += n;
  own_.count += n;
  if (at_ % kSumChunk == 0) finish();
}

void StatsRun::finish() {
  if (sum_ == nullptr || at_ == 0) return;
  QuantiseStats& chunk = sum_->chunk((at_ - 1) / kSumChunk);
  if (chunk.count != 0) return;  // done when it was full
  own_.error = sum_lanes(error_);
  own_.square_error = sum_lanes(square_error_);
  own_.square = sum_lanes(square_);
  chunk = own_;
  own_ = QuantiseStats{};
  std::fill(error_, error_ + kSumLanes, 0.0);
  std::fill(square_error_, square_error_ + kSumLanes, 0.0);
  std::fill(square_, square_ + kSumLanes, 0.0);
}

QuantiseStats StatsSum::total() const {
  QuantiseStats all;
  std::vector<double> error, square_error, square;
  for (const QuantiseStats& c : chunks_) {
    all.overflow += c.overflow;
    all.underflow += c.underflow;
    all.nan += c.nan;
    all.infinite += c.infinite;
    all.finite += c.finite;
    all.amax_bits = std::max(all.amax_bits, c.amax_bits);
    error.push_back(c.error);
    square_error.push_back(c.square_error);
    square.push_back(c.square);
  }
  const auto n = static_cast<int64_t>(chunks_.size());
  all.count = count_;
  all.error = strict_sum(error.data(), n);
  all.square_error = strict_sum(square_error.data(), n);
  all.square = strict_sum(square.data(), n);
  return all;
}

}  // namespace ulp::cpu
