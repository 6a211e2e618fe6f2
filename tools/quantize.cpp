#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/error.h"
#include "kernels/pack.h"
#include "kernels/quantised.h"
#include "nn/data/npy.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/packed_file.h"
#include "tools/threads.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

struct QuantizeOptions {
  std::string in, out, device = "cpu";
  std::optional<std::string> format, seed, threads, axis;
  bool stats = false, packed = false;
};

struct FileKind {
  const char* extension;
  Tensor (*load)(const std::filesystem::path&);
  void (*save)(const std::filesystem::path&, const Tensor&);
};
constexpr FileKind kKinds[] = {{".npy", nn::load_npy, nn::save_npy},
                               {".f32", nn::load_f32, nn::save_f32}};

bool is_packed(const std::filesystem::path& path) { return path.extension() == kPackedExtension; }

FileKind kind_of(const std::filesystem::path& path) {
  for (const FileKind& kind : kKinds)
    if (path.extension() == kind.extension) return kind;
  throw UsageError("quantize: " + path.native() +
                   ": wanted a file that ends in .npy or .f32, or in " + kPackedExtension +
                   " if it is packed");
}

/// Of IN, with an OUT that goes with it.
FileKind float_kind(const QuantizeOptions& o) {
  const std::filesystem::path out = o.out;
  const FileKind kind = kind_of(o.in);
  if (o.packed && !is_packed(out))
    throw UsageError("quantize: --packed writes " + std::string(kPackedExtension) + " files, got " +
                     o.out);
  if (!o.packed && is_packed(out))
    throw UsageError("quantize: " + o.out + " is the name of a packed file; that takes --packed");
  if (!o.packed && out.extension() != kind.extension)
    throw UsageError("quantize: OUT is of the kind of IN: " + o.out + " must end in " +
                     kind.extension);
  return kind;
}

// ---- what happened --------------------------------------------------------------------------------------------------
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

std::string size_text(const PackedTensor& packed) {
  const double bits = packed.bits_per_element();
  return fmt::format("{} bytes of codes and scales, {:.6g} bits per element, {:.4g} % of fp32",
                     packed.bytes(), bits, bits / 32 * 100);
}

std::string change_text(const Tensor& in, const Tensor& out) {
  const Change c = compare(in, out);
  return fmt::format("{} of {} elements changed, max absolute error {:.9g}{}", c.changed,
                     in.numel(), c.most,
                     c.lost == 0 ? "" : fmt::format(", {} became Inf or NaN", c.lost));
}

void print_stats(const Quantizer& q, const QuantiseStats& s) {
  const auto line = [](const char* label, const std::string& text) {
    fmt::print("  {:<19}{}\n", label, text);
  };
  const auto count = [&](const char* label, int64_t n) {
    const double all = static_cast<double>(std::max<int64_t>(1, s.count));
    line(label, fmt::format("{:<13}{:.4g} %", n, 100 * static_cast<double>(n) / all));
  };
  const int hadamard = q.transform.hadamard;
  if (hadamard != 0)
    fmt::print("  of the values rotated by +rht{}, which are what is rounded:\n", hadamard);
  if (q.scale.kind == Scale::Kind::Squeeze)
    fmt::print("  of the values squeezed by +scale=squeeze, which are what is rounded:\n");
  line("elements", fmt::format("{}", s.count));
  count("overflow", s.overflow);
  count("underflow to zero", s.underflow);
  count("NaN", s.nan);
  count("Inf", s.infinite);
  line("amax", fmt::format("{}", s.amax()));
  const std::string of =
      s.finite == s.count
          ? ""
          : fmt::format("  of the {} elements that are finite before and after", s.finite);
  line("mean signed error", fmt::format("{:.6g}{}", s.mean_error(), of));
  std::string sqnr = fmt::format("{:.6g} dB{}", s.sqnr_db(), of);
  if (s.square_error == 0) sqnr = s.finite == 0 ? "-" : "inf: no error";
  line("SQNR", sqnr);
}

// ---- packed files ---------------------------------------------------------------------------------------------------
/// `x` and `whole`, what `use` makes of it, are on the device that computes.
PackedTensor packed_of(const QuantizeOptions& o, const Tensor& x, const Tensor& whole,
                       const QuantiseUse& use) {
  const Quantizer& q = use.quantizer;
  PackArgs args{whole, x, q, use.axis, 1.0f, o.in};
  if (q.has_factor()) {
    QuantiseArgs apart;
    apart.in = x;
    apart.out = args.values = Tensor::empty(x.shape(), DType::F32, x.device());
    apart.quantizer = q;
    apart.group_axis = use.axis;
    apart.key = use.key;
    apart.factors = Tensor::empty({factor_count(q, x.shape(), use.axis)}, DType::F32, x.device());
    kernels::quantise(stream_of(x.device()), apart);
  }
  PackedTensor packed = pack(args);
  packed.codes = packed.codes.to(kCpu);
  if (packed.scales.defined()) packed.scales = packed.scales.to(kCpu);
  return packed;
}

