#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/codes.h"
#include "core/error.h"
#include "core/grid.h"
#include "tools/codes.h"
#include "tools/explain.h"
#include "tools/neighbours.h"
#include "tools/number_text.h"

namespace ulp::tools {
namespace {

/// How many values one block holds; 0: any number.
int64_t capacity(const Block& block) {
  if (block.kind == Block::Kind::Group) return block.columns;
  if (block.kind == Block::Kind::Tile) return int64_t{block.rows} * block.columns;
  return 0;
}

/// One block and all that its largest magnitude decides. Element x is q · after, with q = what the grid makes of x · before;
/// times the factor, where there is one, it is the result.
struct SharedBlock {
  const Quantizer& q;
  uint32_t amax;
  BlockRule rule;
  Format element;  // what each element's code is
  Grid grid;
  float tensor = 1;  // E4M3Tensor: S
  BlockScale scale;
  int exponent = 0;  // the code's number × 2^exponent is q

  SharedBlock(const Quantizer& quantizer, uint32_t amax_bits)
      : q(quantizer),
        amax(amax_bits),
        rule(make_block_rule(q, DType::F32)),
        element(q.format),
        grid(make_grid(q)) {
    tensor = tensor_scale(rule, amax);
    scale = set_block(grid, rule, amax, tensor);
    if (shares_exponent()) {
      element = fixed_format(rule.word_bits, 0);
      exponent = grid.min_quantum;
    } else if (q.scale.kind == Scale::Kind::PowerOfTwo && amax < kInfinityBits) {
      exponent = scale_exponent(rule, amax) - 127;
    }
  }

