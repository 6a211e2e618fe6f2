// Updates of one large parameter, beside memcpy or a device copy of as many bytes.

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/state.h"
#include "tools/bench_cuda.h"
#include "tools/bench_machine.h"
#include "tools/commands.h"

namespace ulp::tools {
namespace {

struct BenchOptions {
  int threads = 0, repeats = 9;
  int log2_size = 0;  // 0: 24, on CUDA 26
  std::string device = "cpu";
  bool json = false, markdown = false;
};

/// An empty text: there is no such state.
struct Setting {
  const char* algorithm;
  UpdateRule rule;
  const char *weight, *master, *moment1, *moment2, *compensation;
};
constexpr Setting kSettings[] = {
    {"sgd", UpdateRule::Sgd, "fp32", "", "", "", ""},
    {"sgd", UpdateRule::Momentum, "fp32", "", "fp32", "", ""},
    {"sgd", UpdateRule::Momentum, "e4m3", "e6m9", "bf16", "", ""},
    {"sgd", UpdateRule::Momentum, "e4m3", "e6m9:sr", "bf16:sr", "", ""},
    {"adam", UpdateRule::Adam, "fp32", "", "fp32", "fp32", ""},
    {"adam", UpdateRule::Adam, "bf16", "fp32", "fp32", "fp32", ""},
    {"adam", UpdateRule::Adam, "bf16", "", "bf16", "bf16", "bf16"},
    {"adam", UpdateRule::Adam, "bf16:sr", "", "bf16:sr", "bf16:sr", ""},
    {"adam", UpdateRule::Adam, "fp32", "", "e4m3", "e5m2", ""},
    {"adam", UpdateRule::Adam, "fp32", "", "e4m3-g256-scalef32", "e4m3-g256-scalef32", ""},
    {"adam", UpdateRule::Adam, "fp32", "", "dynamic8-g256-scalef32", "dynamic8u-g256-scalef32", ""},
    {"lion", UpdateRule::Lion, "fp32", "", "fp32", "", ""},
    {"lion", UpdateRule::Lion, "bf16:sr", "", "bf16", "", ""},
    {"lion", UpdateRule::Lion, "fp32", "", "e2m1-g32-scalef32", "", ""},
};

/// One parameter with its states on a device.
struct Work {
  OptimizerArgs args;
  std::vector<std::pair<std::string, Tensor>> tensors;  // that an update writes
  double bytes = 0;                                     // an element's, that an update must move
  Tensor step_state;

  Work(const Setting& s, int64_t n, Device device) {
    const Stream stream = stream_of(device);
    Tensor uniform = Tensor::empty({n}, DType::F32, device);
    kernels::uniform(stream, {uniform, -1, 1, {1, 1, 0, nullptr}});
    OptimizerParameter p;
    p.grad = Tensor::empty({n}, DType::F32, device);
    kernels::uniform(stream, {p.grad, -1, 1, {1, 2, 0, nullptr}});
    bytes = 4;
    const double each = 1 / static_cast<double>(n);
    const auto keep = [&](const char* name, const char* format, bool squared, Quantizer& q) {
      StoredState state;
      if (*format == '\0') return state;
      q = Quantizer::parse(format);
      state = make_state(stream, q, {n});
      Tensor values = uniform;
      if (squared) {
        values = Tensor::empty({n}, DType::F32, device);
        kernels::square(stream, {{uniform, {}, {}}, values, 0, {}, {}});
      }
      write_state(stream, values, q, {}, state);
      tensors.emplace_back(name, state.data);
      if (state.scales.defined()) tensors.emplace_back(std::string(name) + " scales", state.scales);
      bytes += 2 * static_cast<double>(state_bytes(state)) * each;
      return state;
    };
    args.weight_format = Quantizer::parse(s.weight);
    const DType type = storage_type(args.weight_format);
    StoredState weight{Tensor::empty({n}, type, device)};
    write_state(stream, uniform, args.weight_format, {}, weight);
    p.weight = weight.data;
    tensors.emplace_back("weight", p.weight);
    // A weight beside a master is only written.
    bytes += static_cast<double>(size_of(type)) * (*s.master == '\0' ? 2 : 1);
    p.master = keep("master", s.master, false, args.master_format);
    p.moment1 = keep("moment1", s.moment1, false, args.moment1_format);
    p.moment2 = keep("moment2", s.moment2, true, args.moment2_format);
    p.compensation = keep("compensation", s.compensation, false, args.compensation_format);
    step_state = Tensor::zeros({static_cast<int64_t>(sizeof(StepState))}, DType::U8, device);
    const StepState first;
    copy_bytes(step_state.mutable_raw(), device, &first, kCpu, sizeof first);
    args.state = static_cast<const StepState*>(step_state.raw());
    uint32_t stream_number = 10;
    for (RandomKey* key : {&p.weight_key, &p.grad_key, &p.master_key, &p.moment1_key,
                           &p.moment2_key, &p.compensation_key})
      *key = {1, ++stream_number, 0, args.state};
    args.parameters = {p};
    args.settings.rule = s.rule;
    args.settings.beta1 = 0.9;
    args.settings.beta2 = 0.999;
    args.settings.eps = 1e-8f;
    args.settings.weight_decay = 0.01f;
    args.settings.decoupled = s.rule == UpdateRule::Adam;
    args.rates = Tensor::from(std::vector<float>{1e-4f}, {1}, device);
    args.updates = Tensor::zeros({1}, DType::I32, device);
    args.steps = Tensor::zeros({1}, DType::I32, device);
    args.table = std::make_shared<ParameterTable>();
  }
  void update() const { kernels::optimizer_step(stream_of(args.rates.device()), args); }
};

/// Three updates give the same bits as the CPU's plainest instruction set on one thread.
void check(const Setting& s, Device device) {
  constexpr int64_t kCount = 100003;
  const Work there(s, kCount, device);
  for (int i = 0; i < 3; ++i) there.update();
  const cpu::Isa isa = cpu::current_isa();
  const int threads = omp_get_max_threads();
  cpu::set_isa(cpu::Isa::Portable);
  omp_set_num_threads(1);
  const Work here(s, kCount, kCpu);
  for (int i = 0; i < 3; ++i) here.update();
  cpu::set_isa(isa);
  omp_set_num_threads(threads);
  for (size_t t = 0; t < here.tensors.size(); ++t) {
    const auto& [name, wanted] = here.tensors[t];
    const Tensor got = there.tensors[t].second.to(kCpu);
    ULP_CHECK(std::memcmp(wanted.raw(), got.raw(), static_cast<size_t>(wanted.bytes())) == 0,
              "bench optimizer: {}, {}: {} gives other bits than the CPU's portable code",
              s.algorithm, name, to_string(device));
  }
}

struct Row {
  Setting setting;
  double bytes, seconds, copy;  // copy: bytes a second
  int64_t elements;

