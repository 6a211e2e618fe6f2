#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ulp {

/// * is any text, ? any one character.
bool matches(std::string_view pattern, std::string_view text);

/// The names that differ least from a pattern, at most three: for messages.
std::vector<std::string> similar(std::string_view pattern, const std::vector<std::string>& names);

/// Somebody's text in a message: at most 80 bytes of it, whole characters, with … where there is more.
std::string shortened(std::string_view text);

}  // namespace ulp
