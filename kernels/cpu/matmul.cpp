// out (M, N) = a (M, K) · b (K, N) in the strict order of core/sum.h.
//
// A block of out is cut into tiles of at most (rows × vectors·width); a tile's accumulators stay in registers for
// kStep steps of k and are carried through memory to the next kStep, so every output sees one ascending chain of fma
// per chunk, whatever the tile. a is packed as rows of kStep values (a tile reads them kRow apart) unless it has few columns, b as
// panels as wide as a tile, one row of the panel for each k. Packing decodes, and transposes where the strides ask it.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "core/convert.h"
#include "core/sum.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/transpose8.h"
#include "kernels/kernels.h"
#include "kernels/matmul_unit.h"

#if defined(ULP_X86_ISA)
#include <immintrin.h>
#endif

namespace ulp::cpu {
namespace {

constexpr int64_t kStep = kPackedColumns;  // k steps between loading and storing the sums of a tile
constexpr int64_t kRow =
    kStep + 16;  // floats between packed rows of a: a power of two would share few cache sets
constexpr int64_t kSide = 2048;  // rows and columns of out whose operands are packed together
constexpr int64_t kPackedFloats = 1 << 20;              // packed operands at a time
constexpr int64_t kItemRows = 112, kItemColumns = 256;  // one piece of work, at most
constexpr int64_t kWorkPerThread = 1 << 19;  // multiply-adds that pay for waking a thread
constexpr int64_t kAhead = 16;               // rows of b's panel fetched before they are used
constexpr int64_t kDirectRows = 128;         // rows of out up to which b is read where it lies
static_assert(kMatmulChunk % kStep == 0);

// ---- tiles -----------------------------------------------------------------------------------------------------------

/// c[i, j] = Σ_k a[i·kRow + k] · b[k·b_step + j], k ascending over 1 … kStep terms,
/// starting from +0 or (carry) from c[i, j].
struct Tile {
  const float* a;
  int64_t a_step;  // of a that is read where it lies, instead of kRow
  const float* b;
  int64_t b_step;
  float* c;
  int64_t c_step;
  int64_t k;
  bool carry;
  const float* next_c;  // the tile that comes next, fetched early
};
using TileFunction = void (*)(const Tile&);

/// The tiles of one instruction set: by_size[(v − 1)·rows + r − 1] makes r rows and v·width columns.
struct TileSet {
  int64_t rows, width, vectors;
  const TileFunction* by_size;
  const TileFunction* direct;  // the same with rows of a where they lie, or null

  int64_t columns() const { return width * vectors; }
  TileFunction operator()(int64_t r, int64_t v, bool direct_a) const {
    return (direct_a ? direct : by_size)[(v - 1) * rows + r - 1];
  }
};

template <int kRows, int kVectors>
void tile_portable(const Tile& t) {
  constexpr int kColumns = kVectors * 8;
  float sum[kRows][kColumns];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) sum[i][j] = t.carry ? t.c[i * t.c_step + j] : 0.0f;
  const float* b = t.b;
  for (int64_t k = 0; k < t.k; ++k, b += t.b_step)
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kColumns; ++j)
        sum[i][j] = __builtin_fmaf(t.a[i * kRow + k], b[j], sum[i][j]);
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) t.c[i * t.c_step + j] = sum[i][j];
}

#if defined(ULP_X86_ISA)
template <int kRows, int kVectors, bool kDirect>
ULP_TARGET_AVX2 void tile_avx2(const Tile& t) {
  __m256 sum[kRows][kVectors];
  const float* a = t.a;
  const float* b = t.b;
  float* const c = t.c;
  const int64_t a_step = kDirect ? t.a_step : kRow, b_step = t.b_step, c_step = t.c_step;
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = t.carry ? _mm256_loadu_ps(c + i * c_step + v * 8) : _mm256_setzero_ps();
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors * 8; v += 16) __builtin_prefetch(t.next_c + i * c_step + v, 1);
  const float* const end = a + t.k;
  const float* lower = a + 3 * a_step;       // two pointers and one distance reach six rows
  const float* next_a = a + kRows * a_step;  // the tile below reads these
  do {
    __m256 row[kVectors];
    __builtin_prefetch(next_a);
    next_a += kRows;
    for (int v = 0; v < kVectors * 8; v += 16) __builtin_prefetch(b + kAhead * b_step + v);
    for (int v = 0; v < kVectors; ++v) row[v] = _mm256_loadu_ps(b + v * 8);
    for (int i = 0; i < kRows; ++i) {
      const float* const line = i < 3 ? a : lower;
      const __m256 x = _mm256_set1_ps(line[(i < 3 ? i : i - 3) * a_step]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm256_fmadd_ps(x, row[v], sum[i][v]);
    }
    b += b_step;
    ++lower;
  } while (++a != end);
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(c + i * c_step + v * 8, sum[i][v]);
}

