#include "kernels/state.h"

#include <algorithm>

#include "core/block_map.h"
#include "core/packed.h"
#include "kernels/quantised.h"

namespace ulp {
namespace {

/// A state as its quantizer sees it.
struct View {
  Quantizer how;
  Shape shape;
  int axis;
};
View view_of(const Quantizer& q, const Shape& shape) {
  if (q.block.kind == Block::Kind::Group) return {q, Shape{shape.numel()}, 0};
  View view{q, shape, std::max(0, shape.rank() - 1)};
  // A vector has one axis, whatever axis is asked for.
  if (q.block.kind == Block::Kind::Axis && shape.rank() == 1) view.how.block.axis = 0;
  return view;
}

/// Codes without blocks have no scales; of the others powers of two and e4m3 scales may have one more factor.
bool has_scales(const Quantizer& q) { return packed_scale(q) != PackedScale::None; }
bool has_factor_apart(const Quantizer& q) {
  return packed_scale(q) != PackedScale::Factor && q.has_factor();
}

int64_t scale_count(const View& view) {
  return make_block_map(view.how, view.shape, view.axis).blocks;
}

DType scale_type(const Quantizer& q) {
  return packed_scale(q) == PackedScale::Factor ? DType::F32 : DType::U8;
}

Tensor unpacked(Stream stream, const StoredState& state, const View& view) {
  Tensor values = Tensor::empty(view.shape, DType::F32, stream.device);
  UnpackCodesArgs args;
  args.codes = state.data;
  args.scales = state.scales;
  args.values = values;
  args.how = view.how;
  args.group_axis = view.axis;
  args.device_factor = state.factor;
  kernels::unpack_codes(stream, args);
  return values;
}

StoredState empty_packed(const View& view, Device device) {
  const Quantizer& q = view.how;
  StoredState state;
  state.data =
      Tensor::empty({packed_bytes(view.shape.numel(), code_bits(q.format))}, DType::U8, device);
  if (has_scales(q)) state.scales = Tensor::empty({scale_count(view)}, scale_type(q), device);
  if (has_factor_apart(q)) state.factor = Tensor::empty({1}, DType::F32, device);
  return state;
}

/// The codes of what the quantizer makes of x.
StoredState packed(Stream stream, const Tensor& x, const View& view, const RandomKey& key,
                   const Tensor& scaling) {
  const Quantizer& q = view.how;
  StoredState state = empty_packed(view, stream.device);
  QuantiseArgs round;
  round.in = x;
  round.out = Tensor::empty(view.shape, DType::F32, stream.device);
  round.quantizer = q;
  round.group_axis = view.axis;
  round.key = key;
  round.scaling = scaling;
  const PackedScale kind = packed_scale(q);
  if (q.has_factor())
    round.factors =
        kind == PackedScale::Factor
            ? state.scales
            : Tensor::empty({factor_count(q, view.shape, view.axis)}, DType::F32, stream.device);
  kernels::quantise(stream, round);
  if (kind != PackedScale::None && kind != PackedScale::Factor) {
    const Tensor factor =
        state.factor.defined() ? state.factor : Tensor::empty({1}, DType::F32, stream.device);
    kernels::pack_scales(stream, {x, state.scales, factor, q, view.axis, DType::F32});
  }
  const Tensor no_code = Tensor::empty({sizeof(int64_t)}, DType::U8, stream.device);
  kernels::pack_codes(stream, {round.out, state.scales, state.data, no_code, q, view.axis});
  return state;
}

}  // namespace

bool is_packed(const Quantizer& q) {
  const int bits = code_bits(q.format);
  if (q.is_identity() || bits == 0 || q.transform.hadamard != 0 ||
      q.scale.kind == Scale::Kind::Squeeze)
    return false;
  return !q.is_elementwise() || bits < 8 * static_cast<int>(size_of(storage_type(q)));
}

bool in_kernel(const Quantizer& q) {
  if (q.is_elementwise()) return true;
  const int32_t group = q.block.columns;
  return q.block.kind == Block::Kind::Group && q.scale.kind == Scale::Kind::F32 &&
         q.transform == Transform{} && group >= 4 && group <= 256 && (group & (group - 1)) == 0 &&
         is_packed(q);
}

StoredState make_state(Stream stream, const Quantizer& q, const Shape& shape) {
  StoredState state;
  if (is_packed(q))
    state = empty_packed(view_of(q, shape), stream.device);
  else
    state.data = Tensor::empty(shape, storage_type(q), stream.device);
  Quantizer nearest = q;
  nearest.rounding = Rounding::NearestEven;
  nearest.bits = {};
  const Tensor scaling =
      q.scale.kind == Scale::Kind::Delayed ? fresh_scaling(q, stream.device) : Tensor{};
  write_state(stream, Tensor::zeros(shape, DType::F32, stream.device), nearest, {}, state, nullptr,
              scaling);
  return state;
}

Tensor write_state(Stream stream, const Tensor& values, const Quantizer& q, const RandomKey& key,
                   const StoredState& state, const StepState* step, const Tensor& scaling) {
  const Shape& shape = values.shape();
  const View view = view_of(q, shape);
  const Tensor x = values.reshape(view.shape);
  if (state.data.dtype() != DType::U8) {
    QuantiseUse use{view.how, view.axis, key, scaling};
    const Tensor rounded = q.is_identity() ? x : ulp::quantised(stream, x, use, state.data.dtype());
    kernels::copy(stream, {rounded.reshape(shape), state.data, step});
    return rounded.reshape(shape);
  }
  const StoredState made = packed(stream, x, view, key, scaling);
  kernels::copy(stream, {made.data, state.data, step});
  if (state.scales.defined()) kernels::copy(stream, {made.scales, state.scales, step});
  if (state.factor.defined()) kernels::copy(stream, {made.factor, state.factor, step});
  return unpacked(stream, made, view).reshape(shape);
}

Tensor count_state(Stream stream, const Tensor& values, const Quantizer& q, const RandomKey& key,
                   const Tensor& scaling, const Tensor& stats) {
  const View view = view_of(q, values.shape());
  QuantiseUse use{view.how, view.axis, key, scaling};
  use.frozen = true;
  use.stats = stats;
  return ulp::quantised(stream, values.reshape(view.shape), use).reshape(values.shape());
}

Tensor read_state(Stream stream, const StoredState& state, const Quantizer& q, const Shape& shape) {
  if (state.data.dtype() == DType::U8)
    return unpacked(stream, state, view_of(q, shape)).reshape(shape);
  Tensor out = Tensor::empty(shape, DType::F32, stream.device);
  kernels::copy(stream, {state.data, out});
  return out;
}

int64_t state_bytes(const StoredState& state) {
  int64_t bytes = 0;
  for (const Tensor* t : {&state.data, &state.scales, &state.factor})
    if (t->defined()) bytes += t->bytes();
  return bytes;
}

}  // namespace ulp
