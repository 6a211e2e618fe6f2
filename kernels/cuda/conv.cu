// Convolutions as products. Strict: the windows are gathered on the way to shared memory (windows.cuh). Fast: a block of the
// windows' matrix at a time is gathered into a workspace and multiplied by cuBLASLt; blocks of dw follow one another on the
// same sums. Groups of few channels are summed directly, a thread a sum.

#include "core/sum.h"
#include "kernels/conv.h"
#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/simulated_product.cuh"
#include "kernels/cuda/windows.cuh"

namespace ulp::cuda {
namespace {

/// The most that gathered windows take at a time; no result of conv depends on it, dw's in fast math do.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr int64_t kBlockRows =
    128;  // blocks are multiples of this, so that all but the last are of one kind
constexpr int64_t kVectorBytes = 16;

// ---- gathering -------------------------------------------------------------------------------------------------------

/// 16 bytes from a line of taps of one window to the next: thread i copies vector i % vectors of the taps (·, kw) of one kh.
struct GatherVectors {
  WindowSource source;
  uint4* out;
  uint32_t first_row, count;  // count: rows · KH · vectors
  uint32_t vectors;           // of a pixel's channels
  int64_t row_vectors;        // of a row of out
  int pixel_bytes;
};

__global__ void __launch_bounds__(kThreads)
    gather_vectors_kernel(const __grid_constant__ GatherVectors g) {
  const WindowSource& s = g.source;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < g.count; i += gridDim.x * kThreads) {
    const uint32_t line = i / g.vectors, v = i - line * g.vectors;
    const uint32_t row = line / static_cast<uint32_t>(s.h.taps);
    const int kh = static_cast<int>(line - row * static_cast<uint32_t>(s.h.taps));
    const WindowRow at(s, static_cast<int>(g.first_row + row));
    const int h = s.h.place(at.h + kh * s.h.dilation);
    const char* from =
        static_cast<const char*>(s.data) + v * kVectorBytes +
        (static_cast<int64_t>(at.image) * s.h.in + (h < 0 ? 0 : h)) * s.w.in * g.pixel_bytes;
    uint4* to = g.out + row * g.row_vectors + static_cast<int64_t>(kh) * s.w.taps * g.vectors + v;
#pragma unroll 4
    for (int kw = 0; kw < s.w.taps; ++kw, to += g.vectors) {
      const int w = h < 0 ? -1 : s.w.place(at.w + kw * s.w.dilation);
      uint4 value = make_uint4(0, 0, 0, 0);
      if (w >= 0)
        value =
            __ldg(reinterpret_cast<const uint4*>(from + static_cast<int64_t>(w) * g.pixel_bytes));
      *to = value;
    }
  }
}

/// Any channels and types: a thread makes the 16 bytes of out at `vector` of a row, zeros beyond the last column.
struct GatherElements {
  WindowSource source;
  uint4* out;
  DType dtype;
  uint32_t first_row, count;  // count: rows · row_vectors
  uint32_t row_vectors;
};

__global__ void __launch_bounds__(kThreads)
    gather_elements_kernel(const __grid_constant__ GatherElements g) {
  const WindowSource& s = g.source;
  const int width = static_cast<int>(size_of(g.dtype));
  const int each = static_cast<int>(kVectorBytes) / width;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < g.count; i += gridDim.x * kThreads) {
    const uint32_t row = i / g.row_vectors;
    int column = static_cast<int>(i - row * g.row_vectors) * each;
    const WindowRow at(s, static_cast<int>(g.first_row + row));
    WindowColumn tap(s, column);
    uint32_t words[4] = {};
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      if (e >= each || column >= s.columns) continue;
      const int64_t j = s.at(at.image, at.h + tap.kh * s.h.dilation, at.w + tap.kw * s.w.dilation);
      uint32_t word = 0;
      if (j >= 0) {
        word = strict::word_at(s.data, s.dtype, j + tap.c);
        if (s.dtype != g.dtype) word = encode(decode(word, s.dtype), g.dtype);
      }
      const int byte = e * width;
#pragma unroll
      for (int q = 0; q < 4; ++q)
        if (byte / 4 == q) words[q] |= word << (8 * (byte % 4));
      ++column;
      tap.advance(s);
    }
    g.out[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

/// out (rows, pitch) = rows first … first + rows − 1 of the windows' matrix, in out's type.
void gather(const char* kernel, Stream stream, const WindowSource& source, int64_t first,
            const Tensor& out) {
  const int64_t rows = out.size(0), width = static_cast<int64_t>(size_of(out.dtype()));
  const int64_t row_vectors = out.size(1) * width / kVectorBytes;
  auto* const to = static_cast<uint4*>(written(out));
  const bool whole = source.dtype == out.dtype() && source.channels * width % kVectorBytes == 0 &&
                     source.pixel * width % kVectorBytes == 0 &&
                     reinterpret_cast<uintptr_t>(source.data) % kVectorBytes == 0;
  if (whole) {
    GatherVectors g{};
    g.source = source;
    g.out = to;
    g.first_row = static_cast<uint32_t>(first);
    g.vectors = static_cast<uint32_t>(source.channels * width / kVectorBytes);
    g.row_vectors = row_vectors;
    g.pixel_bytes = static_cast<int>(source.pixel * width);
    g.count = static_cast<uint32_t>(rows * source.h.taps) * g.vectors;
    launch(kernel, stream, blocks_for(g.count, kThreads), kThreads, gather_vectors_kernel, g);
    return;
  }
  GatherElements g{};
  g.source = source;
  g.out = to;
  g.dtype = out.dtype();
  g.first_row = static_cast<uint32_t>(first);
  g.row_vectors = static_cast<uint32_t>(row_vectors);
  g.count = static_cast<uint32_t>(rows * row_vectors);
  launch(kernel, stream, blocks_for(g.count, kThreads), kThreads, gather_elements_kernel, g);
}

/// How the rows of a windows' matrix are cut, and the workspace that holds one block.
struct Blocks {
  int64_t rows, columns;  // of a block; columns: rounded up to whole 16 bytes
  Tensor workspace;

  Blocks(const Windows& w, DType dtype) {
    const int64_t width = static_cast<int64_t>(size_of(dtype)), all = w.rows();
    const int64_t each = kVectorBytes / width;
    columns = (w.columns() + each - 1) / each * each;
    ULP_CHECK(columns * width * kBlockRows <= int64_t{1} << 32,
              "conv: windows of {} elements are too long for fast math; use strict math",
              w.columns());
    const int64_t most =
        std::max(kBlockRows, kWorkspaceBytes / (columns * width) / kBlockRows * kBlockRows);
    const int64_t count = (all + most - 1) / most;
    rows = ((all + count - 1) / count + kBlockRows - 1) / kBlockRows * kBlockRows;
    rows = std::min(rows, all);
  }
  void make(DType dtype, Device device) {
    workspace = Tensor::empty({rows, columns}, dtype, device);
  }
  Tensor block(int64_t first, int64_t all) const {
    return workspace.slice(0, 0, std::min(rows, all - first));
  }
};

// ---- weights ---------------------------------------------------------------------------------------------------------

/// A weight (G, T, C, O) of any strides as matrices, in `dtype`: by_outputs: (G, O, pitch), else (G, pitch, O), row t·C + c;
/// zeros beyond T·C.
struct Arrange {
  const void* in;
  DType in_type, dtype;
  void* out;
  bool by_outputs;
  int taps, channels, outputs, pitch;
  int64_t group_step, tap_step, channel_step, output_step;
  int64_t count;
};

__global__ void __launch_bounds__(kThreads) arrange_kernel(const __grid_constant__ Arrange w) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < w.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const auto inner = static_cast<uint32_t>(w.by_outputs ? w.pitch : w.outputs);
    const auto outer = static_cast<uint32_t>(w.by_outputs ? w.outputs : w.pitch);
    const int64_t line = i / inner;
    const auto x = static_cast<uint32_t>(i - line * inner);
    const auto group = static_cast<uint32_t>(line / outer);
    const auto y = static_cast<uint32_t>(line - static_cast<int64_t>(group) * outer);
    const uint32_t k = w.by_outputs ? x : y, o = w.by_outputs ? y : x;
    const uint32_t tap = k / static_cast<uint32_t>(w.channels);
    const uint32_t c = k - tap * static_cast<uint32_t>(w.channels);
    float value = 0;
    if (tap < static_cast<uint32_t>(w.taps))
      value = load_as_float(
          w.in, w.in_type,
          group * w.group_step + tap * w.tap_step + c * w.channel_step + o * w.output_step);
    store_float(w.out, w.dtype, i, value);
  }
}

