// Convolutions: strict products whose packing gathers the windows (product.h). Groups of few channels, depthwise ones above
// all, are summed directly, many channels side by side; the order of each sum is the same.

#include "kernels/conv.h"

#include <algorithm>
#include <vector>

#include "core/convert.h"
#include "core/sum.h"
#include "kernels/cpu/conv_shifted.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/product.h"

namespace ulp::cpu {
namespace {

constexpr int64_t kLane = 64;          // outputs summed side by side
constexpr int64_t kDirectGrain = 256;  // windows that pay for waking a thread

// ---- products, one a group -------------------------------------------------------------------------------------------

Matrix windows_of(const Tensor& image, const Windows& windows, int64_t group) {
  Matrix m;
  m.dtype = image.dtype();
  m.data = static_cast<const char*>(image.raw()) +
           group * windows.channels * static_cast<int64_t>(size_of(m.dtype));
  m.windows = &windows;
  return m;
}

/// (KH·KW·C, O) of a group.
Matrix weight_of(const Tensor& weight, int64_t group) {
  const Shape& steps = weight.strides();
  Matrix m;
  m.dtype = weight.dtype();
  m.data = static_cast<const char*>(weight.raw()) +
           group * steps[0] * static_cast<int64_t>(size_of(m.dtype));
  m.column_step = steps[3];
  const bool one_channel = weight.size(2) == 1;
  m.row_step = one_channel ? steps[1] : steps[2];
  if (one_channel || weight.size(1) == 1 || steps[1] == weight.size(2) * steps[2]) return m;
  m.inner = weight.size(2);
  m.outer_step = steps[1];
  return m;
}

void conv_products(const ConvArgs& args, float* out, const Finish& finish) {
  const Windows& w = args.windows;
  const int64_t outputs = args.weight.size(3);
  for (int64_t g = 0; g < w.groups; ++g) {
    Product p{};
    p.a = windows_of(args.image, w, g);
    p.b = weight_of(args.weight, g);
    p.m = w.rows();
    p.k = w.columns();
    p.n = outputs;
    p.out_step = w.groups * outputs;
    p.column = g * outputs;
    p.out = out + p.column;
    p.sums = args.sums.of(g, w.groups);
    multiply(p, finish);
  }
}

void weight_products(const ConvWeightArgs& args, float* out, const Finish& finish) {
  const Windows& w = args.windows;
  const int64_t all = args.grad.size(3), outputs = all / w.groups;
  for (int64_t g = 0; g < w.groups; ++g) {
    Product p{};
    p.a.dtype = args.grad.dtype();
    p.a.data = static_cast<const char*>(args.grad.raw()) +
               g * outputs * static_cast<int64_t>(size_of(p.a.dtype));
    p.a.row_step = 1;
    p.a.column_step = all;
    p.b = windows_of(args.image, w, g);
    p.m = outputs;
    p.k = w.rows();
    p.n = p.out_step = w.columns();
    p.row = g * outputs;
    p.out = out + p.row * p.out_step;
    p.sums = args.sums.of(g, w.groups);
    multiply(p, finish);
  }
}

// ---- direct sums -----------------------------------------------------------------------------------------------------

/// Where row `row` of the windows' matrix begins: its image and output place.
struct Place {
  int64_t image, h, w;
};
Place place_of(const Windows& windows, int64_t row) {
  return {row / windows.w.out / windows.h.out, row / windows.w.out % windows.h.out,
          row % windows.w.out};
}

/// The element of an image where a tap of a window begins, −1 beyond the image.
int64_t tap_at(const Windows& w, const Place& place, int64_t tap) {
  const int64_t h = w.h.source(place.h, tap / w.w.taps), x = w.w.source(place.w, tap % w.w.taps);
  return h < 0 || x < 0 ? -1 : ((place.image * w.h.in + h) * w.w.in + x) * w.pixel();
}

/// Elements i … i + n − 1 of an array as fp32, in `room` unless they are it already. i < 0: zeros.
const float* floats_at(const Tensor& t, int64_t i, int64_t n, float* room) {
  if (i < 0) {
    std::fill_n(room, n, 0.0f);
    return room;
  }
  if (t.dtype() == DType::F32) return t.data<float>() + i;
  const void* data = t.raw();
  const DType dtype = t.dtype();
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < n; ++j) room[j] = load_as_float(data, dtype, i + j);
  });
  return room;
}