template <int kRows, int kVectors>
ULP_TARGET_AVX512 void tile_avx512(const Tile& t) {
  __m512 sum[kRows][kVectors];
  const float* a = t.a;
  const float* b = t.b;
  float* const c = t.c;
  const int64_t b_step = t.b_step, c_step = t.c_step;
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v)
      sum[i][v] = t.carry ? _mm512_loadu_ps(c + i * c_step + v * 16) : _mm512_setzero_ps();
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors * 16; v += 16) __builtin_prefetch(t.next_c + i * c_step + v, 1);
  const float* const end = a + t.k;
  const float* next_a = a + kRows * kRow;  // the tile below reads these
  do {
    __m512 row[kVectors];
    __builtin_prefetch(next_a);
    next_a += kRows;
    for (int v = 0; v < kVectors * 16; v += 16) __builtin_prefetch(b + kAhead * b_step + v);
    for (int v = 0; v < kVectors; ++v) row[v] = _mm512_loadu_ps(b + v * 16);
    for (int i = 0; i < kRows; ++i) {
      const __m512 x = _mm512_set1_ps(a[i * kRow]);
      for (int v = 0; v < kVectors; ++v) sum[i][v] = _mm512_fmadd_ps(x, row[v], sum[i][v]);
    }
    b += b_step;
  } while (++a != end);
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + i * c_step + v * 16, sum[i][v]);
}
#endif

struct Portable {
  static constexpr int kRows = 4, kVectors = 2, kWidth = 8;
  template <int r, int v>
  static constexpr TileFunction tile = tile_portable<r, v>;
};
#if defined(ULP_X86_ISA)
struct Avx2 {  // 6·2 sums, 2 of b, 1 of a: 15 of 16 registers
  static constexpr int kRows = 6, kVectors = 2, kWidth = 8;
  template <int r, int v>
  static constexpr TileFunction tile = tile_avx2<r, v, false>;
  template <int r, int v>
  static constexpr TileFunction direct_tile = tile_avx2<r, v, true>;
};
struct Avx512 {  // 14·2 sums, 2 of b, 1 of a: 31 of 32 registers
  static constexpr int kRows = 14, kVectors = 2, kWidth = 16;
  template <int r, int v>
  static constexpr TileFunction tile = tile_avx512<r, v>;
};
#endif

template <class I, int... i>
constexpr auto all_tiles(std::integer_sequence<int, i...>) {
  return std::array<TileFunction, sizeof...(i)>{
      I::template tile<i % I::kRows + 1, i / I::kRows + 1>...};
}

template <class I, int... i>
constexpr auto all_direct_tiles(std::integer_sequence<int, i...>) {
  return std::array<TileFunction, sizeof...(i)>{
      I::template direct_tile<i % I::kRows + 1, i / I::kRows + 1>...};
}

template <class I>
TileSet tile_set() {
  static constexpr auto kTiles =
      all_tiles<I>(std::make_integer_sequence<int, I::kRows * I::kVectors>());
  return {I::kRows, I::kWidth, I::kVectors, kTiles.data(), nullptr};
}

TileSet current_tiles() {
#if defined(ULP_X86_ISA)
  if (current_isa() == Isa::Avx512) return tile_set<Avx512>();
  if (current_isa() == Isa::Avx2) {
    static constexpr auto kDirect =
        all_direct_tiles<Avx2>(std::make_integer_sequence<int, Avx2::kRows * Avx2::kVectors>());
    TileSet tiles = tile_set<Avx2>();
    tiles.direct = kDirect.data();
    return tiles;
  }
#endif
  return tile_set<Portable>();
}

// ---- packing ---------------------------------------------------------------------------------------------------------

/// n neighbours as fp32.
ULP_HD void decode(float* to, const void* from, DType dtype, int64_t n) {
  const auto* halves = static_cast<const uint16_t*>(from);
  const auto* bytes = static_cast<const uint8_t*>(from);
  switch (dtype) {
    case DType::BF16:
      for (int64_t i = 0; i < n; ++i) to[i] = bf16_to_float(halves[i]);
      break;
    case DType::F16:
      for (int64_t i = 0; i < n; ++i) to[i] = f16_to_float(halves[i]);
      break;
    case DType::F8E4M3:
      for (int64_t i = 0; i < n; ++i) to[i] = e4m3_to_float(bytes[i]);
      break;
    case DType::F8E5M2:
      for (int64_t i = 0; i < n; ++i) to[i] = e5m2_to_float(bytes[i]);
      break;
    default: {
      const auto* words = static_cast<const float*>(from);
      int64_t i = 0;
      for (; i + 16 <= n; i += 16) std::memcpy(to + i, words + i, 16 * sizeof(float));
      for (; i < n; ++i) to[i] = words[i];
    }
  }
}

