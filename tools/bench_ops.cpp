#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/convert.h"
#include "core/error.h"
#include "core/packed.h"
#include "kernels/activations.h"
#include "kernels/kernels.h"
#include "kernels/place.h"
#include "tools/bench_cuda.h"
#include "tools/bench_machine.h"
#include "tools/bench_quantize.h"
#include "tools/commands.h"

namespace ulp::tools {
namespace {

constexpr int64_t kColumns = 1024;
constexpr RandomKey kKey{1, 3, 0, nullptr};

struct OpsOptions {
  std::string device = "cuda";
  int repeats = 9, log2_size = 27;
  bool json = false, markdown = false;
};

/// A kernel on given tensors: what it writes, the call, and the bytes that must move.
struct Job {
  std::vector<Tensor> results;
  std::function<void(Stream)> run;
  int64_t bytes;
};

/// A measured kernel. Its job is made twice: small on both devices, where the results must agree bit for bit, then large.
struct Case {
  std::string kernel, what;
  std::function<Job(Device, int64_t rows)> make;
};

Tensor input(Device device, int64_t rows) { return quantize_input(rows, kColumns).to(device); }

Tensor labels(Device device, int64_t rows) {
  std::vector<int32_t> all;
  for (int64_t i = 0; i < rows; ++i) all.push_back(static_cast<int32_t>(i * 7 % kColumns));
  return Tensor::from(all, {rows}, device);
}

int64_t bytes_of(std::initializer_list<Tensor> tensors) {
  int64_t bytes = 0;
  for (const Tensor& t : tensors) bytes += t.bytes();
  return bytes;
}

Job log_softmax(Device device, int64_t rows) {
  const Tensor in = input(device, rows), out = Tensor::empty(in.shape(), DType::F32, device);
  return {{out},
          [=](Stream s) {
            kernels::log_softmax(s, {in, out, {}, kKey, {}, {}});
          },
          bytes_of({in, out})};
}

Job log_softmax_backward(Device device, int64_t rows) {
  const Tensor grad = input(device, rows), y = Tensor::empty(grad.shape(), DType::F32, device),
               out = Tensor::empty(grad.shape(), DType::F32, device);
  kernels::log_softmax(stream_of(device), {grad, y, {}, kKey, {}, {}});
  return {{out},
          [=](Stream s) {
            kernels::log_softmax_backward(s, {grad, y, out});
          },
          bytes_of({grad, y, out})};
}

Job softmax(Device device, int64_t rows) {
  const Tensor in = input(device, rows), out = Tensor::empty(in.shape(), DType::F32, device);
  return {{out}, [=](Stream s) { kernels::softmax(s, {in, out, {}, kKey}); }, bytes_of({in, out})};
}

Job softmax_backward(Device device, int64_t rows) {
  const Tensor grad = input(device, rows), y = Tensor::empty(grad.shape(), DType::F32, device),
               out = Tensor::empty(grad.shape(), DType::F32, device);
  kernels::softmax(stream_of(device), {grad, y, {}, kKey});
  return {{out},
          [=](Stream s) {
            kernels::softmax_backward(s, {grad, y, out});
          },
          bytes_of({grad, y, out})};
}

/// Images of 32 × 32 × 16 with a border of 2.
Job pad(Device device, int64_t rows) {
  const Tensor in = input(device, rows).reshape({rows / 16, 32, 32, 16});
  const Tensor out = Tensor::empty({rows / 16, 36, 36, 16}, DType::F32, device);
  const PlaceArgs args{in, out, {0, 2, 2, 0}, {1, 1, 1, 1}, PlaceArgs::Rest::Filled, 0};
  return {{out}, [=](Stream s) { kernels::place(s, args); }, bytes_of({in, out})};
}

Job cross_entropy(Device device, int64_t rows) {
  const Tensor in = input(device, rows), out = Tensor::empty(in.shape(), DType::F32, device),
               losses = Tensor::empty({rows}, DType::F32, device), which = labels(device, rows);
  return {{out, losses},
          [=](Stream s) {
            kernels::log_softmax(s, {in, out, {}, kKey, which, losses});
          },
          bytes_of({in, out, losses, which})};
}

Job cross_entropy_backward(Device device, int64_t rows) {
  const Tensor in = input(device, rows), y = Tensor::empty(in.shape(), DType::F32, device),
               out = Tensor::empty(in.shape(), DType::F32, device),
               one = Tensor::from(std::vector<float>{1}, {1}, device), which = labels(device, rows);
  kernels::log_softmax(stream_of(device), {in, y, {}, kKey, {}, {}});
  return {
      {out},
      [=](Stream s) {
        kernels::cross_entropy_backward(s, {y, which, one, out, 1.0 / static_cast<double>(rows)});
      },
      bytes_of({y, out, which})};
}

/// An element-wise kernel of `inputs` tensors and perhaps one row, rounded into the format's storage type.
Case elementwise(const Kernel<ElementwiseArgs>& kernel, int inputs, bool row, const char* format) {
  const auto make = [=, &kernel](Device device, int64_t rows) -> Job {
    const Quantizer q = Quantizer::parse(format);
    ElementwiseArgs args;
    int64_t bytes = 0;
    size_t k = 0;
    args.in[k++] = input(device, rows);
    if (row) args.in[k++] = input(device, 1).reshape({kColumns});
    for (int more = 1; more < inputs; ++more) args.in[k++] = input(device, rows);
    args.out = Tensor::empty({rows, kColumns}, storage_type(q), device);
    args.output = q;
    args.key = kKey;
    for (size_t i = 0; i < k; ++i) bytes += args.in[i].bytes();
    return {{args.out}, [=, &kernel](Stream s) { kernel(s, args); }, bytes + args.out.bytes()};
  };
  return {kernel.name, format, make};
}

Job sum(Device device, int64_t rows) {
  const Tensor in = input(device, rows), out = Tensor::empty({kColumns}, DType::F32, device);
  return {{out},
          [=](Stream s) {
            kernels::sum(s, {in, out, 1, rows, kColumns});
          },
          bytes_of({in, out})};
}

/// Values of a format, what they were made of, and their packed form.
struct Packing {
  Tensor x, values, scales, factor, codes, no_code;
  Quantizer how;

