#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/codebook.h"
#include "core/codes.h"
#include "tools/commands.h"
#include "tools/format_bits.h"
#include "tools/neighbours.h"
#include "tools/number_text.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

// clang-format off
constexpr std::array kCurated = {
    "fp32", "tf32", "bf16", "fp16", "e5m2", "e5m2-fnuz", "e4m3", "e4m3-fnuz", "e3m4", "e3m2",
    "e2m3", "e2m1", "e6m9", "binary8p1", "binary8p2", "binary8p3", "binary8p4", "binary8p5",
    "binary8p6", "binary8p7", "posit8.0", "posit8.1", "posit8.2", "posit16.1", "posit16.2",
    "fixed8.4", "fixed16.8", "nf4", "pow2x4", "bfp8", "hbfp8", "mxfp8", "mxfp8-e5m2", "mxfp6",
    "mxfp6-e3m2", "mxfp4", "mxint8", "nvfp4", "nf4-g64-scalef32", "e4m3-t128x128-scalef32",
    "e4m3+scale=current"};
// clang-format on

// ---- where formats come from ----------------------------------------------------------------------------------------
constexpr const char* kMx = "OCP Microscaling Formats (MX) specification 1.0";

/// A family of formats and who defines it. `holds` may count on the families before it not to hold.
struct Family {
  bool (*holds)(const Quantizer&) = nullptr;
  std::string name, source;
};

bool is_named(const Quantizer& q, std::initializer_list<const char*> names) {
  const std::string name = to_string(q.format);
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_float(const Quantizer& q, Specials specials) {
  return q.format.kind == FormatKind::Float && q.format.specials == specials;
}

/// Small blocks with fp32 scales.
bool is_block_scaled(const Quantizer& q) {
  return q.scale.kind == Scale::Kind::F32 &&
         (q.block.kind == Block::Kind::Group || q.block.kind == Block::Kind::Tile);
}

/// A line of 128 along the reduction axis or a tile of 128 x 128.
bool is_deepseek(const Quantizer& q) {
  const Block& b = q.block;
  return is_named(q, {"e4m3"}) && is_block_scaled(q) && b.columns == 128 &&
         (b.kind == Block::Kind::Group || b.rows == 1 || b.rows == 128);
}

template <FormatKind kKind>
bool is_kind(const Quantizer& q) {
  return q.format.kind == kKind;
}

const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {[](const Quantizer& q) {
         return is_named(q, {"e2m1", "e2m3", "e3m2"}) || to_string(q).starts_with("mx");
       },
       "OCP MX", kMx},
      {[](const Quantizer& q) { return is_kind<FormatKind::Fp32>(q) || is_named(q, {"fp16"}); },
       "IEEE 754", "IEEE 754-2019"},
      {[](const Quantizer& q) { return is_named(q, {"bf16"}); }, "bfloat16",
       "the upper half of an IEEE 754 binary32"},
      {[](const Quantizer& q) { return is_named(q, {"tf32"}); }, "TF32",
       "NVIDIA A100 Tensor Core GPU Architecture"},
      {[](const Quantizer& q) {
         return is_named(q, {"e4m3", "e5m2"});
       },
       "OCP OFP8", "OCP 8-bit Floating Point Specification (OFP8) 1.0"},
      {[](const Quantizer& q) {
         return is_float(q, Specials::P3109) || is_float(q, Specials::P3109Finite);
       },
       "P3109", "IEEE P3109, Arithmetic Formats for Machine Learning"},
      {[](const Quantizer& q) { return is_float(q, Specials::Fnuz); }, "FNUZ",
       "Noune et al., 8-bit Numerical Formats for Deep Neural Networks, arXiv 2206.02915"},
      {[](const Quantizer& q) { return is_float(q, Specials::Fn); }, "OFP8 rules",
       "specials as E4M3 of the OCP 8-bit Floating Point Specification (OFP8) 1.0"},
      {[](const Quantizer& q) { return is_float(q, Specials::Ieee); }, "IEEE rules",
       "specials as in IEEE 754-2019"},
      {is_kind<FormatKind::Float>, "QPyTorch", "Zhang et al., QPyTorch, arXiv 1910.04540"},
      {is_kind<FormatKind::Fixed>, "QPyTorch", "Zhang et al., QPyTorch, arXiv 1910.04540"},
      {is_kind<FormatKind::BlockFloat>, "QPyTorch", "Zhang et al., QPyTorch, arXiv 1910.04540"},
      {is_kind<FormatKind::Hbfp>, "HBFP",
       "Drumond et al., Training DNNs with Hybrid Block Floating Point, arXiv 1804.01526"},
      {is_kind<FormatKind::Posit>, "posit", "Posit Standard (2022), with any es"},
  };
  return all;
}