/// A group's weight as a matrix (columns, O): a view where one is enough, else of the arranged copy.
struct WeightMatrices {
  Tensor whole;  // (G, O, columns), or (G, columns, O)
  bool by_outputs;

  Tensor of(int64_t group) const {
    const Tensor one = whole.slice(0, group, group + 1).reshape({whole.size(1), whole.size(2)});
    return by_outputs ? one.transpose(0, 1) : one;
  }
};

WeightMatrices weight_matrices(Stream stream, const Tensor& weight, int64_t columns, DType dtype) {
  const int64_t groups = weight.size(0), taps = weight.size(1), channels = weight.size(2),
                outputs = weight.size(3), depth = taps * channels;
  WeightMatrices made;
  made.by_outputs = weight.strides()[3] != 1;
  const Tensor lying = weight.transpose(2, 3).transpose(1, 2);  // (G, O, T, C)
  if (columns == depth && (made.by_outputs ? lying : weight).is_contiguous() &&
      weight.dtype() == dtype) {
    made.whole = made.by_outputs ? lying.reshape({groups, outputs, depth})
                                 : weight.reshape({groups, depth, outputs});
    return made;
  }
  made.whole = Tensor::empty(
      made.by_outputs ? Shape{groups, outputs, columns} : Shape{groups, columns, outputs}, dtype,
      stream.device);
  Arrange w{};
  w.in = weight.raw();
  w.in_type = weight.dtype();
  w.dtype = dtype;
  w.out = written(made.whole);
  w.by_outputs = made.by_outputs;
  w.taps = static_cast<int>(taps);
  w.channels = static_cast<int>(channels);
  w.outputs = static_cast<int>(outputs);
  w.pitch = static_cast<int>(columns);
  w.group_step = weight.strides()[0];
  w.tap_step = weight.strides()[1];
  w.channel_step = weight.strides()[2];
  w.output_step = weight.strides()[3];
  w.count = made.whole.numel();
  launch("conv", stream, blocks_for(w.count, kThreads), kThreads, arrange_kernel, w);
  return made;
}

