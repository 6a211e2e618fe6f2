// Convolutions of few outputs. A piece of an image is copied once, decoded and padded. Then the operand of step k of the sums
// lies at a fixed distance from that of step 0: forward, neighbouring pixels are summed side by side, read from one plane a
// channel; for a weight's gradient, neighbouring outputs. Each sum adds the terms of core/sum.h in its order.

#include "kernels/cpu/conv_shifted.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "core/convert.h"
#include "core/sum.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/transpose8.h"

#if defined(ULP_X86_ISA)
#include <immintrin.h>
#endif

namespace ulp::cpu {
namespace {

// Beyond these, packing pays: many outputs share it, and their weights pass through the cache once.
constexpr int64_t kMostOutputs = 32, kMostWeightOutputs = 64;
constexpr int64_t kItemPixels = 1024;  // of a piece of work, forward
constexpr int64_t kWidest = 32;        // lanes of a tile, at most
constexpr int kMostRows = 14;

// ---- tiles -----------------------------------------------------------------------------------------------------------

/// c[i·step + j] = Σ_k w[k·R + i] · x[at[k] + j], k ascending from +0.
struct ShiftTile {
  const float* w;
  const float* x;
  const int32_t* at;
  int64_t k;
  float* c;
  int64_t step;
};

/// Pixels that follow one another in the gradient and, at a constant distance, in the image.
struct Segment {
  int64_t x, count;
};

/// c[i·step + j] += Σ over the segments' pixels p of x[p + at[i]] · g[p·g_step + j], in order.
struct WeightTile {
  const float* x;
  const int32_t* at;
  int64_t x_step;
  const float* g;
  int64_t g_step;
  const Segment* segments;
  int64_t count;
  float* c;
  int64_t step;
};

using ShiftFunction = void (*)(const ShiftTile&);
using WeightFunction = void (*)(const WeightTile&);

template <int kRows>
void shift_portable(const ShiftTile& t) {
  constexpr int kLanes = 16;
  float sum[kRows][kLanes] = {};
  for (int64_t k = 0; k < t.k; ++k) {
    const float* x = t.x + t.at[k];
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kLanes; ++j)
        sum[i][j] = __builtin_fmaf(t.w[k * kRows + i], x[j], sum[i][j]);
  }
  for (int i = 0; i < kRows; ++i) std::copy_n(sum[i], kLanes, t.c + i * t.step);
}

template <int kRows, int kVectors>
void weight_portable(const WeightTile& t) {
  constexpr int kLanes = kVectors * 8;
  float sum[kRows][kLanes];
  for (int i = 0; i < kRows; ++i) std::copy_n(t.c + i * t.step, kLanes, sum[i]);
  const float* g = t.g;
  for (int64_t s = 0; s < t.count; ++s) {
    const float* x = t.x + t.segments[s].x;
    for (int64_t p = 0; p < t.segments[s].count; ++p, x += t.x_step, g += t.g_step)
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kLanes; ++j) sum[i][j] = __builtin_fmaf(x[t.at[i]], g[j], sum[i][j]);
  }
  for (int i = 0; i < kRows; ++i) std::copy_n(sum[i], kLanes, t.c + i * t.step);
}

#if defined(ULP_X86_ISA)
template <int kRows>
ULP_TARGET_AVX2 void shift_avx2(const ShiftTile& t) {
  __m256 sum[kRows][2];
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
  const float* w = t.w;
  const float* const image = t.x;
  const int32_t* at = t.at;
  const int32_t* const end = at + t.k;
  float* const c = t.c;
  const int64_t step = t.step;
  do {  // k ≥ 1; a loop of another form would keep the sums in memory, too
    const float* x = image + *at;
    const __m256 left = _mm256_loadu_ps(x), right = _mm256_loadu_ps(x + 8);
    for (int i = 0; i < kRows; ++i) {
      const __m256 one = _mm256_broadcast_ss(w + i);
      sum[i][0] = _mm256_fmadd_ps(one, left, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(one, right, sum[i][1]);
    }
    w += kRows;
  } while (++at != end);
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < 2; ++v) _mm256_storeu_ps(c + i * step + v * 8, sum[i][v]);
}

