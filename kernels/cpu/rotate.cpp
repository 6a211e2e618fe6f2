#include <array>
#include <vector>

#include "core/convert.h"
#include "core/hadamard.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

constexpr int64_t kTogether = 16;  // groups that are rotated side by side

struct Work {
  const void* in;
  DType in_type;
  float* out;
  int64_t axis, inner;
  int size;
  float scale;
  bool inverse;
  const uint8_t* flips;  // one for each element of the axis
};

/// Where element 0 of a group lies; consecutive elements are `inner` apart.
struct Group {
  int64_t begin, first;  // in memory, along the axis
};

Group group_at(const Work& w, int64_t index) {
  const int64_t groups = w.axis / w.size;
  const int64_t r = index % w.inner, g = index / w.inner % groups, o = index / w.inner / groups;
  return {(o * w.axis + g * w.size) * w.inner + r, g * w.size};
}

void rotate_groups(const Work& w, int64_t index, int64_t count) {
  std::array<float, kMostHadamard * kTogether> values{};
  std::array<Group, kTogether> groups;
  for (int64_t c = 0; c < count; ++c) groups[static_cast<size_t>(c)] = group_at(w, index + c);
  float* v = values.data();
  const auto sign = [&w](const Group& g, int64_t k) {
    return w.flips[g.first + k] != 0 ? -1.0f : 1.0f;
  };
  for (int64_t c = 0; c < count; ++c) {
    const Group& g = groups[static_cast<size_t>(c)];
    for (int64_t k = 0; k < w.size; ++k) {
      const float x = load_as_float(w.in, w.in_type, g.begin + k * w.inner);
      v[k * kTogether + c] = w.inverse ? x : x * sign(g, k);
    }
  }
  const int size = w.size;
  const float scale = w.scale;
  with_isa([=]() ULP_INLINE {
    walsh_hadamard(size, [=](int i, int j) ULP_INLINE {
      float *a = v + i * kTogether, *b = v + j * kTogether;
      for (int64_t c = 0; c < kTogether; ++c) {
        const float sum = a[c] + b[c], difference = a[c] - b[c];
        a[c] = sum;
        b[c] = difference;
      }
    });
    for (int64_t i = 0; i < size * kTogether; ++i) v[i] *= scale;
  });
  for (int64_t c = 0; c < count; ++c) {
    const Group& g = groups[static_cast<size_t>(c)];
    for (int64_t k = 0; k < w.size; ++k) {
      const float y = v[k * kTogether + c];
      w.out[g.begin + k * w.inner] = canonical(w.inverse ? y * sign(g, k) : y);
    }
  }
}

}  // namespace

void rotate(Stream stream, const RotateArgs& args) {
  check_rotate(stream, args);
  Tensor out = args.out;
  Work w{};
  w.in = args.in.raw();
  w.in_type = args.in.dtype();
  w.out = out.mutable_data<float>();
  w.size = args.size;
  w.scale = pow2(args.exponent);
  w.inverse = args.inverse;
  w.axis = args.in.size(args.axis);
  w.inner = 1;
  for (int i = args.axis + 1; i < args.in.rank(); ++i) w.inner *= args.in.size(i);
  const int64_t n = args.in.numel();
  if (n == 0) return;
  const RandomSource random = rotation_source(args.seed);
  std::vector<uint8_t> flips(static_cast<size_t>(w.axis));
  for (int64_t k = 0; k < w.axis; ++k)
    flips[static_cast<size_t>(k)] = is_flipped(random.word(static_cast<uint64_t>(k))) ? 1 : 0;
  w.flips = flips.data();
  const int64_t outer = n / w.axis / w.inner, whole = w.axis / w.size * w.size;
  parallel_for_units(outer * (w.axis / w.size) * w.inner, kTogether, 65536 / w.size,
                     [&](int64_t first, int64_t last) {
                       for (int64_t i = first; i < last; i += kTogether)
                         rotate_groups(w, i, std::min(kTogether, last - i));
                     });
  for (int64_t o = 0; o < outer; ++o)  // the tail
    for (int64_t i = (o * w.axis + whole) * w.inner; i < (o + 1) * w.axis * w.inner; ++i)
      w.out[i] = canonical(load_as_float(w.in, w.in_type, i));
}

}  // namespace ulp::cpu