// ---- products --------------------------------------------------------------------------------------------------------

void conv_strict(Stream stream, const ConvArgs& args, float* sums) {
  const Windows& w = args.windows;
  const int64_t outputs = args.weight.size(3);
  const WeightMatrices weights =
      weight_matrices(stream, args.weight, w.columns(), args.weight.dtype());
  for (int64_t g = 0; g < w.groups; ++g) {
    const WindowSource windows = window_source(args.image, w, g);
    const strict::Operand weight = strict::operand(weights.of(g), 1);
    float* const own = sums + g * w.rows() * outputs;
    if (args.sums.how.is_simulated())
      run_simulated<strict::WindowRowLoader, strict::ElementLoader>("conv", stream, windows, weight,
                                                                    w.rows(), w.columns(), outputs,
                                                                    own, args.sums.of(g, w.groups));
    else
      strict::run<strict::WindowRowLoader, strict::ElementLoader>(
          "conv", stream, windows, weight, w.rows(), w.columns(), outputs, own);
  }
}

/// False if cuBLASLt has no algorithm; sums may be changed then. whole: factors and bias too.
bool conv_fast(Stream stream, const ConvArgs& args, bool whole, const UnitChoice& choice,
               float* sums) {
  const Windows& w = args.windows;
  const int64_t outputs = args.weight.size(3), rows = w.rows();
  Blocks blocks(w, choice.a);
  blocks.make(choice.a, stream.device);
  const WeightMatrices weights = weight_matrices(stream, args.weight, blocks.columns, choice.b);
  for (int64_t g = 0; g < w.groups; ++g) {
    const WindowSource source = window_source(args.image, w, g);
    for (int64_t first = 0; first < rows; first += blocks.rows) {
      MatmulArgs product;
      product.a = blocks.block(first, rows);
      gather("conv", stream, source, first, product.a);
      product.b = weights.of(g);
      if (whole) {
        product.bias = args.bias;
        product.a_factor = args.image_factor;
        product.b_factor = args.weight_factor;
        product.factor = args.factor;
      }
      if (!matmul_fast(stream, product, choice, whole, {sums + (g * rows + first) * outputs}))
        return false;
    }
  }
  return true;
}

