#pragma once

// The CPU side of element-wise kernels, made from a functor (kernels/functors.h and its like). ULP_DEFINE_ELEMENTWISE defines
// the kernel of one row of a list.

#include <algorithm>
#include <type_traits>

#include "core/convert.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"
#include "kernels/kernels.h"

namespace ulp::cpu::elementwise {

using kernels::Reach;

/// f of its inputs and one scalar or two.
template <class F, class T, class... Inputs>
ULP_HD T call_with(T alpha, T beta, Inputs... x) {
  if constexpr (std::is_invocable_v<F, Inputs..., T, T>)
    return F{}(x..., alpha, beta);
  else
    return F{}(x..., alpha);
}

template <int kInputs, class F, class T>
ULP_HD T call(const std::array<const T*, 3>& in, const std::array<int64_t, 3>& at, T alpha,
              T beta) {
  if constexpr (kInputs == 1)
    return call_with<F>(alpha, beta, in[0][at[0]]);
  else if constexpr (kInputs == 2)
    return call_with<F>(alpha, beta, in[0][at[0]], in[1][at[1]]);
  else
    return call_with<F>(alpha, beta, in[0][at[0]], in[1][at[1]], in[2][at[2]]);
}

template <int kInputs, class F>
void run_double(const ElementwiseArgs& args, const std::array<Reach, 3>& reach) {
  std::array<const double*, 3> in{};
  for (size_t k = 0; k < kInputs; ++k) in[k] = args.in[k].data<double>();
  Tensor out_tensor = args.out;
  double* out = out_tensor.mutable_data<double>();
  for (int64_t i = 0; i < args.out.numel(); ++i) {
    std::array<int64_t, 3> at{};
    for (size_t k = 0; k < kInputs; ++k)
      at[k] = reach[k] == Reach::One ? 0 : reach[k] == Reach::Row ? i % args.in[k].numel() : i;
    out[i] = call<kInputs, F>(in, at, args.alpha, args.beta);
  }
}

/// Elements begin … begin + count − 1 of rows that are all the same.
inline const float* read_rows(const Tensor& row, int64_t begin, int64_t count, float* buffer) {
  const int64_t columns = row.numel();
  for (int64_t i = 0; i < count; ++i)
    buffer[i] = load_as_float(row.raw(), row.dtype(), (begin + i) % columns);
  return buffer;
}

template <int kInputs, class F>
void run(const char* name, Stream stream, const ElementwiseArgs& args) {
  std::array<Reach, 3> reach{};
  std::array<int64_t, 3> step{};
  const int64_t n = args.out.numel();
  for (size_t k = 0; k < kInputs; ++k) {
    const Tensor& in = args.in[k];
    ULP_CHECK(in.defined(), "{}: input {} is missing", name, k);
    ULP_CHECK((in.dtype() == DType::F64) == (args.out.dtype() == DType::F64),
              "{}: F64 operands want an F64 result and F64 partners, got {} and {}", name,
              in.dtype(), args.out.dtype());
    reach[k] = kernels::reach_of(name, stream, in, args.out);
    step[k] = reach[k] == Reach::One ? 0 : 1;
  }
  check_kernel_tensor(name, stream, args.out, args.out.shape());
  if (args.out.dtype() == DType::F64) {
    ULP_CHECK(args.output.is_identity(), "{}: F64 values are not quantised", name);
    return run_double<kInputs, F>(args, reach);
  }
  check_output_type(name, args.out, args.output);
  const BlockQuantiser quantiser(args.output, args.key);
  const float alpha = static_cast<float>(args.alpha), beta = static_cast<float>(args.beta);
  Tensor out_tensor = args.out;
  void* out = out_tensor.mutable_raw();
  const DType out_type = args.out.dtype();
  const bool direct = out_type == DType::F32 && !quantiser.active();

  parallel_for_units(n, kBlock, kGrain, [&](int64_t first, int64_t last) {
    std::array<BlockBuffer, 3> buffers;
    BlockBuffer result;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t count = std::min(kBlock, last - begin);
      std::array<const float*, 3> in{};
      for (size_t k = 0; k < kInputs; ++k) {
        float* buffer = buffers[k].data();
        in[k] = reach[k] == Reach::Row
                    ? read_rows(args.in[k], begin, count, buffer)
                    : read_block(args.in[k].raw(), args.in[k].dtype(), step[k] * begin,
                                 step[k] == 0 ? 1 : count, buffer);
      }
      // Straight to its place, unless that is where an input lies.
      float* const place = direct ? static_cast<float*>(out) + begin : nullptr;
      const bool apart = direct && std::find(in.begin(), in.end(), place) == in.end();
      float* y = apart ? place : result.data();
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < count; ++i)
          y[i] =
              canonical(call<kInputs, F>(in, {i * step[0], i * step[1], i * step[2]}, alpha, beta));
      });
      if (apart) continue;
      quantiser.apply(y, count, begin);
      write_block(out, out_type, begin, count, y);
    }
  });
}

}  // namespace ulp::cpu::elementwise

/// For the lists X(name, functor, inputs), inside namespace ulp::cpu.
#define ULP_DEFINE_ELEMENTWISE(name, Functor, inputs)                 \
  void name(Stream stream, const ElementwiseArgs& args) {             \
    elementwise::run<inputs, functors::Functor>(#name, stream, args); \
  }
