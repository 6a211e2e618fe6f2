#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"
#include "kernels/functors.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

template <int kInputs, class F, class T>
ULP_HD T call(const F& f, const std::array<const T*, 3>& in, const std::array<int64_t, 3>& step,
              int64_t i, T alpha) {
  if constexpr (kInputs == 1)
    return f(in[0][i * step[0]], alpha);
  else
    return f(in[0][i * step[0]], in[1][i * step[1]], alpha);
}

template <int kInputs, class F>
void run_double(const ElementwiseArgs& args, const std::array<int64_t, 3>& step) {
  std::array<const double*, 3> in{};
  for (size_t k = 0; k < kInputs; ++k) in[k] = args.in[k].data<double>();
  Tensor out_tensor = args.out;
  double* out = out_tensor.mutable_data<double>();
  for (int64_t i = 0; i < args.out.numel(); ++i)
    out[i] = call<kInputs>(F{}, in, step, i, args.alpha);
}

template <int kInputs, class F>
void run(const char* name, Stream stream, const ElementwiseArgs& args) {
  std::array<int64_t, 3> step{};
  const int64_t n = args.out.numel();
  for (size_t k = 0; k < kInputs; ++k) {
    const Tensor& in = args.in[k];
    ULP_CHECK(in.defined(), "{}: input {} is missing", name, k);
    step[k] = in.numel() == 1 ? 0 : 1;
    ULP_CHECK((in.dtype() == DType::F64) == (args.out.dtype() == DType::F64),
              "{}: F64 operands want an F64 result and F64 partners, got {} and {}", name,
              in.dtype(), args.out.dtype());
    if (step[k] == 1) check_kernel_tensor(name, stream, in, args.out.shape());
  }
  check_kernel_tensor(name, stream, args.out, args.out.shape());
  if (args.out.dtype() == DType::F64) {
    ULP_CHECK(args.output.is_identity(), "{}: F64 values are not quantised", name);
    return run_double<kInputs, F>(args, step);
  }
  check_output_type(name, args.out, args.output);
  const BlockQuantiser quantiser(args.output, args.key);
  const float alpha = static_cast<float>(args.alpha);
  Tensor out_tensor = args.out;
  void* out = out_tensor.mutable_raw();
  const DType out_type = args.out.dtype();

  parallel_for_units(n, kBlock, kGrain, [&](int64_t first, int64_t last) {
    std::array<BlockBuffer, 3> buffers;
    BlockBuffer result;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t count = std::min(kBlock, last - begin);
      std::array<const float*, 3> in{};
      for (size_t k = 0; k < kInputs; ++k)
        in[k] = read_block(args.in[k].raw(), args.in[k].dtype(), step[k] * begin,
                           step[k] == 0 ? 1 : count, buffers[k].data());
      float* y = result.data();
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < count; ++i)
          y[i] = canonical(call<kInputs>(F{}, in, step, i, alpha));
      });
      quantiser.apply(y, count, begin);
      write_block(out, out_type, begin, count, y);
    }
  });
}

}  // namespace

#define ULP_DEFINE(name, Functor, inputs)                 \
  void name(Stream stream, const ElementwiseArgs& args) { \
    run<inputs, functors::Functor>(#name, stream, args);  \
  }
ULP_ELEMENTWISE_KERNELS(ULP_DEFINE)

}  // namespace ulp::cpu
