// Comparisons see every difference and every gap; `ulp compare` shows them.

#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/command.h"
#include "tools/cases/comparison.h"

using namespace ulp;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

cases::ComparisonOptions threads_one_and_two() {
  const cpu::Isa isa = cpu::current_isa();
  cases::ComparisonOptions options;
  options.reference = {kCpu, isa, 1};
  options.other = {kCpu, isa, 2};
  return options;
}

/// Writes 1 to element 3 on one thread and 1 + 2^-23 on several.
void depends_on_threads(Stream, const FillArgs& args) {
  Tensor out = args.out;
  for (int64_t i = 0; i < out.numel(); ++i) out.mutable_data<float>()[i] = 0;
  out.mutable_data<float>()[3] = omp_get_max_threads() == 1 ? 1.0f : 0x1.000002p0f;
}

void different_case(cases::Comparison& compare) {
  constexpr Kernel<FillArgs> kernel{"different", depends_on_threads, nullptr};
  const cases::Pair out = compare.output({2, 5});
  compare.run(kernel, [&](cases::Side side) { return FillArgs{out.on(side)}; });
  compare.same(out, "format ", "e4m3:sr");
}

}  // namespace

TEST_SUITE("compare") {
  TEST_CASE("quick comparisons take the first of each kind, full ones everything") {
    cases::ComparisonOptions options = threads_one_and_two();
    for (const bool quick : {true, false}) {
      options.extent = quick ? cases::Extent::Quick : cases::Extent::Full;
      cases::Comparison comparison(options);
      for (int again = 0; again < 2; ++again) {  // every case begins anew
        int first = 0, others = 0, small = 0;
        comparison.outcome_of("kinds", [&](cases::Comparison& c) {
          for (int i = 0; i < 100; ++i) small += c.takes(1) ? 1 : 0;
          for (const char* kind : {"a", "b"})
            for (int i = 0; i < 14; ++i)
              (i == 0 ? first : others) += c.takes(20'000'000, kind) ? 1 : 0;
        });
        CHECK(first == 2);
        CHECK(others == (quick ? 0 : 26));
        CHECK(small == (quick ? 16 + 6 : 100));
      }
    }
  }

  TEST_CASE("a difference is counted and its first element shown with both values") {
    cases::Comparison comparison(threads_one_and_two());
    constexpr const char* kKernels[] = {"different"};
    constexpr cases::KernelCase kCases[] = {{"different", different_case}};
    const auto outcomes = cases::compare_kernels(comparison, kKernels, kCases);
    REQUIRE(outcomes.size() == 1);
    const cases::Outcome& o = outcomes[0];
    CHECK(!o.ok());
    CHECK(o.runs == 1);
    CHECK(o.values == 10);
    CHECK(o.mismatches == 1);
    CAPTURE(o.problem);
    for (const char* part : {"format e4m3:sr: element 3 of (2, 5)", "is 1 (0x3F800000) on cpu",
                             "1 thread and ", "1.00000012 (0x3F800001) on cpu", "2 threads"})
      CHECK(contains(o.problem, part));
  }

  TEST_CASE(
      "a kernel without a case fails, and one whose case does not run it, and one that throws") {
    cases::Comparison comparison(threads_one_and_two());
    constexpr const char* kKernels[] = {"orphan", "idle", "broken"};
    constexpr cases::KernelCase kCases[] = {
        {"idle", [](cases::Comparison&) {}},
        {"broken", [](cases::Comparison&) { throw_error("it broke"); }}};
    const auto outcomes = cases::compare_kernels(comparison, kKernels, kCases);
    REQUIRE(outcomes.size() == 3);
    CHECK(outcomes[0].problem == "no case for kernel orphan");
    CHECK(outcomes[1].problem == "the case for kernel idle does not run it");
    CHECK(outcomes[2].problem == "it broke");
  }

  TEST_CASE("instruction set and threads are as before afterwards") {
    const cpu::Isa isa = cpu::current_isa();
    const int threads = omp_get_max_threads();
    {
      cases::Comparison comparison(
          {{kCpu, cpu::Isa::Portable, 1}, {kCpu, cpu::Isa::Portable, threads + 3}});
      comparison.on_both([](cases::Side) {});
      CHECK(omp_get_max_threads() == threads + 3);
    }
    CHECK(cpu::current_isa() == isa);
    CHECK(omp_get_max_threads() == threads);
  }

#if defined(ULP_COMMAND)
  using command::check_refused;
  using command::ulp_command;

  TEST_CASE("ulp compare: a row for every kernel and every training, all the same on this CPU") {
    const auto result = ulp_command("compare --quick --steps 2 --threads 3 --json");
    CAPTURE(result.err);
    CHECK(result.status == 0);
    std::set<std::string> names;
    for (const auto& row : nlohmann::json::parse(result.out)) {
      names.insert(row.at("name"));
      CHECK(row.at("ok").get<bool>());
      CHECK(row.at("mismatches") == 0);
      CHECK(row.at("runs").get<int64_t>() > 0);
      CHECK((row.at("values").get<int64_t>() > 0) == (row.at("within") == ""));
      CHECK(row.at("problem") == "");
      CHECK(row.at("reference") == "cpu portable, 1 thread");
    }
    for (const char* kernel : kernels::all_names()) CHECK(names.contains(kernel));
    CHECK(names.contains("training e4m3 / e5m2:sr"));
  }

  TEST_CASE("ulp compare: the formats that are asked for, as a table") {
    const auto result = ulp_command("compare --quick --steps 1 --formats e5m2:sr,nf4-g64-scalef32");
    CHECK(result.status == 0);
    for (const char* part : {"beside cpu portable, 1 thread", "\nquantise", "same\n",
                             "\ntraining nf4-g64-scalef32", "all the same\n"})
      CHECK(contains(result.out, part));
    CHECK(!contains(result.out, "training mxfp8"));
  }

  TEST_CASE("ulp compare: what it refuses") {
    check_refused("compare --device gpu", 2, {"gpu", "cuda"});
    check_refused("compare --formats e9m9", 2, {"--formats", "e9m9"});
    check_refused("compare --formats bfp8-axis4", 2, {"--formats", "bfp8-axis4"});
    check_refused("compare --steps many", 2, {"--steps", "many"});
    check_refused("compare --seed -1", 2, {"--seed"});
    if (cuda_device_count() == 0) check_refused("compare --device cuda", 1, {"cuda:0"});
  }
#endif
}
