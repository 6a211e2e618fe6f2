#include <array>
#include <cstring>

#include "core/convert.h"
#include "core/scalar_math.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

/// Calls body(out_index, in_offset, count, in_step) for each innermost run of a strided tensor.
template <class Body>
void for_runs(const Tensor& in, const Body& body) {
  if (in.numel() == 0) return;
  const int last = in.rank() - 1;
  const int64_t count = last < 0 ? 1 : in.size(last), step = last < 0 ? 1 : in.strides()[last];
  const int64_t runs = in.numel() / count;
  std::array<int64_t, kMaxRank> sizes{}, steps{};
  for (int axis = 0; axis < last; ++axis) {
    sizes[static_cast<size_t>(axis)] = in.size(axis);
    steps[static_cast<size_t>(axis)] = in.strides()[axis];
  }
  parallel_for(runs, std::max<int64_t>(1, kGrain / count), [&](int64_t first, int64_t end) {
    std::array<int64_t, kMaxRank> at{};
    int64_t offset = 0, rest = first;
    for (int axis = last - 1; axis >= 0; --axis) {
      const auto i = static_cast<size_t>(axis);
      at[i] = rest % sizes[i];
      offset += at[i] * steps[i];
      rest /= sizes[i];
    }
    for (int64_t run = first; run < end; ++run) {
      body(run * count, offset, count, step);
      for (int axis = last - 1; axis >= 0; --axis) {
        const auto i = static_cast<size_t>(axis);
        offset += steps[i];
        if (++at[i] < sizes[i]) break;
        offset -= sizes[i] * steps[i];
        at[i] = 0;
      }
    }
  });
}

template <class Word>
void copy_words(const Tensor& in, void* to) {
  const Word* from = static_cast<const Word*>(in.raw());
  Word* out = static_cast<Word*>(to);
  for_runs(in, [&](int64_t at, int64_t offset, int64_t count, int64_t step) {
    if (step == 1)
      std::memcpy(out + at, from + offset, static_cast<size_t>(count) * sizeof(Word));
    else
      for (int64_t i = 0; i < count; ++i) out[at + i] = from[offset + i * step];
  });
}

}  // namespace

void copy(Stream stream, const CopyArgs& args) {
  check_kernel_tensor("copy", stream, args.out, args.in.shape());
  ULP_CHECK(args.in.device() == stream.device, "copy: the input is on {}, the stream on {}",
            args.in.device(), stream.device);
  if (args.state != nullptr && args.state->found_inf != 0) return;
  Tensor out = args.out;
  void* to = out.mutable_raw();
  if (args.in.dtype() == args.out.dtype()) {
    switch (size_of(args.in.dtype())) {
      case 1: return copy_words<uint8_t>(args.in, to);
      case 2: return copy_words<uint16_t>(args.in, to);
      case 4: return copy_words<uint32_t>(args.in, to);
      default: return copy_words<uint64_t>(args.in, to);
    }
  }
  ULP_CHECK(args.out.dtype() == DType::F32 && is_float_up_to_32(args.in.dtype()),
            "copy: {} to {} is a conversion that rounds; quantise it", args.in.dtype(),
            args.out.dtype());
  float* floats = static_cast<float*>(to);
  for_runs(args.in, [&](int64_t at, int64_t offset, int64_t count, int64_t step) {
    for (int64_t i = 0; i < count; ++i)
      floats[at + i] = canonical(load_as_float(args.in.raw(), args.in.dtype(), offset + i * step));
  });
}

void fill(Stream stream, const FillArgs& args) {
  check_kernel_tensor("fill", stream, args.out, args.out.shape());
  Tensor out = args.out;
  double value = args.value;
  if (args.loss_scale_of != nullptr)
    value = static_cast<float>(value) * args.loss_scale_of->loss_scale;
  if (args.grad_factor_of != nullptr)
    value = static_cast<float>(value) * args.grad_factor_of->grad_factor;
  if (args.out.dtype() == DType::F64)
    std::fill_n(out.mutable_data<double>(), out.numel(), value);
  else
    std::fill_n(out.mutable_data<float>(), out.numel(), canonical(static_cast<float>(value)));
}

void uniform(Stream stream, const UniformArgs& args) {
  check_kernel_tensor("uniform", stream, args.out, args.out.shape());
  Tensor out_tensor = args.out;
  float* out = out_tensor.mutable_data<float>();
  const RandomSource random(args.key);
  const float low = args.low, width = args.high - args.low;
  parallel_for_units(args.out.numel(), 4, kGrain, [&](int64_t first, int64_t last) {
    with_isa([=]() ULP_INLINE {
      for (int64_t i = first; i < last; ++i)
        out[i] = fma_of(width, uniform01(random.word(static_cast<uint64_t>(i))), low);
    });
  });
}

void gather_rows(Stream stream, const GatherRowsArgs& args) {
  check_gather_rows(stream, args);
  const int64_t width = args.in.size(1), rows = args.out.size(0);
  const int64_t begin = args.state == nullptr ? args.begin : args.state->batch_offset;
  const int32_t* indices = args.indices.defined() ? args.indices.data<int32_t>() : nullptr;
  const auto row_of = [&](int64_t n) {
    return indices == nullptr ? begin + n : indices[begin + n];
  };
  Tensor out_tensor = args.out, out_labels = args.out_labels;
  float* out = out_tensor.mutable_data<float>();
  const float scale = args.scale;
  parallel_for(rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)),
               [&](int64_t first, int64_t last) {
                 for (int64_t n = first; n < last; ++n) {
                   const int64_t from = row_of(n) * width;
                   float* to = out + n * width;
                   if (args.in.dtype() == DType::U8) {
                     const uint8_t* row = args.in.data<uint8_t>() + from;
                     with_isa([=]() ULP_INLINE {
                       for (int64_t j = 0; j < width; ++j)
                         to[j] = static_cast<float>(row[j]) * scale;
                     });
                   } else {
                     const float* row = args.in.data<float>() + from;
                     with_isa([=]() ULP_INLINE {
                       for (int64_t j = 0; j < width; ++j) to[j] = canonical(row[j] * scale);
                     });
                   }
                 }
               });
  if (args.labels.defined())
    for (int64_t n = 0; n < rows; ++n)
      out_labels.mutable_data<int32_t>()[n] = args.labels.data<int32_t>()[row_of(n)];
  if (args.state != nullptr) args.state->batch_offset += rows;
}

void advance_step(Stream stream, const AdvanceStepArgs& args) {
  ULP_CHECK(args.state != nullptr, "advance_step: the step state is missing");
  check_kernel_tensor("advance_step", stream, args.updates, args.updates.shape());
  Tensor updates = args.updates;
  ++updates.mutable_data<int32_t>()[0];
  if (args.steps.defined()) {
    check_kernel_tensor("advance_step", stream, args.steps, args.steps.shape());
    Tensor steps = args.steps;
    steps.mutable_data<int32_t>()[0] += args.state->found_inf == 0 ? 1 : 0;
  }
  advance(*args.state);
}

}  // namespace ulp::cpu