/// to[r·to_step + c] = from(row + r, column + c) as fp32.
ULP_HD void pack_lines(float* to, int64_t to_step, const Matrix& from, int64_t row, int64_t rows,
                       int64_t column, int64_t columns) {
  if (from.column_step == 1) {
    for (int64_t r = 0; r < rows; ++r)
      decode(to + r * to_step, from.at(row + r, column), from.dtype, columns);
    return;
  }
  if (from.row_step != 1) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        to[r * to_step + c] = load_as_float(from.at(row + r, column + c), from.dtype, 0);
    return;
  }
  constexpr int64_t kStrip = 64;
  float strip[8 * kStrip];
  for (int64_t c = 0; c < columns; c += 8)
    for (int64_t r = 0; r < rows; r += kStrip) {
      const int64_t wide = std::min<int64_t>(8, columns - c), high = std::min(kStrip, rows - r);
      const float* lines = strip;
      int64_t line_step = kStrip;
      if (from.dtype == DType::F32) {
        lines = static_cast<const float*>(from.at(row + r, column + c));
        line_step = from.column_step;
      } else {
        for (int64_t j = 0; j < wide; ++j)
          decode(strip + j * kStrip, from.at(row + r, column + c + j), from.dtype, high);
      }
      float* corner = to + r * to_step + c;
      int64_t i = 0;
      if (wide == 8)
        for (; i + 8 <= high; i += 8) {
          if (i % 16 == 0)  // those of the next eight columns
            for (int64_t j = 8; j < 16; ++j) __builtin_prefetch(lines + j * line_step + i);
          transpose8(corner + i * to_step, to_step, lines + i, line_step);
        }
      for (; i < high; ++i)
        for (int64_t j = 0; j < wide; ++j) corner[i * to_step + j] = lines[j * line_step + i];
    }
}

/// Neighbouring columns of a windows' matrix that read neighbours in memory: channels of one tap, or all taps of a line.
struct Run {
  int64_t kh, kw, offset;  // offset: from the tap's first channel
  int64_t to, length;
};

/// The same for the windows of an image. columns ≤ kStep.
ULP_HD void pack_windows(float* to, int64_t to_step, const Matrix& from, int64_t row, int64_t rows,
                         int64_t column, int64_t columns) {
  const Windows w = *from.windows;
  const bool lines = w.groups == 1 && w.w.up == 1 && w.w.dilation == 1;
  const int64_t span = lines ? w.w.taps * w.channels : w.channels;
  Run runs[kStep];
  int64_t count = 0;
  for (int64_t at = 0; at < columns; ++count) {
    const int64_t tap = (column + at) / span * (lines ? w.w.taps : 1);
    const int64_t offset = (column + at) % span, length = std::min(span - offset, columns - at);
    runs[count] = {tap / w.w.taps, tap % w.w.taps, offset, at, length};
    at += length;
  }
  const int64_t pixel = w.pixel(), line = w.w.in * pixel;
  int64_t ow = row % w.w.out, oh = row / w.w.out % w.h.out, image = row / w.w.out / w.h.out;
  for (int64_t r = 0; r < rows; ++r, to += to_step) {
    for (int64_t i = 0; i < count; ++i) {
      const Run run = runs[i];
      float* const place = to + run.to;
      const int64_t h = w.h.source(oh, run.kh);
      int64_t first = 0, last = run.length;  // what lies within the image
      int64_t x = run.offset;                // from the line's first element
      if (lines) {
        x += (ow * w.w.step + w.w.start) * pixel;
        first = std::clamp<int64_t>(-x, 0, run.length);
        last = std::clamp<int64_t>(line - x, first, run.length);
      } else {
        const int64_t there = w.w.source(ow, run.kw);
        if (there < 0) last = 0;
        x += there * pixel;
      }
      if (h < 0) first = last = 0;
      for (int64_t k = 0; k < first; ++k) place[k] = 0.0f;
      if (first < last)
        decode(place + first, from.element((image * w.h.in + h) * line + x + first), from.dtype,
               last - first);
      for (int64_t k = last; k < run.length; ++k) place[k] = 0.0f;
    }
    if (++ow < w.w.out) continue;
    ow = 0;
    if (++oh < w.h.out) continue;
    oh = 0;
    ++image;
  }
}

}  // namespace

