#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <fmt/core.h>

#include <string>
#include <string_view>

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

}  // namespace

int main(int argc, char** argv) {
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
