#include "kernels/dropout.h"

#include "kernels/cpu/image_blocks.h"
#include "kernels/cpu/random_words.h"

namespace ulp::cpu {
namespace {

template <class T>
void dropout_of(const DropoutArgs& args) {
  const RandomSource random(args.mask);
  const Result<T> result(args.out, args.output, args.key);
  const uint32_t threshold = args.threshold;
  const T scale = static_cast<T>(args.scale);
  parallel_for_units(args.in.numel(), kBlock, kGrain / 4, [&](int64_t first, int64_t last) {
    Values<T> buffer, values;
    std::array<uint32_t, kBlock + kWordSlack> mask;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t n = std::min(kBlock, last - begin);
      const T* x = read_values(args.in, begin, n, buffer.data());
      const uint32_t* words = random_words(random, begin, n, mask.data());
      T* y = values.data();
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) y[i] = drop::dropped(x[i], words[i], threshold, scale);
      });
      result.write(begin, n, y);
    }
  });
}

}  // namespace

void dropout(Stream stream, const DropoutArgs& args) {
  check_dropout(stream, args);
  args.in.dtype() == DType::F64 ? dropout_of<double>(args) : dropout_of<float>(args);
}

}  // namespace ulp::cpu
