#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>
#include <vector>

#include "core/codebook.h"
#include "core/grid.h"
#include "core/quantizer.h"
#include "kernels/pack.h"
#include "kernels/quantised.h"
#include "tests/reference.h"
#include "tests/tool_output.h"

// ulp formats and ulp explain as a user meets them.
#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;

namespace {

/// "0x7E".
std::string fmt_code(unsigned code) {
  char text[16];
  snprintf(text, sizeof text, "0x%02X", code);
  return text;
}

std::vector<std::string> split(const std::string& text, const std::string& at) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(at, begin)) != text.npos; begin = end + at.size())
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

/// Characters of the longest line.
int64_t widest(const std::string& text) {
  int64_t most = 0;
  for (const std::string& line : split(text, "\n"))
    most = std::max<int64_t>(most, std::count_if(line.begin(), line.end(), [](char c) {
                               return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
                             }));
  return most;
}

/// explain's output for many values, one text each.
std::vector<std::string> explained(const std::string& values, const std::string& format) {
  const std::string out = output("explain " + values + " --format " + format);
  CHECK(widest(out) <= 100);
  std::string rule = "\n";
  for (int i = 0; i < 50; ++i) rule += "─";
  return split(out, rule + "\n\n");
}

/// The number after a label at the beginning of a line; none for "none: …" and where there is no such line.
std::optional<double> labelled(const std::string& text, const std::string& label) {
  std::smatch found;
  const std::regex line("\n  " + label + " +([-.0-9]+|-?inf)([ \n]|$)");
  if (!std::regex_search(text, found, line)) return std::nullopt;
  std::string number = found[1];
  // A long one goes on in the next line.
  size_t end = static_cast<size_t>(found.position(1) + found.length(1));
  while (text.substr(end, 14) == "\n" + std::string(13, ' ')) {
    const size_t stop = text.find_first_of("\n ", end + 14);
    number += text.substr(end + 14, stop - end - 14);
    end = stop;
  }
  return std::stod(number);
}

const char* kTenth = R"(0.1 in e4m3

  fp32       0x3DCCCCCD
    sign   exponent   significand
  ┌──────┬──────────┬───────────────────────────┐
  │ 0    │ 01111011 │ 10011001100110011001101   │
  └──────┴──────────┴───────────────────────────┘
    +      2^-4       1.60000002384185791015625
  exactly    0.100000001490116119384765625

  becomes    0x1D  (rne)
    sign   exponent   significand
  ┌──────┬──────────┬─────────────┐
  │ 0    │ 0011     │ 101         │
  └──────┴──────────┴─────────────┘
    +      2^-4       1.625
  exactly    0.1015625

  below      0.09375  (0x1C)
  above      0.1015625  (0x1D)
  distance   2^-7 = 0.0078125

  rne  above  0.1015625  nearer
  rna  above  0.1015625  nearer
  rnu  above  0.1015625  nearer
  rtz  below  0.09375    toward zero
  ru   above  0.1015625  toward +inf
  rd   below  0.09375    toward -inf
  odd  above  0.1015625  the odd neighbour
  sr   above with probability 838861/1048576 (0.8), below with 209715/1048576

  error      +0.001562498509883880615234375 = 0.199999809 ulp
)";

const char* kBlock = R"(4 values in mxfp4 as one block of up to 32

  amax       5
  scale      2^0 (0x7F)
  rule       floor: exponent of amax (2) - exponent of 6 (2)
  elements   e2m1, largest 6

  value  / scale  code  bits    result  lost  relative
  0.1    0.1      0x0   0 00 0  0       0.1   100 %
  5      5        0x6   0 11 0  4       1     20 %
  -1.3   -1.3     0xB   1 01 1  -1.5    0.2   15.4 %
  0      0        0x0   0 00 0  0       0     0
)";

const char* kNvfp4 = R"(4 values in nvfp4 as one block of up to 16

  amax       3
  S          896 = 448 * 6 / amax
             amax of the whole tensor decides it: here the tensor is this block
  d          448 (0x7E): amax * S / 6 = 448.00003 in e4m3
  r          2 = S / d: what values are multiplied by
  factor     0.0011160715 = 1 / S, kept apart in a product; results include it
  elements   e2m1, largest 6

  value  * r   code  bits    q * d  result       lost         relative
  3      6     0x7   0 11 1  2688   3.0000002    2.38419e-07  7.95e-06 %
  -0.7   -1.4  0xB   1 01 1  -672   -0.75000006  0.0500001    7.14 %
  0.1    0.2   0x0   0 00 0  0      0            0.1          100 %
  0      0     0x0   0 00 0  0      0            0            0
)";

