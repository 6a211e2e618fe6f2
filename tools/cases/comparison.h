#pragma once

// The same computation in two places, compared bit by bit. `ulp compare` and the test suite run the same cases.

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/step_state.h"
#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "kernels/names.h"

namespace ulp::cases {

/// Where one side computes. Instruction set and number of threads are those of the CPU's side.
struct Place {
  Device device;
  cpu::Isa isa = cpu::current_isa();
  int threads = 1;
};
/// "cpu avx2, 4 threads", "cuda:0".
std::string to_string(const Place& place);

enum class Side : uint8_t { Reference, Other };

/// The same tensor on both sides, each in memory of its own.
struct Pair {
  Tensor reference, other;
  const Tensor& on(Side side) const { return side == Side::Reference ? reference : other; }
};

/// What values are drawn from.
enum class Domain {
  Modest,  // uniform in [−4, 4), some zeros
  Wide,    // finite, exponents −40 … 40
  Tiny,    // about 2^−75: products underflow, to −0 too
  Hard,    // Modest mixed with NaN, Inf, ±0, subnormals, format limits and random bits
  Few,     // −2, −1.5 … 2: ties
};

/// A reproducible stream of words.
class Words {
 public:
  explicit Words(uint64_t seed) : source_(RandomKey{seed, 0, 0, nullptr}) {}
  uint32_t next() { return source_.word(at_++); }
  uint32_t below(uint32_t n) { return next() % n; }

 private:
  RandomSource source_;
  uint64_t at_ = 0;
};

/// A CPU tensor. Small floats: the values rounded to the type; Hard ones are random codes half the time.
Tensor values(const Shape& shape, DType dtype, Domain domain, uint64_t seed);

/// Quick: the first, the first of each kind and a sample of the other instances of every case, large ones left out.
enum class Extent : uint8_t { Quick, Full };

struct ComparisonOptions {
  Place reference, other;
  Extent extent = Extent::Full;
  uint64_t seed = 0;
  std::vector<std::string> formats{};  // what quantise is compared with; none: every kind of format
};

/// What one case found.
struct Outcome {
  std::string name;
  int64_t runs = 0, values = 0, mismatches = 0;
  std::string within{};  // the row that has this one's values; empty for most
  /// The first difference with both values, or what went wrong; empty if all is equal.
  std::string problem{};
  bool ok() const { return problem.empty(); }
};

/// What a case works with: it makes pairs of tensors, runs kernels on both sides and says what must be the same.
class Comparison {
 public:
  /// Throws if a device does not exist or the machine lacks an instruction set.
  explicit Comparison(const ComparisonOptions& options);
  ~Comparison();
  Comparison(const Comparison&) = delete;
  Comparison& operator=(const Comparison&) = delete;

  const ComparisonOptions& options() const { return options_; }
  const Place& place(Side side) const {
    return side == Side::Reference ? options_.reference : options_.other;
  }

  /// Whether to run an instance that takes about so many steps. Quick comparisons leave most of them out, but no kind: a
  /// name for what a kernel of its own may do (a type, a layout, a size from which on the work is cut in another way).
  bool takes(int64_t work, const std::string& kind = {});

  Pair both(const Tensor& cpu) const;
  Pair input(const Shape& shape, DType dtype, Domain domain, uint64_t seed) const;
  /// Filled with a pattern, so that an element nobody wrote is seen.
  Pair output(const Shape& shape, DType dtype = DType::F32) const;

  /// Calls f(side) on each side, with its instruction set and threads.
  void on_both(const std::function<void(Side)>& f);
  /// Runs the kernel on both sides with what make(side) returns.
  template <class Args, class Make>
  void run(const Kernel<Args>& kernel, const Make& make) {
    ++runs_of_[kernel.name];
    on_both([&](Side side) { kernel(stream_of(place(side).device), make(side)); });
  }

  /// Every element must have the same bits. `where` is streamed into the report of the first difference.
  template <class... Text>
  void same(const Pair& pair, const Text&... where) {
    const std::string difference = compare(pair);
    if (!difference.empty()) report(difference, where...);
  }
  /// One value that is the same or not.
  template <class... Text>
  void check(bool same, const Text&... where) {
    ++outcome_.values;
    if (same) return;
    ++outcome_.mismatches;
    report("differs", where...);
  }

  /// Runs a case and returns what it found; an ulp::Error becomes its problem.
  Outcome outcome_of(std::string name, const std::function<void(Comparison&)>& body);
  /// How often a kernel ran so far.
  int64_t runs_of(std::string_view kernel) const {
    const auto at = runs_of_.find(kernel);
    return at == runs_of_.end() ? 0 : at->second;
  }

 private:
  /// "" or the first difference of two tensors; counts values and mismatches.
  std::string compare(const Pair& pair);
  template <class... Text>
  void report(const std::string& difference, const Text&... where) {
    if (!outcome_.ok()) return;
    std::ostringstream text;
    (text << ... << where);
    outcome_.problem = text.str() + ": " + difference;
  }

  ComparisonOptions options_;
  cpu::Isa isa_before_;
  int threads_before_;
  Outcome outcome_;
  int64_t offered_ = 0;
  std::set<std::string> kinds_;
  std::map<std::string_view, int64_t> runs_of_;
};

/// How a kernel is compared.
struct KernelCase {
  std::string_view kernel;
  void (*run)(Comparison&);   // nullptr: the case of another, earlier kernel runs this one too
  std::string_view within{};  // that kernel
};
/// One case for every kernel, family by family.
std::span<const KernelCase> kernel_cases();
/// Those of kernels/kernels.h.
std::span<const KernelCase> core_kernel_cases();
/// Those of kernels/augment.h.
std::span<const KernelCase> augment_kernel_cases();
/// Those of kernels/conv.h.
std::span<const KernelCase> conv_kernel_cases();
/// Those of kernels/norm.h, pool.h and dropout.h.
std::span<const KernelCase> norm_kernel_cases();
/// Those of kernels/attention.h.
std::span<const KernelCase> attention_kernel_cases();
/// Those of kernels/recurrent.h.
std::span<const KernelCase> recurrent_kernel_cases();
/// Those of kernels/activations.h, losses.h and place.h.
std::span<const KernelCase> act_kernel_cases();
/// Those of kernels/embedding.h.
std::span<const KernelCase> embedding_kernel_cases();

/// One outcome for each kernel in turn; `done` sees each as it comes. A kernel without a case, or whose case does not run
/// it, has that as its problem.
std::vector<Outcome> compare_kernels(Comparison& comparison,
                                     std::span<const char* const> kernels = kernels::all_names(),
                                     std::span<const KernelCase> cases = kernel_cases(),
                                     const std::function<void(const Outcome&)>& done = {});

/// Some steps of a small quantised network, and everything the optimizer holds afterwards.
struct TrainingCase {
  std::string forward, backward, results, weights, accumulator, grads,
      momentum;  // accumulator: may be empty
  std::string optimizer = "sgd", moment2 = "fp32";
  std::string compensation{};  // empty: plain updates
  std::string sums = "fp32";   // of all products
};
/// Settings that use every kind of format; with `formats`, one for each of them.
std::vector<TrainingCase> training_cases(const std::vector<std::string>& formats = {});
Outcome compare_training(Comparison& comparison, const TrainingCase& training, int steps);

}  // namespace ulp::cases
