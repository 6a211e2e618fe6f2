#include <mutex>
#include <vector>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

/// One call's tensors, raw.
struct Work {
  const void* in;
  DType in_type;
  void* out;
  DType out_type;
  uint8_t* mask;
  int64_t n;
  Grid grid;
  RandomSource random;
  BlockRule rule;
};

/// A contiguous run whose elements share one grid.
void run_uniform(const Work& w, const Grid& grid, int64_t first, int64_t last) {
  BlockBuffer in_buffer, result;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t count = std::min(kBlock, last - begin);
    const float* in = read_block(w.in, w.in_type, begin, count, in_buffer.data());
    quantise_span(in, result.data(), count, grid, w.random, begin,
                  w.mask == nullptr ? nullptr : w.mask + begin);
    write_block(w.out, w.out_type, begin, count, result.data());
  }
}

/// A contiguous run that lies in one block with the given amax.
void run_block(const Work& w, uint32_t amax, int64_t first, int64_t last) {
  Grid grid = w.grid;
  if (amax < kInfinityBits) {
    set_block(grid, w.rule, amax);
  } else {  // everything becomes NaN: no number is within the bounds, and beyond them lies NaN
    BlockBuffer nan;
    nan.fill(float_of(kNanBits));
    for (int64_t begin = first; begin < last; begin += kBlock)
      write_block(w.out, w.out_type, begin, std::min(kBlock, last - begin), nan.data());
    if (w.mask != nullptr) std::fill(w.mask + first, w.mask + last, uint8_t{0});
    return;
  }
  run_uniform(w, grid, first, last);
}

/// A contiguous run whose element i lies in the block with amax[i].
void run_blocks(const Work& w, const uint32_t* amax, int64_t first, int64_t last) {
  BlockBuffer in_buffer, result;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t count = std::min(kBlock, last - begin);
    const float* in = read_block(w.in, w.in_type, begin, count, in_buffer.data());
    const uint32_t* own = amax + (begin - first);
    if (w.mask == nullptr) {
      quantise_span_blocks(in, result.data(), count, w.grid, w.rule, w.random, begin, own);
      write_block(w.out, w.out_type, begin, count, result.data());
    } else {
      for (int64_t i = 0; i < count; ++i) run_block(w, own[i], begin + i, begin + i + 1);
    }
  }
}

/// max(amax, the largest magnitude in a contiguous run).
uint32_t amax_run(const Work& w, uint32_t amax, int64_t first, int64_t last) {
  BlockBuffer buffer;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t count = std::min(kBlock, last - begin);
    amax = amax_span(read_block(w.in, w.in_type, begin, count, buffer.data()), count, amax);
  }
  return amax;
}

/// amax[i] = max(amax[i], |in[first + i]|).
void amax_columns(const Work& w, uint32_t* amax, int64_t first, int64_t last) {
  BlockBuffer buffer;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t count = std::min(kBlock, last - begin);
    const float* in = read_block(w.in, w.in_type, begin, count, buffer.data());
    uint32_t* own = amax + (begin - first);
    for (int64_t i = 0; i < count; ++i) own[i] = std::max(own[i], bits_of(in[i]) & ~kSignBit);
  }
}

void quantise_tensor_block(const Work& w) {
  uint32_t amax = 0;
  std::mutex mutex;
  parallel_for_units(w.n, kBlock, kGrain, [&](int64_t first, int64_t last) {
    const uint32_t own = amax_run(w, 0, first, last);
    const std::lock_guard lock(mutex);
    amax = std::max(amax, own);
  });
  parallel_for_units(w.n, kBlock, kGrain,
                     [&](int64_t first, int64_t last) { run_block(w, amax, first, last); });
}

/// A tensor seen as (outer, axis, inner).
struct View {
  int64_t outer, axis, inner;
};

View view_along(const Tensor& t, int axis) {
  View v{1, t.size(axis), 1};
  for (int i = 0; i < axis; ++i) v.outer *= t.size(i);
  for (int i = axis + 1; i < t.rank(); ++i) v.inner *= t.size(i);
  return v;
}

int64_t rows_grain(int64_t row) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row)); }

void quantise_axis_blocks(const Work& w, View v) {
  if (v.inner > 1 || v.axis == 1) {
    parallel_for(v.axis, rows_grain(v.outer * v.inner), [&](int64_t a0, int64_t a1) {
      for (int64_t a = a0; a < a1; ++a) {
        uint32_t amax = 0;
        const auto row = [&](int64_t o) { return (o * v.axis + a) * v.inner; };
        for (int64_t o = 0; o < v.outer; ++o) amax = amax_run(w, amax, row(o), row(o) + v.inner);
        for (int64_t o = 0; o < v.outer; ++o) run_block(w, amax, row(o), row(o) + v.inner);
      }
    });
    return;
  }
  std::vector<uint32_t> amax(static_cast<size_t>(v.axis), 0);
  std::mutex mutex;
  parallel_for(v.outer, rows_grain(v.axis), [&](int64_t o0, int64_t o1) {
    std::vector<uint32_t> own(amax.size(), 0);
    for (int64_t o = o0; o < o1; ++o) amax_columns(w, own.data(), o * v.axis, (o + 1) * v.axis);
    const std::lock_guard lock(mutex);
    for (size_t i = 0; i < own.size(); ++i) amax[i] = std::max(amax[i], own[i]);
  });
  parallel_for(v.outer, rows_grain(v.axis), [&](int64_t o0, int64_t o1) {
    for (int64_t o = o0; o < o1; ++o) run_blocks(w, amax.data(), o * v.axis, (o + 1) * v.axis);
  });
}