/// Published combinations of elements, blocks and scales.
const std::vector<Family>& scaled_families() {
  static const std::vector<Family> all = {
      {[](const Quantizer& q) { return q.scale.kind == Scale::Kind::E4M3Tensor; }, "NVFP4",
       "NVIDIA, Pretraining Large Language Models with NVFP4, arXiv 2509.25149; rounded as in "
       "TransformerEngine"},
      {is_deepseek, "DeepSeek-V3", "DeepSeek-V3 Technical Report, arXiv 2412.19437, §3.3"},
      {[](const Quantizer& q) { return is_named(q, {"nf4"}) && is_block_scaled(q); }, "QLoRA",
       "Dettmers et al., QLoRA, arXiv 2305.14314"},
      {[](const Quantizer& q) {
         return is_named(q, {"e4m3", "e5m2"}) && q.scale.kind == Scale::Kind::F32 &&
                q.block.kind == Block::Kind::Tensor;
       },
       "TE current", "TransformerEngine, recipe Float8CurrentScaling; elements: OCP OFP8"},
      {[](const Quantizer& q) {
         return is_named(q, {"e4m3", "e5m2"}) && q.scale.kind == Scale::Kind::Delayed;
       },
       "TE delayed", "TransformerEngine, recipe DelayedScaling; elements: OCP OFP8"},
  };
  return all;
}

/// The element's family, and what its scale follows.
Family generic_family(const Quantizer& q) {
  Family family;
  for (const Family& known : families())
    if (family.holds == nullptr && known.holds(q)) family = known;
  if (q.format.kind == FormatKind::Codebook)
    family = {nullptr, to_string(q.format), codebook(q.format.table).source};
  const auto add = [&family](const char* name, const std::string& source) {
    family.name += std::string(" + ") + name;
    family.source += "; " + source;
  };
  switch (q.scale.kind) {
    case Scale::Kind::PowerOfTwo:
      if (q.scale.rule == Scale::Rule::Shift)
        add("shift", "Wu et al., WAGE, arXiv 1802.04680");
      else if (family.source != kMx)
        add("MX scale", std::string("scale as in ") + kMx);
      break;
    case Scale::Kind::E4M3: add("e4m3 scale", "scales as the block scales of NVFP4"); break;
    case Scale::Kind::F32:
    case Scale::Kind::Delayed:
      add("fp32 scale", "scales as the tensor scales of TransformerEngine");
      break;
    case Scale::Kind::Squeeze: add("squeeze", "Cambier et al., S2FP8, arXiv 2001.05674"); break;
    default: break;
  }
  return family;
}

Family family_of(const Quantizer& q) {
  Family family;
  for (const Family& known : scaled_families())
    if (family.holds == nullptr && known.holds(q)) family = known;
  if (family.holds == nullptr) family = generic_family(q);
  if (q.transform == Transform{}) return family;
  family.name += q.transform.hadamard != 0 ? " + rht" : "";
  family.name += q.transform.three_quarters ? " + q34" : "";
  family.source += "; transforms: Tseng et al., Training LLMs with MXFP4, arXiv 2502.20586";
  return family;
}

// ---- one row a format -----------------------------------------------------------------------------------------------
/// Block formats: an element under the scale (or shared exponent) 2^0.
struct Row {
  std::string name, block;
  int bits = 0, scale_bits = 0;  // of an element, of each block's scale
  std::optional<double>
      bits_per_element;  // with its share of the scale; none if the tensor's shape decides that
  double max = 0;
  std::optional<double> min_normal, min_subnormal, epsilon;
  std::optional<int64_t> numbers;
  std::string storage, gemm;
  Family family;
};

std::string block_text(const Block& block) {
  switch (block.kind) {
    case Block::Kind::None: break;
    case Block::Kind::Tensor: return "tensor";
    case Block::Kind::Axis: return fmt::format("axis {}", block.axis);
    case Block::Kind::Group: return fmt::format("{}", block.columns);
    case Block::Kind::Row: return "row";
    case Block::Kind::Tile: return fmt::format("{}x{}", block.rows, block.columns);
  }
  return "";
}

std::optional<double> positive(double value) {
  return value > 0 ? std::optional(value) : std::nullopt;
}

/// The step above 1, where both ends are numbers.
std::optional<double> spacing_above_one(const Neighbours& numbers) {
  if (numbers.place(1.0f).below != 1.0f) return std::nullopt;
  const std::optional<float> next = numbers.place(std::nextafter(1.0f, 2.0f)).above;
  if (!next.has_value() || std::isinf(*next)) return std::nullopt;
  return static_cast<double>(*next) - 1;
}

