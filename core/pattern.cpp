#include "core/pattern.h"

#include <algorithm>
#include <numeric>

namespace ulp {

bool matches(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, after_star = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]) && pattern[p] != '*') {
      ++p, ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      after_star = t;
    } else if (star != std::string_view::npos) {  // the last star takes one character more
      p = star + 1;
      t = ++after_star;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

namespace {

/// Insertions, deletions and changes from a pattern to a text; what a star stands for is free.
size_t distance(std::string_view pattern, std::string_view text) {
  std::vector<size_t> row(text.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (const char c : pattern) {
    const bool star = c == '*';
    size_t corner = row[0];
    if (!star) ++row[0];
    for (size_t t = 1; t <= text.size(); ++t) {
      const size_t above = row[t];
      const bool same = c == '?' || c == text[t - 1];
      row[t] = star ? std::min(above, row[t - 1])
                    : std::min({corner + (same ? 0 : 1), above + 1, row[t - 1] + 1});
      corner = above;
    }
  }
  return row.back();
}

}  // namespace

std::vector<std::string> similar(std::string_view pattern, const std::vector<std::string>& names) {
  std::vector<std::string> sorted = names;
  std::stable_sort(sorted.begin(), sorted.end(), [&](const std::string& a, const std::string& b) {
    return distance(pattern, a) < distance(pattern, b);
  });
  if (sorted.size() > 3) sorted.resize(3);
  return sorted;
}

std::string shortened(std::string_view text) {
  constexpr size_t kMost = 80;
  if (text.size() <= kMost) return std::string(text);
  size_t end = kMost;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "…";
}

}  // namespace ulp
