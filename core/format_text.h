#pragma once

// The small reader behind Format::parse and Quantizer::parse.

#include <optional>
#include <string_view>
#include <vector>

#include "core/format.h"

namespace ulp::text {

/// A whole decimal integer with an optional minus; huge ones become ±1000000. nullopt if it is none.
std::optional<int> number(std::string_view digits);
/// Removes the prefix if it is there.
bool take(std::string_view& text, std::string_view prefix);
std::vector<std::string_view> split(std::string_view text, char at);

/// "e4m3-bias-5-sat" → e4m3, bias-5, sat.
std::vector<std::string_view> format_tokens(std::string_view whole);
Format parse_format(const std::vector<std::string_view>& tokens, std::string_view whole);

}  // namespace ulp::text
