#include "kernels/augment.h"

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"

namespace ulp::cpu {
namespace {

/// What all images share.
template <class T>
struct Job {
  const T* in;
  float* out;
  const float *factor, *summand;  // null: scale
  float scale;
  int32_t height, width, channels;
  Augmentation how;

  int64_t pixels() const { return int64_t{height} * width * channels; }
};

template <class T>
inline __attribute__((always_inline)) float value_of(const Job<T>& job, float x, int32_t c) {
  return job.factor == nullptr ? canonical(x * job.scale)
                               : normalised(x, job.factor[c], job.summand[c]);
}

/// Row y of the result of one image.
template <class T>
inline __attribute__((always_inline)) void change_row(const Job<T>& job, const ImageChange& change,
                                                      const T* image, float* to, int32_t y) {
  const int32_t channels = job.channels;
  for (int32_t x = 0; x < job.width; ++x) {
    const PixelSource from = source_of(change, job.how.cutout, job.height, job.width, y, x);
    const T* pixel =
        from.inside ? image + (int64_t{from.y} * job.width + from.x) * channels : image;
    for (int32_t c = 0; c < channels; ++c) {
      const float value = value_of(job, from.inside ? static_cast<float>(pixel[c]) : 0.0f, c);
      to[x * channels + c] = from.cut ? 0.0f : value;
    }
  }
}

template <class T>
void change_image(const Job<T>& job, const ImageChange& change, int64_t row, float* to) {
  const T* const image = job.in + row * job.pixels();
  if (!job.how.any()) {
    // Whole images: all rows are one run.
    const int64_t n = int64_t{job.height} * job.width;
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < n; ++i)
        for (int32_t c = 0; c < job.channels; ++c)
          to[i * job.channels + c] =
              value_of(job, static_cast<float>(image[i * job.channels + c]), c);
    });
    return;
  }
  with_isa([=]() ULP_INLINE {
    for (int32_t y = 0; y < job.height; ++y)
      change_row(job, change, image, to + int64_t{y} * job.width * job.channels, y);
  });
}

/// The position of the first sample.
int64_t begin_of(const AugmentRowsArgs& args) {
  return args.state == nullptr ? 0 : args.state->batch_offset;
}

template <class T>
void change_images(const AugmentRowsArgs& args, float* out) {
  const float* normal = args.normal.defined() ? args.normal.data<float>() : nullptr;
  const Job<T> job{args.in.data<T>(),
                   out,
                   normal,
                   normal == nullptr ? nullptr : normal + args.channels,
                   args.scale,
                   args.height,
                   args.width,
                   args.channels,
                   args.how};
  const int64_t rows = args.rows(), begin = begin_of(args);
  const int32_t* indices = args.indices.defined() ? args.indices.data<int32_t>() : nullptr;
  const RandomSource random = args.how.any() ? RandomSource(args.key) : RandomSource();
  parallel_for(rows, std::max<int64_t>(1, kGrain / job.pixels()), [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n)
      change_image(job, draw_change(args.how, random, begin + n, args.height, args.width),
                   indices == nullptr ? n : indices[begin + n], out + n * job.pixels());
  });
}

}  // namespace

void augment_rows(Stream stream, const AugmentRowsArgs& args) {
  check_augment_rows(stream, args);
  Tensor out = args.out, out_labels = args.out_labels;
  float* to = out.mutable_data<float>();
  if (args.in.dtype() == DType::U8)
    change_images<uint8_t>(args, to);
  else
    change_images<float>(args, to);
  const int64_t rows = args.rows(), begin = begin_of(args);
  const int32_t* labels = args.labels.data<int32_t>();
  const int32_t* indices = args.indices.defined() ? args.indices.data<int32_t>() : nullptr;
  int32_t* label_out = out_labels.mutable_data<int32_t>();
  for (int64_t n = 0; n < rows; ++n)
    label_out[n] = labels[indices == nullptr ? n : indices[begin + n]];
  if (args.state != nullptr) args.state->batch_offset += rows;
}

}  // namespace ulp::cpu