void weight_strict(Stream stream, const ConvWeightArgs& args, float* sums) {
  const Windows& w = args.windows;
  const int64_t all = args.grad.size(3), outputs = all / w.groups;
  for (int64_t g = 0; g < w.groups; ++g) {
    strict::Operand grad{};
    grad.dtype = args.grad.dtype();
    grad.data = static_cast<const char*>(args.grad.raw()) +
                g * outputs * static_cast<int64_t>(size_of(grad.dtype));
    grad.extent = outputs;
    grad.outer_stride = 1;
    grad.k_stride = all;
    grad.k_fast = false;
    const WindowSource windows = window_source(args.image, w, g);
    float* const own = sums + g * outputs * w.columns();
    if (args.sums.how.is_simulated())
      run_simulated<strict::ElementLoader, strict::WindowColumnLoader>(
          "conv_weight", stream, grad, windows, outputs, w.rows(), w.columns(), own,
          args.sums.of(g, w.groups));
    else
      strict::run<strict::ElementLoader, strict::WindowColumnLoader>(
          "conv_weight", stream, grad, windows, outputs, w.rows(), w.columns(), own);
  }
}

bool weight_fast(Stream stream, const ConvWeightArgs& args, const UnitChoice& choice,
                 const Blocks& blocks, bool whole, float* sums) {
  const Windows& w = args.windows;
  const int64_t all = args.grad.size(3), outputs = all / w.groups, rows = w.rows();
  const Tensor grad = args.grad.reshape({rows, all});
  for (int64_t g = 0; g < w.groups; ++g) {
    const WindowSource source = window_source(args.image, w, g);
    const Tensor own = grad.slice(1, g * outputs, (g + 1) * outputs);
    for (int64_t first = 0; first < rows; first += blocks.rows) {
      MatmulArgs product;
      product.b = blocks.block(first, rows);
      gather("conv_weight", stream, source, first, product.b);
      product.a = own.slice(0, first, first + product.b.size(0)).transpose(0, 1);
      if (whole) {
        product.a_factor = args.grad_factor;
        product.b_factor = args.image_factor;
        product.factor = args.factor;
      }
      if (!matmul_fast(stream, product, choice, whole, {sums + g * outputs * blocks.columns},
                       first > 0))
        return false;
    }
  }
  return true;
}

// ---- direct sums of narrow groups ------------------------------------------------------------------------------------

struct Direct {
  WindowSource source;  // of group 0
  const void* other;    // the weight, or the gradient
  DType other_type;
  int outputs, all;                                         // all: groups · outputs
  int64_t group_step, tap_step, channel_step, output_step;  // of the weight
  float* sums;  // (rows, all), or planes (chunks, columns, all)
  int64_t count;
};