void pack(float* to, int64_t to_step, const Matrix& from, int64_t row, int64_t rows, int64_t column,
          int64_t columns) {
  if (from.windows != nullptr) {
    with_isa([=]() ULP_INLINE { pack_windows(to, to_step, from, row, rows, column, columns); });
    return;
  }
  // Rows at one distance at a time.
  for (int64_t end = row + rows; row < end;) {
    const int64_t n =
        from.is_strided() ? end - row : std::min(end - row, from.inner - row % from.inner);
    with_isa([=]() ULP_INLINE { pack_lines(to, to_step, from, row, n, column, columns); });
    to += n * to_step;
    row += n;
  }
}

// ---- the last step: factors, bias, output rounding -------------------------------------------------------------------

Finish::Finish(std::initializer_list<Tensor> factors, double last, const Tensor& bias_of,
               const Quantizer& output, const RandomKey& key)
    : scales(last != 1) {
  for (const Tensor& one : factors) {
    if (!one.defined()) continue;
    scales = true;
    factor *= *one.data<float>();
  }
  factor *= static_cast<float>(last);
  if (bias_of.defined()) bias = bias_of.to_floats();
  rounds = !output.is_identity();
  if (rounds) grid = SpanGrid(make_grid(output), output);
  if (output.is_stochastic()) random = RandomSource(key);
}

void Finish::operator()(float* x, int64_t first, int64_t column, int64_t n) const {
  if (!scales && !rounds && !bias.empty()) {
    const float* add = bias.data() + column;
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < n; ++i) x[i] = canonical(x[i] + add[i]);
    });
    return;
  }
  scale(x, n);
  add_bias(x, column, n);
  round(x, first, n);
}

void Finish::rows(float* x, int64_t first, int64_t rows, int64_t columns) const {
  scale(x, rows * columns);
  for (int64_t i = 0; i < rows && !bias.empty(); ++i) {
    const float* add = bias.data();
    float* const row = x + i * columns;
    for (int64_t j = 0; j < columns; ++j) row[j] = row[j] + add[j];
  }
  round(x, first, rows * columns);
}

void Finish::scale(float* x, int64_t n) const {
  if (!scales) return;
  const float f = factor;
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) x[i] = __builtin_fmaf(x[i], f, 0.0f);
  });
}

void Finish::add_bias(float* x, int64_t column, int64_t n) const {
  if (bias.empty()) return;
  const float* add = bias.data() + column;
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] + add[i];
  });
}

void Finish::round(float* x, int64_t first, int64_t n) const {
  if (rounds) {
    for (int64_t done = 0; done < n; done += kBlock)
      quantise_span(x + done, x + done, std::min(kBlock, n - done), grid, random, first + done);
    return;
  }
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) x[i] = canonical(x[i]);
  });
}

namespace {

// ---- the product -----------------------------------------------------------------------------------------------------

/// Memory that a calling thread keeps between calls, so that small products do not allocate.
float* workspace(int64_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float[], Free> memory;
  thread_local int64_t size = 0;
  if (size < floats) {
    memory.reset();
    size = 0;
    memory.reset(static_cast<float*>(
        ::operator new[](static_cast<size_t>(floats) * sizeof(float), std::align_val_t{64})));
    size = floats;
  }
  return memory.get();
}

/// Calls body(i) for i < n, each on whichever thread is free.
template <class Body>
void for_each_item(int64_t n, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(n, threads), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < n; i = next++) body(i);
  });
}

int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

