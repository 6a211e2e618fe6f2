#pragma once

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/format.h"

namespace ulp::tests {

/// One float of the grammar, written down apart from Format.
struct FloatName {
  int e, m;
  Specials specials;
  const char* overflow;  // "", "-sat", "-inf", "-nan"
  bool ftz;
  std::optional<int> bias;

  std::string base() const { return format_message("e{}m{}", {e, m}); }
  std::vector<std::string> flags() const {
    constexpr const char* kSpecials[] = {"-ieee", "-fn", "-fnuz", "-none"};
    std::vector<std::string> flags = {kSpecials[static_cast<int>(specials)]};
    if (*overflow != 0) flags.emplace_back(overflow);
    if (ftz) flags.emplace_back("-ftz");
    if (bias) flags.push_back("-bias" + std::to_string(*bias));
    return flags;
  }
  std::string text() const {
    std::string text = base();
    for (const std::string& flag : flags()) text += flag;
    return text;
  }
  int real_bias() const {
    return bias.value_or((1 << (e - 1)) - (specials == Specials::Fnuz ? 0 : 1));
  }
  /// By numerics.md §1: which floats there are.
  bool exists() const {
    if (e == 8 && m == 0) return false;
    const std::string overflow_flag = overflow;
    if (specials == Specials::Ieee && (m == 0 || e == 1)) return false;
    if (specials == Specials::Fn && m == 0 && e == 1) return false;
    if (overflow_flag == "-inf" && specials != Specials::Ieee) return false;
    if (overflow_flag == "-nan" && specials == Specials::None) return false;
    const int last_field =
        (1 << e) - (specials == Specials::Ieee || (specials == Specials::Fn && m == 0) ? 2 : 1);
    const bool tops_out = e == 8 && specials == Specials::None && real_bias() == 127;
    return 1 - real_bias() - m >= -149 && (last_field - real_bias() <= 127 || tops_out);
  }
};

/// Calls f for a family of floats, refused ones too.
template <class F>
void for_each_float(int most_bits, F f) {
  for (int e = 1; e <= 8; ++e)
    for (int m = 0; m <= 23 && 1 + e + m <= most_bits; ++m)
      for (const Specials specials : {Specials::Ieee, Specials::Fn, Specials::Fnuz, Specials::None})
        for (const char* overflow : {"", "-sat", "-inf", "-nan"})
          for (const bool ftz : {false, true})
            for (const std::optional<int> bias :
                 {std::optional<int>(), std::optional(0), std::optional(-5), std::optional(11),
                  std::optional(127), std::optional(128), std::optional(150), std::optional(-125)})
              f(FloatName{e, m, specials, overflow, ftz, bias});
}

}  // namespace ulp::tests
