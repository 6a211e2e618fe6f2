#pragma once

#include <span>
#include <string_view>

namespace ulp::nn {

/// A published method of training in low precision: which formats go where, and how the optimizer steps. Its settings are
/// defaults: whoever gives one of them otherwise gets it otherwise.
struct Recipe {
  std::string_view name;
  std::string_view about;        // in a few words
  std::string_view source;       // the paper
  std::string_view differences;  // to it
  std::string_view policy;       // as JSON (nn/data/policy_file.h); fits every model with a product
  std::string_view flags;  // of ulp train: pairs of an option and its value, with spaces between
  std::string_view adam_flags{};  // the same, for adam and adamw only
};

/// All there are, each with its formulas beside it (nn/recipes.cpp).
std::span<const Recipe> recipes();
/// Throws ulp::Error with near names.
const Recipe& recipe(std::string_view name);

}  // namespace ulp::nn
