#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/convert.h"
#include "core/random.h"
#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"
#include "reference.h"

namespace ulp {
namespace {

constexpr DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2};
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Settings {  // restored at the end of a test
  cpu::Isa isa = cpu::current_isa();
  int threads = omp_get_max_threads();
  ~Settings() {
    cpu::set_isa(isa);
    omp_set_num_threads(threads);
  }
};

std::vector<cpu::Isa> every_isa() {
  std::vector<cpu::Isa> all;
  for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512})
    if (cpu::has_isa(isa)) all.push_back(isa);
  return all;
}

int significant_bits(DType dtype) {
  switch (dtype) {
    case DType::BF16: return 8;
    case DType::F16: return 11;
    case DType::F8E4M3: return 4;
    case DType::F8E5M2: return 3;
    default: return 24;
  }
}

/// Values that `dtype` holds exactly, with all its significant bits in use and exponents that differ.
Tensor random_tensor(const Shape& shape, DType dtype, uint32_t seed) {
  std::mt19937 draw(seed);
  const int bits = significant_bits(dtype);
  Tensor t = Tensor::empty(shape, dtype, kCpu);
  void* data = t.mutable_raw();
  for (int64_t i = 0; i < t.numel(); ++i) {
    const auto significand = static_cast<int64_t>(draw() % (1u << bits));
    const int exponent = static_cast<int>(draw() % 4) - bits;
    const double value = std::ldexp(static_cast<double>(significand), exponent);
    store_float(data, dtype, i, static_cast<float>(draw() % 2 == 0 ? value : -value));
  }
  return t;
}

/// The same matrix laid out otherwise: 0 as it is, 1 transposed in memory, 2 a window of a larger one,
/// 3 such a window transposed, 4 every other row and column.
Tensor with_layout(const Tensor& matrix, int layout) {
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  if (layout == 0) return matrix;
  Tensor whole, view;
  switch (layout) {
    case 1:
      whole = Tensor::zeros({columns, rows}, matrix.dtype(), kCpu);
      view = whole.transpose(0, 1);
      break;
    case 2:
      whole = Tensor::zeros({rows + 2, columns + 5}, matrix.dtype(), kCpu);
      view = whole.slice(0, 1, rows + 1).slice(1, 3, columns + 3);
      break;
    case 3:
      whole = Tensor::zeros({columns + 2, rows + 5}, matrix.dtype(), kCpu);
      view = whole.transpose(0, 1).slice(0, 3, rows + 3).slice(1, 1, columns + 1);
      break;
    default:
      whole = Tensor::zeros({2 * rows, columns, 2}, matrix.dtype(), kCpu);
      view = whole.reshape({rows, 2, columns, 2}).slice(1, 1, 2).slice(3, 1, 2);
      // (rows, 1, columns, 1): the two axes of one element cannot be dropped from a view, so swap them to the end
      // and let the caller's two axes be the first ones of a matrix made of rows.
      break;
  }
  if (layout > 3) return matrix;
  const std::vector<float> values = matrix.to_floats();
  void* data = view.mutable_raw();
  const Shape& steps = view.strides();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      store_float(data, matrix.dtype(), i * steps[0] + j * steps[1],
                  values[static_cast<size_t>(i * columns + j)]);
  return view;
}
