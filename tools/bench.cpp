#include <dlfcn.h>
#include <fmt/core.h>
#include <omp.h>

#include <cmath>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "core/bits.h"
#include "core/error.h"
#include "core/sum.h"
#include "kernels/kernels.h"
#include "tools/bench_machine.h"
#include "tools/bench_matmul_cuda.h"
#include "tools/commands.h"

namespace ulp::tools {
namespace {

struct MatmulOptions {
  std::vector<int64_t> sizes;
  int64_t m = 0, n = 0, k = 0;
  int threads = 0;
  int repeats = 15;
  bool json = false, markdown = false;
  std::string device = "cpu";
  std::vector<std::string> math;

  /// --m --n --k give one shape, --sizes square ones; none: the device's own list.
  std::vector<MatmulShape> shapes() const {
    std::vector<MatmulShape> all;
    if (m != 0 || n != 0 || k != 0) {
      if (!sizes.empty()) throw UsageError("bench matmul: give --sizes or --m --n --k, not both");
      all.push_back({m, n, k});
    }
    for (const int64_t s : sizes) all.push_back({s, s, s});
    for (const MatmulShape& s : all)
      if (s.m < 1 || s.n < 1 || s.k < 1 || s.gflop() > 2e5 ||
          std::max({s.m * s.k, s.k * s.n, s.m * s.n}) > (int64_t{1} << 31))
        throw UsageError(format_message(
            "bench matmul: wanted --m, --n and --k from 1 to what memory holds, got {} x {} x {}",
            {s.m, s.n, s.k}));
    return all;
  }
};

/// sgemm of a libopenblas.so.0, if there is one: opened at run time, never linked.
class OpenBlas {
 public:
  OpenBlas(const Placement& placement, int threads) {
    placement.start_on_other_cpus(threads);  // its pool starts as it is opened
    library_ = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) return;
    sgemm_ = reinterpret_cast<Sgemm>(dlsym(library_, "cblas_sgemm"));
    if (const auto set =
            reinterpret_cast<void (*)(int)>(dlsym(library_, "openblas_set_num_threads")))
      set(threads);
    if (const auto core = reinterpret_cast<char* (*)()>(dlsym(library_, "openblas_get_corename")))
      core_ = core();
  }
  // The library stays open: its threads live as long as the process.

  bool found() const { return sgemm_ != nullptr; }
  const std::string& core() const { return core_; }

  /// c (M, N) = a (M, K) · b (K, N), all row-major.
  void operator()(const MatmulShape& s, const float* a, const float* b, float* c) const {
    constexpr int kRowMajor = 101, kNoTranspose = 111;
    const int m = static_cast<int>(s.m), n = static_cast<int>(s.n), k = static_cast<int>(s.k);
    sgemm_(kRowMajor, kNoTranspose, kNoTranspose, m, n, k, 1.0f, a, k, b, n, 0.0f, c, n);
  }

 private:
  using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int,
                         float, float*, int);
  void* library_ = nullptr;
  Sgemm sgemm_ = nullptr;
  std::string core_;
};

/// Seconds for one call: after one call that is not timed, as many as fill a few milliseconds.
double seconds_per_call(const std::function<void()>& call) {
  double begin = seconds_now();
  call();
  const int calls = std::clamp(static_cast<int>(3e-3 / (seconds_now() - begin + 1e-9)), 1, 10000);
  begin = seconds_now();
  for (int i = 0; i < calls; ++i) call();
  return (seconds_now() - begin) / calls;
}

/// Compares 64 outputs with the order that core/sum.h defines.
void check_matmul(const MatmulShape& s, const Tensor& a, const Tensor& b, const Tensor& out) {
  std::mt19937 draw(7);
  for (int sample = 0; sample < 64; ++sample) {
    const int64_t i = draw() % s.m, j = draw() % s.n;
    float total = 0;
    for (int64_t chunk = 0; chunk < s.k; chunk += kMatmulChunk) {
      float sum = 0;
      for (int64_t k = chunk; k < std::min(s.k, chunk + kMatmulChunk); ++k)
        sum = std::fma(a.data<float>()[i * s.k + k], b.data<float>()[k * s.n + j], sum);
      total = chunk == 0 ? sum : total + sum;
    }
    const float got = out.data<float>()[i * s.n + j];
    ULP_CHECK(bits_of(got) == bits_of(total),
              "bench matmul: element ({}, {}) is {:.9g}, in strict order it is {:.9g}", i, j, got,
              total);
  }
}