/// sum[j] = fma(x[from[j]], w[j], sum[j]) for j < n; neighbours where `straight`.
void add_products(float* sum, const float* x, const int32_t* from, bool straight, const float* w,
                  int64_t n) {
  if (straight) {
    with_isa([=]() ULP_INLINE {
      for (int64_t j = 0; j < n; ++j) sum[j] = __builtin_fmaf(x[j], w[j], sum[j]);
    });
    return;
  }
  with_isa([=]() ULP_INLINE {
    for (int64_t j = 0; j < n; ++j) sum[j] = __builtin_fmaf(x[from[j]], w[j], sum[j]);
  });
}

/// total = sum, or total + sum after the first chunk; sum = 0.
void end_chunk(float* total, float* sum, int64_t n, bool first) {
  for (int64_t j = 0; j < n; ++j) {
    total[j] = first ? sum[j] : total[j] + sum[j];
    sum[j] = 0.0f;
  }
}

/// Which of a lane's channels each of its outputs reads; the lane begins at output `first`.
struct Lane {
  int64_t first, size;
  int64_t channel, channels;  // of the image
  bool straight;
  int32_t from[kLane];

  Lane(const Windows& w, int64_t outputs, int64_t lane)
      : first(lane * kLane), size(std::min(kLane, w.groups * outputs - first)) {
    channel = first / outputs * w.channels;
    channels = ((first + size - 1) / outputs + 1) * w.channels - channel;
    straight = w.channels == 1 && outputs == 1;
    for (int64_t j = 0; j < size; ++j)
      from[j] = static_cast<int32_t>((first + j) / outputs * w.channels - channel);
  }
};

void conv_direct(const ConvArgs& args, float* out, const Finish& finish) {
  const Windows& w = args.windows;
  const int64_t outputs = args.weight.size(3), all = w.groups * outputs, depth = w.columns();
  std::vector<float> weight(static_cast<size_t>(depth * all));  // (KH·KW·C, G·O)
  for (int64_t n = 0; n < all; ++n)
    for (int64_t k = 0; k < depth; ++k) {
      const Shape& steps = args.weight.strides();
      weight[static_cast<size_t>(k * all + n)] =
          load_as_float(args.weight.raw(), args.weight.dtype(),
                        n / outputs * steps[0] + k / w.channels * steps[1] +
                            k % w.channels * steps[2] + n % outputs * steps[3]);
    }
  const int64_t lanes = (all + kLane - 1) / kLane;
  parallel_for(w.rows(), kDirectGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> room(static_cast<size_t>(w.pixel()));
    for (int64_t l = 0; l < lanes; ++l) {
      const Lane lane(w, outputs, l);
      for (int64_t row = begin; row < end; ++row) {
        const Place place = place_of(w, row);
        float sum[kLane] = {}, total[kLane];
        int64_t k = 0;
        for (int64_t tap = 0; tap < w.taps(); ++tap) {
          const int64_t at = tap_at(w, place, tap);
          const float* x =
              floats_at(args.image, at < 0 ? at : at + lane.channel, lane.channels, room.data());
          for (int64_t c = 0; c < w.channels; ++c) {
            add_products(sum, x + c, lane.from, lane.straight, weight.data() + k * all + lane.first,
                         lane.size);
            if (++k % kMatmulChunk == 0 || k == depth)
              end_chunk(total, sum, lane.size, k <= kMatmulChunk);
          }
        }
        finish(total, row * all + lane.first, lane.first, lane.size);
        std::copy_n(total, lane.size, out + row * all + lane.first);
      }
    }
  });
}

void weight_direct(const ConvWeightArgs& args, float* out, const Finish& finish) {
  const Windows& w = args.windows;
  const int64_t all = args.grad.size(3), outputs = all / w.groups, depth = w.columns();
  const int64_t lanes = (all + kLane - 1) / kLane;
  const int64_t chunks = std::max<int64_t>(1, (w.rows() + kMatmulChunk - 1) / kMatmulChunk);
  std::vector<float> sums(static_cast<size_t>(chunks * depth * all));  // (chunk, KH·KW·C, G·O)
  parallel_for(chunks * lanes, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> room(static_cast<size_t>(w.pixel())), g_room(kLane);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / lanes;
      const Lane lane(w, outputs, item % lanes);
      float* const sum = sums.data() + chunk * depth * all + lane.first;
      const int64_t last = std::min(w.rows(), (chunk + 1) * kMatmulChunk);
      for (int64_t row = chunk * kMatmulChunk; row < last; ++row) {
        const Place place = place_of(w, row);
        const float* g = floats_at(args.grad, row * all + lane.first, lane.size, g_room.data());
        for (int64_t tap = 0; tap < w.taps(); ++tap) {
          const int64_t at = tap_at(w, place, tap);
          const float* x =
              floats_at(args.image, at < 0 ? at : at + lane.channel, lane.channels, room.data());
          for (int64_t c = 0; c < w.channels; ++c)
            add_products(sum + (tap * w.channels + c) * all, x + c, lane.from, lane.straight, g,
                         lane.size);
        }
      }
    }
  });
  for (int64_t n = 0; n < all; ++n) {
    float* const row = out + n * depth;
    for (int64_t k = 0; k < depth; ++k) {
      float total = sums[static_cast<size_t>(k * all + n)];
      for (int64_t chunk = 1; chunk < chunks; ++chunk)
        total = total + sums[static_cast<size_t>((chunk * depth + k) * all + n)];
      row[k] = total;
    }
    finish(row, n * depth, 0, depth);
  }
}

