#pragma once

#include <string>
#include <vector>

#include "core/quantizer.h"

namespace ulp::tools {

// What the two halves of `ulp explain` share: explain.cpp (values one by one) and explain_block.cpp (a block of them).

inline constexpr size_t kColumns = 100;

struct Input {
  std::string text;
  float value = 0;
  bool is_code = false;
};

/// The shortest decimal that reads back, or nan.
std::string brief(float value);

/// A label and a text that may be long: it goes on below its beginning.
void print_labelled(const std::string& label, std::string text);

/// Throws UsageError for quantizers whose blocks cannot be shown from their values alone.
void check_explainable(const Quantizer& quantizer);

/// The values as one block: its scales, each element's code and what it loses. Throws UsageError for too many.
void explain_block(const Quantizer& quantizer, const std::vector<Input>& inputs);

}  // namespace ulp::tools