template <int kRows, int kVectors>
ULP_TARGET_AVX2 void weight_avx2(const WeightTile& t) {
  __m256 sum[kRows][kVectors];
  int64_t at[kRows];
  for (int i = 0; i < kRows; ++i) at[i] = t.at[i];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm256_loadu_ps(t.c + i * t.step + v * 8);
  const float* g = t.g;
  const int64_t x_step = t.x_step, g_step = t.g_step;
  const Segment* segment = t.segments;
  const Segment* const end = segment + t.count;
  do {  // no segment is empty
    const float* x = t.x + segment->x;
    int64_t left = segment->count;
    do {
      __m256 row[kVectors];
      for (int v = 0; v < kVectors; ++v) row[v] = _mm256_loadu_ps(g + v * 8);
      for (int i = 0; i < kRows; ++i) {
        const __m256 one = _mm256_broadcast_ss(x + at[i]);
        for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm256_fmadd_ps(one, row[v], sum[i][v]);
      }
      x += x_step;
      g += g_step;
    } while (--left > 0);
  } while (++segment != end);
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(t.c + i * t.step + v * 8, sum[i][v]);
}

template <int kRows>
ULP_TARGET_AVX512 void shift_avx512(const ShiftTile& t) {
  __m512 sum[kRows][2];
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  const float* w = t.w;
  const float* const image = t.x;
  const int32_t* at = t.at;
  const int32_t* const end = at + t.k;
  float* const c = t.c;
  const int64_t step = t.step;
  do {  // k ≥ 1; a loop of another form would keep the sums in memory, too
    const float* x = image + *at;
    const __m512 left = _mm512_loadu_ps(x), right = _mm512_loadu_ps(x + 16);
    for (int i = 0; i < kRows; ++i) {
      const __m512 one = _mm512_set1_ps(w[i]);
      sum[i][0] = _mm512_fmadd_ps(one, left, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(one, right, sum[i][1]);
    }
    w += kRows;
  } while (++at != end);
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < 2; ++v) _mm512_storeu_ps(c + i * step + v * 16, sum[i][v]);
}

template <int kRows, int kVectors>
ULP_TARGET_AVX512 void weight_avx512(const WeightTile& t) {
  __m512 sum[kRows][kVectors];
  int64_t at[kRows];
  for (int i = 0; i < kRows; ++i) at[i] = t.at[i];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_loadu_ps(t.c + i * t.step + v * 16);
  const float* g = t.g;
  const int64_t x_step = t.x_step, g_step = t.g_step;
  const Segment* segment = t.segments;
  const Segment* const end = segment + t.count;
  do {  // no segment is empty
    const float* x = t.x + segment->x;
    int64_t left = segment->count;
    do {
      __m512 row[kVectors];
      for (int v = 0; v < kVectors; ++v) row[v] = _mm512_loadu_ps(g + v * 16);
      for (int i = 0; i < kRows; ++i) {
        const __m512 one = _mm512_set1_ps(x[at[i]]);
        for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_fmadd_ps(one, row[v], sum[i][v]);
      }
      x += x_step;
      g += g_step;
    } while (--left > 0);
  } while (++segment != end);
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(t.c + i * t.step + v * 16, sum[i][v]);
}
#endif

struct Portable {
  static constexpr int kWidth = 8, kShiftRows = 4, kWeightRows[] = {8, 4};
  template <int r>
  static constexpr ShiftFunction shift = shift_portable<r>;
  template <int r, int v>
  static constexpr WeightFunction weight = weight_portable<r, v>;
};
#if defined(ULP_X86_ISA)
struct Avx2 {  // sums, vectors of x or g, one of the other: at most 15 of 16 registers
  static constexpr int kWidth = 8, kShiftRows = 6, kWeightRows[] = {8, 6};
  template <int r>
  static constexpr ShiftFunction shift = shift_avx2<r>;
  template <int r, int v>
  static constexpr WeightFunction weight = weight_avx2<r, v>;
};
struct Avx512 {
  static constexpr int kWidth = 16, kShiftRows = 12, kWeightRows[] = {12, 12};
  template <int r>
  static constexpr ShiftFunction shift = shift_avx512<r>;
  template <int r, int v>
  static constexpr WeightFunction weight = weight_avx512<r, v>;
};
#endif

/// The tiles of one instruction set. Forward: up to shift_rows outputs of 2·width pixels; dw: up to weight_rows[v − 1] steps of
/// k of v·width outputs.
struct Tiles {
  int64_t width, shift_rows, weight_rows[2];
  ShiftFunction shift[kMostRows];
  WeightFunction weight[2][kMostRows];
};

