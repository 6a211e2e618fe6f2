#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/simulated_product.cuh"
#include "kernels/cuda/strict_product.cuh"

namespace ulp::cuda {

void matmul_strict(Stream stream, const MatmulArgs& args, float* sums) {
  const strict::Operand a = strict::operand(args.a, 0), b = strict::operand(args.b, 1);
  const int64_t m = args.a.size(0), k = args.a.size(1), n = args.b.size(1);
  if (a.dtype == DType::F32 && b.dtype == DType::F32)
    strict::run<strict::AsyncLoader, strict::AsyncLoader>("matmul", stream, a, b, m, k, n, sums);
  else if (a.quads && b.quads)
    strict::run<strict::QuadLoader, strict::QuadLoader>("matmul", stream, a, b, m, k, n, sums);
  else
    strict::run<strict::ElementLoader, strict::ElementLoader>("matmul", stream, a, b, m, k, n,
                                                              sums);
}

void matmul_simulated(Stream stream, const MatmulArgs& args, float* sums) {
  run_simulated<strict::ElementLoader, strict::ElementLoader>(
      "matmul", stream, strict::operand(args.a, 0), strict::operand(args.b, 1), args.a.size(0),
      args.a.size(1), args.b.size(1), sums, args.sums);
}

}  // namespace ulp::cuda
