#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "core/convert.h"
#include "core/error.h"
#include "kernels/kernels.h"
#include "tools/bench_cuda.h"
#include "tools/bench_machine.h"
#include "tools/bench_quantize.h"

namespace ulp::tools {
namespace {

constexpr int64_t kColumns = 1024;  // block rows of 1024

struct Row {
  std::string format, rounding;
  const char* kind;
  DType out;
  int64_t bytes;  // an element's, the fewest that must move
  double seconds, stats_seconds, copy;
  int64_t elements;

  double bandwidth() const {
    return static_cast<double>(bytes) * static_cast<double>(elements) / seconds;
  }
  double ratio() const { return bandwidth() / copy; }
  double stats_ratio() const { return stats_seconds / seconds; }
};

Tensor stats_of(Device device) {
  return Tensor::zeros({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8, device);
}

QuantiseArgs arguments(const Quantizer& q, const Tensor& in, DType out) {
  QuantiseArgs args;
  args.in = in;
  args.out = Tensor::empty(in.shape(), out, in.device());
  args.quantizer = q;
  args.group_axis = 1;
  args.key = {1, 3, 0, nullptr};
  if (q.has_factor() && out != DType::F32)  // what a product reads
    args.factors = Tensor::empty({factor_count(q, in.shape(), 1)}, DType::F32, in.device());
  return args;
}

/// The scale of a block, or of the tensor, follows from elements that lie beyond what a multiprocessor holds: the input is
/// read twice.
bool reads_twice(const Quantizer& q) {
  if (q.is_elementwise()) return false;
  const bool rows =
      q.block.kind == Block::Kind::Row || (q.block.kind == Block::Kind::Axis && q.block.axis == 0);
  const bool groups = q.block.kind == Block::Kind::Group && q.block.columns <= kColumns;
  return q.scale.kind == Scale::Kind::E4M3Tensor || !(rows || groups);
}

/// The device gives the same bits as the CPU, on so many rows that the kernels are those that are measured.
void check(const Quantizer& q, Device device, DType out) {
  const Tensor in = quantize_input(2112, kColumns);
  const QuantiseArgs here = arguments(q, in, out), there = arguments(q, in.to(device), out);
  kernels::quantise(Stream{}, here);
  kernels::quantise(stream_of(device), there);
  const Tensor back = there.out.to(kCpu);
  for (int64_t i = 0; i < in.numel(); ++i) {
    const float wanted = load_as_float(here.out.raw(), out, i);
    const float got = load_as_float(back.raw(), out, i);
    ULP_CHECK(bits_of(canonical(wanted)) == bits_of(canonical(got)),
              "bench quantize: {}: element {} is {} on the CPU and {} on {}", q, i, wanted, got,
              device);
  }
}

Row measure(const CudaTimer& timer, Quantizer q, Rounding rounding, const Tensor& in, DType out,
            int repeats) {
  Row row{};
  row.format = to_string(q);
  row.rounding = to_string(rounding);
  row.kind = class_of(q);
  row.out = out;
  q.rounding = rounding;
  check(q, in.device(), out);
  const Stream stream = timer.stream();
  const QuantiseArgs args = arguments(q, in, out);
  QuantiseArgs counted = args;
  if (!args.factors.defined()) counted.stats = stats_of(in.device());
  Tensor copy = Tensor::empty(in.shape(), DType::F32, in.device());
  const std::vector<double> seconds = timer.medians(
      {[&] { kernels::quantise(stream, args); }, [&] { kernels::quantise(stream, counted); },
       [&] {
         kernels::copy(stream, {in, copy});
       },
       [&] {
         copy_bytes(copy.mutable_raw(), in.device(), in.raw(), in.device(),
                    static_cast<size_t>(in.bytes()));
       }},
      repeats);
  row.elements = in.numel();
  row.bytes = (reads_twice(q) ? 8 : 4) + static_cast<int64_t>(size_of(out));
  row.seconds = seconds[0];
  row.stats_seconds = seconds[1];
  row.copy = 2.0 * static_cast<double>(in.bytes()) / std::min(seconds[2], seconds[3]);
  return row;
}

/// The types that values go to: fp32, the narrowest, and what a product reads.
std::vector<DType> outputs(const Quantizer& q) {
  std::vector<DType> all = {DType::F32};
  for (const DType dtype : {storage_type(q), gemm_type(q)})
    if (std::find(all.begin(), all.end(), dtype) == all.end()) all.push_back(dtype);
  return all;
}

nlohmann::ordered_json json_of(const Row& r) {
  return {{"format", r.format},
          {"rounding", r.rounding},
          {"class", r.kind},
          {"out", to_string(r.out)},
          {"bytes_per_element", r.bytes},
          {"ms", r.seconds * 1e3},
          {"gb_per_second", r.bandwidth() / 1e9},
          {"copy_gb_per_second", r.copy / 1e9},
          {"ratio", r.ratio()},
          {"stats_ratio", r.stats_ratio()}};
}

}  // namespace

void bench_quantize_cuda(const CudaQuantizeOptions& o) {
  const CudaTimer timer(o.device);
  const int64_t rows = (int64_t{1} << o.log2_size) / kColumns;
  const Tensor in = quantize_input(rows, kColumns).to(o.device);
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  const char* line = o.markdown ? "| `{}` | {} | {} | {} | {:.0f} | {:.0f} | {:.2f} | {:.2f} |\n"
                                : "{:<16}{:<10}{:<9}{:>6}{:>10.0f}{:>10.0f}{:>8.2f}{:>8.2f}\n";
  if (!o.json) {
    print_origin(timer.description());
    fmt::print(
        "2^{} floats in rows of {}, medians of {} runs with a cold L2, a device copy in turn "
        "with each;\nevery format checked against the CPU; bytes: the fewest an element must move "
        "(12: read twice)\n",
        o.log2_size, kColumns, o.repeats);
    if (o.markdown)
      fmt::print(
          "\n| format | rounding | out | bytes | GB/s | copy | ratio | × with statistics |\n"
          "|---|---|---|--:|--:|--:|--:|--:|\n");
    else
      fmt::print("{:<16}{:<10}{:<9}{:>6}{:>10}{:>10}{:>8}{:>8}\n", "format", "rounding", "out",
                 "bytes", "GB/s", "copy", "ratio", "stats");
  }
  for (const Quantizer& format : o.formats)
    for (const Rounding rounding : {Rounding::NearestEven, Rounding::Stochastic}) {
      for (const DType out : outputs(format)) {
        const Row r = measure(timer, format, rounding, in, out, o.repeats);
        if (o.json) {
          json.push_back(json_of(r));
          continue;
        }
        fmt::print(fmt::runtime(line), r.format, r.rounding, to_string(r.out), r.bytes,
                   r.bandwidth() / 1e9, r.copy / 1e9, r.ratio(), r.stats_ratio());
        std::fflush(stdout);
      }
    }
  if (o.json) fmt::print("{}\n", json.dump(2));
}

}  // namespace ulp::tools
