#include "kernels/augment.h"

#include <algorithm>

namespace ulp {
namespace {

void check_type(const char* what, const Tensor& tensor, DType wanted) {
  ULP_CHECK(tensor.dtype() == wanted, "augment_rows: {} must be {}, got {}", what, wanted,
            tensor.dtype());
}

}  // namespace

void check_augment_rows(Stream stream, const AugmentRowsArgs& a) {
  constexpr const char* kName = "augment_rows";
  ULP_CHECK(a.height >= 1 && a.width >= 1 && a.channels >= 1 &&
                int64_t{a.height} * a.width <= INT32_MAX / a.channels,
            "augment_rows: images of ({}, {}, {}) pixels; sizes are at least 1 and their product "
            "below 2^31",
            a.height, a.width, a.channels);
  const int32_t side = std::min(a.height, a.width);
  ULP_CHECK(a.how.crop >= 0 && a.how.crop < side,
            "augment_rows: a crop of {} is none for images of {} x {} pixels; it must be below {}",
            a.how.crop, a.height, a.width, side);
  ULP_CHECK(a.how.cutout >= 0 && a.how.cutout <= side,
            "augment_rows: a cutout of {} is none for images of {} x {} pixels; at most {}",
            a.how.cutout, a.height, a.width, side);
  const int64_t pixels = int64_t{a.height} * a.width * a.channels;
  ULP_CHECK(a.in.defined() && a.in.rank() == 2 && a.in.size(1) == pixels,
            "augment_rows: images must be (R, {}), got {}", pixels, a.in);
  ULP_CHECK(a.out.defined() && a.out.rank() == 2, "augment_rows: out must be (N, {}), got {}",
            pixels, a.out);
  const int64_t rows = a.out.size(0);
  check_kernel_tensor(kName, stream, a.in, a.in.shape());
  ULP_CHECK(a.in.dtype() == DType::U8 || a.in.dtype() == DType::F32,
            "augment_rows: images must be U8 or F32, got {}", a.in.dtype());
  check_kernel_tensor(kName, stream, a.out, {rows, pixels});
  check_type("out", a.out, DType::F32);
  if (a.indices.defined()) {
    check_kernel_tensor(kName, stream, a.indices, {a.indices.numel()});
    check_type("indices", a.indices, DType::I32);
    ULP_CHECK(a.indices.numel() >= rows, "augment_rows: {} indices for {} rows", a.indices.numel(),
              rows);
  } else {
    ULP_CHECK(a.in.size(0) == rows, "augment_rows: without indices in must hold {} images, got {}",
              rows, a.in.size(0));
  }
  check_kernel_tensor(kName, stream, a.labels, {a.in.size(0)});
  check_kernel_tensor(kName, stream, a.out_labels, {rows});
  check_type("labels", a.labels, DType::I32);
  check_type("out_labels", a.out_labels, DType::I32);
  if (a.normal.defined()) {
    check_kernel_tensor(kName, stream, a.normal, {2, a.channels});
    check_type("normal", a.normal, DType::F32);
  }
}

}  // namespace ulp