void quantise_groups(const Work& w, View v, int64_t size) {
  const int64_t groups = (v.axis + size - 1) / size;
  parallel_for(v.outer * groups, rows_grain(size * v.inner), [&](int64_t first, int64_t last) {
    std::vector<uint32_t> amax(static_cast<size_t>(v.inner));
    for (int64_t block = first; block < last; ++block) {
      const int64_t o = block / groups, a0 = block % groups * size;
      const int64_t a1 = std::min(v.axis, a0 + size);
      const auto row = [&](int64_t a) { return (o * v.axis + a) * v.inner; };
      if (v.inner == 1) {
        run_block(w, amax_run(w, 0, row(a0), row(a1)), row(a0), row(a1));
        continue;
      }
      std::fill(amax.begin(), amax.end(), 0u);
      for (int64_t a = a0; a < a1; ++a) amax_columns(w, amax.data(), row(a), row(a) + v.inner);
      for (int64_t a = a0; a < a1; ++a) run_blocks(w, amax.data(), row(a), row(a) + v.inner);
    }
  });
}

/// Tiles of rows × columns over (axis, inner).
void quantise_tiles(const Work& w, View v, int64_t rows, int64_t columns) {
  const int64_t bands = (v.axis + rows - 1) / rows, across = (v.inner + columns - 1) / columns;
  parallel_for(v.outer * bands, rows_grain(rows * v.inner), [&](int64_t first, int64_t last) {
    for (int64_t band = first; band < last; ++band) {
      const int64_t o = band / bands, a0 = band % bands * rows, a1 = std::min(v.axis, a0 + rows);
      for (int64_t tile = 0; tile < across; ++tile) {
        const int64_t c0 = tile * columns, c1 = std::min(v.inner, c0 + columns);
        const auto row = [&](int64_t a) { return (o * v.axis + a) * v.inner; };
        uint32_t amax = 0;
        for (int64_t a = a0; a < a1; ++a) amax = amax_run(w, amax, row(a) + c0, row(a) + c1);
        for (int64_t a = a0; a < a1; ++a) run_block(w, amax, row(a) + c0, row(a) + c1);
      }
    }
  });
}

void copy_through(const Work& w) {
  parallel_for_units(w.n, kBlock, kGrain, [&](int64_t first, int64_t last) {
    BlockBuffer buffer;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t count = std::min(kBlock, last - begin);
      write_block(w.out, w.out_type, begin, count,
                  read_block(w.in, w.in_type, begin, count, buffer.data()));
    }
    if (w.mask != nullptr) std::fill(w.mask + first, w.mask + last, uint8_t{0});
  });
}

void check_axis(const Quantizer& q, const Tensor& t, int axis) {
  ULP_CHECK(axis >= 0 && axis < t.rank(), "quantise: {} needs axis {}, but the tensor has shape {}",
            q, axis, t.shape());
}

}  // namespace

void quantise(Stream stream, const QuantiseArgs& args) {
  const Quantizer& q = args.quantizer;
  check_kernel_tensor("quantise", stream, args.in, args.in.shape());
  check_kernel_tensor("quantise", stream, args.out, args.in.shape());
  ULP_CHECK(is_float_up_to_32(args.in.dtype()),
            "quantise: the input must be a float of up to 32 "
            "bits, got {}",
            args.in.dtype());
  check_output_type("quantise", args.out, q);
  Tensor out = args.out, mask = args.mask;
  Work w{args.in.raw(),
         args.in.dtype(),
         out.mutable_raw(),
         out.dtype(),
         nullptr,
         args.in.numel(),
         {},
         RandomSource(args.key),
         {}};
  if (mask.defined()) {
    check_kernel_tensor("quantise", stream, mask, args.in.shape());
    w.mask = mask.mutable_data<uint8_t>();
  }
  if (w.n == 0) return;
  if (q.is_identity()) return copy_through(w);
  w.grid = make_grid(q);
  if (!q.is_elementwise()) w.rule = make_block_rule(q, out.dtype());
  switch (q.block.kind) {
    case Block::Kind::None:
      return parallel_for_units(w.n, kBlock, kGrain, [&](int64_t first, int64_t last) {
        run_uniform(w, w.grid, first, last);
      });
    case Block::Kind::Tensor: return quantise_tensor_block(w);
    case Block::Kind::Axis:
      check_axis(q, args.in, q.block.axis);
      return quantise_axis_blocks(w, view_along(args.in, q.block.axis));
    case Block::Kind::Group:
      check_axis(q, args.in, args.group_axis);
      return quantise_groups(w, view_along(args.in, args.group_axis), q.block.columns);
    case Block::Kind::Tile: {
      const int rank = args.in.rank();
      View v = rank < 2 ? View{1, 1, args.in.numel()} : view_along(args.in, rank - 2);
      return quantise_tiles(w, v, q.block.rows, q.block.columns);
    }
  }
}

}  // namespace ulp::cpu