template <class I, int... r>
constexpr Tiles make_tiles(std::integer_sequence<int, r...>) {
  Tiles t{I::kWidth, I::kShiftRows, {I::kWeightRows[0], I::kWeightRows[1]}, {}, {}};
  ((r < I::kShiftRows ? void(t.shift[r] = I::template shift<r + 1>) : void()), ...);
  ((r < I::kWeightRows[0] ? void(t.weight[0][r] = I::template weight<r + 1, 1>) : void()), ...);
  ((r < I::kWeightRows[1] ? void(t.weight[1][r] = I::template weight<r + 1, 2>) : void()), ...);
  return t;
}

template <class I>
const Tiles& tiles_of() {
  static constexpr Tiles kTiles = make_tiles<I>(std::make_integer_sequence<int, 12>());
  return kTiles;
}

const Tiles& current_tiles() {
#if defined(ULP_X86_ISA)
  if (current_isa() == Isa::Avx512) return tiles_of<Avx512>();
  if (current_isa() == Isa::Avx2) return tiles_of<Avx2>();
#endif
  return tiles_of<Portable>();
}

// ---- padded copies ---------------------------------------------------------------------------------------------------

/// Positions that the windows read along one axis, from the first on; padded copies begin there.
struct Reach {
  int64_t first, size;

  /// For the output places [begin, end).
  Reach(const WindowAxis& a, int64_t begin, int64_t end) {
    const int64_t taps = (a.taps - 1) * a.dilation;
    first = a.start + begin * a.step + std::min<int64_t>(0, taps);
    size = (end - 1 - begin) * a.step + std::abs(taps) + 1;
  }
};

/// Reach of one place's taps from place 0 of a copy.
int64_t tap_at(const WindowAxis& a, int64_t tap) {
  return tap * a.dilation - std::min<int64_t>(0, (a.taps - 1) * a.dilation);
}