void run_unpack(const QuantizeOptions& o) {
  if (o.seed || o.axis || o.stats || o.device != "cpu")
    throw UsageError("quantize: " + o.in +
                     " is packed and only unpacked here; leave --seed, --axis, --stats and "
                     "--device out");
  if (is_packed(o.out))
    throw UsageError("quantize: " + o.in + " is packed already; OUT must end in .npy or .f32");
  const FileKind kind = kind_of(o.out);
  std::optional<Quantizer> how;
  if (o.format) how = format_value("--format", *o.format);
  const UnpackedFile file = load_packed(o.in, how);
  kind.save(o.out, file.values);
  fmt::print("{} {} {}: unpacked from {}\n", o.out, to_string(file.packed.shape),
             to_string(file.packed.how), size_text(file.packed));
}

// ---- the command ----------------------------------------------------------------------------------------------------
Quantizer read_format(const QuantizeOptions& o) {
  if (!o.format)
    throw UsageError("quantize: --format is required, as in --format e4m3; only packed files (" +
                     std::string(kPackedExtension) + ") have one of their own");
  const Quantizer q = format_value("--format", *o.format);
  if (q.scale.kind == Scale::Kind::Delayed)
    throw UsageError("--format: " + to_string(q) +
                     " scales by what earlier calls saw, and here is one call only; take "
                     "+scale=current");
  return q;
}

int axis_of(const QuantizeOptions& o, const Tensor& in) {
  if (!o.axis) return std::max(in.rank() - 1, 0);
  const int axis = integer_value("--axis", *o.axis, 0, kMaxRank - 1);
  ULP_CHECK(axis < in.rank(), "{}: --axis {} is not an axis of its shape {}", o.in, axis,
            in.shape());
  return axis;
}

void run_quantize(const QuantizeOptions& o) {
  use_threads(o.threads);
  const Device device = parse_device(o.device);
  if (is_packed(o.in)) return run_unpack(o);
  QuantiseUse use;
  use.quantizer = read_format(o);
  const FileKind kind = float_kind(o);
  const auto seed = o.seed ? integer_value<uint64_t>("--seed", *o.seed, 0, UINT64_MAX) : 0;
  if (o.packed) check_packable(use.quantizer, o.in.c_str());
  const Tensor loaded = kind.load(o.in);
  use.axis = axis_of(o, loaded);
  use.key = {seed, RandomSite("quantize").stream("values"), 0, nullptr};
  if (o.stats) use.stats = Tensor::zeros({sizeof(QuantiseStats)}, DType::U8, device);
  const Stream stream = stream_of(device);
  const Tensor in = loaded.to(device), quantised_in = quantised(stream, in, use),
               out = quantised_in.to(kCpu);
  std::string size;
  if (o.packed) {
    const PackedTensor packed = packed_of(o, in, quantised_in, use);
    save_packed(o.out, packed);
    size = "; " + size_text(packed);
  } else {
    kind.save(o.out, out);
  }
  fmt::print("{} {} {}: {}{}\n", o.out, to_string(in.shape()), to_string(use.quantizer),
             change_text(loaded, out), size);
  if (!o.stats) return;
  QuantiseStats stats;
  copy_bytes(&stats, kCpu, use.stats.raw(), device, sizeof stats);
  print_stats(use.quantizer, stats);
}

}  // namespace

void add_quantize(CLI::App& app) {
  auto o = std::make_shared<QuantizeOptions>();
  CLI::App* cmd = app.add_subcommand("quantize", "Quantise the array of a file");
  cmd->add_option(
         "IN", o->in,
         ".npy (float32, C order) or .f32 (raw little-endian floats); or .safetensors that "
         "--packed wrote, which is unpacked")
      ->required();
  cmd->add_option("OUT", o->out, "of the same kind; may be IN. With --packed: .safetensors")
      ->required();
  add_text(*cmd, "--format", o->format, "a number format: e4m3, e5m2:sr, nvfp4, ...");
  add_text(*cmd, "--seed", o->seed, "of stochastic rounding and of +rht (default: 0)");
  cmd->add_option("--device", o->device, "cpu, cuda or cuda:N; the same bytes on both")
      ->capture_default_str();
  add_text(*cmd, "--threads", o->threads,
           "CPU threads; results do not depend on it (default: all cores)");
  add_text(*cmd, "--axis", o->axis,
           "along which grouped formats and +rht reduce (default: the last)");
  cmd->add_flag("--stats", o->stats, "also print what was lost: overflow, underflow, SQNR, ...");
  cmd->add_flag("--packed", o->packed,
                "write codes and scales of the format's own size instead of floats");
  cmd->callback([o] { run_quantize(*o); });
}

}  // namespace ulp::tools