Row make_row(const Quantizer& q) {
  const Format& f = q.format;
  const bool integers = f.kind == FormatKind::BlockFloat || f.kind == FormatKind::Hbfp;
  Row row;
  row.name = to_string(q);
  row.block = block_text(q.block);
  row.bits = element_bits(f);
  row.scale_bits = scale_bits(q);
  row.bits_per_element = bits_per_element(q);
  Grid grid = make_grid(q);
  FormatLimits limits = limits_of(f);
  if (integers) {
    set_block(grid, make_block_rule(q, DType::F32), bits_of(1.0f));
    limits.min_normal = 0;
    limits.min_positive = std::ldexp(1.0, grid.min_quantum);
  }
  const Neighbours numbers(q, grid);
  row.max = numbers.max();
  row.min_normal = positive(limits.min_normal);
  if (limits.min_positive != limits.min_normal) row.min_subnormal = positive(limits.min_positive);
  row.epsilon = spacing_above_one(numbers);
  if (numbers.count() > 0) row.numbers = numbers.count();
  row.storage = to_string(storage_type(q));
  row.gemm = to_string(gemm_type(q));
  row.family = family_of(q);
  return row;
}

// ---- printing -------------------------------------------------------------------------------------------------------
nlohmann::ordered_json as_json(const Row& row) {
  nlohmann::ordered_json j;
  const auto optional = [&j](const char* field, const auto& value) {
    j[field] = nullptr;
    if (value) j[field] = *value;
  };
  j["name"] = row.name;
  j["bits"] = row.bits;
  j["scale_bits"] = row.scale_bits;
  j["block"] = nullptr;
  if (!row.block.empty()) j["block"] = row.block;
  optional("bits_per_element", row.bits_per_element);
  j["max"] = row.max;
  optional("min_normal", row.min_normal);
  optional("min_subnormal", row.min_subnormal);
  optional("epsilon", row.epsilon);
  optional("numbers", row.numbers);
  j["storage"] = row.storage;
  j["gemm"] = row.gemm;
  j["source"] = row.family.source;
  return j;
}

std::string cell(const std::optional<double>& value) { return value ? short_number(*value) : "-"; }

void print_table(const std::vector<Row>& rows) {
  std::vector<std::array<std::string, 10>> lines{{"format", "bits", "max", "min normal",
                                                  "min subnormal", "epsilon", "numbers", "storage",
                                                  "GEMM", "source"}};
  for (const Row& r : rows)
    lines.push_back({r.name,
                     r.bits_per_element ? fmt::format("{:.6g}", *r.bits_per_element)
                                        : fmt::format("{}", r.bits),
                     short_number(r.max), cell(r.min_normal), cell(r.min_subnormal),
                     cell(r.epsilon), r.numbers ? fmt::format("{}", *r.numbers) : "-", r.storage,
                     r.gemm, r.family.name});
  std::array<size_t, 10> width{};
  for (const auto& line : lines)
    for (size_t c = 0; c < line.size(); ++c) width[c] = std::max(width[c], line[c].size());
  for (const auto& line : lines) {
    std::string text;
    for (size_t c = 0; c < line.size(); ++c)
      text += c + 1 == line.size() ? line[c] : fmt::format("{:<{}}  ", line[c], width[c]);
    fmt::print("{}\n", text);
  }
}

/// Explains what the rows leave open.
void print_notes(const std::vector<Row>& rows) {
  const auto any = [&rows](auto holds) { return std::any_of(rows.begin(), rows.end(), holds); };
  fmt::print("\nnumbers: different finite ones, 0 and -0 being one. epsilon: the step above 1.\n");
  if (any([](const Row& r) { return !r.min_normal && r.min_subnormal; }))
    fmt::print("Formats without normal numbers show their smallest positive one as subnormal.\n");
  if (any([](const Row& r) { return r.scale_bits != 0; }))
    fmt::print(
        "Block formats: an element under the scale 1. Bits: with its share of the scale of its "
        "group or tile (--json\n"
        "tells them apart); the share of a scale of a tensor, row or axis, and of nvfp4's factor, "
        "depends on the shape.\n");
  std::vector<std::string> named;
  for (const Row& r : rows) {
    if (std::find(named.begin(), named.end(), r.family.name) != named.end()) continue;
    named.push_back(r.family.name);
    fmt::print("{}{}: {}\n", named.size() == 1 ? "Sources:\n  " : "  ", r.family.name,
               r.family.source);
  }
}

struct FormatsOptions {
  std::vector<std::string> names;
  bool json = false;
};

void run_formats(const FormatsOptions& o) {
  std::vector<Row> rows;
  const std::vector<std::string> curated(kCurated.begin(), kCurated.end());
  for (const std::string& name : o.names.empty() ? curated : o.names)
    rows.push_back(make_row(format_value("formats", name)));
  if (!o.json) {
    print_table(rows);
    return print_notes(rows);
  }
  auto array = nlohmann::ordered_json::array();
  for (const Row& row : rows) array.push_back(as_json(row));
  fmt::print("{}\n", array.dump(2));
}

}  // namespace

void add_formats(CLI::App& app) {
  auto o = std::make_shared<FormatsOptions>();
  CLI::App* cmd = app.add_subcommand("formats", "What each number format can hold");
  cmd->add_option("NAME", o->names, "formats to show (default: the known ones)");
  cmd->add_flag("--json", o->json, "an array of objects");
  cmd->callback([o] { run_formats(*o); });
}

}  // namespace ulp::tools