/// One block of out, m rows and n columns from (row, column), all of k.
class BlockProduct {
 public:
  BlockProduct(const Product& whole, const Finish& finish, int64_t row, int64_t m, int64_t column,
               int64_t n)
      : a_(whole.a),
        b_(whole.b),
        out_(whole.out + row * whole.out_step + column),
        finish_(finish),
        tiles_(current_tiles()),
        row_(row),
        column_(column),
        first_row_(whole.row + row),
        first_column_(whole.column + column),
        m_(m),
        n_(n),
        k_(whole.k),
        out_step_(whole.out_step) {
    tiles_m_ = pieces(m_, tiles_.rows);
    panels_ = pieces(n_, tiles_.columns());
    // Loads that straddle cache lines pay only where packing is hardly used again.
    const auto aligned = [&] {
      return reinterpret_cast<uintptr_t>(b_.at(0, column)) % 64 == 0 && b_.row_step % 16 == 0;
    };
    direct_b_ = b_.is_strided() && b_.dtype == DType::F32 && b_.column_step == 1 &&
                m_ <= (aligned() ? kDirectRows : kDirectRows / 4);
    // Short rows that lie as close as packed ones.
    direct_a_ = tiles_.direct != nullptr && a_.is_strided() && a_.dtype == DType::F32 &&
                a_.column_step == 1 && a_.row_step <= kStep && k_ <= kStep;
    const int64_t work = m_ * n_ * std::min(k_, int64_t{1} << 32);
    threads_ = std::clamp<int64_t>(work / kWorkPerThread, 1, omp_get_max_threads());

    // Few tiles and many chunks: several chunks at a time, each with sums of its own.
    const int64_t wanted = threads_ == 1 ? 1 : 4 * threads_, chunks = pieces(k_, kMatmulChunk);
    group_ = std::clamp<int64_t>(wanted / (tiles_m_ * panels_), 1, chunks);
    items_m_ = pieces(m_, kItemRows);
    items_n_ = pieces(n_, kItemColumns);
    while (group_ * items_m_ * items_n_ < wanted && (items_m_ < tiles_m_ || items_n_ < panels_)) {
      if (pieces(tiles_m_, items_m_) >= pieces(panels_, items_n_))
        items_m_ = std::min(tiles_m_, 2 * items_m_);
      else
        items_n_ = std::min(panels_, 2 * items_n_);
    }

    const int64_t a_lines = direct_a_ ? 0 : m_, b_lines = panels_ * tiles_.columns();
    const int64_t longest = pieces(std::min(k_, kMatmulChunk), kStep) * kStep;
    depth_ = kPackedFloats / (group_ * (a_lines + b_lines)) / kStep * kStep;
    depth_ = std::clamp(depth_, kStep, longest);
    const int64_t partial = chunks > 1 ? group_ * m_ * n_ : 0;
    const int64_t a_floats = group_ * depth_ / kStep * kRow * a_lines;
    packed_a_ = workspace(a_floats + group_ * depth_ * b_lines + partial);
    packed_b_ = packed_a_ + a_floats;
    partial_ = packed_b_ + group_ * depth_ * b_lines;
  }

  void run() {
    const int64_t chunks = pieces(k_, kMatmulChunk);
    const int64_t rows = direct_a_ ? 0 : pieces(m_, kPackRows);
    const int64_t panels =
        direct_b_ && n_ % tiles_.columns() == 0 ? 0 : pieces(panels_, kPackPanels);
    for (first_chunk_ = 0; first_chunk_ < chunks; first_chunk_ += group_) {
      now_ = std::min(group_, chunks - first_chunk_);
      const int64_t length = std::min(kMatmulChunk, k_ - first_chunk_ * kMatmulChunk);
      for (from_ = 0; from_ < length; from_ += depth_) {
        for_each_item(now_ * (rows + panels), threads_, [&](int64_t i) {
          const int64_t g = i / (rows + panels), part = i % (rows + panels);
          part < panels ? pack_panels(g, part) : pack_rows(g, part - panels);
        });
        const bool ends = now_ == 1 && from_ + depth_ >= length;
        for_each_item(now_ * items_m_ * items_n_, threads_, [&](int64_t i) {
          multiply(i / (items_m_ * items_n_), i % (items_m_ * items_n_));
          if (ends) add_chunks(i);
        });
      }
      if (now_ > 1) for_each_item(items_m_ * items_n_, threads_, [&](int64_t i) { add_chunks(i); });
    }
  }

 private:
  static constexpr int64_t kPackRows = 64, kPackPanels = 8;  // packed by one thread at a time

  struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
  };
  /// Piece i of `count` of [0, n): sizes differ by at most one.
  static Range cut(int64_t n, int64_t count, int64_t i) {
    return {n * i / count, n * (i + 1) / count};
  }

  /// The part of chunk first_chunk_ + g that is packed now.
  Range packed_k(int64_t g) const {
    const int64_t begin = (first_chunk_ + g) * kMatmulChunk;
    const int64_t chunk_end = std::min(k_, begin + kMatmulChunk);
    return {std::min(begin + from_, chunk_end), std::min(begin + from_ + depth_, chunk_end)};
  }
  /// Rows of kStep values: step s of row i at ((g·depth/kStep + s)·m + i)·kRow.
  float* a_rows(int64_t g, int64_t k, int64_t row) const {
    return packed_a_ + ((g * depth_ + k) / kStep * m_ + row) * kRow;
  }
  float* b_panel(int64_t g, int64_t panel) const {
    return packed_b_ + (g * panels_ + panel) * depth_ * tiles_.columns();
  }
  int64_t panel_columns(int64_t panel) const {
    return std::min(tiles_.columns(), n_ - panel * tiles_.columns());
  }
  bool is_direct(int64_t panel) const {
    return direct_b_ && panel_columns(panel) == tiles_.columns();
  }
  /// Where chunk first_chunk_ + g is summed.
  float* sums(int64_t g) const { return first_chunk_ + g == 0 ? out_ : partial_ + g * m_ * n_; }
  int64_t sums_step(int64_t g) const { return first_chunk_ + g == 0 ? out_step_ : n_; }

  void pack_rows(int64_t g, int64_t group) const {
    const Range k = packed_k(g);
    const int64_t row = group * kPackRows, rows = std::min(kPackRows, m_ - row);
    for (int64_t s = 0; s < k.size(); s += kStep)
      pack(a_rows(g, s, row), kRow, a_, row_ + row, rows, k.begin + s,
           std::min(kStep, k.size() - s));
  }

  /// Few lines of b at a time, so that they are read once for all panels of the group.
  void pack_panels(int64_t g, int64_t group) const {
    const Range k = packed_k(g);
    const int64_t step = tiles_.columns(),
                  high = b_.windows == nullptr && b_.column_step == 1 ? 16 : 64;
    const int64_t first = group * kPackPanels, last = std::min(panels_, first + kPackPanels);
    int64_t whole = first;  // up to it panels are copied line by line
    if (!direct_b_ && b_.is_strided() && b_.dtype == DType::F32 && b_.column_step == 1) {
      while (whole < last && panel_columns(whole) == step) ++whole;
      const auto* const from = static_cast<const float*>(b_.at(k.begin, column_ + first * step));
      float* const to = b_panel(g, first);
      const int64_t from_step = b_.row_step, to_step = depth_ * step, lines = k.size(),
                    panels = whole - first;
      with_isa([=]() ULP_INLINE {
        for (int64_t s = 0; s < lines; ++s)
          for (int64_t p = 0; p < panels; ++p) {
            const float* const x = from + s * from_step + p * step;
            float* const y = to + p * to_step + s * step;
            __builtin_prefetch(x + kAhead * from_step);
            for (int64_t j = 0; j < step; j += 16) std::memcpy(y + j, x + j, 16 * sizeof(float));
          }
      });
    }
    for (int64_t s = 0; s < k.size(); s += high)
      for (int64_t panel = whole; panel < last; ++panel) {
        if (is_direct(panel)) continue;
        const int64_t columns = panel_columns(panel), lines = std::min(high, k.size() - s);
        float* to = b_panel(g, panel) + s * step;
        pack(to, step, b_, k.begin + s, lines, column_ + panel * step, columns);
        for (int64_t i = 0; i < lines && columns < step; ++i)
          std::fill(to + i * step + columns, to + (i + 1) * step, 0.0f);
      }
  }

  void multiply(int64_t g, int64_t item) const {
    const Range k = packed_k(g), tiles = cut(tiles_m_, items_m_, item % items_m_);
    const Range panels = cut(panels_, items_n_, item / items_m_);
    const int64_t least = m_ / tiles_m_, more = m_ % tiles_m_;
    const int64_t first_row = m_ * tiles.begin / tiles_m_, first_rest = m_ * tiles.begin % tiles_m_;
    for (int64_t s = 0; s < k.size(); s += kStep)
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const int64_t left = panel * tiles_.columns();
        Tile tile{};
        tile.k = std::min(kStep, k.size() - s);
        tile.a_step = a_.row_step;
        tile.carry = from_ + s > 0;
        tile.b_step = is_direct(panel) ? b_.row_step : tiles_.columns();
        tile.b = is_direct(panel) ? static_cast<const float*>(b_.at(k.begin + s, column_ + left))
                                  : b_panel(g, panel) + s * tiles_.columns();
        Range rows{first_row, 0};
        int64_t rest = first_rest;
        for (int64_t i = tiles.begin; i < tiles.end; ++i, rows.begin = rows.end) {
          rows.end = rows.begin + least;  // cut(m_, tiles_m_, i) without its divisions
          rest += more;
          if (rest >= tiles_m_) ++rows.end, rest -= tiles_m_;
          tile.a = direct_a_ ? static_cast<const float*>(a_.at(row_ + rows.begin, k.begin + s))
                             : a_rows(g, s, rows.begin);
          tile.c = sums(g) + rows.begin * sums_step(g) + left;
          tile.c_step = sums_step(g);
          tile.next_c = tile.c + rows.size() * tile.c_step;
          run_tile(tile, rows.size(), panel_columns(panel));
        }
      }
  }

  /// A tile that reaches beyond the right edge of out is summed beside it.
  void run_tile(Tile tile, int64_t rows, int64_t columns) const {
    const int64_t vectors = pieces(columns, tiles_.width), wide = vectors * tiles_.width;
    if (columns == wide) return tiles_(rows, vectors, direct_a_)(tile);
    alignas(64) float beside[14 * 32];
    float* c = std::exchange(tile.c, beside);
    const int64_t c_step = std::exchange(tile.c_step, wide);
    for (int64_t i = 0; tile.carry && i < rows; ++i)
      std::fill(std::copy_n(c + i * c_step, columns, beside + i * wide), beside + (i + 1) * wide,
                0.0f);
    tiles_(rows, vectors, direct_a_)(tile);
    for (int64_t i = 0; i < rows; ++i) std::copy_n(beside + i * wide, columns, c + i * c_step);
  }

  /// Adds the sums of this group's chunks to out in ascending order, and finishes what is complete.
  void add_chunks(int64_t item) const {
    const Range tiles = cut(tiles_m_, items_m_, item % items_m_);
    const Range panels = cut(panels_, items_n_, item / items_m_);
    const int64_t begin = panels.begin * tiles_.columns();
    const int64_t n = std::min(n_, panels.end * tiles_.columns()) - begin;
    const bool last = (first_chunk_ + now_) * kMatmulChunk >= k_;
    const int64_t end_row = m_ * tiles.end / tiles_m_;
    for (int64_t i = m_ * tiles.begin / tiles_m_; i < end_row; ++i) {
      float* x = out_ + i * out_step_ + begin;
      for (int64_t g = first_chunk_ == 0 ? 1 : 0; g < now_; ++g) {
        const float* add = sums(g) + i * n_ + begin;
        for (int64_t j = 0; j < n; ++j) x[j] = x[j] + add[j];
      }
      const int64_t column = first_column_ + begin;
      if (last) finish_(x, (first_row_ + i) * out_step_ + column, column, n);
    }
  }

  Matrix a_, b_;
  float* out_;  // the block's first element
  const Finish& finish_;
  TileSet tiles_;
  int64_t row_, column_, first_row_, first_column_;  // in the operands, and in the whole
  int64_t m_, n_, k_, out_step_;
  int64_t tiles_m_, panels_, threads_;
  int64_t items_m_, items_n_;  // pieces of work along each side
  int64_t group_;              // chunks at a time
  int64_t depth_;              // k steps of each chunk packed at a time
  bool direct_a_, direct_b_;
  float *packed_a_, *packed_b_, *partial_;
  int64_t first_chunk_ = 0, now_ = 0,
          from_ = 0;  // chunks in work, and the first k step within each
};

}  // namespace

