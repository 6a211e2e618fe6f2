#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "core/error.h"
#include "tests/conformance_parts.h"

namespace ulp::conformance {

using reference::Mismatches;
using reference::Reference;
using reference::Rounded;
using reference::same;
using reference::ScaledReference;

// ---- the table ------------------------------------------------------------------------------------------------------
namespace {

/// A row: quantizers of one kind. Words of `checked` name what they were compared with.
struct Row {
  std::string format;
  std::vector<std::string>
      quantizers;  // without roundings; of element-wise formats the first is swept, the others see
                   // hard inputs only
  std::vector<std::string> checked = {};
  Tally tally = {};

  bool has(const std::string& quantizer) const {
    return std::find(quantizers.begin(), quantizers.end(), quantizer) != quantizers.end();
  }
  void lead(const char* reference) { checked.insert(checked.begin(), reference); }
  void add(const char* reference) {
    if (std::find(checked.begin(), checked.end(), reference) == checked.end())
      checked.push_back(reference);
  }
};

std::vector<Row> elementwise_rows() {
  std::vector<Row> rows = {
      {"fp32", {"fp32"}},
      {"fp16", {"fp16", "fp16-sat", "fp16-nan-ftz"}},
      {"bf16", {"bf16", "bf16-sat"}},
      {"tf32", {"tf32"}},
      {"e8m7-none", {"e8m7-none"}},
      {"e6m9", {"e6m9"}},
      {"e6m9-none", {"e6m9-none"}},
      {"e4m3", {"e4m3", "e4m3-nan", "e4m3-sat", "e4m3-ftz", "e4m3-none"}},
      {"e5m2", {"e5m2", "e5m2-nan", "e5m2-sat", "e5m2-ftz", "e5m2-none"}},
      {"e4m3-fnuz", {"e4m3-fnuz", "e4m3-fnuz-nan", "e4m3-fnuz-sat", "e4m3-fnuz-nan-bias11"}},
      {"e5m2-fnuz", {"e5m2-fnuz", "e5m2-fnuz-nan", "e5m2-fnuz-sat"}},
      {"e4m3-ieee", {"e4m3-ieee", "e4m3-ieee-sat"}},
      {"e3m4", {"e3m4", "e3m4-sat"}},
      {"e2m3", {"e2m3", "e2m3-sat"}},
      {"e3m2", {"e3m2", "e3m2-sat"}},
      {"e2m1", {"e2m1", "e2m1-sat"}},
      {"fixed8.4",
       {"fixed8.4", "fixed8.4-sat", "fixed8.4-sym", "fixed8.4-u", "fixed8.4-wrap",
        "fixed8.4-u-wrap", "fixed8.4-noclamp"}},
      {"fixed16.8", {"fixed16.8", "fixed16.8-wrap", "fixed16.8-u"}},
  };
  for (char p = '1'; p <= '7'; ++p) {
    Row row{std::string("binary8p") + p, {}};
    for (const std::string& name : reference::p3109_names())
      if (name.starts_with(row.format)) row.quantizers.push_back(name);
    rows.push_back(row);
  }
  for (const char* name :
       {"posit8.0", "posit8.1", "posit8.2", "posit16.1", "posit16.2", "nf4", "pow2x4"})
    rows.push_back({name, {name}});
  return rows;
}

std::vector<std::string> with_rules(const std::string& name) {
  std::vector<std::string> names;
  for (const char* rule : kScaleRules) names.push_back(name + rule);
  return names;
}

std::vector<Row> block_rows() {
  std::vector<Row> rows = {{"bfp8", {"bfp8", "bfp8-axis0", "bfp8-axis1", "bfp8-g32", "bfp8-t4x16"}},
                           {"hbfp8", {"hbfp8", "hbfp8-axis0", "hbfp8-g32", "hbfp8-t4x16"}}};
  for (const char* mx : {"mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8"})
    rows.push_back({mx, with_rules(mx)});
  return rows;
}

std::vector<Row> scaled_rows() {
  return {
      {"nvfp4", {"nvfp4", "nvfp4-g8", "nvfp4-t16x16"}},
      {"-scalee4m3", {"e2m1-g16-scalee4m3", "e2m3-t2x8-scalee4m3", "fixed8.0-sym-g16-scalee4m3"}},
      {"-scalef32",
       {"e4m3-g128-scalef32", "e4m3-t128x128-scalef32", "e4m3-t2x16-scalef32",
        "e5m2-axis0-scalef32", "fixed8.0-sym-g32-scalef32", "posit8.1-g16-scalef32",
        "nf4-g16-scalef32", "nf4-g64-scalef32"}},
      {"+scale=current", {"e4m3+scale=current", "e5m2+scale=current"}},
      {"+scale=row", {"e5m2+scale=row", "fixed8.0+scale=row"}},
      {"+q34", {"mxfp4+q34", "mxfp8-rceil+q34"}},
      {"+rht16, +rht32",
       {"mxfp4+rht16", "mxfp6-even+rht32", "mxfp4+rht32+q34", "nvfp4+rht16",
        "e4m3-g8-scalef32+rht32", "e5m2+rht16+scale=row"}}};
}

void sweep_elementwise(Row& row, uint64_t stride) {
  row.lead(is_list(Quantizer::parse(row.format)) ? "numbers and boundaries in double"
                                                 : "exact decoder in double");
  for (const std::string& quantizer : row.quantizers)
    for (const char* mode : kRoundings) {
      const bool is_rounded = quantizer != "fp32";
      if (!is_rounded && mode != kRoundings.front()) continue;
      const std::string name = quantizer + (is_rounded ? ":" + std::string(mode) : "");
      sweep_hard(name, row.tally);
      if (quantizer == row.quantizers.front()) sweep(name, stride, row.tally);
    }
}

void compare_value_tables(std::vector<Row>& rows) {
  for (Row& row : rows) {
    for (const ValueTable& table : ml_dtypes_tables())
      if (row.has(table.name)) {
        compare_table(table, row.tally);
        row.add("ml_dtypes");
      }
    for (const reference::P3109Table& table : reference::p3109_tables())
      if (row.has(table.rounded_name)) {
        compare_table(table, row.tally);
        row.add("gfloat");
      }
  }
}

void compare_golden_hashes(std::vector<Row>& rows) {
  for (Row& row : rows)
    for (const Golden& golden : golden_hashes()) {
      const std::string name = golden.quantizer;
      if (!row.has(name.substr(0, name.find(':')))) continue;
      compare_golden(golden, row.tally);
      row.add("hashes of QPyTorch's formats");
    }
}

void compare_mx_table(std::vector<Row>& rows) {
  const MxTable table = mx_table();
  for (Row& row : rows)
    for (const MxTable::Made& made : table.made)
      if (row.has(made.quantizer)) {
        compare_mx(table, made, row.tally);
        row.add("numpy with ml_dtypes");
      }
}

void compare_scaled_table(std::vector<Row>& rows) {
  const std::vector<ScaledCase> cases = scaled_table();
  for (Row& row : rows)
    for (const ScaledCase& one : cases)
      if (row.has(one.quantizer)) {
        compare_scaled(one.quantizer, one.tensor, one.want, DType::F32, row.tally);
        row.add("numpy with ml_dtypes");
      }
}

/// A tensor of about `elements` numbers with groups, tiles and rows that end in tails.
TensorCase tensor_case(int64_t elements, uint64_t turn) {
  TensorCase tensor;
  tensor.shape = {3, std::max<int64_t>(37, elements / (3 * 37)), 37};
  tensor.x = mixed_values(tensor.shape.numel(), turn, turn % 2 == 0);
  tensor.group_axis = static_cast<int>(turn % 3);
  tensor.key = {scramble(turn), static_cast<uint32_t>(turn), 1, nullptr};
  return tensor;
}

void sweep_blocks(Row& row, int64_t elements) {
  row.lead("definition in double");
  uint64_t turn = 0;
  for (const std::string& quantizer : row.quantizers)
    for (const char* mode : kRoundings) {
      const std::string name = quantizer + ":" + mode;
      const Quantizer q = Quantizer::parse(name);
      const TensorCase tensor = tensor_case(elements, ++turn);
      for (const DType out : {DType::F32, gemm_type(q)})
        compare(name, run(q, tensor, out, turn % 2 == 0), expected_of(q, tensor, out), tensor.x,
                row.tally);
    }
}

void sweep_scaled(Row& row, int64_t elements) {
  row.lead("definition in fp32 operations");
  uint64_t turn = 0;
  for (const std::string& quantizer : row.quantizers)
    for (const char* mode : kRoundings) {
      const std::string name = quantizer + ":" + mode;
      const TensorCase tensor = tensor_case(elements, ++turn);
      const ScaledTensorReference reference(name);
      for (const DType out : {DType::F32, gemm_type(Quantizer::parse(name))})
        compare_scaled(name, tensor, reference(tensor, out), out, row.tally);
    }
}

void sweep_squeezed(Row& row, int64_t elements) {
  row.lead("definition in double, within the error of fp32 logarithms");
  uint64_t turn = 0;
  for (const std::string& quantizer : row.quantizers) {
    const std::string element = quantizer.substr(0, quantizer.find('+'));
    for (const char* mode : kRoundings)  // odd turns: no Inf and no NaN, which make all of it NaN
      compare_squeezed(element, mode, tensor_case(elements, 2 * ++turn + 1), row.tally);
    compare_squeezed(element, "rne", tensor_case(elements, 2 * turn), row.tally);
  }
}

void sweep_scales(Row& row, uint64_t stride) {
  row.lead("rules in double");
  for (const std::string& quantizer : row.quantizers)
    for (const DType out : {DType::F32, DType::BF16})
      sweep_scale_exponents(quantizer, out, stride, row.tally);
}

void print(const Row& row) {
  std::string checked;
  for (const std::string& reference : row.checked)
    checked += (checked.empty() ? "" : "; ") + reference;
  const bool is_rounded = row.format != "fp32" && row.format != "e8m0";
  fmt::print("| {} | {} | {} | {} | {} | {} |\n", row.format, row.quantizers.size(), checked,
             is_rounded ? kRoundings.size() : 1, row.tally.compared, row.tally.bad.count());
  if (row.tally.bad.count() > 0) fmt::print(stderr, "{}\n", row.tally.bad.first());
}

}  // namespace

int64_t print_table(uint64_t stride) {
  // Block formats see fewer numbers: their reference looks up each element's block.
  const auto elements = static_cast<int64_t>((uint64_t{1} << 32) / stride / 32);
  std::vector<Row> values = elementwise_rows(), blocks = block_rows(), scaled = scaled_rows();
  Row scales{"e8m0", {}}, squeezed{"+scale=squeeze",
                                   {"e5m2+scale=squeeze", "e4m3+scale=squeeze",
                                    "e3m2+scale=squeeze", "e2m3+scale=squeeze"}};
  for (const char* mx : {"mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8"})
    for (const std::string& name : with_rules(mx)) scales.quantizers.push_back(name);

  fmt::print(
      "| format | variants | checked against | roundings | results compared | mismatches |\n");
  fmt::print("|---|---|---|---|---|---|\n");
  int64_t compared = 0, mismatches = 0;
  const auto finish = [&](const Row& row) {
    print(row);
    std::fflush(stdout);
    compared += row.tally.compared;
    mismatches += row.tally.bad.count();
  };
  compare_value_tables(values);
  compare_golden_hashes(values);
  for (Row& row : values) {
    sweep_elementwise(row, stride);
    finish(row);
  }
  sweep_scales(scales, stride);
  finish(scales);
  compare_golden_hashes(blocks);
  compare_mx_table(blocks);
  for (Row& row : blocks) {
    sweep_blocks(row, elements);
    finish(row);
  }
  compare_scaled_table(scaled);
  for (Row& row : scaled) {
    sweep_scaled(row, elements);
    finish(row);
  }
  sweep_squeezed(squeezed, elements);
  finish(squeezed);
  fmt::print("\n{} results compared, {} mismatches; stride {} through the fp32 bit patterns\n",
             compared, mismatches, stride);
  return mismatches;
}

}  // namespace ulp::conformance