/// One sum a thread, neighbouring outputs by neighbouring threads.
__global__ void __launch_bounds__(kThreads) conv_direct_kernel(const __grid_constant__ Direct d) {
  const WindowSource& s = d.source;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < d.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / d.all;
    const int n = static_cast<int>(i - row * d.all), group = n / d.outputs;
    const int64_t weight = group * d.group_step + (n - group * d.outputs) * d.output_step;
    const WindowRow at(s, static_cast<int>(row));
    float total = 0, sum = 0;
    int k = 0, chunks = 0;
    for (int kh = 0; kh < s.h.taps; ++kh)
      for (int kw = 0; kw < s.w.taps; ++kw) {
        const int64_t j = s.at(at.image, at.h + kh * s.h.dilation, at.w + kw * s.w.dilation);
        const int64_t tap = weight + (static_cast<int64_t>(kh) * s.w.taps + kw) * d.tap_step;
        for (int c = 0; c < s.channels; ++c) {
          const float x = j < 0 ? 0.0f : load_as_float(s.data, s.dtype, j + group * s.channels + c);
          sum = fmaf(x, load_as_float(d.other, d.other_type, tap + c * d.channel_step), sum);
          if (++k < kMatmulChunk) continue;
          total = chunks == 0 ? sum : total + sum;
          ++chunks;
          sum = 0;
          k = 0;
        }
      }
    if (k > 0) total = chunks == 0 ? sum : total + sum;
    d.sums[i] = canonical(total);
  }
}

/// One chunk of rows of one sum a thread.
__global__ void __launch_bounds__(kThreads) weight_direct_kernel(const __grid_constant__ Direct d) {
  const WindowSource& s = d.source;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < d.count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t line = i / d.all;
    const int n = static_cast<int>(i - line * d.all), group = n / d.outputs;
    const int64_t chunk = line / s.columns;
    const WindowColumn column(s, static_cast<int>(line - chunk * s.columns));
    const int dh = column.kh * s.h.dilation, dw = column.kw * s.w.dilation;
    const int channel = group * s.channels + column.c;
    const int64_t begin = chunk * kMatmulChunk;
    const int last =
        static_cast<int>(s.rows - begin < kMatmulChunk ? s.rows : begin + kMatmulChunk);
    float sum = 0;
    for (int row = static_cast<int>(begin); row < last; ++row) {
      const WindowRow at(s, row);
      const int64_t j = s.at(at.image, at.h + dh, at.w + dw);
      const float x = j < 0 ? 0.0f : load_as_float(s.data, s.dtype, j + channel);
      const float g = load_as_float(d.other, d.other_type, static_cast<int64_t>(row) * d.all + n);
      sum = fmaf(g, x, sum);
    }
    d.sums[i] = sum;
  }
}

/// sums (all, columns) = Σ planes (chunks, columns, all), ascending.
__global__ void __launch_bounds__(kThreads)
    add_direct_kernel(const float* __restrict__ planes, int64_t chunks, int64_t columns,
                      int64_t all, float* __restrict__ sums) {
  const int64_t count = columns * all;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t column = i / all, n = i - column * all;
    float total = planes[i];
    for (int64_t chunk = 1; chunk < chunks; ++chunk) total += planes[chunk * count + i];
    sums[n * columns + column] = canonical(total);
  }
}

Direct direct_of(const Tensor& image, const Windows& w, const Tensor& other, int64_t outputs) {
  Direct d{};
  d.source = window_source(image, w, 0);
  d.other = other.raw();
  d.other_type = other.dtype();
  d.outputs = static_cast<int>(outputs);
  d.all = static_cast<int>(outputs * w.groups);
  return d;
}

void conv_direct(Stream stream, const ConvArgs& args, float* sums) {
  Direct d = direct_of(args.image, args.windows, args.weight, args.weight.size(3));
  d.group_step = args.weight.strides()[0];
  d.tap_step = args.weight.strides()[1];
  d.channel_step = args.weight.strides()[2];
  d.output_step = args.weight.strides()[3];
  d.sums = sums;
  d.count = args.out.numel();
  launch("conv", stream, blocks_for(d.count, kThreads), kThreads, conv_direct_kernel, d);
}

