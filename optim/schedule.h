#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ulp::optim {

/// A moment of a run: "0.5" is half of its steps, "300" is after 300 steps, "12e" after 12 epochs.
struct Moment {
  enum class Unit : uint8_t { Fraction, Steps, Epochs };
  double value = 0;
  Unit unit = Unit::Steps;

  /// Throws ulp::Error, naming `what`, for another text: fractions have a point and are at most 1.0, numbers are whole.
  static Moment parse(std::string_view text, const std::string& what);
  std::string text() const;
  /// How many steps are made by then; fractions are rounded to the nearest step. epoch_steps 0: epochs are an error.
  int64_t steps(int64_t total_steps, int64_t epoch_steps) const;
  bool operator==(const Moment&) const = default;
};

/// The momenta of onecycle, 0 ≤ low ≤ high < 1.
struct MomentumCycle {
  double high = 0, low = 0;
  bool operator==(const MomentumCycle&) const = default;
};

/// The learning rate of each step as a text: [warmup:MOMENT+]KIND. A step is one of the optimizer, skipped ones too. With
/// t = the fraction of the run that is done, counted from the end of the warm-up:
///   constant
///   linear[:FLOOR]              base·(1 − (1 − FLOOR)·t)
///   cosine[:FLOOR]              base·(FLOOR + (1 − FLOOR)·½(1 + cos πt))      Source: arXiv 1608.03983, eq. 5
///   step[:FACTOR[@MOMENT,…]]    base·FACTOR^k after k of the moments of the whole run; 0.1@0.5,0.75
///   onecycle[:UP[,DIV[,FINAL]]][@HIGH,LOW]
///                               base/DIV → base while t < UP, back to base/DIV while t < 2·UP, then to base/(DIV·FINAL) at t = 1,
///                               all linear; 0.45,10,100. With @HIGH,LOW the momentum (adam, lion: β1) goes HIGH → LOW while t <
///                               UP, back to HIGH while t < 2·UP, and stays there, as PyTorch's OneCycleLR in three phases does,
///                               there 0.95,0.85; without it the momentum stays.   Source: Smith, Topin, arXiv 1708.07120
///   swalp[:RATIO[@MOMENT]]      base for the first half of the time until MOMENT, linear to RATIO·base until 0.9 of it, then
///                               constant, for averaging from MOMENT on; 0.2@0.67
///                               Sources: SWA, arXiv 1803.05407; SWALP, arXiv 1904.11943
///   warmup:W+                   before: base·(s + 1) / W in step s < W. Not before onecycle, which rises by itself.
/// FLOOR, FACTOR and RATIO are shares of base, at most 1.
struct ScheduleSpec {
  enum class Kind : uint8_t { Constant, Linear, Cosine, Step, OneCycle, Swalp };
  Kind kind = Kind::Constant;
  Moment warmup{};                          // 0 steps: none
  double floor = 0;                         // Linear, Cosine
  double factor = 0;                        // Step: FACTOR; Swalp: RATIO
  std::vector<Moment> moments{};            // Step: ascending; Swalp: one
  double up = 0, div = 1, final_div = 1;    // OneCycle
  std::optional<MomentumCycle> momentum{};  // OneCycle

  /// Throws ulp::Error naming what is wrong and what is allowed.
  static ScheduleSpec parse(std::string_view text);
  /// Parses back to the same schedule; defaults are written out.
  std::string text() const;
  bool operator==(const ScheduleSpec&) const = default;
};

/// The learning rates of one run.
class Schedule {
 public:
  using Kind = ScheduleSpec::Kind;
  static ScheduleSpec parse(std::string_view text) { return ScheduleSpec::parse(text); }

  /// Throws unless the warm-up is shorter than the run, and for moments in epochs without epoch_steps.
  Schedule(ScheduleSpec spec, double base, int64_t total_steps, int64_t epoch_steps = 0);
  /// step counts from 0.
  double lr(int64_t step) const;
  /// Those of `count` steps from `first` on, as Optimizer::set_rates takes them.
  std::vector<float> rates(int64_t first, int64_t count) const;
  /// The momentum of a step, and those of several; none where it is not the schedule's.
  double momentum(int64_t step) const;
  std::vector<float> momenta(int64_t first, int64_t count) const;
  /// For people, all moments in steps and all rates.
  std::string describe() const;

 private:
  double factor(int64_t step) const;  // of base

  ScheduleSpec spec_;
  double base_;
  int64_t total_, warmup_;
  std::vector<int64_t> moments_;
};

}  // namespace ulp::optim