void decode_floats(float* to, const Tensor& t, int64_t first, int64_t n) {
  const void* data = t.raw();
  const DType dtype = t.dtype();
  if (dtype == DType::F32) {
    std::copy_n(t.data<float>() + first, n, to);
    return;
  }
  with_isa([=]() ULP_INLINE {
    if (dtype == DType::BF16) {
      const uint16_t* from = static_cast<const uint16_t*>(data) + first;
      for (int64_t i = 0; i < n; ++i) to[i] = bf16_to_float(from[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = load_as_float(data, dtype, first + i);
    }
  });
}

/// Lines of an image in fp32 and padded: pixels (h, w), channels last.
class Padded {
 public:
  void make(const Tensor& image, const Windows& w, int64_t n, const Reach& h, const Reach& x) {
    const int64_t c = w.channels, line = x.size * c;
    values_.resize(static_cast<size_t>(h.size * line + kWidest));
    const int64_t left = std::clamp<int64_t>(-x.first, 0, x.size);
    const int64_t right = std::clamp<int64_t>(w.w.in - x.first, left, x.size);
    for (int64_t i = 0; i < h.size; ++i) {
      float* const to = values_.data() + i * line;
      const int64_t from = h.first + i;
      if (from < 0 || from >= w.h.in) {
        std::fill_n(to, line, 0.0f);
        continue;
      }
      std::fill_n(to, left * c, 0.0f);
      if (left < right)
        decode_floats(to + left * c, image, ((n * w.h.in + from) * w.w.in + x.first + left) * c,
                      (right - left) * c);
      std::fill_n(to + right * c, (x.size - right) * c, 0.0f);
    }
    std::fill_n(values_.data() + h.size * line, kWidest, 0.0f);
  }
  /// The same, a plane (h, w) for each channel.
  void make_planes(const Padded& from, int64_t channels, int64_t pixels) {
    values_.resize(static_cast<size_t>(channels * pixels + kWidest));
    const float* x = from.data();
    float* const to = values_.data();
    with_isa([=]() ULP_INLINE {
      int64_t p = 0;
      for (; p + 8 <= pixels; p += 8)
        for (int64_t c = 0; c < channels; c += 8) {
          const float* corner = x + p * channels + c;
          if (c + 8 <= channels) {
            transpose8(to + c * pixels + p, pixels, corner, channels);
            continue;
          }
          float block[64];  // reads into what follows
          transpose8(block, 8, corner, channels);
          for (int64_t i = 0; c + i < channels; ++i)
            std::memcpy(to + (c + i) * pixels + p, block + i * 8, 8 * sizeof(float));
        }
      for (; p < pixels; ++p)
        for (int64_t c = 0; c < channels; ++c) to[c * pixels + p] = x[p * channels + c];
    });
    std::fill_n(to + channels * pixels, kWidest, 0.0f);
  }
  const float* data() const { return values_.data(); }

 private:
  std::vector<float> values_;
};

/// Calls body(i) for i < n on whichever thread is free; make(): what a thread keeps meanwhile.
template <class Keep, class Body>
void for_each_item(int64_t n, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(n, omp_get_max_threads()), 1, [&](int64_t, int64_t) {
    Keep keep;
    for (int64_t i = next++; i < n; i = next++) body(i, keep);
  });
}

int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// ---- forward ---------------------------------------------------------------------------------------------------------

class Shifted {
 public:
  Shifted(const ConvArgs& args, float* out, const Finish& finish)
      : args_(args),
        w_(args.windows),
        out_(out),
        finish_(finish),
        tiles_(current_tiles()),
        outputs_(args.weight.size(3)),
        depth_(w_.columns()) {
    lines_ = std::clamp<int64_t>(pieces(kItemPixels, w_.w.out), 1, w_.h.out);
    pack_weight();
  }

  void run() const {
    const int64_t each = pieces(w_.h.out, lines_);
    for_each_item<Copies>(w_.images * each, [&](int64_t i, Copies& copies) {
      const int64_t begin = i % each * lines_;
      run_lines(i / each, begin, std::min(w_.h.out, begin + lines_), copies);
    });
  }

 private:
  struct Copies {
    Padded last, planes;
    std::vector<int32_t> at;
  };
  struct Rows {
    int64_t first, count;  // outputs
    const float* w;
  };

  /// Blocks of at most shift_rows outputs, each (K, outputs).
  void pack_weight() {
    weight_.resize(static_cast<size_t>(depth_ * outputs_));
    const int64_t blocks = pieces(outputs_, tiles_.shift_rows);
    const Shape& steps = args_.weight.strides();
    float* to = weight_.data();
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = outputs_ * b / blocks, last = outputs_ * (b + 1) / blocks;
      rows_.push_back({first, last - first, to});
      for (int64_t k = 0; k < depth_; ++k)
        for (int64_t o = first; o < last; ++o)
          *to++ =
              load_as_float(args_.weight.raw(), args_.weight.dtype(),
                            k / w_.channels * steps[1] + k % w_.channels * steps[2] + o * steps[3]);
    }
  }

  /// Output lines [begin, end) of image n. Positions count pixels of the padded copy from line to line; those beyond a line's
  /// last output are summed in vain.
  void run_lines(int64_t n, int64_t begin, int64_t end, Copies& copies) const {
    const Reach h(w_.h, begin, end), x(w_.w, 0, w_.w.out);
    const int64_t pitch = x.size, plane = h.size * pitch;
    copies.last.make(args_.image, w_, n, h, x);
    if (w_.channels > 1) copies.planes.make_planes(copies.last, w_.channels, plane);
    const float* image = w_.channels > 1 ? copies.planes.data() : copies.last.data();
    copies.at.clear();
    for (int64_t kh = 0; kh < w_.h.taps; ++kh)
      for (int64_t kw = 0; kw < w_.w.taps; ++kw)
        for (int64_t c = 0; c < w_.channels; ++c)
          copies.at.push_back(
              static_cast<int32_t>(c * plane + tap_at(w_.h, kh) * pitch + tap_at(w_.w, kw)));

    const int64_t lanes = 2 * tiles_.width;
    const int64_t positions = (end - begin - 1) * pitch + w_.w.out;
    const int64_t first = (n * w_.h.out + begin) * w_.w.out * outputs_;
    float* const out = out_ + first;
    float* to = out;
    float* const last = out + ((end - begin) * w_.w.out - 1) * outputs_;
    int64_t column = 0;  // of position p in its line
    alignas(64) float sums[kMostOutputs * kWidest] = {}, turned[kWidest * kMostOutputs];
    for (int64_t p = 0; p < positions; p += lanes) {
      for (const Rows& rows : rows_)
        tiles_.shift[rows.count - 1](
            {rows.w, image + p, copies.at.data(), depth_, sums + rows.first * lanes, lanes});
      turn(turned, sums, lanes);
      const int64_t there = std::min(lanes, positions - p);
      for (int64_t j = 0; j < there; ++j) {
        if (column < w_.w.out) {
          put(to, turned + j * kMostOutputs, to == last);
          to += outputs_;
        }
        if (++column == pitch) column = 0;
      }
    }
    finish_.rows(out, first, (end - begin) * w_.w.out, outputs_);
  }

  /// turned[j·kMostOutputs + o] = sums[o·lanes + j].
  void turn(float* turned, const float* sums, int64_t lanes) const {
    const int64_t outputs = outputs_;
    with_isa([=]() ULP_INLINE {
      for (int64_t o = 0; o < outputs; o += 8)
        for (int64_t j = 0; j < lanes; j += 8)
          transpose8(turned + j * kMostOutputs + o, kMostOutputs, sums + o * lanes + j, lanes);
    });
  }

  /// One pixel's outputs. All but the last may write into the next pixel, which comes after.
  void put(float* to, const float* from, bool last) const {
    if (!last && outputs_ >= 4 && outputs_ <= 8)
      std::memcpy(to, from, 8 * sizeof(float));
    else if (outputs_ % 8 == 0)
      for (int64_t o = 0; o < outputs_; o += 8) std::memcpy(to + o, from + o, 8 * sizeof(float));
    else
      std::copy_n(from, outputs_, to);
  }

  const ConvArgs& args_;
  const Windows& w_;
  float* out_;
  const Finish& finish_;
  const Tiles& tiles_;
  int64_t outputs_, depth_, lines_;
  std::vector<float> weight_;
  std::vector<Rows> rows_;
};

