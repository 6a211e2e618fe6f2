// Products with simulated accumulators (core/accumulate.h): one term of many outputs at a time. The sums of a strip of out,
// several rows of it where they are short, lie side by side, so that what rounds spans of tensors rounds them too.

#include "core/accumulate.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/product.h"

namespace ulp::cpu {
namespace {

constexpr int64_t kDepth = 128;     // terms whose operands are packed at a time
constexpr int64_t kItemRows = 8;    // rows of out that share a packed strip of b, at least
constexpr int64_t kWork = 1 << 14;  // terms that pay for waking a thread

/// The roundings of a product's sums.
struct Roundings {
  struct One {
    bool fp32 = true;
    SpanGrid grid{};
    RandomSource random{};
  };
  std::array<One, 4> draws{};

  explicit Roundings(const Sums& sums) {
    for (uint32_t r = 0; r < sums.how.draws(); ++r) {
      const Quantizer& format = *sums.how.roundings()[r];
      draws[r].fp32 = format.is_identity();
      if (draws[r].fp32) continue;
      draws[r].grid = SpanGrid(make_grid(format), format);
      RandomKey key = sums.key;
      key.ordinal += r;
      if (format.is_stochastic()) draws[r].random = RandomSource(key);
    }
  }
};

/// One term of `rows` rows of `strip` outputs: the operations of add_term on arrays of rows · strip ≤ kBlock.
struct Term {
  const Roundings& how;
  const float* a;  // one number a row, kDepth apart
  const float* b;  // strip
  int64_t rows, strip;
  int64_t index;  // of the first output's words

  void fuse(uint32_t r, float* v, const float* c, bool negative) const {
    const float *x = a, *y = b;
    const int64_t m = rows, n = strip;
    const float sign = negative ? -1.0f : 1.0f;
    if (how.draws[r].fp32) {
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j)
            v[i * n + j] = fma_of(x[i * kDepth], y[j], sign * c[i * n + j]);
      });
      return;
    }
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j)
          v[i * n + j] = fma_to_odd(x[i * kDepth], y[j], sign * c[i * n + j]);
    });
  }
  void product(uint32_t r, float* v) const {
    const float *x = a, *y = b;
    const int64_t m = rows, n = strip;
    if (how.draws[r].fp32) {
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j) v[i * n + j] = x[i * kDepth] * y[j];
      });
      return;
    }
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) v[i * n + j] = fma_to_odd(x[i * kDepth], y[j], -0.0f);
    });
  }
  void add(uint32_t r, float* v, const float* p, const float* q, bool negative) const {
    const int64_t n = rows * strip;
    const float sign = negative ? -1.0f : 1.0f;
    if (how.draws[r].fp32) {
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) v[i] = p[i] + sign * q[i];
      });
      return;
    }
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < n; ++i) v[i] = add_to_odd(p[i], sign * q[i]);
    });
  }
  void round(uint32_t r, float* v) const {
    const Roundings::One& one = how.draws[r];
    if (!one.fp32) quantise_span(v, v, rows * strip, one.grid, one.random, index);
  }
  static void move(float*& to, float*& from) { std::swap(to, from); }
  void clear(float* values) const { std::fill_n(values, rows * strip, 0.0f); }
};

/// The sums of one span of outputs. Stays where it is.
struct Span {
  Span() = default;
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

  std::array<BlockBuffer, 5> room{};
  SumState<float*> state{room[0].data(), room[1].data(), room[2].data(), room[3].data(),
                         room[4].data()};
};

}  // namespace

void accumulate(const Product& p, const Finish& finish) {
  const Accumulator& how = p.sums.how;
  const Roundings roundings(p.sums);
  const int64_t pitch = (p.n + 3) / 4 * 4;
  const int64_t strip = std::min(pitch, kPackedColumns);
  const int64_t span_rows = strip == pitch ? std::min(p.m, kBlock / strip) : 1;
  const int64_t spans = std::max<int64_t>(1, kItemRows / span_rows);
  const int64_t item_rows = spans * span_rows;
  const int64_t row_items = (p.m + item_rows - 1) / item_rows, strips = (pitch + strip - 1) / strip;
  const int64_t grain = std::max<int64_t>(1, kWork / std::max<int64_t>(1, item_rows * strip * p.k));
  parallel_for(row_items * strips, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> a(static_cast<size_t>(item_rows * kDepth)),
        b(static_cast<size_t>(kDepth * strip));
    std::vector<Span> sums(static_cast<size_t>(spans));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / strips * item_rows, column = item % strips * strip;
      const int64_t rows = std::min(item_rows, p.m - row), columns = std::min(strip, p.n - column);
      const int64_t width = std::min(strip, pitch - column);
      for (Span& span : sums) {
        std::fill_n(span.state.s, kBlock, 0.0f);
        std::fill_n(span.state.t, kBlock, 0.0f);
      }
      std::fill(b.begin(), b.end(), 0.0f);
      for (int64_t k = 0; k < p.k; k += kDepth) {
        const int64_t depth = std::min(kDepth, p.k - k);
        pack(a.data(), kDepth, p.a, row, rows, k, depth);
        pack(b.data(), width, p.b, k, depth, column, columns);
        for (int64_t first = 0; first < rows; first += span_rows) {
          SumState<float*>& state = sums[static_cast<size_t>(first / span_rows)].state;
          for (int64_t d = 0; d < depth; ++d) {
            const int64_t matrix = (p.sums.first_k + k + d) * p.sums.matrices + p.sums.matrix;
            Term term{roundings,
                      a.data() + first * kDepth + d,
                      b.data() + d * width,
                      std::min(span_rows, rows - first),
                      width,
                      (matrix * p.m + row + first) * pitch + column};
            const bool ends = k + d + 1 == p.k || (how.kind == Accumulator::Kind::Chunked &&
                                                   (k + d + 1) % how.chunk == 0);
            add_term(how.kind, how.draws(), term, ends, state);
          }
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        const float* from =
            sums[static_cast<size_t>(i / span_rows)].state.s + i % span_rows * width;
        float* const to = p.out + (row + i) * p.out_step + column;
        std::copy_n(from, columns, to);
        finish(to, (p.row + row + i) * p.out_step + p.column + column, p.column + column, columns);
      }
    }
  });
}

}  // namespace ulp::cpu