Tensor normal_tensor(const Shape& shape, uint32_t seed) {
  std::mt19937 draw(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  for (float& x : values) x = normal(draw);
  return Tensor::from(values, shape);
}

struct MatmulResult {
  double ours, openblas, peak;  // GFLOP/s; openblas is 0 where there is none
};

MatmulResult measure_matmul(const MatmulShape& s, int threads, int repeats,
                            const OpenBlas& openblas) {
  MatmulArgs args;
  args.a = normal_tensor({s.m, s.k}, 1);
  args.b = normal_tensor({s.k, s.n}, 2);
  args.out = Tensor::empty({s.m, s.n}, DType::F32, kCpu);
  kernels::matmul(Stream{}, args);
  check_matmul(s, args.a, args.b, args.out);

  std::vector<float> theirs(static_cast<size_t>(s.m * s.n));
  std::vector<double> ours_s, openblas_s, peaks;
  for (int r = 0; r < repeats; ++r) {
    let_cores_idle();
    peaks.push_back(peak_gflops(threads));
    ours_s.push_back(seconds_per_call([&] { kernels::matmul(Stream{}, args); }));
    if (!openblas.found()) continue;
    let_cores_idle();
    openblas_s.push_back(seconds_per_call(
        [&] { openblas(s, args.a.data<float>(), args.b.data<float>(), theirs.data()); }));
  }
  return {s.gflop() / median(ours_s), openblas_s.empty() ? 0 : s.gflop() / median(openblas_s),
          median(peaks)};
}

void run_matmul(const MatmulOptions& options) {
  if (options.repeats < 1)
    throw UsageError(
        format_message("bench matmul: --repeats must be at least 1, got {}", {options.repeats}));
  std::vector<MatmulShape> shapes = options.shapes();
  const Device device = parse_device(options.device);
  if (device.type == DeviceType::Cuda) {
    if (options.threads != 0) throw UsageError("bench matmul: --threads is for the cpu");
    return bench_matmul_cuda(
        {device, shapes, options.math, options.repeats, options.json, options.markdown});
  }
  if (!options.math.empty() || options.markdown)
    throw UsageError("bench matmul: --math and --markdown need --device cuda");
  if (shapes.empty())
    shapes = {{256, 256, 256}, {512, 512, 512}, {1024, 1024, 1024}, {128, 256, 784}};
  const Placement placement;
  const int threads = options.threads != 0
                          ? options.threads
                          : std::min(omp_get_max_threads(), std::max(1, placement.cpus()));
  if (threads < 1 || threads > 1024)
    throw UsageError(
        format_message("bench matmul: --threads must be 1 to 1024, got {}", {threads}));
  omp_set_num_threads(threads);
  const OpenBlas openblas(placement, threads);
  placement.spread_threads(threads);
  const std::string isa = cpu::to_string(cpu::current_isa());
  if (!openblas.found())
    fmt::print(stderr,
               "no OpenBLAS to compare with: install it with  apt install libopenblas0  (Debian, "
               "Ubuntu)\n");

  if (!options.json) {
    print_origin(cpu_description(threads));
    fmt::print(
        "GFLOP/s, median of {} runs in turn; each thread on a CPU of its own; every result checked "
        "against the strict order\n",
        options.repeats);
    if (openblas.found()) fmt::print("OpenBLAS uses its {} kernels\n", openblas.core());
    fmt::print("{:>20} {:>9} {:>8} {:>9} {:>9} {:>6} {:>9} {:>7}\n", "m x n x k", "isa", "threads",
               "ulp", "openblas", "ratio", "fma peak", "of peak");
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const MatmulShape& s : shapes) {
    const MatmulResult r = measure_matmul(s, threads, options.repeats, openblas);
    nlohmann::ordered_json row = {{"m", s.m},
                                  {"n", s.n},
                                  {"k", s.k},
                                  {"isa", isa},
                                  {"threads", threads},
                                  {"gflops", r.ours},
                                  {"openblas_gflops", nullptr},
                                  {"ratio", nullptr},
                                  {"peak_gflops", r.peak}};
    if (openblas.found()) {
      row["openblas_gflops"] = r.openblas;
      row["ratio"] = r.ours / r.openblas;
    }
    rows.push_back(row);
    if (options.json) continue;
    const auto number = [&](double x, int digits) {
      return openblas.found() ? fmt::format("{:.{}f}", x, digits) : std::string("-");
    };
    fmt::print("{:>20} {:>9} {:>8} {:>9.1f} {:>9} {:>6} {:>9.1f} {:>6.0f}%\n",
               fmt::format("{} x {} x {}", s.m, s.n, s.k), isa, threads, r.ours,
               number(r.openblas, 1), number(r.ours / r.openblas, 2), r.peak,
               100 * r.ours / r.peak);
  }
  if (options.json) fmt::print("{}\n", rows.dump(2));
}

void add_matmul(CLI::App& bench) {
  auto options = std::make_shared<MatmulOptions>();
  CLI::App* matmul = bench.add_subcommand(
      "matmul",
      "matrix products: on the CPU fp32 in strict order, beside OpenBLAS and the fma peak; on CUDA "
      "strict and fast, beside cuBLAS");
  matmul->add_option("--device", options->device, "cpu, cuda or cuda:N")->capture_default_str();
  matmul->add_option("--sizes", options->sizes, "square sizes: 512,1024")->delimiter(',');
  matmul->add_option("--m", options->m, "rows of a; with --n and --k, one shape");
  matmul->add_option("--n", options->n, "columns of b");
  matmul->add_option("--k", options->k, "columns of a, rows of b");
  matmul->add_option("--threads", options->threads, "threads of both sides (default: one a CPU)");
  matmul->add_option("--repeats", options->repeats, "runs of each side; the median counts")
      ->capture_default_str();
  matmul
      ->add_option("--math", options->math,
                   "CUDA: strict, fast, tf32, fp8, or several: strict,fp8 (default: strict,fast)")
      ->delimiter(',')
      ->check(CLI::IsMember({"strict", "fast", "tf32", "fp8"}));
  matmul->add_flag("--json", options->json, "print a JSON array of rows");
  matmul->add_flag("--markdown", options->markdown, "CUDA: print a Markdown table");
  matmul->footer("ULP_ISA=avx2 with OPENBLAS_CORETYPE=Haswell compares the AVX2 sides.");
  matmul->callback([options] { run_matmul(*options); });
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* bench =
      app.add_subcommand("bench", "measure kernels against a ceiling of this machine");
  bench->require_subcommand(1);
  add_matmul(*bench);
  add_bench_quantize(*bench);
  add_bench_step(*bench);
  add_bench_ops(*bench);
  add_bench_checkpoint(*bench);
  add_bench_optimizer(*bench);
}

}  // namespace ulp::tools
