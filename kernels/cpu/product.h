#pragma once

// The strict product that matmul and the convolutions share.

#include <vector>

#include "core/grid.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/spans.h"
#include "kernels/kernels.h"
#include "kernels/windows.h"

namespace ulp::cpu {

/// A matrix operand where it lies. Steps in elements. Row r lies at r / inner · outer_step + r % inner · row_step.
struct Matrix {
  const char* data = nullptr;
  DType dtype = DType::F32;
  int64_t row_step = 0, column_step = 0;
  int64_t inner = INT64_MAX, outer_step = 0;
  /// The matrix of a group's windows instead; `data` is the group's first channel of the first pixel.
  const Windows* windows = nullptr;

  Matrix() = default;
  explicit Matrix(const Tensor& t)
      : data(static_cast<const char*>(t.raw())),
        dtype(t.dtype()),
        row_step(t.strides()[0]),
        column_step(t.strides()[1]) {}

  /// Rows lie at one distance.
  bool is_strided() const { return windows == nullptr && inner == INT64_MAX; }
  ULP_HD const char* element(int64_t i) const {
    return data + i * static_cast<int64_t>(size_of(dtype));
  }
  /// Not of windows.
  ULP_HD const void* at(int64_t row, int64_t column) const {
    const int64_t outer = inner == INT64_MAX ? 0 : row / inner;
    return element(outer * outer_step + (row - (outer == 0 ? 0 : outer * inner)) * row_step +
                   column * column_step);
  }
};

/// What happens to complete sums: factors, bias, output rounding.
struct Finish {
  bool scales = false;
  float factor = 1;
  std::vector<float> bias;  // one a column, or none
  bool rounds = false;
  SpanGrid grid;
  RandomSource random;

  /// factors: one number each, or undefined; they multiply each other, then `last`.
  Finish(std::initializer_list<Tensor> factors, double last, const Tensor& bias_of,
         const Quantizer& output, const RandomKey& key);
  /// x[0 … n) are the elements (row, column …) of out, number `first` and on.
  void operator()(float* x, int64_t first, int64_t column, int64_t n) const;
  /// The same for whole rows, which follow one another in memory.
  void rows(float* x, int64_t first, int64_t rows, int64_t columns) const;

 private:
  void scale(float* x, int64_t n) const;
  void add_bias(float* x, int64_t column, int64_t n) const;
  void round(float* x, int64_t first, int64_t n) const;
};

/// to[r·to_step + c] = from(row + r, column + c) as fp32. Windows: at most kPackedColumns columns.
inline constexpr int64_t kPackedColumns = 512;
void pack(float* to, int64_t to_step, const Matrix& from, int64_t row, int64_t rows, int64_t column,
          int64_t columns);

/// out (m, n) = a (m, k) · b (k, n), each sum in the order of core/sum.h or as `sums` says, then finished. `out` is the element (row, column)
/// of a whole with rows `out_step` apart, which bias and draws follow.
struct Product {
  Matrix a, b;
  int64_t m, k, n;
  float* out;
  int64_t out_step, row = 0, column = 0;
  Sums sums{};
};
void multiply(const Product& product, const Finish& finish);
/// The same for simulated accumulators; k > 0.
void accumulate(const Product& product, const Finish& finish);

/// out = the numbers of `values` (F32, as many), which its type holds.
void narrow(const Tensor& values, Tensor out);

}  // namespace ulp::cpu