  double bandwidth() const { return bytes * static_cast<double>(elements) / seconds; }
  double ratio() const { return bandwidth() / copy; }
};

Row measure_cpu(const Setting& s, int64_t n, int threads, int repeats) {
  check(s, kCpu);
  const Work work(s, n, kCpu);
  const Tensor from = Tensor::zeros({n}, DType::F32, kCpu);
  Tensor to = Tensor::zeros({n}, DType::F32, kCpu);
  work.update();
  copy_all(from, to, threads);
  std::vector<double> ours, copies;
  for (int r = 0; r < repeats; ++r) {
    double start = seconds_now();
    copy_all(from, to, threads);
    copies.push_back(seconds_now() - start);
    start = seconds_now();
    work.update();
    ours.push_back(seconds_now() - start);
  }
  return {s, work.bytes, median(ours), 2.0 * static_cast<double>(from.bytes()) / median(copies), n};
}

Row measure_cuda(const CudaTimer& timer, const Setting& s, int64_t n, int repeats) {
  const Device device = timer.stream().device;
  check(s, device);
  const Work work(s, n, device);
  const Tensor from = Tensor::zeros({n}, DType::F32, device);
  Tensor to = Tensor::zeros({n}, DType::F32, device);
  const std::vector<double> seconds =
      timer.medians({[&] { work.update(); },
                     [&] {
                       kernels::copy(timer.stream(), {from, to});
                     },
                     [&] {
                       copy_bytes(to.mutable_raw(), device, from.raw(), device,
                                  static_cast<size_t>(from.bytes()));
                     }},
                    repeats);
  return {s, work.bytes, seconds[0],
          2.0 * static_cast<double>(from.bytes()) / std::min(seconds[1], seconds[2]), n};
}

/// Many small parameters in one call: seconds of an update of all of them.
double small_tensors(const CudaTimer& timer, int count, int64_t n, int repeats) {
  const Device device = timer.stream().device;
  std::vector<Work> works;
  OptimizerArgs all;
  for (int i = 0; i < count; ++i) {
    works.emplace_back(kSettings[4], n, device);
    if (i == 0) all = works[0].args;
    if (i > 0) {
      OptimizerParameter p = works.back().args.parameters[0];
      for (RandomKey* key : {&p.weight_key, &p.grad_key, &p.master_key, &p.moment1_key,
                             &p.moment2_key, &p.compensation_key})
        key->state = all.state;
      all.parameters.push_back(p);
    }
  }
  return timer.median_of([&] { kernels::optimizer_step(timer.stream(), all); }, repeats);
}

std::string text_or_dash(const char* text) { return *text == '\0' ? "–" : text; }

nlohmann::ordered_json json_of(const Row& r) {
  const Setting& s = r.setting;
  return {{"algorithm", s.algorithm},
          {"weight", s.weight},
          {"master", s.master},
          {"moment1", s.moment1},
          {"moment2", s.moment2},
          {"compensation", s.compensation},
          {"bytes_per_element", r.bytes},
          {"ms", r.seconds * 1e3},
          {"gb_per_second", r.bandwidth() / 1e9},
          {"copy_gb_per_second", r.copy / 1e9},
          {"ratio", r.ratio()}};
}

void print_row(const BenchOptions& o, const Row& r) {
  const Setting& s = r.setting;
  const char* line = o.markdown
                         ? "| {} | `{}` | {} | {} | {} | {} | {:.2f} | {:.2f} | {:.0f} | {:.2f} |\n"
                         : "{:<6}{:<9}{:<9}{:<24}{:<25}{:<6}{:>7.2f}{:>9.2f}{:>9.1f}{:>8.2f}\n";
  const auto name = [&](const char* text) {
    return o.markdown && *text != '\0' ? fmt::format("`{}`", text) : text_or_dash(text);
  };
  fmt::print(fmt::runtime(line), s.algorithm, s.weight, name(s.master), name(s.moment1),
             name(s.moment2), name(s.compensation), r.bytes, r.seconds * 1e3, r.bandwidth() / 1e9,
             r.ratio());
  std::fflush(stdout);
}

void print_head(const BenchOptions& o, const std::string& machine, int log2_size) {
  print_origin(machine);
  fmt::print(
      "2^{} parameters, fp32 gradients, medians of {} runs; bytes: what an update of one must "
      "move;\nratio: to the speed of a copy in turn with it; every row checked against the CPU's "
      "portable code\n",
      log2_size, o.repeats);
  if (o.markdown)
    fmt::print(
        "\n| | weight | master | moment1 | moment2 | compensation | bytes | ms | GB/s | ratio |\n"
        "|---|---|---|---|---|---|--:|--:|--:|--:|\n");
  else
    fmt::print("{:<6}{:<9}{:<9}{:<24}{:<25}{:<6}{:>7}{:>9}{:>9}{:>8}\n", "", "weight", "master",
               "moment1", "moment2", "comp", "bytes", "ms", "GB/s", "ratio");
}

void run(const BenchOptions& o) {
  const Device device = parse_device(o.device);
  const bool cpu = device.type == DeviceType::Cpu;
  const int log2_size = o.log2_size != 0 ? o.log2_size : cpu ? 24 : 26;
  const int64_t n = int64_t{1} << log2_size;
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  std::optional<CudaTimer> timer;
  std::string machine;
  int threads = 0;
  if (cpu) {
    const Placement placement;
    threads = o.threads != 0 ? o.threads : placement.cpus();
    omp_set_num_threads(threads);
    placement.spread_threads(threads);
    machine = cpu_description(threads);
  } else {
    if (o.threads != 0) throw UsageError("--threads is for --device cpu");
    timer.emplace(device);
    machine = timer->description();
  }
  if (!o.json) print_head(o, machine, log2_size);
  for (const Setting& s : kSettings) {
    const Row row =
        cpu ? measure_cpu(s, n, threads, o.repeats) : measure_cuda(*timer, s, n, o.repeats);
    if (o.json)
      json.push_back(json_of(row));
    else
      print_row(o, row);
  }
  if (o.json) fmt::print("{}\n", json.dump(2));
  if (cpu || o.json) return;
  for (const int count : {1, 150}) {
    const double seconds = small_tensors(*timer, count, 4096, o.repeats);
    fmt::print("{}{} parameter{} of 4096 elements in one call, adam in fp32: {:.1f} µs\n",
               count == 1 ? "\n" : "", count, count == 1 ? "" : "s", seconds * 1e6);
  }
}

}  // namespace

void add_bench_optimizer(CLI::App& bench) {
  auto o = std::make_shared<BenchOptions>();
  CLI::App* cmd = bench.add_subcommand(
      "optimizer", "updates of every algorithm in a few formats against memcpy or a device copy");
  cmd->add_option("--threads", o->threads, "CPU threads (default: all cores)")
      ->check(CLI::Range(1, 1024));
  cmd->add_option("--repeats", o->repeats, "timed runs")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  cmd->add_option("--log2-size", o->log2_size,
                  "2 to this power parameters (default: 24, on a CUDA device 26)")
      ->check(CLI::Range(13, 30));
  cmd->add_option("--device", o->device, "cpu, or cuda or cuda:N")->capture_default_str();
  cmd->add_flag("--markdown", o->markdown, "print a Markdown table");
  cmd->add_flag("--json", o->json, "a bare array of rows");
  cmd->callback([o] { run(*o); });
}

}  // namespace ulp::tools
