#pragma once

// Reading numbers that somebody typed or that stand in a file.

#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>
#include <type_traits>

namespace ulp::text {

/// The number that a text is, all of it; nullopt for any other text, for what T cannot hold, and for Inf and NaN.
template <class T>
std::optional<T> whole_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) return std::nullopt;
  }
  return value;
}

/// The same, from `least` to `most`.
template <class T>
std::optional<T> number_from_to(std::string_view text, std::type_identity_t<T> least,
                                std::type_identity_t<T> most) {
  const std::optional<T> value = whole_number<T>(text);
  return value && *value >= least && *value <= most ? value : std::nullopt;
}

}  // namespace ulp::text