void multiply(const Product& p, const Finish& finish) {
  if (p.k == 0) {
    for (int64_t i = 0; i < p.m; ++i) {
      float* x = p.out + i * p.out_step;
      std::fill_n(x, p.n, 0.0f);
      finish(x, (p.row + i) * p.out_step + p.column, p.column, p.n);
    }
    return;
  }
  if (p.sums.how.is_simulated()) return accumulate(p, finish);
  for (int64_t i = 0; i < p.m; i += kSide)
    for (int64_t j = 0; j < p.n; j += kSide)
      BlockProduct(p, finish, i, std::min(kSide, p.m - i), j, std::min(kSide, p.n - j)).run();
}

void narrow(const Tensor& values, Tensor out) {
  const float* from = values.data<float>();
  void* const to = out.mutable_raw();
  const DType dtype = out.dtype();
  parallel_for_units(out.numel(), kBlock, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += kBlock)
      write_block(to, dtype, i, std::min(kBlock, last - i), from + i);
  });
}

namespace {

void multiply_floats(const MatmulArgs& args) {
  Tensor result = args.out;
  if (result.dtype() != DType::F32) {
    MatmulArgs wide = args;
    wide.out = Tensor::empty(result.shape(), DType::F32, kCpu);
    multiply_floats(wide);
    return narrow(wide.out, result);
  }
  Product product{};
  product.a = Matrix(args.a);
  product.b = Matrix(args.b);
  product.m = args.a.size(0);
  product.k = args.a.size(1);
  product.n = product.out_step = args.b.size(1);
  product.out = result.mutable_data<float>();
  product.sums = args.sums;
  multiply(product,
           Finish({args.a_factor, args.b_factor}, args.factor, args.bias, args.output, args.key));
}

/// The same order in fp64 without fma, for gradient checks.
void multiply_doubles(const MatmulArgs& args) {
  const int64_t m = args.a.size(0), k = args.a.size(1), n = args.b.size(1);
  const Tensor a = args.a.to_cpu_contiguous(), b = args.b.to_cpu_contiguous();
  const double *left = a.data<double>(), *right = b.data<double>();
  const std::vector<double> bias =
      args.bias.defined() ? args.bias.to_doubles() : std::vector<double>();
  Tensor result = args.out;
  double* out = result.mutable_data<double>();
  parallel_for(
      m, std::max<int64_t>(1, kWorkPerThread / (n * k + 1)), [&](int64_t begin, int64_t end) {
        std::vector<double> sum(static_cast<size_t>(n));
        for (int64_t i = begin; i < end; ++i) {
          double* row = out + i * n;
          std::fill_n(row, n, 0.0);
          for (int64_t chunk = 0; chunk < k; chunk += kMatmulChunk) {
            std::fill(sum.begin(), sum.end(), 0.0);
            for (int64_t p = chunk; p < std::min(k, chunk + kMatmulChunk); ++p)
              for (int64_t j = 0; j < n; ++j)
                sum[static_cast<size_t>(j)] += left[i * k + p] * right[p * n + j];
            for (int64_t j = 0; j < n; ++j)
              row[j] =
                  chunk == 0 ? sum[static_cast<size_t>(j)] : row[j] + sum[static_cast<size_t>(j)];
          }
          for (int64_t j = 0; j < n; ++j) row[j] *= args.factor;
          for (size_t j = 0; j < bias.size(); ++j) row[j] += bias[j];
        }
      });
}

void check(Stream stream, const MatmulArgs& args) {
  ULP_CHECK(args.a.defined() && args.a.rank() == 2, "matmul: a must be (M, K), got {}", args.a);
  ULP_CHECK(args.b.defined() && args.b.rank() == 2, "matmul: b must be (K, N), got {}", args.b);
  ULP_CHECK(args.a.size(1) == args.b.size(0),
            "matmul: a (M, K) and b (K, N) must share K, got {} and {}", args.a, args.b);
  const int64_t m = args.a.size(0), n = args.b.size(1);
  const bool doubles = args.a.dtype() == DType::F64;
  for (const Tensor* t : {&args.a, &args.b, &args.bias}) {
    if (!t->defined()) continue;
    ULP_CHECK(t->device() == stream.device, "matmul: operands must be on {}, got {}", stream.device,
              *t);
    ULP_CHECK(doubles ? t->dtype() == DType::F64 : is_float_up_to_32(t->dtype()),
              "matmul: operands must be F32, BF16, F16, F8_E4M3 or F8_E5M2, or all F64; got a {}, "
              "b {}{}{}",
              args.a.dtype(), args.b.dtype(), args.bias.defined() ? ", bias " : "",
              args.bias.defined() ? to_string(args.bias.dtype()) : "");
  }
  check_kernel_tensor("matmul", stream, args.out, Shape{m, n});
  ULP_CHECK(doubles ? args.out.dtype() == DType::F64
                    : is_float_up_to_32(args.out.dtype()) && fits(args.output, args.out.dtype()),
            "matmul: out must be {} and hold {} values, got {}", doubles ? "F64" : "a float",
            args.output, args.out);
  if (args.bias.defined())
    ULP_CHECK(args.bias.shape() == Shape{n}, "matmul: bias must be ({}), got {}", n, args.bias);
  check_matmul_factors(stream, args);
  ULP_CHECK(args.math == Math::Strict, "matmul: {} math needs CUDA; on the CPU ask for strict math",
            to_string(args.math));
  check_sums("matmul", args.sums, args.a.dtype());
  ULP_CHECK(args.output.is_elementwise() && args.output.format.kind != FormatKind::BlockFloat,
            "matmul: its output can be rounded element by element only, not to {}; quantise the "
            "result instead",
            args.output);
  ULP_CHECK(!doubles || args.output.is_identity(),
            "matmul: F64 results are not rounded, got output {}", args.output);
}

}  // namespace

void matmul(Stream stream, const MatmulArgs& args) {
  check(stream, args);
  if (args.out.numel() == 0) return;
  if (args.a.dtype() == DType::F64)
    multiply_doubles(args);
  else
    multiply_floats(args);
}

}  // namespace ulp::cpu