void weight_direct(Stream stream, const ConvWeightArgs& args, float* sums) {
  const Windows& w = args.windows;
  const int64_t chunks = std::max<int64_t>(1, (w.rows() + kMatmulChunk - 1) / kMatmulChunk);
  Direct d = direct_of(args.image, w, args.grad, args.grad.size(3) / w.groups);
  Tensor planes = Tensor::empty({chunks, w.columns(), d.all}, DType::F32, stream.device);
  d.sums = planes.mutable_data<float>();
  d.count = planes.numel();
  launch("conv_weight", stream, blocks_for(d.count, kThreads), kThreads, weight_direct_kernel, d);
  launch("conv_weight", stream, blocks_for(w.columns() * d.all, kThreads), kThreads,
         add_direct_kernel, static_cast<const float*>(d.sums), chunks, w.columns(),
         static_cast<int64_t>(d.all), sums);
}

}  // namespace

void conv(Stream stream, const ConvArgs& args) {
  check_conv(stream, args);
  check_no_f64("conv", args.image);
  if (args.out.numel() == 0) return;
  const Windows& w = args.windows;
  const int64_t outputs = args.weight.size(3), all = w.groups * outputs;
  const Outcome outcome{args.bias, args.image_factor, args.weight_factor,
                        args.out,  args.output,       args.key,
                        all,       args.factor};
  auto* const out = static_cast<float*>(written(args.out));
  const bool simulated = args.sums.how.is_simulated();
  const bool narrow = is_narrow(w, outputs) && !simulated;
  Tensor apart;  // (G, rows, O) where groups lie side by side in out
  if (w.groups > 1 && !narrow)
    apart = Tensor::empty({w.groups, w.rows(), outputs}, DType::F32, stream.device);
  float* const sums = apart.defined() ? apart.mutable_data<float>() : out;
  const UnitChoice choice =
      matrix_unit(ProductKind{args.image.dtype(), args.weight.dtype(), w.rows(), outputs,
                              w.columns(), args.math, args.fits_tf32, simulated});
  bool done = false;
  if (!narrow && is_fast(choice.unit)) {
    const bool whole = w.groups == 1 && fast_finishes(outcome, choice.unit);
    done = conv_fast(stream, args, whole, choice, sums);
    if (done && whole) return;
  }
  if (narrow)
    conv_direct(stream, args, sums);
  else if (!done)
    conv_strict(stream, args, sums);
  if (apart.defined())
    kernels::copy(stream, {apart.transpose(0, 1), args.out.reshape({w.rows(), w.groups, outputs})});
  finish_product("conv", stream, outcome, out);
}

void conv_weight(Stream stream, const ConvWeightArgs& args) {
  check_conv_weight(stream, args);
  check_no_f64("conv_weight", args.image);
  if (args.out.numel() == 0) return;
  const Windows& w = args.windows;
  const int64_t all = args.grad.size(3), outputs = all / w.groups;
  const Outcome outcome{{},          args.grad_factor, args.image_factor, args.out,
                        args.output, args.key,         w.columns(),       args.factor};
  auto* const out = static_cast<float*>(written(args.out));
  const bool simulated = args.sums.how.is_simulated();
  const bool narrow = is_narrow(w, outputs) && !simulated;
  const UnitChoice choice =
      matrix_unit(ProductKind{args.grad.dtype(), args.image.dtype(), outputs, w.columns(), w.rows(),
                              args.math, args.fits_tf32, simulated});
  if (!narrow && is_fast(choice.unit) && w.rows() > 0) {
    Blocks blocks(w, choice.b);
    blocks.make(choice.b, stream.device);
    const bool padded = blocks.columns != w.columns();
    Tensor apart;  // rows of whole 16 bytes
    if (padded) apart = Tensor::empty({all, blocks.columns}, DType::F32, stream.device);
    const bool whole = !padded && fast_finishes(outcome, choice.unit);
    float* const sums = padded ? apart.mutable_data<float>() : out;
    if (weight_fast(stream, args, choice, blocks, whole, sums)) {
      if (whole) return;
      if (padded) kernels::copy(stream, {apart.slice(1, 0, w.columns()), args.out});
      return finish_product("conv_weight", stream, outcome, out);
    }
  }
  if (narrow)
    weight_direct(stream, args, out);
  else
    weight_strict(stream, args, out);
  finish_product("conv_weight", stream, outcome, out);
}

}  // namespace ulp::cuda