/// A posit's number from its bits, as the standard reads them.
double posit_number(uint32_t code, int n, int es) {
  if (code >> (n - 1) != 0) return -posit_number((1u << n) - code, n, es);
  std::string bits;
  for (int i = n - 2; i >= 0; --i) bits += (code >> i & 1u) != 0 ? '1' : '0';
  const size_t run = std::min(bits.find(bits[0] == '1' ? '0' : '1'), bits.size());
  const std::string tail = run < bits.size() ? bits.substr(run + 1) : "";
  const int k = bits[0] == '1' ? static_cast<int>(run) - 1 : -static_cast<int>(run);
  double exponent = std::ldexp(k, es), fraction = 1;
  for (size_t i = 0; i < tail.size(); ++i) {
    const int place = static_cast<int>(i), one = tail[i] - '0';
    if (place < es)
      exponent += std::ldexp(one, es - 1 - place);
    else
      fraction += std::ldexp(one, es - 1 - place);
  }
  return fraction * std::exp2(exponent);
}

/// The finite numbers of a format, without asking what explain asks.
std::set<double> numbers_of(const char* name) {
  const Format f = Format::parse(name);
  std::set<double> numbers;
  if (f.kind == FormatKind::Posit) {
    numbers.insert(0);
    for (uint32_t code = 1; code < 1u << f.word_bits; ++code)
      if (code != 1u << (f.word_bits - 1))
        numbers.insert(posit_number(code, f.word_bits, f.exponent_bits));
  } else if (f.kind == FormatKind::Codebook) {
    for (const float v : codebook(f.table).values) numbers.insert(v);
  } else {
    for (const double v : reference::Reference(name).values()) numbers.insert(v);
  }
  return numbers;
}

/// The rows of explain's table of elements, by column.
std::vector<std::map<std::string, std::string>> element_rows(const std::string& out) {
  const std::vector<std::string> lines = split(out.substr(out.find("\n  value ") + 1), "\n");
  std::vector<std::pair<std::string, size_t>> columns;
  for (const std::string& name : split(lines[0], "  "))
    if (!name.empty()) {
      const size_t from = columns.empty() ? 0 : columns.back().second + columns.back().first.size();
      const std::string trimmed = name.substr(name.find_first_not_of(' '));
      columns.emplace_back(trimmed, lines[0].find(trimmed, from));
    }
  std::vector<std::map<std::string, std::string>> rows;
  for (size_t i = 1; i < lines.size() && !lines[i].empty(); ++i) {
    std::map<std::string, std::string> row;
    for (size_t c = 0; c < columns.size(); ++c) {
      const size_t end = c + 1 < columns.size() ? columns[c + 1].second : lines[i].size();
      const std::string cell = lines[i].substr(columns[c].second, end - columns[c].second);
      row[columns[c].first] = cell.substr(0, cell.find_last_not_of(' ') + 1);
    }
    rows.push_back(row);
  }
  return rows;
}

/// x under a rounding mode: by the reference where it knows the format.
float rounded(const char* name, const char* mode, float x) {
  const std::string text = std::string(name) + ":" + mode;
  const Quantizer q = Quantizer::parse(text);
  if (q.format.kind == FormatKind::Posit || q.format.kind == FormatKind::Codebook)
    return quantise_value(x, make_grid(q), 0);
  return reference::Reference(q)(x).value;
}

}  // namespace

