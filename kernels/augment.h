#pragma once

// Batches of images as a network trains on them: gathered, cropped, mirrored, cut out and normalised in one pass.

#include "core/random.h"
#include "core/scalar_math.h"
#include "kernels/kernel.h"

namespace ulp {

/// What is done to each image of a batch. All 0 and false: nothing.
///  crop    the image is seen through a window of its own size, moved by up to `crop` pixels up, down, left and right; what
///          lies outside the image is 0 (before normalisation)
///  flip    half of the images are mirrored, left for right
///  cutout  a square of `cutout` pixels a side around a pixel of the image is 0 after normalisation; it may reach beyond
///          Source: DeVries, Taylor, arXiv 1708.04552
struct Augmentation {
  int32_t crop = 0;
  bool flip = false;
  int32_t cutout = 0;

  ULP_HD bool any() const { return crop != 0 || flip || cutout != 0; }
  bool operator==(const Augmentation&) const = default;
};

/// What is done to one image (H, W, C): pixel (y, x) of the result is pixel (y + dy, x + dx), or with the x mirrored, and 0
/// in rows cut_y … cut_y + cutout − 1 and columns cut_x … cut_x + cutout − 1.
struct ImageChange {
  int32_t dy = 0, dx = 0;
  bool flip = false;
  int32_t cut_y = 0, cut_x = 0;
};

/// An even choice of 0 … n − 1.
ULP_HD int32_t choose_below(uint32_t word, int32_t n) {
  return static_cast<int32_t>((uint64_t{word} * static_cast<uint32_t>(n)) >> 32);
}

/// Of the sample at `position` in the order of its epoch: words 8·position … 8·position + 7, in turn dy, dx, flip (its first
/// bit), one that is not used, the centre's row and column, two that are not used. `random`: its step is the epoch.
ULP_HD ImageChange draw_change(const Augmentation& how, const RandomSource& random,
                               int64_t position, int32_t height, int32_t width) {
  ImageChange change;
  const auto group = 2 * static_cast<uint64_t>(position);
  if (how.crop != 0 || how.flip) {
    const PhiloxWords words = random.words(group);
    change.dy = choose_below(words.word[0], 2 * how.crop + 1) - how.crop;
    change.dx = choose_below(words.word[1], 2 * how.crop + 1) - how.crop;
    change.flip = how.flip && (words.word[2] >> 31) != 0;
  }
  if (how.cutout != 0) {
    const PhiloxWords words = random.words(group + 1);
    change.cut_y = choose_below(words.word[0], height) - how.cutout / 2;
    change.cut_x = choose_below(words.word[1], width) - how.cutout / 2;
  }
  return change;
}

/// Where pixel (y, x) of the result comes from.
struct PixelSource {
  int32_t y, x;
  bool inside;  // of the image
  bool cut;
};
ULP_HD PixelSource source_of(const ImageChange& change, int32_t cutout, int32_t height,
                             int32_t width, int32_t y, int32_t x) {
  PixelSource from;
  from.y = y + change.dy;
  from.x = (change.flip ? width - 1 - x : x) + change.dx;
  from.inside = from.y >= 0 && from.y < height && from.x >= 0 && from.x < width;
  from.cut = y >= change.cut_y && y < change.cut_y + cutout && x >= change.cut_x &&
             x < change.cut_x + cutout;
  return from;
}

/// out[n] = image r as `how` changes it, normalised, and out_labels[n] = labels[r], for n < N, the sample at position p + n of
/// its epoch; p = state.batch_offset, which is moved on by N, or 0 without a state. r = indices[p + n], or n where there are no
/// indices: `in` holds this batch and no more.
///  in         (R, H·W·C) U8 or F32; F32 NaNs stay NaN
///  indices    (≥ p + N) I32 in [0, R), or undefined
///  normal     (2, C) F32, factors and summands: value = fma(in, factor[c], summand[c]); undefined: in · scale
///  out        (N, H·W·C) F32                     labels, out_labels  (R), (N) I32
///  key        the draws of the epoch: the random_step of its state is the epoch's number. Not used where how does nothing
/// Throws unless 1 ≤ H, W, C and H·W·C < 2^31, 0 ≤ crop < min(H, W) and 0 ≤ cutout ≤ min(H, W).
struct AugmentRowsArgs {
  Tensor in, indices, out;
  Tensor labels, out_labels;
  Tensor normal;
  float scale = 1;
  int32_t height = 1, width = 1, channels = 1;
  Augmentation how;
  RandomKey key;
  StepState* state = nullptr;  // on the stream's device

  int64_t rows() const { return out.size(0); }
};

/// One value of AugmentRowsArgs::out.
ULP_HD float normalised(float x, float factor, float summand) {
  return canonical(fma_of(x, factor, summand));
}

// clang-format off
#define ULP_AUGMENT_KERNELS(X)                          \
  X(augment_rows, AugmentRowsArgs)
// clang-format on

ULP_AUGMENT_KERNELS(ULP_DECLARE_KERNEL)

/// Throws unless the arguments are as the row says.
void check_augment_rows(Stream stream, const AugmentRowsArgs& args);

}  // namespace ulp
