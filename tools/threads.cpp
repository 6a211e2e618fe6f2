#include "tools/threads.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <latch>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

/// Throws unless so many threads can run at once beside this one. asked: what asks for them.
void try_threads(int count, const char* asked) {
  std::latch done(1);
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(count));
  std::string problem;
  try {
    for (int i = 0; i < count; ++i) threads.emplace_back([&done] { done.wait(); });
  } catch (const std::system_error& error) {
    problem = error.code().message();
  } catch (const std::bad_alloc&) {
    problem = "out of memory";
  }
  const size_t started = threads.size();
  done.count_down();
  for (std::thread& thread : threads) thread.join();
  ULP_CHECK(problem.empty(),
            "{}: {} CPU threads cannot be started, the system has room for {} ({}): each takes "
            "memory for a stack, beside what a user may have; take fewer",
            asked, count + 1, started + 1, problem);
}

}  // namespace

void use_threads(const std::optional<std::string>& threads) {
  if (threads) omp_set_num_threads(integer_value("--threads", *threads, 1, kMaxThreads));
  static int running = 1;
  const int wanted = std::min(omp_get_max_threads(), kMaxThreads);
  omp_set_num_threads(wanted);
  if (wanted <= running) return;
  const bool environment = !threads && std::getenv("OMP_NUM_THREADS") != nullptr;
  try_threads(wanted - 1, environment ? "OMP_NUM_THREADS" : "--threads");
#pragma omp parallel
  {}
  running = wanted;
}

}  // namespace ulp::tools