// ---- fp64, for gradient checks ---------------------------------------------------------------------------------------

/// Σ_k f(k) in chunks.
template <class Term>
double sum_in_chunks(int64_t n, const Term& term) {
  double total = 0;
  for (int64_t chunk = 0; chunk < n; chunk += kMatmulChunk) {
    double sum = 0;
    for (int64_t k = chunk; k < std::min(n, chunk + kMatmulChunk); ++k) sum += term(k);
    total = chunk == 0 ? sum : total + sum;
  }
  return total;
}

/// Element (row, column) of a group's windows.
double window_value(const double* image, const Windows& w, int64_t group, int64_t row,
                    int64_t column) {
  const int64_t at = tap_at(w, place_of(w, row), column / w.channels);
  return at < 0 ? 0.0 : image[at + group * w.channels + column % w.channels];
}

void conv_doubles(const ConvArgs& args, double* out) {
  const Windows& w = args.windows;
  const Tensor weight = args.weight.to_cpu_contiguous();
  const double *image = args.image.data<double>(), *values = weight.data<double>();
  const int64_t outputs = weight.size(3), all = w.groups * outputs, depth = w.columns();
  parallel_for(w.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t n = 0; n < all; ++n) {
        const int64_t g = n / outputs;
        double& y = out[row * all + n];
        y = args.factor * sum_in_chunks(depth, [&](int64_t k) {
              return window_value(image, w, g, row, k) *
                     values[(g * depth + k) * outputs + n % outputs];
            });
        if (args.bias.defined()) y += args.bias.data<double>()[n];
      }
  });
}

void weight_doubles(const ConvWeightArgs& args, double* out) {
  const Windows& w = args.windows;
  const double *image = args.image.data<double>(), *grad = args.grad.data<double>();
  const int64_t all = args.grad.size(3), outputs = all / w.groups, depth = w.columns();
  parallel_for(all * depth, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / depth, k = i % depth;
      out[i] = args.factor * sum_in_chunks(w.rows(), [&](int64_t row) {
                 return grad[row * all + n] * window_value(image, w, n / outputs, row, k);
               });
    }
  });
}

}  // namespace

void conv(Stream stream, const ConvArgs& args) {
  check_conv(stream, args);
  if (args.out.numel() == 0) return;
  Tensor out = args.out;
  if (args.image.dtype() == DType::F64) return conv_doubles(args, out.mutable_data<double>());
  const Finish finish({args.image_factor, args.weight_factor}, args.factor, args.bias, args.output,
                      args.key);
  const int64_t outputs = args.weight.size(3);
  const auto sum = args.sums.how.is_simulated()         ? conv_products
                   : is_narrow(args.windows, outputs)   ? conv_direct
                   : shifts_suit(args.windows, outputs) ? conv_shifted
                                                        : conv_products;
  sum(args, out.mutable_data<float>(), finish);
}

void conv_weight(Stream stream, const ConvWeightArgs& args) {
  check_conv_weight(stream, args);
  if (args.out.numel() == 0) return;
  Tensor out = args.out;
  if (args.image.dtype() == DType::F64) return weight_doubles(args, out.mutable_data<double>());
  const Finish finish({args.grad_factor, args.image_factor}, args.factor, {}, args.output,
                      args.key);
  const int64_t outputs = args.grad.size(3) / args.windows.groups;
  const auto sum = args.sums.how.is_simulated()                ? weight_products
                   : is_narrow(args.windows, outputs)          ? weight_direct
                   : weight_shifts_suit(args.windows, outputs) ? weight_shifted
                                                               : weight_products;
  sum(args, out.mutable_data<float>(), finish);
}

}  // namespace ulp::cpu
