#include "core/codebook.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <deque>
#include <fstream>
#include <mutex>

#include "core/error.h"

namespace ulp {
namespace {

constexpr size_t kMost = 256;        // numbers of a table
constexpr size_t kMostTables = 256;  // Format::table has 8 bits

/// Quantiles of the normal distribution, scaled to [−1, 1], with an exact zero.
/// Source: Dettmers et al., "QLoRA", arXiv 2305.14314, appendix E.
const std::vector<float> kNf4 = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

std::vector<float> powers_of_two(int bits) {
  std::vector<float> values{0.0f};
  for (int j = 0; j <= (1 << (bits - 1)) - 2 && j <= 149; ++j)
    for (const float sign : {1.0f, -1.0f}) values.push_back(std::ldexp(sign, -j));
  std::sort(values.begin(), values.end());
  return values;
}

/// Numbers whose logarithms and fractions share 8 bits: for i = 0 … 6 the middles of 2^i (unsigned 2^(i+1)) equal parts of
/// [0.1, 1], times 10^(i−6), with 0 and 1. Signed ones have the negatives too, −1 apart.
/// Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, §1.2 and appendix.
std::vector<float> dynamic_numbers(bool is_signed) {
  constexpr double kDecades[] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};
  std::vector<float> values{0.0f, 1.0f};
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << (is_signed ? i : i + 1);
    for (int k = 0; k < parts; ++k) {
      const double middle = 0.1 + 0.9 * (k + 0.5) / parts;
      const auto number = static_cast<float>(middle * kDecades[i]);
      values.push_back(number);
      if (is_signed) values.push_back(-number);
    }
  }
  std::sort(values.begin(), values.end());
  return values;
}

struct Registry {
  std::mutex mutex;
  std::deque<Codebook> all;  // addresses stay
  Registry() {
    all.push_back({"nf4", kNf4, "QLoRA, arXiv 2305.14314"});
    for (int bits = 4; bits <= 8; ++bits)
      all.push_back({"pow2x" + std::to_string(bits), powers_of_two(bits), "powers of two"});
    for (const bool is_signed : {true, false})
      all.push_back({is_signed ? "dynamic8" : "dynamic8u", dynamic_numbers(is_signed),
                     "8-bit optimizers, arXiv 2110.02861"});
  }
};

Registry& registry() {
  static Registry r;
  return r;
}

std::vector<float> read_table(const std::string& path) {
  std::ifstream in(path);
  ULP_CHECK(in.good(), "table={}: the file cannot be read", path);
  std::vector<float> values;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    line.erase(std::min(line.find('#'), line.size()));
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) continue;
    const size_t last = line.find_last_not_of(" \t\r");
    float value = 0;
    const auto [end, error] = std::from_chars(line.data() + first, line.data() + last + 1, value);
    ULP_CHECK(error == std::errc() && end == line.data() + last + 1 && std::isfinite(value),
              "table={}: line {} is '{}', wanted one finite number", path, number, line);
    ULP_CHECK(values.empty() || values.back() < value,
              "table={}: line {}: {} does not ascend from {}", path, number, value, values.back());
    values.push_back(value == 0 ? 0.0f : value);
    ULP_CHECK(values.size() <= kMost, "table={}: more than {} numbers", path, kMost);
  }
  ULP_CHECK(values.size() >= 2, "table={}: wanted 2 to {} numbers, got {}", path, kMost,
            values.size());
  return values;
}

/// Floats in ascending order ↔ integers.
int64_t place_of(float x) {
  const auto bits = static_cast<int64_t>(bits_of(x) & ~kSignBit);
  return (bits_of(x) & kSignBit) != 0 ? -bits : bits;
}
float float_at(int64_t place) {
  return place < 0 ? -float_of(static_cast<uint32_t>(-place))
                   : float_of(static_cast<uint32_t>(place));
}

}  // namespace

int find_codebook(std::string_view name) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  for (size_t id = 0; id < r.all.size(); ++id)
    if (r.all[id].name == name) return static_cast<int>(id);
  if (!name.starts_with("table=")) return -1;
  const std::string path(name.substr(6));
  for (const char c : path)
    ULP_CHECK(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f,
              "table=PATH: the path has a control character, such as the end of a line");
  ULP_CHECK(r.all.size() < kMostTables, "{}: there are {} tables already; a program takes no more",
            name, kMostTables);
  r.all.push_back({std::string(name), read_table(path), path});
  return static_cast<int>(r.all.size()) - 1;
}

const Codebook& codebook(int id) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  ULP_CHECK(id >= 0 && static_cast<size_t>(id) < r.all.size(), "codebook: there is no number {}",
            id);
  return r.all[static_cast<size_t>(id)];
}

std::vector<std::string> codebook_names() {
  std::vector<std::string> names;
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  for (const Codebook& book : r.all)
    if (!book.name.starts_with("table=")) names.push_back(book.name);
  return names;
}

std::vector<float> staircase(const Grid& grid) {
  std::vector<float> steps(grid.table, grid.table + grid.table_size);
  for (int32_t i = 1; i < grid.table_size; ++i) {
    int64_t below = place_of(grid.table[i - 1]), at = place_of(grid.table[i]);
    while (at - below > 1) {
      const int64_t middle = below + (at - below) / 2;
      const float y = quantise_table(float_at(middle), grid, grid.rounding, 0, nullptr);
      (y >= grid.table[i] ? at : below) = middle;
    }
    steps[static_cast<size_t>(i)] = float_at(at);
  }
  return steps;
}

}  // namespace ulp
