#pragma once

// What a measurement needs to know about the machine: its name, where threads run, how fast fma can be, when the cores are
// idle.

#include <fmt/core.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/tensor.h"
#include "kernels/cpu/isa.h"

#if defined(ULP_X86_ISA)
#include <immintrin.h>
#endif

namespace ulp::tools {

inline double seconds_now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// "2026-11-28", UTC.
inline std::string today() {
  const std::time_t now = std::time(nullptr);
  char date[16];
  std::strftime(date, sizeof date, "%F", std::gmtime(&now));
  return date;
}

/// What the user typed, from "ulp" on.
inline std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text = "ulp", word;
  std::getline(file, word, '\0');  // the program's path
  while (std::getline(file, word, '\0')) {
    const bool plain = !word.empty() && word.find_first_of(" \t\n\"'`\\$&|;<>()*?") == word.npos;
    text += plain ? " " + word : " '" + word + "'";
  }
  return text;
}

/// "Intel(R) Xeon(R) Platinum 8481C, avx512, 2 threads".
inline std::string cpu_description(int threads) {
  std::ifstream file("/proc/cpuinfo");
  std::string name = "CPU", line;
  while (std::getline(file, line))
    if (line.starts_with("model name") && line.find(": ") != line.npos) {
      name = line.substr(line.find(": ") + 2);
      break;
    }
  return fmt::format("{}, {}, {} thread{}", name, cpu::to_string(cpu::current_isa()), threads,
                     threads == 1 ? "" : "s");
}

/// The first line of everything that is measured, tables for the README too: the machine, the day, the command.
inline void print_origin(const std::string& machine) {
  fmt::print("{}; {}; `{}`\n", machine, today(), command_line());
}

/// memcpy of a CPU tensor, split over the threads.
inline void copy_all(const Tensor& from, Tensor& to, int threads) {
  const auto* source = static_cast<const char*>(from.raw());
  auto* target = static_cast<char*>(to.mutable_raw());
  const int64_t bytes = from.bytes();
#pragma omp parallel num_threads(threads)
  {
    const int64_t begin = bytes * omp_get_thread_num() / threads / 64 * 64;
    const int64_t end = omp_get_thread_num() + 1 == threads
                            ? bytes
                            : bytes * (omp_get_thread_num() + 1) / threads / 64 * 64;
    std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
  }
}

/// Long enough for the threads of any thread pool to stop spinning and free their cores.
inline void let_cores_idle() { std::this_thread::sleep_for(std::chrono::milliseconds(60)); }

/// Keeps threads apart: a scheduler that puts two of them on one core would be all that is measured.
class Placement {
 public:
  Placement() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed)) cpus_.push_back(cpu);
  }

  int cpus() const { return static_cast<int>(cpus_.size()); }

  /// OpenMP's thread i runs on CPU i, this thread on CPU 0.
  void spread_threads(int threads) const {
#pragma omp parallel num_threads(threads)
    run_on(omp_get_thread_num(), omp_get_thread_num() + 1);
  }
  /// Threads that this one starts from now on run on CPUs 1 … threads − 1, and it too until it spreads them again.
  void start_on_other_cpus(int threads) const { run_on(1, threads); }

 private:
  void run_on(int begin, int end) const {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = begin; i < end && i < cpus(); ++i) CPU_SET(cpus_[static_cast<size_t>(i)], &set);
    if (CPU_COUNT(&set) > 0) sched_setaffinity(0, sizeof set, &set);
  }

  std::vector<int> cpus_;
};

constexpr int kPeakChains = 12;  // independent sums, enough for two units of latency 4 … 6

/// steps × kPeakChains × 8 fma.
inline float peak_portable(int64_t steps) {
  float sum[kPeakChains][8] = {};
  for (int64_t s = 0; s < steps; ++s)
    for (auto& chain : sum)
      for (float& x : chain) x = __builtin_fmaf(x, 0.5f, 0.5f);
  float all = 0;
  for (const auto& chain : sum) all += chain[0];
  return all;
}
#if defined(ULP_X86_ISA)
ULP_TARGET_AVX2 inline float peak_avx2(int64_t steps) {
  __m256 sum[kPeakChains];
  const __m256 half = _mm256_set1_ps(0.5f);
  for (__m256& x : sum) x = half;
  for (int64_t s = 0; s < steps; ++s)
    for (__m256& x : sum) x = _mm256_fmadd_ps(x, half, half);
  for (int i = 1; i < kPeakChains; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  return _mm256_cvtss_f32(sum[0]);
}
/// steps × kPeakChains × 16 fma.
ULP_TARGET_AVX512 inline float peak_avx512(int64_t steps) {
  __m512 sum[kPeakChains];
  const __m512 half = _mm512_set1_ps(0.5f);
  for (__m512& x : sum) x = half;
  for (int64_t s = 0; s < steps; ++s)
    for (__m512& x : sum) x = _mm512_fmadd_ps(x, half, half);
  for (int i = 1; i < kPeakChains; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_cvtss_f32(sum[0]);
}
#endif

/// fp32 GFLOP/s of fma on registers alone, on so many threads of the current instruction set: no product can be faster.
inline double peak_gflops(int threads) {
  float (*run)(int64_t) = peak_portable;
  int64_t steps = 20'000, width = 8;
#if defined(ULP_X86_ISA)
  if (cpu::current_isa() == cpu::Isa::Avx2) {
    run = peak_avx2;
    steps = 2'000'000;
  }
  if (cpu::current_isa() == cpu::Isa::Avx512) {
    run = peak_avx512;
    steps = 2'000'000;
    width = 16;
  }
#endif
  double begin = 0;
#pragma omp parallel num_threads(threads)
  {
    volatile float keep = run(steps / 10);  // awake and up to speed
#pragma omp barrier
#pragma omp single
    begin = seconds_now();
    keep = run(steps);
    static_cast<void>(keep);
  }
  const double flops = 2.0 * static_cast<double>(steps * width * kPeakChains) * threads;
  return flops / (seconds_now() - begin) / 1e9;
}

}  // namespace ulp::tools
