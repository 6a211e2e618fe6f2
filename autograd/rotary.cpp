#include "autograd/rotary.h"

#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "autograd/quantised.h"
#include "kernels/embedding.h"

namespace ulp::ops {
namespace {

/// Cosines and sines of positions 0 … count − 1 for heads of `size` elements: (count, size / 2, 2).
template <class T>
std::vector<T> make_turns(int64_t count, int64_t size, double base) {
  std::vector<T> turns;
  turns.reserve(static_cast<size_t>(count * size));
  std::vector<double> frequencies;
  for (int64_t i = 0; i < size / 2; ++i)
    frequencies.push_back(
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(size)));
  for (int64_t t = 0; t < count; ++t)
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(t) * frequency;
      turns.push_back(static_cast<T>(std::cos(angle)));
      turns.push_back(static_cast<T>(std::sin(angle)));
    }
  return turns;
}

/// Those of positions offset … offset + length − 1.
Tensor turns_on(Device device, DType dtype, int64_t size, double base, int64_t offset,
                int64_t length) {
  static std::mutex mutex;
  // Never freed: recorded steps may read them, and the device may be gone before statics are.
  static auto& tables =
      *new std::map<std::tuple<DeviceType, int, DType, int64_t, double>, std::vector<Tensor>>;
  const std::lock_guard lock(mutex);
  auto& grown = tables[{device.type, device.index, dtype, size, base}];
  if (grown.empty() || grown.back().size(0) < offset + length) {
    int64_t count = grown.empty() ? 64 : grown.back().size(0);
    while (count < offset + length) count *= 2;
    const Shape shape{count, size / 2, 2};
    grown.push_back(dtype == DType::F64
                        ? Tensor::from(make_turns<double>(count, size, base), shape, device)
                        : Tensor::from(make_turns<float>(count, size, base), shape, device));
  }
  return grown.back().slice(0, offset, offset + length);
}

Tensor turned(const RoleUse& use, const Tensor& in, const Tensor& turns, bool inverse,
              const Quantizer& rounding, const char* role) {
  const Tensor out =
      Tensor::empty(in.shape(), use.result_type(in, use.fused(rounding)), in.device());
  kernels::rotary(use.tape.stream(),
                  {in, turns, out, inverse, use.fused(rounding), use.fused_key(rounding, role)});
  return use.after(out, rounding, role, 3);
}

}  // namespace

Var rotary(Tape& tape, const Var& x, int64_t offset, double base, const OpFormats& f,
           RandomSite site) {
  ULP_CHECK(x.value.defined() && x.shape().rank() == 4 && x.shape()[3] % 2 == 0,
            "rotary: x must be (N, T, H, D) with an even D, got {}", x.value);
  ULP_CHECK(offset >= 0 && offset + x.shape()[1] <= INT32_MAX,
            "rotary: positions from {} on for x {}; they are from 0 to below 2^31", offset,
            x.value);
  ULP_CHECK(base > 0 && std::isfinite(base), "rotary: base must be finite and above 0, got {}",
            base);
  const RoleUse use{tape, site};
  const DType dtype = x.value.dtype() == DType::F64 ? DType::F64 : DType::F32;
  const Tensor turns = turns_on(x.value.device(), dtype, x.shape()[3], base, offset, x.shape()[1]);
  const Tensor in = use.narrow(kernels::contiguous(tape.stream(), x.value), f.input, "input", 3);
  return tape.record("rotary", f, {x}, turned(use, in, turns, false, f.output, "output"),
                     [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
                       const Tensor g = use.narrow(kernels::contiguous(use.tape.stream(), grads[0]),
                                                   f.grad_output_dx, "grad_output_dx", 3);
                       return {turned(use, g, turns, true, f.grad_input, "grad_input")};
                     });
}

Var swiglu(Tape& tape, const Var& x, const OpFormats& f, RandomSite site) {
  ULP_CHECK(x.value.defined() && x.shape().rank() >= 1 &&
                x.shape()[x.shape().rank() - 1] % 2 == 0 && x.shape()[x.shape().rank() - 1] > 0,
            "swiglu: x must be (…, 2 C) with C >= 1, got {}", x.value);
  const RoleUse use{tape, site};
  const int last = x.shape().rank() - 1;
  const int64_t wide = x.shape()[last], rows = x.value.numel() / wide;
  const Tensor in = use.narrow(kernels::contiguous(tape.stream(), x.value), f.input, "input", last);
  const Tensor y =
      Tensor::empty({rows, wide / 2}, use.result_type(in, use.fused(f.output)), in.device());
  kernels::swiglu(tape.stream(), {in.reshape({rows, wide}), y, use.fused(f.output),
                                  use.fused_key(f.output, "output")});
  Shape shape = x.shape();
  shape[last] = wide / 2;
  const Shape x_shape = x.shape();
  const Saved saved = tape.save("swiglu", in);
  return tape.record(
      "swiglu", f, {x}, use.after(y.reshape(shape), f.output, "output", last),
      [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor g = use.narrow(kernels::contiguous(use.tape.stream(), grads[0]),
                                    f.grad_output_dx, "grad_output_dx", last);
        const Tensor dx =
            Tensor::empty(x_shape, use.result_type(g, use.fused(f.grad_input)), g.device());
        kernels::swiglu_backward(use.tape.stream(),
                                 {saved.get().reshape({rows, wide}), g.reshape({rows, wide / 2}),
                                  dx.reshape({rows, wide}), use.fused(f.grad_input),
                                  use.fused_key(f.grad_input, "grad_input")});
        return {use.after(dx, f.grad_input, "grad_input", last)};
      });
}

}  // namespace ulp::ops
