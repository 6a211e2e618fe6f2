#include "kernels/interior.h"

namespace ulp {

void check_interior_trace(const char* kernel, Stream stream, const InteriorTrace& trace,
                          std::span<const Shape> shapes) {
  for (size_t draw = 0; draw < trace.at.size(); ++draw) {
    const Tensor& t = trace.at[draw];
    if (!t.defined()) continue;
    ULP_CHECK(draw < shapes.size(), "{}: its interior has {} draws; there is none of number {}",
              kernel, shapes.size(), draw);
    check_kernel_tensor(kernel, stream, t, shapes[draw]);
    ULP_CHECK(t.dtype() == DType::F32, "{}: what an interior meets is kept in F32, got {}", kernel,
              t);
  }
}

void check_softmax_trace(const char* kernel, Stream stream, const InteriorTrace& trace,
                         const Tensor& rows, size_t draws) {
  const Shape each{rows.size(0)};
  const Shape met[] = {rows.shape(), rows.shape(), each, each};
  check_interior_trace(kernel, stream, trace, std::span(met).first(draws));
}

}  // namespace ulp
