#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/grid.h"

namespace ulp {

/// A format that is a list of numbers: 2 to 256 of them, ascending, distinct, finite.
struct Codebook {
  std::string name;
  std::vector<float> values;
  std::string source;
};

/// The codebook of a name, loading it if the name is table=PATH (one number a line; # begins a comment); −1 if there is
/// none of that name. Known: nf4, pow2x4 … pow2x8 (0 and ±2^−j: W bits, j = 0 … 2^(W−1) − 2), and the
/// dynamic tables of 8-bit optimizers: dynamic8, dynamic8u (unsigned).
/// Throws ulp::Error for a file that is no such list, naming its line.
int find_codebook(std::string_view name);
const Codebook& codebook(int id);
/// A table's rounding that draws nothing is a staircase: element i ≥ 1 is the first float that becomes number i or a later one.
/// Element 0 is the first number.
std::vector<float> staircase(const Grid& grid);
/// The names that need no file.
std::vector<std::string> codebook_names();

}  // namespace ulp
