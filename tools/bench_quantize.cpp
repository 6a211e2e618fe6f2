#include "tools/bench_quantize.h"

#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/block_map.h"
#include "core/error.h"
#include "core/grid.h"
#include "kernels/kernels.h"
#include "tools/bench_machine.h"
#include "tools/commands.h"
#include "tools/values.h"

namespace ulp::tools {

const char* class_of(const Quantizer& q) {
  if (q.format.kind == FormatKind::Posit || q.format.kind == FormatKind::Codebook) return "table";
  return q.is_elementwise() ? "element" : "block";
}

Tensor quantize_input(int64_t rows, int64_t columns) {
  Tensor t = Tensor::empty({rows, columns}, DType::F32, kCpu);
  float* x = t.mutable_data<float>();
  const RandomSource random({1, 2, 0, nullptr});
#pragma omp parallel for
  for (int64_t i = 0; i < rows * columns; ++i) {
    const uint32_t w = random.word(static_cast<uint64_t>(i));
    x[i] = float_of((w & 0x807FFFFFu) | ((117 + (w >> 23) % 16) << 23));
  }
  return t;
}

namespace {

struct QuantizeOptions {
  std::vector<std::string> formats;
  int threads = 0;
  int repeats = 9;
  int log2_size = 0;  // 0: 24, on CUDA 27
  std::string device = "cpu";
  bool json = false, markdown = false;
};

const std::vector<std::string> kFormats = {"fp16",     "bf16",  "e4m3",       "e5m2",       "e6m9",
                                           "fixed8.6", "bfp8",  "bfp8-axis0", "bfp8-axis1", "mxfp8",
                                           "mxfp4",    "nvfp4", "posit8.1",   "nf4"};
// nvfp4 reads the tensor twice for its scale; e2m1-g16-scalee4m3 is what it does once that is known.
const std::vector<std::string> kCudaFormats = {
    "e4m3",       "e5m2",  "bf16",  "e6m9",  "fixed8.6",           "bfp8",
    "bfp8-g1024", "mxfp8", "mxfp4", "nvfp4", "e2m1-g16-scalee4m3", "posit8.1",
    "nf4"};

struct Row {
  std::string format, rounding, kind;
  double ns = 0, stats_ns = 0, memcpy_ns = 0;
};

/// The largest magnitude in each block, as bits.
std::vector<uint32_t> amaxes_of(const Tensor& in, const BlockMap& map) {
  const float* x = in.data<float>();
  std::vector<uint32_t> amax(static_cast<size_t>(map.blocks), 0);
  for (int64_t i = 0; i < in.numel(); ++i) {
    uint32_t& own = amax[static_cast<size_t>(map.block_of(i))];
    own = std::max(own, bits_of(x[i]) & ~kSignBit);
  }
  return amax;
}

/// Some elements recomputed one by one from the definition, those of blocks from their block's largest magnitude.
void check_some(const Tensor& in, const Tensor& out, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  const bool has_blocks = !q.is_elementwise();
  const BlockMap map = make_block_map(q, in.shape(), args.group_axis);
  const std::vector<uint32_t> amax = has_blocks ? amaxes_of(in, map) : std::vector<uint32_t>{0};
  const BlockRule rule = has_blocks ? make_block_rule(q, DType::F32) : BlockRule{};
  const float tensor = tensor_scale(rule, *std::max_element(amax.begin(), amax.end()));
  const RandomSource random(args.key);
  for (int64_t i = 0; i < in.numel(); i += 9973) {
    Grid grid = make_grid(q);
    BlockScale scale;
    if (has_blocks)
      scale = set_block(grid, rule, amax[static_cast<size_t>(map.block_of(i))], tensor);
    const float value = quantise_value(in.data<float>()[i] * scale.before, grid,
                                       random.word(static_cast<uint64_t>(i))) *
                        scale.after;
    ULP_CHECK(bits_of(out.data<float>()[i]) == bits_of(value * scale.factor),
              "bench quantize: {} gives a wrong value at element {}", q, i);
  }
}

Row measure(Quantizer q, Rounding rounding, const Tensor& in, Tensor& out, int threads,
            int repeats) {
  const std::string format = to_string(q);
  q.rounding = rounding;
  const RandomKey key{1, 3, 0, nullptr};
  const QuantiseArgs args{in, out, q, 1, key, {}};
  kernels::quantise(Stream{}, args);
  check_some(in, out, args);
  QuantiseArgs counted = args;
  counted.stats = Tensor::zeros({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8, kCpu);
  std::vector<double> ours, with_stats, copies;
  for (int r = 0; r < repeats; ++r) {
    double start = seconds_now();
    copy_all(in, out, threads);
    copies.push_back(seconds_now() - start);
    start = seconds_now();
    kernels::quantise(Stream{}, args);
    ours.push_back(seconds_now() - start);
    start = seconds_now();
    kernels::quantise(Stream{}, counted);
    with_stats.push_back(seconds_now() - start);
  }
  const double per = 1e9 / static_cast<double>(in.numel());
  return {format,
          to_string(rounding),
          class_of(q),
          median(ours) * per,
          median(with_stats) * per,
          median(copies) * per};
}

Quantizer measurable(const std::string& format) {
  const Quantizer q = format_value("bench quantize", format);
  if (q.is_identity() || q.rounding != Rounding::NearestEven || q.transform.hadamard != 0 ||
      q.scale.kind == Scale::Kind::Delayed || q.scale.kind == Scale::Kind::Squeeze)
    throw UsageError(
        "bench quantize: give formats other than fp32, without a rounding, +rht, "
        "+scale=delayed and +scale=squeeze; got " +
        format);
  return q;
}

void run(const QuantizeOptions& o) {
  const Device device = parse_device(o.device);
  const std::vector<std::string>& usual = device == kCpu ? kFormats : kCudaFormats;
  std::vector<Quantizer> formats;
  for (const std::string& format : o.formats.empty() ? usual : o.formats)
    formats.push_back(measurable(format));
  if (device.type == DeviceType::Cuda) {
    if (o.threads > 0) throw UsageError("bench quantize: --threads is of the CPU");
    return bench_quantize_cuda(
        {device, formats, o.repeats, o.log2_size == 0 ? 27 : o.log2_size, o.json, o.markdown});
  }
  if (o.markdown) throw UsageError("bench quantize: --markdown needs --device cuda");
  const int log2_size = o.log2_size == 0 ? 24 : o.log2_size;
  const int threads = o.threads > 0 ? o.threads : omp_get_max_threads();
  omp_set_num_threads(threads);
  Placement().spread_threads(threads);
  const int64_t columns = 4096, rows = (int64_t{1} << log2_size) / columns;
  const Tensor in = quantize_input(rows, columns);
  Tensor out = Tensor::empty(in.shape(), DType::F32, kCpu);
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  if (!o.json) {
    print_origin(cpu_description(threads));
    fmt::print("2^{} floats, fp32 to fp32; medians of {} runs, memcpy in turn with each\n",
               log2_size, o.repeats);
    fmt::print("{:<16}{:<10}{:<9}{:>12}{:>12}{:>8}{:>8}\n", "format", "rounding", "class",
               "ns/element", "memcpy", "ratio", "stats");
  }
  for (const Quantizer& format : formats)
    for (const Rounding rounding : {Rounding::NearestEven, Rounding::Stochastic}) {
      const Row row = measure(format, rounding, in, out, threads, o.repeats);
      if (o.json) {
        json.push_back({{"format", row.format},
                        {"rounding", row.rounding},
                        {"class", row.kind},
                        {"ns_per_element", row.ns},
                        {"memcpy_ns_per_element", row.memcpy_ns},
                        {"ratio", row.ns / row.memcpy_ns},
                        {"stats_ratio", row.stats_ns / row.ns}});
      } else {
        fmt::print("{:<16}{:<10}{:<9}{:>12.3f}{:>12.3f}{:>8.2f}{:>8.2f}\n", row.format,
                   row.rounding, row.kind, row.ns, row.memcpy_ns, row.ns / row.memcpy_ns,
                   row.stats_ns / row.ns);
        std::fflush(stdout);
      }
    }
  if (o.json) fmt::print("{}\n", json.dump(2));
}

}  // namespace

void add_bench_quantize(CLI::App& bench) {
  auto o = std::make_shared<QuantizeOptions>();
  CLI::App* cmd =
      bench.add_subcommand("quantize", "quantisation against memcpy, nearest and stochastic");
  cmd->add_option("formats", o->formats,
                  "formats without a rounding (default: a list of every class)");
  cmd->add_option("--threads", o->threads, "CPU threads (default: all cores)")
      ->check(CLI::Range(1, 1024));
  cmd->add_option("--repeats", o->repeats, "timed runs")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  cmd->add_option("--log2-size", o->log2_size,
                  "2 to this power floats (default: 24, on a CUDA device 27)")
      ->check(CLI::Range(13, 30));
  cmd->add_option("--device", o->device,
                  "cpu, or cuda or cuda:N: beside a device copy, narrow outputs too")
      ->capture_default_str();
  cmd->add_flag("--markdown", o->markdown, "CUDA: print a Markdown table");
  cmd->add_flag("--json", o->json, "a bare array of rows");
  cmd->callback([o] { run(*o); });
}

}  // namespace ulp::tools
