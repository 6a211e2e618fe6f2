#include "kernels/place.h"

#include <algorithm>
#include <cstring>

#include "core/convert.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/parallel.h"

namespace ulp::cpu {
namespace {

/// out[…] = load(offset in the input) for every element of the input; runs of the last axis in parallel.
template <class Word, class Load>
void place_all(const PlaceAxes& axes, Word* out, const Load& load) {
  int64_t runs = 1;
  for (int k = 0; k + 1 < axes.rank; ++k) runs *= axes.axes[k].count;
  const PlaceAxis& last = axes.axes[axes.rank - 1];
  parallel_for(last.count == 0 ? 0 : runs,
               std::max<int64_t>(1, kGrain / std::max<int64_t>(1, last.count)),
               [&](int64_t first, int64_t end) {
                 for (int64_t run = first; run < end; ++run) {
                   int64_t from = 0, to = last.begin, width = last.extent, rest = run;
                   for (int k = axes.rank - 2; k >= 0; --k) {
                     const PlaceAxis& axis = axes.axes[k];
                     const int64_t i = rest % axis.count;
                     rest /= axis.count;
                     from += i * axis.from;
                     to += (axis.begin + axis.step * i) * width;
                     width *= axis.extent;
                   }
                   for (int64_t i = 0; i < last.count; ++i)
                     out[to + i * last.step] = load(from + i * last.from);
                 }
               });
}

template <class Word>
Word* filled(const PlaceArgs& args) {
  Tensor out_tensor = args.out;
  Word* out = static_cast<Word*>(out_tensor.mutable_raw());
  const auto value = static_cast<Word>(place_rest(args));
  if (args.rest == PlaceArgs::Rest::Filled)
    parallel_for(args.out.numel(), kGrain,
                 [&](int64_t begin, int64_t end) { std::fill(out + begin, out + end, value); });
  return out;
}

template <class Word>
void place_words(const PlaceArgs& args) {
  const Word* in = static_cast<const Word*>(args.in.raw());
  place_all(place_axes(args), filled<Word>(args), [=](int64_t i) { return in[i]; });
}

}  // namespace

void place(Stream stream, const PlaceArgs& args) {
  check_place(stream, args);
  if (args.in.dtype() == args.out.dtype()) {
    switch (size_of(args.in.dtype())) {
      case 1: return place_words<uint8_t>(args);
      case 2: return place_words<uint16_t>(args);
      case 4: return place_words<uint32_t>(args);
      default: return place_words<uint64_t>(args);
    }
  }
  const void* in = args.in.raw();
  const DType dtype = args.in.dtype();
  place_all(place_axes(args), filled<uint32_t>(args),
            [=](int64_t i) { return bits_of(canonical(load_as_float(in, dtype, i))); });
}

}  // namespace ulp::cpu