  bool shares_exponent() const { return rule.kind != BlockRule::Kind::Scaled; }
  bool is_nan() const { return amax >= kInfinityBits; }
  bool has_e4m3_scale() const {
    return q.scale.kind == Scale::Kind::E4M3 || q.scale.kind == Scale::Kind::E4M3Tensor;
  }
  /// x as the element's own grid sees it.
  double scaled_value(float x) const {
    return std::ldexp(static_cast<double>(x * scale.before), -exponent);
  }
  float number(float x) const { return quantise_value(x * scale.before, grid, q.rounding, 0); }
  float result(float number) const {
    const float value = number * scale.after;
    return q.has_factor() ? canonical(value * scale.factor) : value;
  }
};

// ---- scales ---------------------------------------------------------------------------------------------------------
void print_shared_exponent(const SharedBlock& b) {
  const int e = static_cast<int>(b.amax >> 23) - 127;
  const bool power = (b.amax & 0x007FFFFFu) == 0;
  const bool hbfp = b.rule.kind == BlockRule::Kind::Hbfp;
  const float most = float_of(b.grid.max_bits[0]);
  const int shared = std::ilogb(most) + (hbfp ? 1 : 0);
  std::string how = hbfp ? "amax rounded up to a power of two" : "the exponent of amax";
  if (b.amax == 0 || e < shared - (hbfp && !power ? 1 : 0)) how = "the least there is";
  print_labelled("exponent", fmt::format("{}: {}", shared, how));
  print_labelled("step", fmt::format("2^{}, {} bits with the sign", b.exponent, b.rule.word_bits));
  print_labelled("largest", brief(most));
}

std::string power_of_two_rule(const SharedBlock& b, const std::string& largest) {
  const int e = static_cast<int>(b.amax >> 23) - 127;
  const bool power = (b.amax & 0x007FFFFFu) == 0;
  if (b.amax == 0) return "amax is 0: the least there is";
  std::string how;
  int x = b.exponent;
  switch (b.q.scale.rule) {
    case Scale::Rule::Ceil:
      x = e - b.rule.emax + (power ? 0 : 1);
      how = fmt::format("ceil: exponent of amax ({}) - exponent of {} ({}){}", e, largest,
                        b.rule.emax, power ? "" : " + 1, for amax is no power of two");
      break;
    case Scale::Rule::Even:
      how = fmt::format("even: exponent of amax rounded to {} bits - exponent of {} ({})",
                        b.rule.precision, largest, b.rule.emax);
      break;
    case Scale::Rule::RoundCeil:
      how = fmt::format("rceil: amax / {} rounded up to a power of two", largest);
      break;
    case Scale::Rule::Shift: how = "shift: log2 of amax, rounded"; break;
    default:
      x = e - b.rule.emax;
      how = fmt::format("floor: exponent of amax ({}) - exponent of {} ({})", e, largest,
                        b.rule.emax);
  }
  return x == b.exponent ? how : how + ", held at the end of the range";
}

/// A quotient that fp32 cannot follow is its largest number.
std::string shown(float quotient) {
  return brief(quotient) + (quotient == kMaxFloat ? " (fp32's largest number)" : "");
}

/// S = most / amax, as scale_to makes it.
std::string ratio_text(const SharedBlock& b, float scale, float most, const std::string& name) {
  if (b.amax == 0) return "1: amax is 0";
  if (!(most / float_of(b.amax) > 0)) return fmt::format("1: {} / amax is 0 in fp32", name);
  return fmt::format("{} = {} / amax", shown(scale), name);
}

std::string factor_text(const SharedBlock& b) {
  const char* what = b.rule.three_quarters ? "4/3 for the 3/4" : "1 / S";
  return fmt::format("{} = {}, kept apart in a product; results include it", shown(b.scale.factor),
                     what);
}

void print_e4m3_scale(const SharedBlock& b, const std::string& largest) {
  const bool of_tensor = b.q.scale.kind == Scale::Kind::E4M3Tensor;
  if (of_tensor) {
    print_labelled("S", ratio_text(b, b.tensor, 448.0f * b.rule.max, "448 * " + largest));
    print_labelled("", "amax of the whole tensor decides it: here the tensor is this block");
  }
  const Format e4m3 = float_format(4, 3);
  const float d = b.scale.after;
  const float wanted = float_of(b.amax) * (b.tensor * b.rule.inverse_max);
  print_labelled("d", fmt::format("{} ({}): amax{} / {} = {} in e4m3", brief(d),
                                  code_text(e4m3, *encode(e4m3, d)), of_tensor ? " * S" : "",
                                  largest, brief(wanted)));
  print_labelled("r", fmt::format("{} = {} / d: what values are multiplied by",
                                  shown(b.scale.before), of_tensor ? "S" : "1"));
  if (of_tensor) print_labelled("factor", factor_text(b));
}

void print_scales(const SharedBlock& b) {
  if (b.shares_exponent()) return print_shared_exponent(b);
  const std::string largest = short_number(static_cast<double>(b.rule.max));
  if (b.q.scale.kind == Scale::Kind::PowerOfTwo) {
    print_labelled("scale", fmt::format("2^{} (0x{:02X})", b.exponent, b.exponent + 127));
    print_labelled("rule", power_of_two_rule(b, largest));
    if (b.rule.three_quarters) print_labelled("factor", factor_text(b));
  } else if (b.has_e4m3_scale()) {
    print_e4m3_scale(b, largest);
  } else {
    print_labelled("S", ratio_text(b, b.scale.before, b.rule.max, largest));
    print_labelled("factor", factor_text(b));
  }
  print_labelled("elements", to_string(b.element) + ", largest " + largest);
}

// ---- elements -------------------------------------------------------------------------------------------------------
/// Columns as wide as their widest cell, two blanks between them.
void print_columns(const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> width(lines.front().size());
  for (const auto& line : lines)
    for (size_t c = 0; c < line.size(); ++c) width[c] = std::max(width[c], line[c].size());
  for (const auto& line : lines) {
    std::string text = " ";
    for (size_t c = 0; c < line.size(); ++c)
      text += c + 1 == line.size() ? " " + line[c] : fmt::format(" {:<{}} ", line[c], width[c]);
    fmt::print("{}\n", text);
  }
}

std::string relative(double lost, double of) {
  if (lost == 0) return "0";
  return of == 0 ? "-" : fmt::format("{:.3g} %", 100 * lost / std::abs(of));
}

std::string element_bits(const Format& element, uint32_t code) {
  std::string text;
  for (const CodeField& field : code_fields(element, code))
    text += (text.empty() ? "" : " ") + field.bits;
  return text;
}

/// What stands above scaled_value.
std::string scaled_name(const SharedBlock& b) {
  if (b.rule.three_quarters) return "3/4 / scale";
  if (b.has_e4m3_scale()) return "* r";
  return b.q.has_factor() ? "* S" : "/ scale";
}

/// What stands above the exact number that a GEMM reads; empty where the result is that number.
std::string number_name(const SharedBlock& b) {
  if (!b.q.has_factor()) return "";
  if (b.has_e4m3_scale()) return "q * d";
  return b.rule.three_quarters ? "q * scale" : "q";
}

void print_elements(const SharedBlock& b, const std::vector<Input>& inputs) {
  const std::string name = number_name(b);
  std::vector<std::vector<std::string>> lines{{"value", scaled_name(b), "code", "bits"}};
  if (!name.empty()) lines[0].push_back(name);
  for (const char* column : {"result", "lost", "relative"}) lines[0].push_back(column);
  for (const Input& input : inputs) {
    const float x = input.value, number = b.number(x), y = b.result(number);
    const auto code =
        encode(b.element, static_cast<float>(std::ldexp(double{number}, -b.exponent)));
    const double lost = std::abs(double{y} - double{x});
    std::vector<std::string> line{brief(x), fmt::format("{:.6g}", b.scaled_value(x)),
                                  code ? code_text(b.element, *code) : "-",
                                  code ? element_bits(b.element, *code) : "-"};
    if (!name.empty()) line.push_back(brief(number * b.scale.after));
    for (const std::string& text : {brief(y), fmt::format("{:.6g}", lost), relative(lost, x)})
      line.push_back(text);
    lines.push_back(line);
  }
  print_columns(lines);
}

void print_chances(const SharedBlock& b, const std::vector<Input>& inputs) {
  std::vector<std::vector<std::string>> lines{{"value", scaled_name(b), "becomes"}};
  for (const Input& input : inputs) {
    const Draw d = draw_of(input.value * b.scale.before, b.grid);
    const uint64_t all = uint64_t{1} << 32;
    const uint64_t above = d.first > d.second ? d.words_of_first : all - d.words_of_first;
    std::string becomes = brief(b.result(d.first));
    if (!d.is_sure())
      becomes = fmt::format("{} with probability {}, else {}",
                            brief(b.result(std::max(d.first, d.second))), fraction_of_2_32(above),
                            brief(b.result(std::min(d.first, d.second))));
    lines.push_back(
        {brief(input.value), fmt::format("{:.6g}", b.scaled_value(input.value)), becomes});
  }
  print_columns(lines);
}

void print_nan_block(const std::vector<Input>& inputs) {
  print_labelled("scale", "NaN: a block that holds NaN or Inf becomes NaN as a whole");
  fmt::print("\n");
  std::vector<std::vector<std::string>> lines{{"value", "result"}};
  for (const Input& input : inputs) lines.push_back({brief(input.value), "nan"});
  print_columns(lines);
}

}  // namespace

void check_explainable(const Quantizer& q) {
  if (q.transform.hadamard != 0)
    throw UsageError(format_message(
        "explain: {} rounds sums of rotated values, not the values; leave +rht{} out",
        {to_string(q), int{q.transform.hadamard}}));
  if (q.scale.kind == Scale::Kind::Squeeze)
    throw UsageError(
        format_message("explain: {} rounds what the whole tensor makes of a value; explain {}",
                       {to_string(q), to_string(q.format)}));
  if (q.scale.kind == Scale::Kind::Delayed)
    throw UsageError(format_message(
        "explain: the scale of {} follows from earlier calls; explain {}+scale=current",
        {to_string(q), to_string(q.format)}));
}

void explain_block(const Quantizer& q, const std::vector<Input>& inputs) {
  const int64_t most = capacity(q.block), count = static_cast<int64_t>(inputs.size());
  if (most > 0 && count > most)
    throw UsageError(format_message("explain: a block of {} holds {} values, got {}",
                                    {to_string(q), most, count}));
  fmt::print("{} value{} in {} as one block{}\n\n", count, count == 1 ? "" : "s", to_string(q),
             most > 0 ? fmt::format(" of up to {}", most) : "");
  uint32_t amax = 0;
  for (const Input& input : inputs) amax = std::max(amax, bits_of(input.value) & ~kSignBit);
  const SharedBlock b(q, amax);
  print_labelled("amax", exact_decimal(static_cast<double>(float_of(amax))));
  if (b.is_nan()) return print_nan_block(inputs);
  print_scales(b);
  fmt::print("\n");
  if (q.is_stochastic())
    print_chances(b, inputs);
  else
    print_elements(b, inputs);
}

}  // namespace ulp::tools
