#include "kernels/place.h"

namespace ulp {

void check_place(Stream stream, const PlaceArgs& args) {
  const Tensor &in = args.in, &out = args.out;
  ULP_CHECK(in.defined(), "place: the input is missing");
  ULP_CHECK(in.device() == stream.device, "place: the input is on {}, the stream on {}",
            in.device(), stream.device);
  check_kernel_tensor("place", stream, out, out.shape());
  const int rank = out.rank();
  ULP_CHECK(in.rank() == rank && args.begin.rank() == rank && args.step.rank() == rank,
            "place: input {}, output {}, begin {} and step {} must have one rank", in.shape(),
            out.shape(), args.begin, args.step);
  for (int axis = 0; axis < rank; ++axis) {
    const int64_t n = in.size(axis), begin = args.begin[axis], step = args.step[axis];
    ULP_CHECK(
        begin >= 0 && step >= 1 &&
            (n == 0 || (begin < out.size(axis) && (n - 1) <= (out.size(axis) - 1 - begin) / step)),
        "place: {} elements from {} on at a step of {} do not fit axis {} of an output of shape {}",
        n, begin, step, axis, out.shape());
  }
  ULP_CHECK(
      in.dtype() == out.dtype() || (out.dtype() == DType::F32 && is_float_up_to_32(in.dtype())),
      "place: {} to {} is a conversion that rounds; quantise it", in.dtype(), out.dtype());
  ULP_CHECK(args.rest == PlaceArgs::Rest::Stays || args.value == 0 || out.dtype() == DType::F32 ||
                out.dtype() == DType::F64,
            "place: the rest of {} can be 0 only, got {}", out.dtype(), args.value);
}

PlaceAxes place_axes(const PlaceArgs& args) {
  PlaceAxes all;
  for (int k = 0; k < args.out.rank(); ++k) {
    const int64_t count = args.in.size(k), extent = args.out.size(k);
    const PlaceAxis own{count, args.in.strides()[k], extent, args.begin[k],
                        count > 1 ? args.step[k] : 1};
    if (all.rank > 0 && count == extent) {  // begins at 0 then, in single steps
      PlaceAxis& outer = all.axes[all.rank - 1];
      if (outer.step == 1 && (outer.count == 1 || count == 1 || outer.from == own.from * count)) {
        outer = {outer.count * count, count == 1 ? outer.from : own.from, outer.extent * extent,
                 outer.begin * extent, 1};
        continue;
      }
    }
    all.axes[all.rank++] = own;
  }
  if (all.rank == 0) all.axes[all.rank++] = {1, 0, 1, 0, 1};
  return all;
}

uint64_t place_rest(const PlaceArgs& args) {
  if (args.out.dtype() == DType::F64) return __builtin_bit_cast(uint64_t, args.value);
  if (args.out.dtype() == DType::F32) return bits_of(canonical(static_cast<float>(args.value)));
  return 0;
}

}  // namespace ulp
