#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "tools/cases/comparison.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

using cases::Comparison;
using cases::ComparisonOptions;
using cases::Extent;
using cases::Outcome;
using cases::Place;

struct CompareOptions {
  std::string device = "cpu";
  std::vector<std::string> formats;
  std::optional<std::string> seed, steps, threads;
  bool quick = false, json = false;
};

constexpr int kSteps = 50, kQuickSteps = 5;

void check_formats(const std::vector<std::string>& formats) {
  for (const std::string& format : formats) {
    const Quantizer q = format_value("--formats", format);
    const std::string problem = misfit(q);
    if (!problem.empty()) throw UsageError("--formats: " + problem);
  }
}

/// The other sides, each beside the same reference: the GPU beside the CPU, or the CPU's own choices beside one thread of
/// portable code.
std::vector<ComparisonOptions> comparisons(const CompareOptions& o) {
  const Device device = parse_device(o.device);
  ComparisonOptions common;
  common.extent = o.quick ? Extent::Quick : Extent::Full;
  common.seed = o.seed ? integer_value<uint64_t>("--seed", *o.seed, 0, UINT32_MAX) : 0;
  common.formats = o.formats;
  const int threads = o.threads ? integer_value("--threads", *o.threads, 1, kMaxThreads)
                                : std::max(2, omp_get_max_threads());
  if (device.type == DeviceType::Cuda) {
    common.reference = {kCpu, cpu::current_isa(), threads};
    common.other = {device, cpu::current_isa(), threads};
    return {common};
  }
  common.reference = {kCpu, cpu::Isa::Portable, 1};
  std::vector<ComparisonOptions> all;
  for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512})
    if (cpu::has_isa(isa)) {
      common.other = {kCpu, isa, threads};
      all.push_back(common);
    }
  return all;
}

std::string verdict(const Outcome& outcome) {
  if (!outcome.ok()) return "DIFFERENT";
  return outcome.within.empty() ? "same" : "compared with " + outcome.within;
}

class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  void begin(const ComparisonOptions& c) {
    reference_ = to_string(c.reference);
    other_ = to_string(c.other);
    if (json_) return;
    fmt::print("{} beside {}, seed {}, strict math, bits compared\n", other_, reference_, c.seed);
    fmt::print("{:<54}{:>8}{:>13}{:>12}  {}\n", "kernel", "runs", "values", "mismatches",
               "verdict");
  }

  void add(const Outcome& outcome) {
    bad_ += outcome.ok() ? 0 : 1;
    ++rows_;
    values_ += outcome.values;
    if (json_) {
      array_.push_back({{"name", outcome.name},
                        {"reference", reference_},
                        {"other", other_},
                        {"runs", outcome.runs},
                        {"values", outcome.values},
                        {"mismatches", outcome.mismatches},
                        {"within", outcome.within},
                        {"ok", outcome.ok()},
                        {"problem", outcome.problem}});
      return;
    }
    fmt::print("{:<54}{:>8}{:>13}{:>12}  {}\n", outcome.name, outcome.runs, outcome.values,
               outcome.mismatches, verdict(outcome));
    if (!outcome.ok()) fmt::print("    {}\n", outcome.problem);
    std::fflush(stdout);
  }

  /// Throws if something was different.
  void end() const {
    if (json_)
      fmt::print("{}\n", array_.dump(2));
    else if (bad_ == 0)
      fmt::print("{} rows, {} values, all the same\n", rows_, values_);
    ULP_CHECK(bad_ == 0, "compare: {} of {} rows are different", bad_, rows_);
  }

 private:
  bool json_;
  std::string reference_, other_;
  nlohmann::ordered_json array_ = nlohmann::ordered_json::array();
  int64_t rows_ = 0, bad_ = 0, values_ = 0;
};

void run(const CompareOptions& o) {
  check_formats(o.formats);
  const int steps =
      o.steps ? integer_value("--steps", *o.steps, 0, 100000) : (o.quick ? kQuickSteps : kSteps);
  Report report(o.json);
  for (const ComparisonOptions& options : comparisons(o)) {
    Comparison comparison(options);
    report.begin(options);
    cases::compare_kernels(comparison, kernels::all_names(), cases::kernel_cases(),
                           [&](const Outcome& outcome) { report.add(outcome); });
    if (steps > 0)
      for (const auto& training : cases::training_cases(o.formats))
        report.add(cases::compare_training(comparison, training, steps));
  }
  report.end();
}

}  // namespace

void add_compare(CLI::App& app) {
  auto o = std::make_shared<CompareOptions>();
  CLI::App* cmd = app.add_subcommand(
      "compare", "Run every kernel and some training in two places and compare all bits");
  cmd->add_option("--device", o->device,
                  "cuda or cuda:N: the GPU beside the CPU. cpu: each instruction set and many "
                  "threads beside one thread of portable code")
      ->capture_default_str();
  cmd->add_option("--formats", o->formats,
                  "formats that quantise and the training are compared with, each under every "
                  "rounding unless it names one (default: every kind of format)")
      ->delimiter(',');
  add_text(*cmd, "--seed", o->seed, "of inputs and random words (default: 0)");
  add_text(*cmd, "--steps", o->steps, "training steps (default: 50, with --quick 5)");
  add_text(*cmd, "--threads", o->threads, "CPU threads (default: all cores, at least 2)");
  cmd->add_flag("--quick", o->quick, "a sample of the small instances of each kernel");
  cmd->add_flag("--json", o->json, "print a JSON array of rows");
  cmd->footer("Exit status 1 if a bit differs; then the first difference of each row is shown.");
  cmd->callback([o] { run(*o); });
}

}  // namespace ulp::tools
