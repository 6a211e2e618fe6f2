#include "tools/explain.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/codes.h"
#include "core/error.h"
#include "tools/codes.h"
#include "tools/commands.h"
#include "tools/neighbours.h"
#include "tools/number_text.h"
#include "tools/values.h"

namespace ulp::tools {

std::string brief(float value) { return std::isnan(value) ? "nan" : fmt::format("{}", value); }

void print_labelled(const std::string& label, std::string text) {
  constexpr size_t kIndent = 13;
  std::string line = fmt::format("  {:<{}}", label, kIndent - 2);
  while (text.size() > kColumns - kIndent) {
    fmt::print("{}{}\n", line, text.substr(0, kColumns - kIndent));
    text.erase(0, kColumns - kIndent);
    line = std::string(kIndent, ' ');
  }
  fmt::print("{}{}\n", line, text);
}

namespace {

constexpr std::array kModes = {Rounding::NearestEven, Rounding::NearestAway, Rounding::NearestUp,
                               Rounding::TowardZero,  Rounding::Up,          Rounding::Down,
                               Rounding::Odd,         Rounding::Stochastic};

// ---- reading values -------------------------------------------------------------------------------------------------
/// "0x7E" → the number of that code.
float read_code(const std::string& text, const Quantizer& q) {
  if (!q.is_elementwise())
    throw UsageError(format_message(
        "explain: {} is a code, and a number of {} needs its block's scale as well; give the "
        "block's values, or --format {} for one element",
        {text, to_string(q), to_string(q.format)}));
  const int bits = code_bits(q.format);
  if (bits == 0) throw UsageError("explain: " + to_string(q) + " has no codes, got " + text);
  uint64_t code = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data() + 2, end, code, 16);
  if (at != end || text.size() == 2)
    throw UsageError("explain: '" + text +
                     "' is no code (0x and hexadecimal digits) and no hex float (those need an "
                     "exponent: 0x1.8p3)");
  if (error != std::errc() || code >> bits != 0)
    throw UsageError(format_message(
        "explain: {} has {}-bit codes, 0x0 to {}, got {}",
        {to_string(q.format), bits, code_text(q.format, UINT32_MAX >> (32 - bits)), text}));
  return decode(q.format, static_cast<uint32_t>(code));
}

Input read_input(const std::string& text, const Quantizer& q) {
  const bool signed_text = text.starts_with('-') || text.starts_with('+');
  std::string rest = text.substr(signed_text ? 1 : 0);
  const bool hex = rest.starts_with("0x") || rest.starts_with("0X");
  if (hex && !signed_text && rest.find_first_of("pP") == std::string::npos)
    return {text, read_code(rest, q), true};
  if (hex) rest.erase(0, 2);
  float value = 0;
  const char* end = rest.data() + rest.size();
  const auto [at, error] = std::from_chars(
      rest.data(), end, value, hex ? std::chars_format::hex : std::chars_format::general);
  const bool starts_well = !rest.empty() && rest[0] != '-' && rest[0] != '+';
  if (starts_well && at == end && error == std::errc::result_out_of_range)
    throw UsageError("explain: " + text + " lies outside fp32's range, 2^-149 to 3.4028235e+38");
  if (!starts_well || at != end || error != std::errc())
    throw UsageError("explain: '" + text +
                     "' is no number: wanted a decimal, a hex float (0x1.8p3), inf, nan, or a code "
                     "of the format (0x7E)");
  if (text.starts_with('-')) value = -value;
  return {text, std::isnan(value) ? float_of(kNanBits) : value, false};
}

// ---- printing -------------------------------------------------------------------------------------------------------
std::string repeat(const char* what, size_t times) {
  std::string text;
  for (size_t i = 0; i < times; ++i) text += what;
  return text;
}

/// The parts of a code in boxes, their names above, what they stand for below.
void print_boxes(const std::vector<CodeField>& fields) {
  std::string names, top, bits, bottom, meanings;
  for (size_t i = 0; i < fields.size(); ++i) {
    const CodeField& f = fields[i];
    const size_t width = std::max({f.name.size(), f.bits.size(), f.meaning.size()});
    const bool first = i == 0;
    names += fmt::format(" {:<{}}  ", f.name, width);
    top += (first ? "┌" : "┬") + repeat("─", width + 2);
    bits += fmt::format("│ {:<{}} ", f.bits, width);
    bottom += (first ? "└" : "┴") + repeat("─", width + 2);
    meanings += fmt::format(" {:<{}}  ", f.meaning, width);
  }
  const auto trimmed = [](const std::string& line) {
    return line.substr(0, line.find_last_not_of(' ') + 1);
  };
  fmt::print("   {}\n  {}┐\n  {}│\n  {}┘\n   {}\n", trimmed(names), top, bits, bottom,
             trimmed(meanings));
}

void print_number(const std::string& name, const Format& format, float number,
                  const std::string& note = "") {
  const auto code = encode(format, number);
  print_labelled(name, (code ? code_text(format, *code) : "no code for " + brief(number)) + note);
  if (code) print_boxes(code_fields(format, *code));
  print_labelled("exactly", exact_decimal(number));
}

std::string code_in_brackets(const Format& format, float number) {
  const auto code = encode(format, number);
  return code ? fmt::format("  ({})", code_text(format, *code)) : "";
}

// ---- why a rounding goes where it goes ------------------------------------------------------------------------------
/// One finite value in an element-wise format.
struct Case {
  const Quantizer& q;
  const Neighbours& numbers;
  float x;
  Place place;

