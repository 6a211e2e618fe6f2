// A small sample of everything that computes, for tools that make each access slow: tools/sanitize-cuda runs it under
// compute-sanitizer. With a GPU beside the CPU, else two instruction sets beside each other.

#include <doctest/doctest.h>

#include "tools/cases/comparison.h"

using namespace ulp;

namespace {

cases::ComparisonOptions quick() {
  cases::ComparisonOptions options;
  options.reference = {kCpu, cpu::Isa::Portable, 1};
  options.other = {cuda_device_count() > 0 ? cuda_device(0) : kCpu, cpu::current_isa(), 4};
  options.extent = cases::Extent::Quick;
  return options;
}

}  // namespace

TEST_SUITE("sanitize") {
  TEST_CASE("every kernel is touched and gives the same bits") {
    cases::Comparison comparison(quick());
    for (const cases::Outcome& outcome : cases::compare_kernels(comparison)) {
      CAPTURE(outcome.name);
      CHECK(outcome.problem == "");  // also for a kernel that did not run
    }
  }

  TEST_CASE("two training steps in every kind of format") {
    cases::Comparison comparison(quick());
    for (const auto& training : cases::training_cases()) {
      const cases::Outcome outcome = cases::compare_training(comparison, training, 2);
      CAPTURE(outcome.name);
      CHECK(outcome.problem == "");
    }
  }
}
