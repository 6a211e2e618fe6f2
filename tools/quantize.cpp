#include <fmt/core.h>
#include <omp.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/error.h"
#include "kernels/kernels.h"
#include "nn/data/npy.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

struct QuantizeOptions {
  std::string in, out, format, seed = "0";
  std::optional<std::string> threads, axis;
};

struct FileKind {
  const char* extension;
  Tensor (*load)(const std::filesystem::path&);
  void (*save)(const std::filesystem::path&, const Tensor&);
};
constexpr FileKind kKinds[] = {{".npy", nn::load_npy, nn::save_npy},
                               {".f32", nn::load_f32, nn::save_f32}};

const FileKind& kind_of(const QuantizeOptions& o) {
  const std::filesystem::path in = o.in, out = o.out;
  for (const FileKind& kind : kKinds) {
    if (in.extension() != kind.extension) continue;
    if (out.extension() != in.extension())
      throw UsageError("quantize: OUT is of the kind of IN: " + o.out + " must end in " +
                       kind.extension);
    return kind;
  }
  throw UsageError("quantize: " + o.in + ": wanted a file that ends in .npy or .f32");
}

struct Change {
  int64_t changed = 0, lost = 0;  // lost: finite values that became Inf or NaN
  double most = 0;                // largest |y − x| of the others
};

/// NaNs are all one; −0 and +0 are two.
Change compare(const Tensor& in, const Tensor& out) {
  const float *x = in.data<float>(), *y = out.data<float>();
  Change c;
  for (int64_t i = 0; i < in.numel(); ++i) {
    if (bits_of(canonical(x[i])) == bits_of(y[i])) continue;
    ++c.changed;
    if (std::isfinite(x[i]) && !std::isfinite(y[i])) ++c.lost;
    if (std::isfinite(x[i]) && std::isfinite(y[i]))
      c.most = std::max(c.most, std::abs(static_cast<double>(y[i]) - static_cast<double>(x[i])));
  }
  return c;
}

void run_quantize(const QuantizeOptions& o) {
  const Quantizer q = format_value("--format", o.format);
  const FileKind& kind = kind_of(o);
  const auto seed = integer_value<uint64_t>("--seed", o.seed, 0, UINT64_MAX);
  if (o.threads) omp_set_num_threads(integer_value("--threads", *o.threads, 1, kMaxThreads));
  const Tensor in = kind.load(o.in);
  int axis = std::max(in.rank() - 1, 0);
  if (o.axis) {
    axis = integer_value("--axis", *o.axis, 0, kMaxRank - 1);
    ULP_CHECK(axis < in.rank(), "{}: --axis {} is not an axis of its shape {}", o.in, axis,
              in.shape());
  }
  QuantiseArgs args;
  args.in = in;
  args.out = Tensor::empty(in.shape(), DType::F32, kCpu);
  args.quantizer = q;
  args.group_axis = axis;
  args.key = {seed, RandomSite("quantize").stream("values"), 0, nullptr};
  kernels::quantise(stream_of(kCpu), args);
  kind.save(o.out, args.out);
  const Change c = compare(in, args.out);
  fmt::print("{} {} {}: {} of {} elements changed, max absolute error {:.9g}{}\n", o.out,
             to_string(in.shape()), to_string(q), c.changed, in.numel(), c.most,
             c.lost == 0 ? "" : fmt::format(", {} became Inf or NaN", c.lost));
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto o = std::make_shared<QuantizeOptions>();
  CLI::App* cmd = app.add_subcommand("quantize", "Quantise the array of a file");
  cmd->add_option("IN", o->in, ".npy (float32, C order) or .f32 (raw little-endian floats)")
      ->required();
  cmd->add_option("OUT", o->out, "of the same kind; may be IN")->required();
  cmd->add_option("--format", o->format, "a number format: e4m3, e5m2:sr, mxfp4, ...")->required();
  cmd->add_option("--seed", o->seed, "of stochastic rounding")->capture_default_str();
  add_text(*cmd, "--threads", o->threads,
           "CPU threads; results do not depend on it (default: all cores)");
  add_text(*cmd, "--axis", o->axis, "along which grouped formats reduce (default: the last)");
  cmd->callback([o] { run_quantize(*o); });
}

}  // namespace ulp::tools
