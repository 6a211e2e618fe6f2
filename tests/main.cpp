#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <fmt/core.h>

#include <charconv>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

#include "conformance.h"
#include "core/device.h"

namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt
unsigned tests_selected = 0;

/// doctest is content when a filter selects nothing; we are not: a misspelt suite would pass for ever.
struct CountSelected : doctest::IReporter {
  explicit CountSelected(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override { tests_selected = 1; }
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& run) override {
    tests_selected = run.numTestCasesPassingFilters;
  }
  void test_case_start(const doctest::TestCaseData&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("count_selected", 1, CountSelected);

std::string_view asked_suite(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    for (const std::string_view flag : {"--test-suite=", "-test-suite=", "-ts=", "--ts="})
      if (argument.starts_with(flag)) return argument.substr(flag.size());
  }
  return {};
}

/// ulp_tests --conformance [--stride N]: 0 if nothing differs, 1 if something does, 2 for bad usage.
int conformance(int argc, char** argv) {
  uint64_t stride = ulp::conformance::kDefaultStride;
  const std::string_view value = argc == 4 ? argv[3] : "";
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), stride);
  const bool is_stride = argc == 4 && std::string_view(argv[2]) == "--stride" &&
                         error == std::errc() && end == value.data() + value.size() &&
                         stride >= 1 && stride <= UINT32_MAX;
  if (argc != 2 && !is_stride) {
    fmt::print(stderr, "usage: ulp_tests --conformance [--stride N]   (N from 1 to 2^32 - 1)\n");
    return 2;
  }
  try {
    return ulp::conformance::print_table(stride) == 0 ? 0 : 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "conformance: {}\n", e.what());
    return 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "--conformance") return conformance(argc, argv);
  doctest::Context context(argc, argv);
  if (ulp::cuda_device_count() == 0) {
    const std::string_view suite = asked_suite(argc, argv);
    const bool needs_gpu = suite.starts_with("cuda");
    if (needs_gpu || suite.empty())
      fmt::print("SKIPPED: suite {} needs a GPU: {}\n", needs_gpu ? suite : "cuda",
                 ulp::cuda_missing_reason());
    if (needs_gpu) return kSkipped;
    context.addFilter("test-suite-exclude", "cuda*");
  }
  const int result = context.run();
  if (tests_selected == 0) {
    fmt::print("no test matches the filters\n");
    return 1;
  }
  return result;
}
