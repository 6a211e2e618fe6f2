// The kernels of kernels/augment.h.

#include <cstring>

#include "kernels/augment.h"
#include "tools/cases/comparison.h"

namespace ulp::cases {
namespace {

Pair state_of(const Comparison& compare, uint32_t step, int64_t offset) {
  StepState state;
  state.random_step = step;
  state.batch_offset = offset;
  std::vector<uint8_t> bytes(sizeof state);
  std::memcpy(bytes.data(), &state, sizeof state);
  return compare.both(Tensor::from(bytes, {static_cast<int64_t>(sizeof state)}));
}

StepState* state_on(const Pair& pair, Side side) {
  Tensor handle = pair.on(side);
  return static_cast<StepState*>(handle.mutable_raw());
}

/// `count` numbers below n.
Pair below(const Comparison& compare, int64_t count, int32_t n, uint64_t seed) {
  Words words(seed);
  std::vector<int32_t> numbers;
  for (int64_t i = 0; i < count; ++i)
    numbers.push_back(static_cast<int32_t>(words.below(static_cast<uint32_t>(n))));
  return compare.both(Tensor::from(numbers, {count}));
}

struct Images {
  int32_t height, width, channels;
  Augmentation how;
};

void check_augment_rows(Comparison& compare) {
  constexpr int32_t kSamples = 51;
  constexpr int64_t kBegin = 13;
  const Images all[] = {{1, 1, 1, {}},
                        {5, 7, 3, {}},
                        {5, 7, 3, {4, false, 0}},
                        {7, 5, 1, {0, true, 0}},
                        {4, 4, 2, {0, false, 3}},
                        {9, 8, 5, {2, true, 8}},
                        {32, 32, 3, {4, true, 8}},
                        {28, 28, 1, {2, false, 0}}};
  for (const Images& images : all)
    for (const DType dtype : {DType::U8, DType::F32})
      for (const int64_t rows : {0, 1, 65})
        for (const bool normal : {false, true})
          for (const bool shifted : {false, true})
            for (const bool staged : {false, true}) {
              const int64_t width = int64_t{images.height} * images.width * images.channels;
              if (!compare.takes(rows * width)) continue;
              const int64_t held = staged ? rows : kSamples;
              Pair in = compare.input({held + 1, width}, dtype, Domain::Hard, 201);
              const auto part = [&](const Tensor& t) {
                return shifted ? t.slice(0, 1, held + 1) : t.slice(0, 0, held);
              };
              in = {part(in.reference), part(in.other)};
              const Pair labels = below(compare, held, 10, 203),
                         order = below(compare, kBegin + rows, kSamples, 202),
                         factors =
                             compare.input({2, images.channels}, DType::F32, Domain::Modest, 204),
                         out = compare.output({rows, width}),
                         out_labels = compare.output({rows}, DType::I32),
                         state = state_of(compare, 77, kBegin),
                         epoch = state_of(compare,
                                          static_cast<uint32_t>(compare.options().seed) + 3, 0);
              compare.run(kernels::augment_rows, [&](Side side) {
                AugmentRowsArgs args;
                args.in = in.on(side);
                if (!staged) args.indices = order.on(side);
                args.out = out.on(side);
                args.labels = labels.on(side);
                args.out_labels = out_labels.on(side);
                if (normal) args.normal = factors.on(side);
                args.scale = 1.0f / 255;
                args.height = images.height;
                args.width = images.width;
                args.channels = images.channels;
                args.how = images.how;
                args.key = {0x9876543210ABCDEF, 0x1234567, 3, state_on(epoch, side)};
                if (!staged || normal) args.state = state_on(state, side);
                return args;
              });
              for (const Pair& pair : {out, out_labels, state})
                compare.same(pair, std::string(to_string(dtype)), " ", rows, " images of ",
                             images.height, " × ", images.width, " × ", images.channels);
            }
}

}  // namespace

std::span<const KernelCase> augment_kernel_cases() {
  static constexpr KernelCase kAll[] = {{"augment_rows", check_augment_rows}};
  return kAll;
}

}  // namespace ulp::cases
