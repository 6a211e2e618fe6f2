#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace ulp::optim {

/// An average of the weights that layers read, in a format of its own.
struct AverageOptions {
  enum class Kind : uint8_t { Swa, Ema };
  Kind kind = Kind::Swa;
  Quantizer format{};    // see Average for how it is stored
  int64_t start = 0;     // steps before the first weights are taken
  int64_t every = 1;     // steps from weights to weights
  double decay = 0.999;  // Ema: what is kept of the old average
};

/// Swa: the mean of the weights after `start` steps, `start + every` steps … (counted from the first step; 0: `every` …).
/// Ema: the first of these weights, then average ← decay·average + (1 − decay)·weights.
///   tape.backward(loss);  optimizer.step();  average.update();
/// All of it on the run's device without waiting for it, also in a recorded step. average ← Q(average + f·(weights −
/// average)) with one rounding to fp32 of the difference, one of the sum, then Q; words of stochastic formats come from the
/// role `average` of the parameter. A skipped step counts and changes nothing: if it was its turn, the next one's weights are taken.
/// Stored in the format's storage_type, so that layers read it in place of the weights, and not in packed codes: 1 byte an
/// element for what fp8 holds (e4m3, e5m2, e3m2, e2m3, e2m1), 2 for what bf16 or fp16 holds (bfp8 too), else 4 (nf4 too).
/// Buffers are not averaged: those of batch norms under the average are computed anew (nn::RunningStatistics,
/// nn::recompute_running_statistics).
/// Sources: SWA, arXiv 1803.05407; low-precision averages, SWALP, arXiv 1904.11943.
class Average {
 public:
  /// Throws for options out of range, a block axis that a parameter lacks, and delayed scaling, which would look at every step.
  Average(Run& run, std::vector<Parameter*> parameters, const AverageOptions& options);

  /// After the optimizer's step.
  void update();
  /// How many weights were taken; waits for the device.
  int64_t count() const;
  const AverageOptions& options() const { return options_; }
  /// Of all averages.
  int64_t bytes() const;

  /// While it lives, the parameters hold the average, and the weights are kept aside. Not around a recorded step.
  class InPlace {
   public:
    explicit InPlace(Average& average) : average_(average) { average_.exchange(); }
    ~InPlace() { average_.exchange(); }
    InPlace(const InPlace&) = delete;
    InPlace& operator=(const InPlace&) = delete;

   private:
    Average& average_;
  };

  /// "<parameter path>.average" each, and "average.state": all that a resumed run needs. Handles share memory.
  std::map<std::string, Tensor> tensors() const;
  /// The format's name of each average.
  std::map<std::string, std::string> formats() const;

 private:
  struct Averaged {
    Parameter* parameter;
    Tensor average;
  };
  void exchange();
  void update_blocks(const Averaged& one, const RandomKey& key);
  AverageState* device_state() const;

  Run& run_;
  AverageOptions options_;
  std::vector<Averaged> averages_;
  Tensor state_;  // U8, sizeof(AverageState), in the device's memory
};

}  // namespace ulp::optim