  bool exact() const { return place.below == x && place.above == x; }
};

/// Halfway between the neighbours as nearest modes see it: posits are cut as bit strings.
double middle(const Case& c) {
  if (c.q.format.kind != FormatKind::Posit) return (c.place.low + c.place.high) / 2;
  const int n = c.q.format.word_bits, es = c.q.format.exponent_bits;
  const double inner = std::min(std::abs(c.place.low), std::abs(c.place.high));
  const uint32_t code = *encode(c.q.format, static_cast<float>(inner));
  return std::copysign(static_cast<double>(posit_value(2 * code + 1, n + 1, es)), c.x);
}

std::string nearest_reason(const Case& c, const char* at_tie) {
  const double half = middle(c);
  const double x = c.x;
  if (x == half) return at_tie;
  const bool posit = c.q.format.kind == FormatKind::Posit;
  if (posit && half != (c.place.low + c.place.high) / 2)
    return fmt::format("{} {:.6g}, where the bit string is cut", x < half ? "below" : "above",
                       half);
  return "nearer";
}

std::string direction_reason(const Case& c, Rounding mode) {
  switch (mode) {
    case Rounding::NearestEven: return nearest_reason(c, "tie: to even");
    case Rounding::NearestAway: return nearest_reason(c, "tie: away from zero");
    case Rounding::NearestUp: return nearest_reason(c, "tie: toward +inf");
    case Rounding::TowardZero: return "toward zero";
    case Rounding::Up: return "toward +inf";
    case Rounding::Down: return "toward -inf";
    case Rounding::Odd: return "the odd neighbour";
    case Rounding::Stochastic: break;
  }
  return "";
}

/// What happened to the rounded value `open` on its way to `y`; empty if nothing.
std::string bounds_reason(const Case& c, float open, float y) {
  const FormatKind kind = c.q.format.kind;
  if (kind == FormatKind::Posit && c.x != 0 && (!c.place.below || !c.place.above))
    return "beyond the largest posit: saturates";
  if (kind == FormatKind::Posit && c.x != 0 && (c.place.below == 0.0f || c.place.above == 0.0f))
    return "posits never round to zero";
  if (kind == FormatKind::Codebook && (!c.place.below || !c.place.above))
    return "beyond the ends of the table: saturates";
  if (c.x == 0 && y == 0 && bits_of(y) != bits_of(c.x)) return "the format has no -0";
  if (bits_of(open) == bits_of(y) && !std::isinf(open)) return "";
  const std::string rounded = std::isinf(open) ? (open < 0 ? "-2^128" : "2^128") : brief(open);
  if (open <= c.numbers.max() && open >= c.numbers.lowest())
    return rounded + " is subnormal: flushed to zero";
  const std::string beyond = open > 0 ? rounded + " > " + brief(c.numbers.max()) + ": "
                                      : rounded + " < " + brief(c.numbers.lowest()) + ": ";
  if (std::isnan(y)) return beyond + "NaN";
  if (std::isinf(y)) return beyond + "Inf";
  if (c.q.format.overflow == Overflow::Wrap) return beyond + "wraps around";
  if (c.q.format.overflow == Overflow::Infinity) return beyond + "kept in range";
  return beyond + "saturates";
}

std::string reason(const Case& c, Rounding mode, float y) {
  const std::string bounds = bounds_reason(c, c.numbers.unbounded(c.x, mode), y);
  const bool lattice_number = c.place.low == c.place.high;
  std::string text = lattice_number ? "" : direction_reason(c, mode);
  if (c.exact() && bounds.empty()) return "exact";
  if (!bounds.empty() && c.q.format.kind != FormatKind::Posit &&
      c.q.format.kind != FormatKind::Codebook)
    return text.empty() ? bounds : text + "; " + bounds;
  return bounds.empty() ? text : bounds;
}

std::string side(float x, float y) {
  if (std::isnan(y)) return "";
  return y < x ? "below" : y > x ? "above" : "same";
}

/// The chances of a stochastic rounding with two outcomes, the greater one first.
std::string chances(const Draw& d) {
  const uint64_t all = uint64_t{1} << 32;
  const bool first_above = d.first > d.second;
  const uint64_t above = first_above ? d.words_of_first : all - d.words_of_first;
  return fmt::format("above with probability {} ({:.6g}), below with {}", fraction_of_2_32(above),
                     static_cast<double>(above) / static_cast<double>(all),
                     fraction_of_2_32(all - above));
}

std::string sure_reason(const Case& c, const Grid& grid, const Draw& d) {
  if (c.exact()) return reason(c, Rounding::TowardZero, d.first);
  for (const uint32_t word : {0u, UINT32_MAX}) {
    const std::string bounds =
        bounds_reason(c, c.numbers.unbounded(c.x, Rounding::Stochastic, word), d.first);
    if (!bounds.empty()) return "always: " + bounds;
  }
  return fmt::format("always: the other is less likely than 2^-{}", int{grid.bits.count});
}

/// The quantizer with another rounding.
Quantizer with(Quantizer q, Rounding mode) {
  if (q.rounding != Rounding::Stochastic) q.bits = RandomBits{};
  q.rounding = mode;
  return q;
}

std::string mode_name(const Quantizer& q) {
  const std::string name = to_string(q);
  const size_t colon = name.rfind(':');
  return q.rounding == Rounding::NearestEven || colon == std::string::npos ? to_string(q.rounding)
                                                                           : name.substr(colon + 1);
}

void print_modes(const Case& c) {
  struct Line {
    std::string mode, side, value, why;
  };
  std::vector<Line> lines;
  size_t width = 0, mode_width = 3;
  for (const Rounding mode : kModes) {
    const Quantizer q = with(c.q, mode);
    const Grid grid = make_grid(q);
    const std::string name = q.is_identity() ? to_string(mode) : mode_name(q);
    if (mode == Rounding::Stochastic) {
      const Draw d = draw_of(c.x, grid);
      if (d.is_sure())
        lines.push_back({name, side(c.x, d.first), brief(d.first), sure_reason(c, grid, d)});
      else
        lines.push_back({name, "", "", chances(d)});
    } else {
      const float y = quantise_value(c.x, grid, mode, 0);
      lines.push_back({name, side(c.x, y), brief(y), reason(c, mode, y)});
    }
    width = std::max(width, lines.back().value.size());
    mode_width = std::max(mode_width, name.size());
  }
  for (const Line& l : lines) {
    if (l.value.empty())
      fmt::print("  {:<{}}  {}\n", l.mode, mode_width, l.why);
    else
      fmt::print("  {:<{}}  {:<5}  {:<{}}  {}\n", l.mode, mode_width, l.side, l.value, width,
                 l.why);
  }
}

// ---- one value ------------------------------------------------------------------------------------------------------
std::string power_and_decimal(double step) {
  const std::string power = short_number(step);
  return (power.starts_with("2^") ? power + " = " : "") + exact_decimal(step);
}

/// A number's neighbours are the next ones on either side of it.
void print_neighbours(const Case& c) {
  Place p = c.place;
  if (c.exact()) {
    print_labelled("neighbours", "the value is a number of the format; those next to it are");
    p.below = c.numbers.place(std::nextafter(c.x, -INFINITY)).below;
    p.above = c.numbers.place(std::nextafter(c.x, INFINITY)).above;
  }
  const auto print = [&](const char* label, const std::optional<float>& number, float end) {
    if (number)
      print_labelled(label, exact_decimal(*number) + code_in_brackets(c.q.format, *number));
    else
      print_labelled(label, "none: the numbers end at " + brief(end));
  };
  print("below", p.below, c.numbers.lowest());
  print("above", p.above, c.numbers.max());
  const auto away = [&](const std::optional<float>& number) {
    return number && std::isfinite(*number) ? std::optional(std::abs(double{*number} - double{c.x}))
                                            : std::nullopt;
  };
  const auto down = away(p.below), up = away(p.above);
  if (!c.exact()) {
    if (down && up)
      print_labelled("distance", power_and_decimal(double{*p.above} - double{*p.below}));
  } else if (down && up && *down == *up) {
    print_labelled("distance", power_and_decimal(*up) + " on both sides");
  } else {
    if (down) print_labelled("distance", power_and_decimal(*down) + " to the one below");
    if (up) print_labelled("distance", power_and_decimal(*up) + " to the one above");
  }
}

void print_error(const Case& c, float y) {
  if (!std::isfinite(y)) {
    print_labelled("error", std::isnan(y) ? "the value is lost: NaN" : "infinite");
    return;
  }
  const bool inside = c.place.below && c.place.above && std::isfinite(*c.place.below) &&
                      std::isfinite(*c.place.above);
  const double step = c.exact() ? 0
                      : inside  ? double{*c.place.above} - double{*c.place.below}
                                : c.numbers.top_step();
  std::string text = difference(y, c.x);
  if (step > 0) text += fmt::format(" = {:.9g} ulp", (double{y} - double{c.x}) / step);
  if (step > 0 && !inside)
    text += fmt::format(" (1 ulp = {}, the step to the largest number)", short_number(step));
  print_labelled("error", text);
}

/// NaN and Inf do not round: every mode gives the same.
void print_special(const Quantizer& q, float x) {
  const float y = quantise_value(x, make_grid(q), q.rounding, 0);
  std::string why = std::isnan(x) ? "NaN stays NaN" : "Inf stays Inf";
  if (std::isinf(x) && std::isnan(y)) why = "no Inf in the format: NaN";
  if (std::isinf(x) && std::isfinite(y)) why = "Inf saturates";
  fmt::print("\n");
  for (const Rounding mode : kModes)
    fmt::print("  {:<3}  {}  {}\n", to_string(mode),
               brief(quantise_value(x, make_grid(with(q, mode)), mode, 0)), why);
}

void explain_value(const Quantizer& q, const Input& input) {
  const float x = input.value;
  const Format& f = q.format;
  if (input.is_code)
    fmt::print("{} in {} is {}\n\n", input.text, to_string(q), brief(x));
  else
    fmt::print("{} in {}\n\n", input.text, to_string(q));
  print_number("fp32", Format{}, x);
  fmt::print("\n");
  const Grid grid = make_grid(q);
  const Draw draw = draw_of(x, grid);
  const bool two = q.is_stochastic() && !draw.is_sure();
  std::vector<float> results{quantise_value(x, grid, q.rounding, 0)};
  if (two) results = {std::min(draw.first, draw.second), std::max(draw.first, draw.second)};
  for (size_t i = 0; i < results.size(); ++i) {
    if (i > 0) fmt::print("\n");
    print_number(two ? "either" : "becomes", f, results[i],
                 q.is_identity() ? "" : fmt::format("  ({})", mode_name(q)));
  }
  if (!std::isfinite(x)) return print_special(q, x);
  const Neighbours numbers(q, grid);
  const Case c{q, numbers, x, numbers.place(x)};
  fmt::print("\n");
  print_neighbours(c);
  fmt::print("\n");
  print_modes(c);
  fmt::print("\n");
  for (const float y : results) print_error(c, y);
}

// ---- the command ----------------------------------------------------------------------------------------------------
void run_explain(const CLI::App& cmd, const std::string& format) {
  std::vector<std::string> unknown, values;
  bool only_values = false;
  for (const std::string& word : cmd.remaining()) {
    if (word == "--")
      only_values = true;
    else
      (word.starts_with("--") && !only_values ? unknown : values).push_back(word);
  }
  if (!unknown.empty()) throw CLI::ExtrasError(unknown);
  if (values.empty())
    throw UsageError(
        "explain: give at least one VALUE, as in ulp explain 0.1 "
        "--format e4m3");
  const Quantizer q = format_value("--format", format);
  check_explainable(q);
  std::vector<Input> inputs;
  for (const std::string& text : values) inputs.push_back(read_input(text, q));
  if (!q.is_elementwise()) return explain_block(q, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (i > 0) fmt::print("\n{}\n\n", repeat("─", kColumns / 2));
    explain_value(q, inputs[i]);
  }
}

}  // namespace

void add_explain(CLI::App& app) {
  auto format = std::make_shared<std::string>();
  CLI::App* cmd = app.add_subcommand(
      "explain", "ulp explain VALUE... --format Q: what values become in a format, and why");
  cmd->add_option("--format", *format, "a number format: e4m3, e5m2:sr, mxfp4, ...")->required();
  // Values are taken from what is left over: "-inf" and "-nan" look like options. VALUE itself takes none of them; it keeps
  // what follows "--" here.
  cmd->allow_extras();
  cmd->validate_positionals();
  cmd->add_option("VALUE",
                  "a decimal, a hex float (0x1.8p3), inf, nan, or a code of the format (0x7E); any "
                  "number of them")
      ->check([](const std::string&) { return "left over"; });
  cmd->footer(
      "For a format with blocks the values are one block. Negative numbers and -inf are values.");
  cmd->callback([cmd, format] { run_explain(*cmd, *format); });
}

}  // namespace ulp::tools
