#include "kernels/kernel.h"

namespace ulp {

void check_kernel_tensor(const char* kernel, Stream stream, const Tensor& tensor,
                         const Shape& shape) {
  ULP_CHECK(tensor.defined(), "{}: a tensor of shape {} is missing", kernel, shape);
  ULP_CHECK(tensor.shape() == shape, "{}: wanted a tensor of shape {}, got {}", kernel, shape,
            tensor.shape());
  ULP_CHECK(tensor.device() == stream.device, "{}: wanted a tensor on {}, got one on {}", kernel,
            stream.device, tensor.device());
  ULP_CHECK(tensor.is_contiguous(), "{}: wanted a contiguous tensor of shape {}", kernel, shape);
}

}  // namespace ulp