TEST_SUITE("explain") {
  TEST_CASE("formats: the table names every known format, and each name means itself") {
    const std::string table = output("formats");
    const auto rows = nlohmann::json::parse(output("formats --json"));
    REQUIRE(rows.is_array());
    CHECK(rows.size() >= 30);
    for (const auto& row : rows) {
      const std::string name = row.at("name");
      CAPTURE(name);
      CHECK(to_string(Quantizer::parse(name)) == name);
      CHECK((table.starts_with(name + " ") || contains(table, "\n" + name + " ")));
      CHECK(!row.at("source").get<std::string>().empty());
      for (const char* field : {"bits", "scale_bits", "max", "numbers"})
        CHECK(row.at(field).is_number());
      CHECK(row.at("storage") == std::string(to_string(storage_type(Quantizer::parse(name)))));
      CHECK(row.at("gemm") == std::string(to_string(gemm_type(Quantizer::parse(name)))));
    }
    CHECK(contains(table, "OCP 8-bit Floating Point Specification (OFP8) 1.0"));
    CHECK(widest(table) <= 120);
  }

  TEST_CASE("formats: blocks with scales of every kind") {
    struct Known {
      const char *name, *block;
      int bits, scale_bits;
      double bits_per_element;  // 0: the shape decides it
      const char *source, *in_table;
    };
    const std::string table = output("formats");
    for (const Known& k : std::initializer_list<Known>{
             {"e4m3", "", 8, 0, 8, "OFP8", "8  "},
             {"mxfp4", "32", 4, 8, 4.25, "OCP Microscaling", "4.25  "},
             {"mxint8", "32", 8, 8, 8.25, "OCP Microscaling", "8.25  "},
             {"bfp8", "tensor", 8, 8, 0, "QPyTorch", "8  "},
             {"nvfp4", "16", 4, 8, 4.5, "2509.25149", "4.5  "},
             {"nf4-g64-scalef32", "64", 4, 32, 4.5, "QLoRA", "4.5  "},
             {"e4m3-t128x128-scalef32", "128x128", 8, 32, 8.001953125, "2412.19437", "8.00195  "},
             {"e4m3-g128-scalef32", "128", 8, 32, 8.25, "2412.19437", nullptr},
             {"e4m3-t1x128-scalef32", "1x128", 8, 32, 8.25, "2412.19437", nullptr},
             {"e4m3-g32-scalef32", "32", 8, 32, 9, "OFP8) 1.0; scales", nullptr},
             {"e4m3-t16x16-scalef32", "16x16", 8, 32, 8.125, "OFP8) 1.0; scales", nullptr},
             {"e4m3+scale=current", "tensor", 8, 32, 0, "Float8CurrentScaling", "8  "},
             {"e5m2+scale=delayed16", "tensor", 8, 32, 0, "DelayedScaling", nullptr},
             {"fp16+scale=row", "row", 16, 32, 0, "TransformerEngine", nullptr},
             {"e5m2-g64", "64", 8, 8, 8.125, "OCP Microscaling", nullptr},
             {"e2m1-g16-scalee4m3", "16", 4, 8, 4.5, "NVFP4", nullptr},
             {"posit8.1-t4x4-scalef32", "4x4", 8, 32, 10, "Posit", nullptr},
             {"mxfp4+rht16+q34", "32", 4, 8, 4.25, "2502.20586", nullptr}}) {
      CAPTURE(std::string(k.name));
      const auto row = nlohmann::json::parse(output(std::string("formats --json ") + k.name)).at(0);
      CHECK(row.at("name") == k.name);
      CHECK(row.at("bits") == k.bits);
      CHECK(row.at("scale_bits") == k.scale_bits);
      CHECK((row.at("block").is_null() ? "" : row.at("block").get<std::string>()) == k.block);
      CHECK((row.at("bits_per_element").is_null() ? 0 : row.at("bits_per_element").get<double>()) ==
            k.bits_per_element);
      CHECK(contains(row.at("source"), k.source));
      if (k.in_table == nullptr) continue;
      std::smatch found;
      CHECK(std::regex_search(
          table, found,
          std::regex("\n" + std::regex_replace(std::string(k.name), std::regex("[+]"), "[+]") +
                     " +" + k.in_table)));
    }
  }

  TEST_CASE("formats: published numbers") {
    struct Known {
      const char* name;
      int bits;
      double max, min_normal, min_subnormal, epsilon, numbers;  // 0: none
    };
    for (const Known& k : std::initializer_list<Known>{
             {"e4m3", 8, 448, 0x1p-6, 0x1p-9, 0x1p-3, 253},
             {"e5m2", 8, 57344, 0x1p-14, 0x1p-16, 0x1p-2, 247},
             {"e4m3-fnuz", 8, 240, 0x1p-7, 0x1p-10, 0x1p-3, 255},
             {"e2m1", 4, 6, 1, 0.5, 0.5, 15},
             {"e2m3", 6, 7.5, 1, 0.125, 0.125, 63},
             {"e3m2", 6, 28, 0.25, 0.0625, 0.25, 63},
             {"fp16", 16, 65504, 0x1p-14, 0x1p-24, 0x1p-10, 63487},
             {"bf16", 16, 0x1.fep127, 0x1p-126, 0x1p-133, 0x1p-7, 65279},
             {"tf32", 19, 0x1.ffcp127, 0x1p-126, 0x1p-136, 0x1p-10, 522239},
             {"fp32", 32, 0x1.fffffep127, 0x1p-126, 0x1p-149, 0x1p-23, 4278190079},
             {"e4m3-ftz", 8, 448, 0x1p-6, 0, 0x1p-3, 239},
             {"fixed8.4", 8, 7.9375, 0, 0.0625, 0.0625, 256},
             {"fixed8.4-sym", 8, 7.9375, 0, 0.0625, 0.0625, 255},
             {"fixed8.4-u", 8, 15.9375, 0, 0.0625, 0.0625, 256},
             {"fixed8.4-noclamp", 8, 0x1.fffffep127, 0, 0.0625, 0.0625, 0},
             {"posit8.1", 8, 4096, 0x1p-12, 0, 0.0625, 255},
             {"nf4", 4, 1, 0, 0.07958029955625534, 0, 16},
             {"mxint8", 8, 127.0 / 64, 0, 0x1p-6, 0x1p-6, 255},
             {"bfp8", 8, 127.0 / 64, 0, 0x1p-6, 0x1p-6, 255},
             {"hbfp8", 9, 255.0 / 256, 0, 0x1p-8, 0, 511}}) {
      CAPTURE(k.name);
      const auto row = nlohmann::json::parse(output(std::string("formats --json ") + k.name)).at(0);
      const auto number = [&](const char* field) {
        return row.at(field).is_null() ? 0.0 : row.at(field).get<double>();
      };
      CHECK(number("bits") == k.bits);
      CHECK(number("max") == k.max);
      CHECK(number("min_normal") == k.min_normal);
      CHECK(number("min_subnormal") == k.min_subnormal);
      CHECK(number("epsilon") == k.epsilon);
      CHECK(number("numbers") == k.numbers);
    }
    const auto mx = nlohmann::json::parse(output("formats --json mxfp4 bfp8 e2m1-t16x8"));
    CHECK(mx.at(0).at("scale_bits") == 8);
    CHECK(mx.at(0).at("block") == "32");
    CHECK(mx.at(1).at("block") == "tensor");
    CHECK(mx.at(2).at("block") == "16x8");
    check_refused("formats e9m9", 2, {"formats", "e9m9"});
    // A table's number has 8 bits: the one after the last is refused, and is not another one.
    const Folder folder;
    std::string tables;
    for (int i = 1; i <= 256; ++i) {
      const std::string file = folder / ("t" + std::to_string(i)).c_str();
      std::ofstream(file) << "0\n" << i << "\n";
      tables += " 'table=" + file + "'";
      if (i == 240)
        CHECK(nlohmann::json::parse(output("formats --json" + tables)).back().at("max") == i);
    }
    check_refused("formats" + tables, 2, {"/t24", "256 tables"});
    check_refused("formats e4m3 0.9", 2, {"formats", "0.9"});
  }

  TEST_CASE("explain: one value, to the letter") {
    CHECK(output("explain 0.1 --format e4m3") == kTenth);
    CHECK(output("explain --format e4m3 0.1") == kTenth);
    CHECK(output("explain 0.1 5 -1.3 0 --format mxfp4") == kBlock);
    CHECK(output("explain 3 -0.7 0.1 0 --format nvfp4") == kNvfp4);
  }

  TEST_CASE("explain: ties, ends, zeros and what is no number") {
    const std::string tie = output("explain 464 --format e4m3");
    for (const char* line :
         {"\n  below      448  (0x7E)\n", "\n  above      none: the numbers end at 448\n",
          "\n  rne  below  448  tie: to even\n",
          "\n  rna  below  448  tie: away from zero; 480 > 448: saturates\n",
          "\n  rd   below  448  toward -inf\n",
          "\n  sr   below  448  always: 480 > 448: saturates\n",
          "\n  error      -16 = -0.5 ulp (1 ulp = 32, "})
      CHECK_MESSAGE(contains(tie, line), line);
    const std::string tiny = output("explain 1e-5 --format e4m3");
    for (const char* line :
         {"\n  becomes    0x00  (rne)\n", "\n  above      0.001953125  (0x01)\n",
          "\n  rne  below  0            nearer\n", "\n  ru   above  0.001953125  toward +inf\n",
          "(0.00512), below with 534122133/536870912\n"})
      CHECK_MESSAGE(contains(tiny, line), line);
    const std::string zero = output("explain -0.0 --format e4m3");
    for (const char* line : {"\n  becomes    0x80  (rne)\n", "\n  exactly    -0\n",
                             "\n  below      -0.001953125  (0x81)\n",
                             "\n  distance   2^-9 = 0.001953125 on both sides\n",
                             "\n  odd  same   -0  exact\n", "\n  error      0\n"})
      CHECK_MESSAGE(contains(zero, line), line);
    CHECK(contains(output("explain -0.0 --format e4m3-fnuz"),
                   "rne  same   0  the format has no -0\n"));
    const Folder folder;
    std::ofstream(folder / "t") << "-1\n1\n";
    const std::string no_zero = output("explain 0 --format 'table=" + (folder / "t") + "'");
    for (const char* line :
         {"\n  rne  below  -1  tie: to even\n", "\n  ru   above  1   toward +inf\n",
          "\n  sr   above with probability 1/2 (0.5), below with 1/2\n"})
      CHECK_MESSAGE(contains(no_zero, line), line);
    const std::string nan = output("explain nan --format e4m3");
    for (const char* line : {"\n  fp32       0x7FC00000\n", "\n  becomes    0x7F  (rne)\n",
                             "\n  sr   nan  NaN stays NaN\n"})
      CHECK_MESSAGE(contains(nan, line), line);
    CHECK(contains(output("explain nan --format e2m1"), "no code for nan"));
    CHECK(contains(output("explain -inf --format e4m3"), "rne  nan  no Inf in the format: NaN\n"));
    CHECK(contains(output("explain -inf --format e4m3-sat"), "rne  -448  Inf saturates\n"));
    CHECK(contains(output("explain inf --format e5m2"), "rtz  inf  Inf stays Inf\n"));
    const std::string infinite = output("explain 1e6 --format e5m2");
    for (const char* line : {"\n  rne  above  inf    nearer; 1048576 > 57344: Inf\n",
                             "\n  rtz  below  57344  toward zero; 917504 > 57344: kept in range\n",
                             "\n  error      infinite\n"})
      CHECK_MESSAGE(contains(infinite, line), line);
    CHECK(contains(output("explain 3.4028235e38 --format bf16"),
                   "rne  above  inf            nearer; 2^128 > 3.3895314e+38: Inf\n"));
    CHECK(contains(output("explain 500 --format e4m3-nan"), "512 > 448: NaN\n"));
    CHECK(contains(output("explain 200 --format fixed8.0-wrap"),
                   "rne  below  -56  200 > 127: wraps around\n"));
    CHECK(contains(output("explain -0.002 --format e4m3-ftz"),
                   "rd   above  -0  toward -inf; -0.00390625 is subnormal: flushed to zero\n"));
    CHECK(contains(output("explain 1e-9 --format posit8.1"), "posits never round to zero\n"));
    CHECK(contains(output("explain 1e-15 --format e4m3"),
                   "always: the other is less likely than 2^-32\n"));
    const std::string draw = output("explain 464 --format e5m2:sr4");
    CHECK(contains(draw, "\n  either     0x5F  (sr4)\n"));
    CHECK(contains(draw, "\n  either     0x60  (sr4)\n"));
    CHECK(contains(draw, "\n  sr4  above with probability 1/4 (0.25), below with 3/4\n"));
  }

  TEST_CASE("explain: every code of a format, against the format's own numbers") {
    for (const char* format : {"e4m3", "e5m2", "e4m3-fnuz", "e3m4", "e2m1", "e2m3", "binary8p1",
                               "binary8p3", "binary8p3-unsigned", "fixed8.4", "fixed6.9",
                               "fixed8.-2-u", "posit8.0", "posit8.2", "nf4"}) {
      CAPTURE(format);
      const auto row = nlohmann::json::parse(output(std::string("formats --json ") + format)).at(0);
      const int codes = 1 << row.at("bits").get<int>();
      std::string values;
      char code[16];
      for (int i = 0; i < codes; ++i) {
        snprintf(code, sizeof code, codes > 16 ? "0x%02X " : "0x%X ", static_cast<unsigned>(i));
        values += code;
      }
      const auto texts = explained(values, format);
      REQUIRE(texts.size() == static_cast<size_t>(codes));
      std::set<double> numbers;
      for (const std::string& text : texts) {
        CAPTURE(text);
        const std::string own = text.substr(0, text.find(' '));
        const double value = std::strtof(text.c_str() + text.find(" is ") + 4, nullptr);
        if (std::isnan(value)) continue;
        CHECK(contains(text, "\n  becomes    " + own + "  (rne)\n"));
        CHECK(labelled(text, "exactly") == value);
        if (std::isinf(value)) continue;
        numbers.insert(value);
        CHECK(contains(text, "  exact\n"));
      }
      std::set<double> expected = numbers_of(format);
      std::erase_if(expected, [](double v) { return std::isinf(v); });
      CHECK(numbers == expected);
      CHECK(row.at("numbers") == numbers.size());
      CHECK(row.at("max") == *numbers.rbegin());
    }
    const auto e4m3 = explained("0x7E 0x00 0xFF 0x81", "e4m3");
    CHECK(e4m3[0].starts_with("0x7E in e4m3 is 448\n"));
    CHECK(e4m3[2].starts_with("0xFF in e4m3 is nan\n"));
    CHECK(e4m3[3].starts_with("0x81 in e4m3 is -0.001953125\n"));
  }

  TEST_CASE("explain: neighbours, results and chances, against the reference") {
    for (const char* format : {"e4m3", "e5m2", "e2m1", "e4m3-fnuz", "e4m3-ftz", "fixed8.4",
                               "fixed8.4-u", "binary8p4", "posit8.1", "nf4"}) {
      const std::set<double> all = numbers_of(format);
      const std::vector<double> numbers(all.begin(), all.end());
      std::string values;
      std::vector<float> inputs;
      for (size_t i = 0; i < 60; ++i) {
        const auto w = static_cast<uint32_t>(2654435761u * (i + 7));
        inputs.push_back(float_of((w & 0x807FFFFFu) | ((112 + ((w >> 23) & 31)) << 23)));
        char text[64];
        snprintf(text, sizeof text, "%a ", static_cast<double>(inputs.back()));
        values += text;
      }
      const auto texts = explained(values, format);
      REQUIRE(texts.size() == inputs.size());
      for (size_t i = 0; i < inputs.size(); ++i) {
        CAPTURE(format);
        CAPTURE(texts[i]);
        const double x = inputs[i];
        const auto at = std::lower_bound(numbers.begin(), numbers.end(), x);
        if (at != numbers.end() && *at == x) continue;
        const auto above = labelled(texts[i], "above"), below = labelled(texts[i], "below");
        CHECK(above.has_value() == (at != numbers.end()));
        CHECK(below.has_value() == (at != numbers.begin()));
        if (above) CHECK(*above == *at);
        if (below) CHECK(*below == *(at - 1));
        for (const char* mode : {"rne", "rna", "rnu", "rtz", "ru", "rd", "odd"}) {
          std::smatch found;
          REQUIRE(std::regex_search(texts[i], found,
                                    std::regex(std::string("\n  ") + mode +
                                               " +(below|above)? +([-+.e0-9]+|-?inf|nan) ")));
          CHECK(reference::same(std::stof(found[2]), rounded(format, mode, inputs[i])));
        }
        std::smatch odds;
        if (std::regex_search(texts[i], odds,
                              std::regex("above with probability (\\d+)/(\\d+) "))) {
          const double p = std::stod(odds[1]) / std::stod(odds[2]);
          CHECK(std::abs(p - (x - *below) / (*above - *below)) <= 0x1p-32);
        }
      }
    }
  }

  TEST_CASE("explain: blocks") {
    const std::string bfp = output("explain 1 2 3.3 -100 --format bfp8");
    for (const char* line :
         {"\n  exponent   6: the exponent of amax\n", "\n  step       2^0, 8 bits",
          "\n  largest    127\n", "\n  3.3    3.3      0x03  0 0000011  3       0.3   9.09 %\n",
          "\n  -100   -100     0x9C  1 0011100  -100    0     0\n"})
      CHECK_MESSAGE(contains(bfp, line), line);
    CHECK(contains(output("explain 3 --format hbfp8"),
                   "exponent   2: amax rounded up to a power of two\n"));
    CHECK(contains(output("explain 0 0 --format mxint8"), "amax is 0: the least there is\n"));
    CHECK(contains(output("explain 7 --format mxfp8-ceil"),
                   "scale      2^-5 (0x7A)\n  rule       ceil: exponent of amax (2) - exponent of "
                   "448 (8) + 1, for"));
    CHECK(contains(output("explain 449 1 --format mxfp8-rceil"), "scale      2^1 (0x80)\n"));
    CHECK(contains(output("explain 1e-44 --format mxfp8"), "held at the end of the range\n"));
    const std::string nan = output("explain 1 inf --format mxfp8");
    CHECK(contains(nan, "a block that holds NaN or Inf becomes NaN as a whole\n"));
    CHECK(contains(nan, "\n  1      nan\n"));
    CHECK(contains(output("explain 5 0.1 --format mxfp4:sr"), "6 with probability 1/2, else 4\n"));
    // Whatever the scale rule: what the kernel makes of the same block.
    const std::vector<float> values = {0.37f, -5.1f, 88.8f, 1e-3f, 12.f, -0.f};
    for (const char* format : {"mxfp8", "mxfp8-e5m2-ceil", "mxfp6-even", "mxfp4-rceil", "mxint8",
                               "bfp6", "hbfp5-g8", "e3m4-t2x3", "e2m1-axis0-ceil"}) {
      CAPTURE(format);
      const std::string out =
          output(std::string("explain 0.37 -5.1 88.8 1e-3 12 -0.0 --format ") + format);
      CHECK(widest(out) <= 100);
      const Tensor in = Tensor::from(values, contains(format, "axis0") ? Shape{1, 6} : Shape{2, 3});
      const Tensor kernel = quantised(
          contains(format, "-t") || contains(format, "axis") ? in : in.reshape({6}), format, 0, 0);
      std::smatch row;
      std::string rest = out.substr(out.find("relative\n"));
      for (size_t i = 0; i < values.size(); ++i) {
        REQUIRE(std::regex_search(
            rest, row, std::regex("\n +\\S+ +\\S+ +0x[0-9A-F]+ +[01]+( [01]+)*  +(\\S+)  [^\n]+")));
        CHECK(bits_of(std::stof(row[2])) == bits_of(kernel.data<float>()[i]));
        rest = row.suffix();
      }
    }
  }

  TEST_CASE("explain: blocks with factors show the kernel's scales, codes and numbers") {
    const std::vector<float> values = {0.37f, -5.1f, 88.8f, 1e-3f, 12.f, -0.f};
    for (const char* format :
         {"nvfp4", "nvfp4-t2x3:rtz", "nvfp4-g8:ru", "e4m3-g8-scalef32", "e5m2-t2x3-scalef32:rd",
          "nf4-g64-scalef32", "posit8.1-g6-scalef32:odd", "fixed8.6-g16-scalef32:rna",
          "e4m3+scale=current", "e5m2+scale=row", "e2m1-g16-scalee4m3", "fixed8.0-sym-g6-scalee4m3",
          "mxfp4+q34", "mxfp8-e5m2-ceil+q34:rtz", "mxint8+q34"}) {
      CAPTURE(std::string(format));
      const std::string out =
          output(std::string("explain 0.37 -5.1 88.8 1e-3 12 -0.0 --format ") + format);
      CAPTURE(out);
      CHECK(widest(out) <= 100);
      const bool tile = contains(format, "-t");
      const Tensor x = Tensor::from(values, tile ? Shape{2, 3} : Shape{6});
      const int axis = tile ? 1 : 0;
      const Tensor y = quantised(x, format, axis, 0);
      QuantiseArgs apart{x, y, format, axis, {}};
      if (apart.quantizer.has_factor()) {
        apart.out = Tensor::empty(x.shape(), DType::F32, kCpu);
        apart.factors = Tensor::empty({1}, DType::F32, kCpu);
        kernels::quantise(stream_of(kCpu), apart);
        CHECK(labelled(out, "factor").has_value());
        CHECK(static_cast<float>(*labelled(out, "factor")) == apart.factors.item());
      }
      const PackedTensor packed = pack({apart.out, x, apart.quantizer, axis});
      const auto rows = element_rows(out);
      REQUIRE(rows.size() == values.size());
      const int bits = code_bits(apart.quantizer.format);
      for (size_t i = 0; i < rows.size(); ++i) {
        CHECK(bits_of(std::stof(rows[i].at("result"))) == bits_of(y.data<float>()[i]));
        for (const char* exact : {"q", "q * d", "q * scale"})
          if (rows[i].contains(exact))
            CHECK(bits_of(std::stof(rows[i].at(exact))) == bits_of(apart.out.data<float>()[i]));
        const uint8_t* codes = packed.codes.data<uint8_t>();
        const int code = bits == 8 ? codes[i] : codes[i / 2] >> (i % 2 * 4) & 15;
        CHECK(std::stoi(rows[i].at("code"), nullptr, 16) == code);
      }
      if (contains(out, "\n  d "))
        CHECK(contains(out, fmt_code(packed.scales.data<uint8_t>()[0]) + "): amax"));
    }
    const std::string current = output("explain 896 33 --format e4m3+scale=current");
    CHECK(contains(current, "\n  S          0.5 = 448 / amax\n  factor     2 = 1 / S"));
    CHECK(contains(current, "\n  33     16.5  0x58  0 1011 000  16   32      1     3.03 %\n"));
    CHECK(contains(output("explain 0 0 --format nvfp4"), "\n  S          1: amax is 0\n"));
    CHECK(contains(output("explain 1e-44 --format e4m3+scale=row"),
                   "\n  S          3.4028235e+38 (fp32's largest number) = 448 / amax\n"));
    CHECK(contains(output("explain 3e38 --format fixed8.120+scale=current"),
                   "\n  S          1: 9.55442e-35 / amax is 0 in fp32\n"));
    CHECK(contains(output("explain 5 33 --format e4m3+scale=current:sr"),
                   "\n  5      67.8788  5.303571 with probability "));
    for (const char* format : {"nvfp4", "e4m3+scale=current", "mxfp4+q34", "e2m1-g4-scalee4m3"})
      CHECK(contains(output(std::string("explain 1 nan --format ") + format),
                     "a block that holds NaN or Inf becomes NaN as a whole\n"));
  }

  TEST_CASE("explain: values that look like options") {
    const std::string infinite = output("explain -inf --format e5m2");
    CHECK(infinite.starts_with("-inf in e5m2\n"));
    CHECK(output("explain --format e5m2 -- -inf") == infinite);
    CHECK(output("explain --format e5m2 -inf") == infinite);
    CHECK(output("explain 1 -.5 --format e5m2 -- -inf") ==
          output("explain 1 --format e5m2 -.5 -inf"));
    CHECK(contains(output("explain --format mxfp8 -- -inf -nan 2"), "\n  2      nan\n"));
    check_refused("explain --format e5m2 --", 2, {"VALUE"});
    check_refused("explain --format e5m2 -- --5", 2, {"'--5'"});
    check_refused("explain -- 1 --format e5m2", 2, {"--format is required"});
    check_refused("explain --formt e5m2 -- --format", 2, {"unknown option --formt"});
  }

  TEST_CASE("explain: what it refuses") {
    check_refused("explain --format e4m3", 2, {"VALUE"});
    check_refused("explain 1", 2, {"--format"});
    check_refused("explain 1 --format e9m1", 2, {"--format", "e9m1"});
    check_refused("explain 1 --fromat e4m3", 2, {"--fromat", "--format"});
    check_refused("explain 1 --format e4m3 --stats", 2, {"--stats"});
    check_refused("explain 12x --format e4m3", 2, {"'12x'", "0x7E"});
    check_refused("explain '' --format e4m3", 2, {"''"});
    check_refused("explain +-1 --format e4m3", 2, {"'+-1'"});
    check_refused("explain 1e40 --format e4m3", 2, {"1e40", "fp32"});
    check_refused("explain 1e-60 --format e4m3", 2, {"1e-60", "fp32"});
    check_refused("explain 0x --format e4m3", 2, {"'0x'"});
    check_refused("explain 0x1.8 --format e4m3", 2, {"'0x1.8'", "0x1.8p3"});
    check_refused("explain 0x100 --format e4m3", 2, {"0x100", "0xFF"});
    check_refused("explain 0xFFFFFFFFFFFFFFFFFF --format fp32", 2, {"0xFFFFFFFF"});
    check_refused("explain 0x7E --format mxfp8", 2, {"0x7E", "scale", "--format e4m3"});
    check_refused("explain 0x7E --format fixed8.4-noclamp", 2, {"no codes"});
    check_refused("explain 1 2 3 --format e2m1-g2", 2, {"2 values", "got 3"});
    check_refused("explain 0x7 --format nvfp4", 2, {"0x7", "scale", "--format e2m1"});
    check_refused("explain 1 --format mxfp4+rht16", 2, {"mxfp4+rht16", "leave +rht16 out"});
    check_refused("explain 0x7E --format e4m3+rht32", 2, {"leave +rht32 out"});
    check_refused("explain 1 --format e4m3+scale=delayed4", 2,
                  {"earlier calls", "e4m3+scale=current"});
  }
}

#endif