// ---- dw --------------------------------------------------------------------------------------------------------------

class ShiftedWeight {
 public:
  ShiftedWeight(const ConvWeightArgs& args, float* out, const Finish& finish)
      : args_(args),
        w_(args.windows),
        out_(out),
        finish_(finish),
        tiles_(current_tiles()),
        outputs_(args.grad.size(3)),
        depth_(w_.columns()) {
    vectors_ = outputs_ > tiles_.width ? 2 : 1;
    step_ = pieces(outputs_, vectors_ * tiles_.width) * vectors_ * tiles_.width;
    x_size_ = Reach(w_.w, 0, w_.w.out).size;
    chunks_ = std::max<int64_t>(1, pieces(w_.rows(), kMatmulChunk));
    const int64_t blocks = pieces(depth_, tiles_.weight_rows[vectors_ - 1]);
    parts_ = std::clamp<int64_t>(pieces(4 * omp_get_max_threads(), chunks_), 1, blocks);
    sums_.assign(static_cast<size_t>(chunks_ * depth_ * step_), 0.0f);
    for (int64_t kh = 0; kh < w_.h.taps; ++kh)
      for (int64_t kw = 0; kw < w_.w.taps; ++kw)
        for (int64_t c = 0; c < w_.channels; ++c)
          at_.push_back(static_cast<int32_t>(
              (tap_at(w_.h, kh) * x_size_ + tap_at(w_.w, kw)) * w_.channels + c));
  }

  void run() {
    for_each_item<Copies>(chunks_ * parts_, [&](int64_t i, Copies& copies) {
      run_chunk(i / parts_, depth_ * (i % parts_) / parts_, depth_ * (i % parts_ + 1) / parts_,
                copies);
    });
    for (int64_t o = 0; o < outputs_; ++o) {
      float* const row = out_ + o * depth_;
      for (int64_t k = 0; k < depth_; ++k) {
        float total = sums_[static_cast<size_t>(k * step_ + o)];
        for (int64_t chunk = 1; chunk < chunks_; ++chunk)
          total = total + sums_[static_cast<size_t>((chunk * depth_ + k) * step_ + o)];
        row[k] = total;
      }
    }
    finish_.rows(out_, 0, outputs_, depth_);
  }

 private:
  struct Copies {
    Padded image;
    std::vector<float> grad, row;
    std::vector<Segment> segments;
  };

  /// Steps [from, to) of k over the windows of a chunk, image by image.
  void run_chunk(int64_t chunk, int64_t from, int64_t to, Copies& copies) {
    const int64_t per_image = w_.h.out * w_.w.out;
    const int64_t last = std::min(w_.rows(), (chunk + 1) * kMatmulChunk);
    for (int64_t row = chunk * kMatmulChunk; row < last;) {
      const int64_t n = row / per_image, end = std::min(last, (n + 1) * per_image);
      run_rows(chunk, n, row - n * per_image, end - n * per_image, from, to, copies);
      row = end;
    }
  }

