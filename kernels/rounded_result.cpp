#include "kernels/rounded_result.h"

#include "core/error.h"

namespace ulp {

void check_rounded_result(const char* kernel, const Tensor& in, const Tensor& out,
                          const Quantizer& output) {
  const bool wide = in.dtype() == DType::F64;
  ULP_CHECK(wide ? out.dtype() == DType::F64
                 : is_float_up_to_32(in.dtype()) && is_float_up_to_32(out.dtype()),
            "{}: floats are wanted, F64 going with F64, got {} and {}", kernel, in, out);
  ULP_CHECK(!wide || output.is_identity(), "{}: F64 values are not quantised", kernel);
  ULP_CHECK(output.is_elementwise(), "{}: {}: block formats cannot be applied inside this kernel",
            kernel, output);
  ULP_CHECK(wide || fits(output, out.dtype()), "{}: {} values do not fit the output's {}", kernel,
            output, out.dtype());
}

}  // namespace ulp