  Packing(const char* format, Device device, int64_t rows) : how(Quantizer::parse(format)) {
    x = input(device, rows);
    values = Tensor::empty(x.shape(), storage_type(how), device);
    QuantiseArgs quantise;
    quantise.in = x;
    quantise.out = values;
    quantise.quantizer = how;
    quantise.group_axis = 1;
    kernels::quantise(stream_of(device), quantise);
    codes = Tensor::empty({packed_bytes(x.numel(), code_bits(how.format))}, DType::U8, device);
    no_code = Tensor::empty({sizeof(int64_t)}, DType::U8, device);
    factor = Tensor::empty({1}, DType::F32, device);
    if (packed_scale(how) == PackedScale::None) return;
    const int64_t blocks = make_block_map(how, x.shape(), 1).blocks;
    scales = Tensor::empty({blocks}, DType::U8, device);
    kernels::pack_scales(stream_of(device), scales_args());
  }
  PackScalesArgs scales_args() const { return {x, scales, factor, how, 1, values.dtype()}; }
  PackCodesArgs codes_args() const { return {values, scales, codes, no_code, how, 1}; }
  int64_t scale_bytes() const { return scales.defined() ? scales.bytes() : 0; }
};

Case pack(const char* format) {
  return {"pack_codes", format, [=](Device device, int64_t rows) -> Job {
            const Packing p(format, device, rows);
            return {{p.codes},
                    [=](Stream s) { kernels::pack_codes(s, p.codes_args()); },
                    p.values.bytes() + p.codes.bytes() + p.scale_bytes()};
          }};
}

Case pack_scales(const char* format) {
  return {"pack_scales", format, [=](Device device, int64_t rows) -> Job {
            const Packing p(format, device, rows);
            return {{p.scales},
                    [=](Stream s) { kernels::pack_scales(s, p.scales_args()); },
                    p.x.bytes() + p.scale_bytes()};
          }};
}

Case unpack(const char* format) {
  return {"unpack_codes", format, [=](Device device, int64_t rows) -> Job {
            const Packing p(format, device, rows);
            kernels::pack_codes(stream_of(device), p.codes_args());
            const Tensor out = Tensor::empty(p.x.shape(), DType::F32, device);
            return {{out},
                    [=](Stream s) {
                      kernels::unpack_codes(s, {p.codes, p.scales, out, p.how, 1, 1.0f});
                    },
                    p.codes.bytes() + p.scale_bytes() + out.bytes()};
          }};
}

std::vector<Case> cases() {
  return {
      {"log_softmax", "rows of 1024", log_softmax},
      {"log_softmax_backward", "rows of 1024", log_softmax_backward},
      {"log_softmax", "with losses", cross_entropy},
      {"softmax", "rows of 1024", softmax},
      {"softmax_backward", "rows of 1024", softmax_backward},
      {"cross_entropy_backward", "rows of 1024", cross_entropy_backward},
      elementwise(kernels::relu, 1, false, "fp32"),
      elementwise(kernels::relu, 1, false, "bf16"),
      elementwise(kernels::relu, 1, false, "e4m3:sr"),
      elementwise(kernels::gelu, 1, false, "fp32"),
      elementwise(kernels::relu_backward, 2, false, "e5m2:sr"),
      elementwise(kernels::bias_relu, 1, true, "fp32"),
      elementwise(kernels::bias_relu, 1, true, "bf16"),
      elementwise(kernels::bias_relu, 1, true, "e4m3"),
      elementwise(kernels::bias_relu, 1, true, "e4m3:sr"),
      elementwise(kernels::bias_gelu, 1, true, "e4m3:sr"),
      elementwise(kernels::bias_relu_backward, 2, true, "e5m2:sr"),
      elementwise(kernels::hardtanh, 1, false, "e4m3:sr"),
      elementwise(kernels::silu, 1, false, "e4m3:sr"),
      elementwise(kernels::silu_backward, 2, false, "e5m2:sr"),
      elementwise(kernels::elu, 1, false, "fp32"),
      elementwise(kernels::softplus, 1, false, "fp32"),
      {"place", "a border of 2", pad},
      {"sum", "of rows", sum},
      pack("e4m3"),
      pack("mxfp8"),
      pack("mxfp6"),
      pack("mxfp4"),
      pack("mxint8"),
      pack("bf16"),
      pack_scales("mxfp8"),
      unpack("e4m3"),
      unpack("mxfp8"),
      unpack("mxfp6"),
      unpack("mxfp4"),
      unpack("mxint8"),
      unpack("bf16"),
  };
}

/// The device gives the same bits as the CPU.
void check(const Case& c, Device device) {
  constexpr int64_t kRows = 64;
  const Job here = c.make(kCpu, kRows), there = c.make(device, kRows);
  here.run(Stream{});
  there.run(stream_of(device));
  for (size_t r = 0; r < here.results.size(); ++r) {
    const Tensor back = there.results[r].to(kCpu);
    for (int64_t i = 0; i < back.numel(); ++i) {
      const float wanted = load_as_float(here.results[r].raw(), back.dtype(), i);
      const float got = load_as_float(back.raw(), back.dtype(), i);
      ULP_CHECK(bits_of(canonical(wanted)) == bits_of(canonical(got)),
                "bench ops: {} ({}): element {} is {} on the CPU and {} on {}", c.kernel, c.what, i,
                wanted, got, device);
    }
  }
}

void run(const OpsOptions& o) {
  const Device device = parse_device(o.device);
  if (device.type != DeviceType::Cuda)
    throw UsageError("bench ops: wanted --device cuda or cuda:N, got " + o.device);
  const CudaTimer timer(device);
  const int64_t rows = (int64_t{1} << o.log2_size) / kColumns;
  const char* line = o.markdown ? "| `{}` | {} | {:.2f} | {:.0f} | {:.0f} | {:.2f} |\n"
                                : "{:<26}{:<14}{:>8.2f}{:>10.0f}{:>10.0f}{:>8.2f}\n";
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  if (!o.json) {
    fmt::print(
        "{}; 2^{} elements in rows of {}, medians of {} runs with a cold L2, a device copy in turn "
        "with each;\nevery kernel checked against the CPU; bytes: the fewest an element must "
        "move\n",
        timer.description(), o.log2_size, kColumns, o.repeats);
    if (o.markdown) {
      fmt::print("{}, `ulp bench ops --device {} --log2-size {} --repeats {} --markdown`\n\n",
                 today(), to_string(device), o.log2_size, o.repeats);
      fmt::print("| kernel | of | bytes | GB/s | copy | ratio |\n|---|---|--:|--:|--:|--:|\n");
    } else {
      fmt::print("{:<26}{:<14}{:>8}{:>10}{:>10}{:>8}\n", "kernel", "of", "bytes", "GB/s", "copy",
                 "ratio");
    }
  }
  const Tensor from = input(device, rows);
  for (const Case& c : cases()) {
    check(c, device);
    const Job job = c.make(device, rows);
    Tensor to = Tensor::empty(from.shape(), DType::F32, device);
    const std::vector<double> seconds =
        timer.medians({[&] { job.run(timer.stream()); },
                       [&] {
                         kernels::copy(timer.stream(), {from, to});
                       },
                       [&] {
                         copy_bytes(to.mutable_raw(), device, from.raw(), device,
                                    static_cast<size_t>(from.bytes()));
                       }},
                      o.repeats);
    const double bytes = static_cast<double>(job.bytes), bandwidth = bytes / seconds[0];
    const double copy = 2.0 * static_cast<double>(from.bytes()) / std::min(seconds[1], seconds[2]);
    const double each = bytes / static_cast<double>(from.numel());
    if (o.json) {
      json.push_back({{"kernel", c.kernel},
                      {"of", c.what},
                      {"bytes_per_element", each},
                      {"ms", seconds[0] * 1e3},
                      {"gb_per_second", bandwidth / 1e9},
                      {"copy_gb_per_second", copy / 1e9},
                      {"ratio", bandwidth / copy}});
      continue;
    }
    fmt::print(fmt::runtime(line), c.kernel, c.what, each, bandwidth / 1e9, copy / 1e9,
               bandwidth / copy);
    std::fflush(stdout);
  }
  if (o.json) fmt::print("{}\n", json.dump(2));
}

}  // namespace

void add_bench_ops(CLI::App& bench) {
  auto o = std::make_shared<OpsOptions>();
  CLI::App* cmd = bench.add_subcommand(
      "ops",
      "CUDA: kernels that memory bounds, softmax, activations, packing, beside a device copy");
  cmd->add_option("--device", o->device, "cuda or cuda:N")->capture_default_str();
  cmd->add_option("--repeats", o->repeats, "timed runs")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  cmd->add_option("--log2-size", o->log2_size, "2 to this power elements")
      ->check(CLI::Range(16, 28))
      ->capture_default_str();
  cmd->add_flag("--markdown", o->markdown, "print a Markdown table");
  cmd->add_flag("--json", o->json, "a bare array of rows");
  cmd->callback([o] { run(*o); });
}

}  // namespace ulp::tools