  /// The same for output pixels [begin, end) of image n.
  void run_rows(int64_t chunk, int64_t n, int64_t begin, int64_t end, int64_t from, int64_t to,
                Copies& copies) {
    const int64_t top = begin / w_.w.out, bottom = (end - 1) / w_.w.out + 1;
    const Reach h(w_.h, top, bottom), x(w_.w, 0, w_.w.out);
    copies.image.make(args_.image, w_, n, h, x);
    copies.segments.clear();
    for (int64_t line = top; line < bottom; ++line) {
      const int64_t a = line == top ? begin - top * w_.w.out : 0;
      const int64_t b = line + 1 == bottom ? end - line * w_.w.out : w_.w.out;
      copies.segments.push_back(
          {((line - top) * w_.h.step * x.size + a * w_.w.step) * w_.channels, b - a});
    }
    decode_gradient(n * w_.h.out * w_.w.out + begin, end - begin, copies);

    const int64_t most = tiles_.weight_rows[vectors_ - 1], blocks = pieces(to - from, most);
    WeightTile tile{};
    tile.x = copies.image.data();
    tile.x_step = w_.w.step * w_.channels;
    tile.g_step = step_;
    tile.segments = copies.segments.data();
    tile.count = static_cast<int64_t>(copies.segments.size());
    tile.step = step_;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t k = from + (to - from) * b / blocks,
                    rows = from + (to - from) * (b + 1) / blocks - k;
      tile.at = at_.data() + k;
      for (int64_t o = 0; o < step_; o += vectors_ * tiles_.width) {
        tile.g = copies.grad.data() + o;
        tile.c = sums_.data() + (chunk * depth_ + k) * step_ + o;
        tiles_.weight[vectors_ - 1][rows - 1](tile);
      }
    }
  }

  /// Rows of the gradient in fp32, `step_` apart.
  void decode_gradient(int64_t first, int64_t rows, Copies& copies) const {
    copies.grad.resize(static_cast<size_t>(rows * step_));
    float* to = copies.grad.data();
    if (step_ == outputs_) return decode_floats(to, args_.grad, first * outputs_, rows * outputs_);
    copies.row.resize(static_cast<size_t>(rows * outputs_));
    decode_floats(copies.row.data(), args_.grad, first * outputs_, rows * outputs_);
    const float* from = copies.row.data();
    for (int64_t r = 0; r < rows; ++r, from += outputs_, to += step_)
      std::fill(std::copy_n(from, outputs_, to), to + step_, 0.0f);
  }

  const ConvWeightArgs& args_;
  const Windows& w_;
  float* out_;
  const Finish& finish_;
  const Tiles& tiles_;
  int64_t outputs_, depth_;
  int64_t vectors_, step_;  // of a tile; floats from one step of k to the next in sums_
  int64_t x_size_, chunks_, parts_;
  std::vector<int32_t> at_;
  std::vector<float> sums_;  // (chunks, K, step)
};

bool fits_32_bits(const Windows& w) {
  const Reach h(w.h, 0, std::max<int64_t>(1, w.h.out)), x(w.w, 0, std::max<int64_t>(1, w.w.out));
  return h.size < (int64_t{1} << 28) / x.size / w.channels;
}

}  // namespace

bool shifts_suit(const Windows& w, int64_t outputs) {
  const bool shifts = w.h.step == 1 && w.w.step == 1 && w.h.up == 1 && w.w.up == 1;
  return w.groups == 1 && shifts && outputs <= kMostOutputs && w.columns() <= kMatmulChunk &&
         fits_32_bits(w) && Reach(w.w, 0, w.w.out).size <= 2 * w.w.out;
}

bool weight_shifts_suit(const Windows& w, int64_t outputs) {
  return w.groups == 1 && w.h.up == 1 && w.w.up == 1 && outputs <= kMostWeightOutputs &&
         w.rows() > 0 && fits_32_bits(w);
}

void conv_shifted(const ConvArgs& args, float* out, const Finish& finish) {
  Shifted(args, out, finish).run();
}

void weight_shifted(const ConvWeightArgs& args, float* out, const Finish& finish) {
  ShiftedWeight(args, out, finish).run();
}

}  // namespace ulp::cpu
