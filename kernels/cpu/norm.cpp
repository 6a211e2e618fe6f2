#include "kernels/norm.h"

#include <vector>

#include "kernels/cpu/image_blocks.h"
#include "kernels/cpu/interior.h"
#include "kernels/cpu/strict_sum.h"
#include "kernels/norm_math.h"

namespace ulp::cpu {
namespace {

template <class T>
using Block = Values<T>;

template <class T>
std::vector<T> values_of(const Tensor& t) {
  if constexpr (std::is_same_v<T, double>)
    return t.to_doubles();
  else
    return t.to_floats();
}

/// One number a channel, so that those of kBlock elements from any element on lie side by side.
template <class T>
class Columns {
 public:
  Columns(const std::vector<T>& values, int64_t channels)
      : channels_(channels), values_(static_cast<size_t>(channels + kBlock)) {
    for (size_t i = 0; i < values_.size(); ++i)
      values_[i] = values[i % static_cast<size_t>(channels)];
  }
  /// An undefined tensor is `other` everywhere.
  Columns(const Tensor& t, int64_t channels, T other)
      : Columns(
            t.defined() ? values_of<T>(t) : std::vector<T>(static_cast<size_t>(channels), other),
            channels) {}
  const T* from(int64_t element) const { return values_.data() + element % channels_; }

 private:
  int64_t channels_;
  std::vector<T> values_;
};

/// The statistics of consecutive elements.
template <class T>
class Statistics {
 public:
  Statistics(const NormLayout& layout, const Tensor& mean, const Tensor& inverse)
      : layout_(layout),
        mean_(mean.defined() ? mean.data<T>() : nullptr),
        inverse_(inverse.data<T>()) {
    if (!layout.per_channel() || layout.rows == 0) return;
    columns_.emplace_back(mean, layout.channels, T(0));
    columns_.emplace_back(inverse, layout.channels, T(1));
  }
  struct Span {
    const T *mean, *inverse;
  };
  /// Of elements begin … begin + n − 1, n ≤ kBlock.
  Span of(int64_t begin, int64_t n, T* mean, T* inverse) const {
    if (!columns_.empty()) return {columns_[0].from(begin), columns_[1].from(begin)};
    const int64_t width = layout_.width();
    int64_t row = begin / layout_.channels, channel = begin % layout_.channels;
    for (int64_t i = 0; i < n;) {
      const int64_t at = row / layout_.span * layout_.groups + channel / width;
      const int64_t count = std::min(n - i, width - channel % width);
      const T m = mean_ == nullptr ? T(0) : mean_[at], r = inverse_[at];
      for (const int64_t end = i + count; i < end; ++i) mean[i] = m, inverse[i] = r;
      channel += count;
      if (channel == layout_.channels) channel = 0, ++row;
    }
    return {mean, inverse};
  }

 private:
  NormLayout layout_;
  const T *mean_, *inverse_;
  std::vector<Columns<T>> columns_;
};

/// x̂ of elements begin … begin + n − 1, n ≤ kBlock, rounded.
template <class T>
void normalise(const T* x, const Statistics<T>& statistics, const Interior& interior, int64_t begin,
               int64_t n, T* out) {
  Block<T> means, inverses;
  const auto [mean, inverse] = statistics.of(begin, n, means.data(), inverses.data());
  with_isa([=, mean = mean, inverse = inverse]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) out[i] = norms::normalised(x[i], mean[i], inverse[i]);
  });
  interior.apply(3, out, n, begin);
}

// ---- sums of columns -------------------------------------------------------------------------------------------------

constexpr int64_t kStrip = 128;  // columns summed together

/// lanes[at + i] += values[i]
template <class T>
void add_to(T* lanes, const T* values, int64_t n) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) lanes[i] += values[i];
  });
}

/// lanes (64, width) → its first row, by halving.
template <class T>
void add_lanes(T* lanes, int64_t width) {
  with_isa([=]() ULP_INLINE {
    for (int64_t half = kSumLanes / 2; half > 0; half /= 2)
      for (int64_t i = 0; i < half * width; ++i) lanes[i] += lanes[half * width + i];
  });
}

/// The sums of one chunk's rows over columns first … first + width − 1. fill(begin, n, values): the numbers to be added of
/// elements begin … begin + n − 1, n ≤ kBlock, kSums of each.
template <class T, size_t kSums, class Fill>
void sum_strip(int64_t row, int64_t rows, int64_t channels, int64_t first, int64_t width,
               const Fill& fill, std::array<std::vector<T>, kSums>& lanes) {
  std::array<Block<T>, kSums> values;
  for (auto& lane : lanes) lane.assign(static_cast<size_t>(kSumLanes * width), T(0));
  const auto add = [&](int64_t begin, int64_t n, int64_t at) {
    for (int64_t i = 0; i < n; i += kBlock) {
      const int64_t count = std::min(kBlock, n - i);
      fill(begin + i, count, values);
      for (size_t k = 0; k < kSums; ++k) add_to(lanes[k].data() + at + i, values[k].data(), count);
    }
  };
  if (width == channels) {  // 64 rows, one a lane, lie side by side
    for (int64_t a = 0; a < rows; a += kSumLanes)
      add((row + a) * channels, std::min(kSumLanes, rows - a) * channels, 0);
  } else {
    for (int64_t a = 0; a < rows; ++a)
      add((row + a) * channels + first, width, a % kSumLanes * width);
  }
  for (auto& lane : lanes) add_lanes(lane.data(), width);
}

/// Sums of chunks, to be summed again: one type for all levels.
template <class T>
struct Again {
  const T* in;
  void operator()(int64_t begin, int64_t n, std::array<Block<T>, 1>& values) const {
    std::memcpy(values[0].data(), in + begin, static_cast<size_t>(n) * sizeof(T));
  }
};

/// out[k] (channels) = the sums of the columns of (rows, channels) in the order of core/sum.h. fill: see sum_strip.
template <class T, size_t kSums, class Fill>
void column_sums(int64_t rows, int64_t channels, const Fill& fill,
                 const std::array<T*, kSums>& out) {
  const int64_t chunks = std::max<int64_t>(1, (rows + kSumChunk - 1) / kSumChunk);
  const int64_t strips = (channels + kStrip - 1) / kStrip;
  std::array<std::vector<T>, kSums> partial;
  std::array<T*, kSums> to = out;
  if (chunks > 1)
    for (size_t k = 0; k < kSums; ++k) {
      partial[k].resize(static_cast<size_t>(chunks * channels));
      to[k] = partial[k].data();
    }
  const int64_t work = std::min(rows, kSumChunk) * std::min(channels, kStrip);
  parallel_for(
      chunks * strips, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)),
      [&](int64_t begin, int64_t end) {
        std::array<std::vector<T>, kSums> lanes;
        for (int64_t task = begin; task < end; ++task) {
          const int64_t chunk = task / strips, first = task % strips * kStrip;
          const int64_t row = chunk * kSumChunk, width = std::min(kStrip, channels - first);
          sum_strip(row, std::min(kSumChunk, rows - row), channels, first, width, fill, lanes);
          for (size_t k = 0; k < kSums; ++k)
            std::memcpy(to[k] + chunk * channels + first, lanes[k].data(),
                        static_cast<size_t>(width) * sizeof(T));
        }
      });
  if (chunks == 1) return;
  for (size_t k = 0; k < kSums; ++k) column_sums<T, 1>(chunks, channels, Again<T>{to[k]}, {out[k]});
}

// ---- batch norm ------------------------------------------------------------------------------------------------------

template <class T>
void batch_statistics_of(const BatchStatisticsArgs& args) {
  const int64_t rows = args.x.size(0), channels = args.x.size(1);
  const Interior interior(args.interior.format, args.interior.key, args.interior.trace);
  Tensor mean_tensor = args.mean, inverse_tensor = args.inverse_deviation;
  Tensor running_mean = args.running_mean, running_variance = args.running_variance;
  T* mean = mean_tensor.mutable_data<T>();
  T* inverse = inverse_tensor.mutable_data<T>();
  const bool keeps = running_mean.defined();
  float* kept_mean = keeps ? running_mean.mutable_data<float>() : nullptr;
  float* kept_variance = keeps ? running_variance.mutable_data<float>() : nullptr;
  const T eps = static_cast<T>(args.eps), count = static_cast<T>(rows);

  std::vector<T> variance(static_cast<size_t>(channels));
  if (args.evaluate) {
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = interior.one(0, static_cast<T>(kept_mean[c]), c);
      variance[static_cast<size_t>(c)] = static_cast<T>(kept_variance[c]);
    }
  } else {
    column_sums<T, 1>(rows, channels,
                      [&](int64_t begin, int64_t n, std::array<Block<T>, 1>& values) {
                        Block<T> buffer;
                        const T* x = read_values<T>(args.x, begin, n, buffer.data());
                        std::memcpy(values[0].data(), x, static_cast<size_t>(n) * sizeof(T));
                      },
                      {mean});
    for (int64_t c = 0; c < channels; ++c) mean[c] = interior.one(0, mean[c] / count, c);
    const Columns<T> means(args.mean, channels, T(0));
    column_sums<T, 1>(rows, channels,
                      [&](int64_t begin, int64_t n, std::array<Block<T>, 1>& values) {
                        Block<T> buffer;
                        const T* x = read_values<T>(args.x, begin, n, buffer.data());
                        const T* m = means.from(begin);
                        T* out = values[0].data();
                        with_isa([=]() ULP_INLINE {
                          for (int64_t i = 0; i < n; ++i) out[i] = norms::square_about(x[i], m[i]);
                        });
                      },
                      {variance.data()});
    for (T& v : variance) v = v / count;
  }
  const T keep = static_cast<T>(1 - args.momentum), momentum = static_cast<T>(args.momentum);
  const T unbiased = static_cast<T>(static_cast<double>(rows) /
                                    static_cast<double>(std::max<int64_t>(1, rows - 1)));
  for (int64_t c = 0; c < channels; ++c) {
    const T v = interior.one(1, variance[static_cast<size_t>(c)], c);
    inverse[c] = interior.one(2, norms::inverse_deviation(v, eps), c);
    if (args.evaluate || !keeps) continue;
    kept_mean[c] = canonical(
        static_cast<float>(norms::moving(static_cast<T>(kept_mean[c]), mean[c], keep, momentum)));
    kept_variance[c] = canonical(static_cast<float>(
        norms::moving(static_cast<T>(kept_variance[c]), v * unbiased, keep, momentum)));
  }
}

/// body(begin, n) for blocks of all elements, in parallel.
template <class Body>
void for_blocks(int64_t elements, const Body& body) {
  parallel_for_units(elements, kBlock, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += kBlock)
      body(begin, std::min(kBlock, last - begin));
  });
}

template <class T>
void norm_apply_of(const NormApplyArgs& args) {
  const NormLayout& layout = args.layout;
  const Statistics<T> statistics(layout, args.mean, args.inverse_deviation);
  const Interior interior(args.interior.format, args.interior.key, args.interior.trace);
  const Columns<T> weights(args.weight, layout.channels, T(1)),
      biases(args.bias, layout.channels, T(0));
  const bool affine = args.weight.defined() || args.bias.defined();
  const Result<T> result(args.out, args.output, args.key);
  for_blocks(args.x.numel(), [&](int64_t begin, int64_t n) {
    Block<T> buffer, values;
    const T* x = read_values<T>(args.x, begin, n, buffer.data());
    normalise(x, statistics, interior, begin, n, values.data());
    if (affine) {
      T* y = values.data();
      const T *w = weights.from(begin), *b = biases.from(begin);
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) y[i] = norms::scaled(y[i], w[i], b[i]);
      });
    }
    result.write(begin, n, values.data());
  });
}

template <class T>
void norm_sums_of(const NormSumsArgs& args) {
  const Statistics<T> statistics(args.layout, args.mean, args.inverse_deviation);
  const Interior interior(args.interior.format, args.interior.key);
  Tensor sum_grad = args.sum_grad, sum_product = args.sum_product;
  T* const out[] = {sum_grad.mutable_data<T>(), sum_product.mutable_data<T>()};
  column_sums<T, 2>(args.layout.rows, args.layout.channels,
                    [&](int64_t begin, int64_t n, std::array<Block<T>, 2>& values) {
                      Block<T> buffer, other;
                      const T* x = read_values<T>(args.x, begin, n, buffer.data());
                      normalise(x, statistics, interior, begin, n, values[1].data());
                      const T* g = read_values<T>(args.grad, begin, n, other.data());
                      T *grads = values[0].data(), *products = values[1].data();
                      with_isa([=]() ULP_INLINE {
                        for (int64_t i = 0; i < n; ++i)
                          grads[i] = g[i], products[i] = g[i] * products[i];
                      });
                    },
                    {out[0], out[1]});
  for (T* sums : out)
    for (int64_t c = 0; c < args.layout.channels; ++c) sums[c] = canonical(sums[c]);
}

template <class T>
void batch_norm_backward_of(const BatchNormBackwardArgs& args) {
  const int64_t rows = args.x.size(0), channels = args.x.size(1);
  const Statistics<T> statistics(batch_layout(args.x), args.mean, args.inverse_deviation);
  const Interior interior(args.interior.format, args.interior.key);
  const bool sums = args.sum_grad.defined();
  const T share = static_cast<T>(1.0 / static_cast<double>(std::max<int64_t>(1, rows)));
  const auto per_channel = [&](const Tensor& sum) {
    std::vector<T> values =
        sums ? values_of<T>(sum) : std::vector<T>(static_cast<size_t>(channels));
    for (T& v : values) v = v * share;
    return Columns<T>(values, channels);
  };
  std::vector<T> factor = values_of<T>(args.inverse_deviation);
  if (args.weight.defined()) {
    const std::vector<T> w = values_of<T>(args.weight);
    for (size_t c = 0; c < w.size(); ++c) factor[c] = w[c] * factor[c];
  }
  const Columns<T> factors(factor, channels), means_g = per_channel(args.sum_grad),
                                              means_gx = per_channel(args.sum_product);
  const Result<T> result(args.out, args.output, args.key);
  for_blocks(args.x.numel(), [&](int64_t begin, int64_t n) {
    Block<T> buffer, other, values;
    T* out = values.data();
    const T* g = read_values<T>(args.grad, begin, n, other.data());
    const T* f = factors.from(begin);
    if (sums) {
      normalise(read_values<T>(args.x, begin, n, buffer.data()), statistics, interior, begin, n,
                out);
      const T *mean_g = means_g.from(begin), *mean_gx = means_gx.from(begin);
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i)
          out[i] = norms::input_gradient(g[i], out[i], mean_g[i], mean_gx[i], f[i]);
      });
    } else {
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) out[i] = g[i] * f[i];
      });
    }
    result.write(begin, n, out);
  });
}

// ---- norms of groups -------------------------------------------------------------------------------------------------

/// Elements of a group that lie side by side, at most kBlock of them.
struct Piece {
  int64_t begin, n, at;  // in the tensor; in the group
  int64_t channel;
};

/// body(piece) for the pieces of a group in order.
template <class Body>
void for_pieces(const NormLayout& l, int64_t group, const Body& body) {
  const int64_t width = l.width(), first = group % l.groups * width;
  const int64_t row = group / l.groups * l.span;
  for (int64_t s = 0; s < l.span; ++s)
    for (int64_t d = 0; d < width; d += kBlock)
      body(Piece{(row + s) * l.channels + first + d, std::min(kBlock, width - d), s * width + d,
                 first + d});
}

/// body(group, buffers) for all groups, in parallel; each of the kBuffers holds one group.
template <class T, size_t kBuffers, class Body>
void for_groups(const NormLayout& l, const Body& body) {
  const int64_t size = l.size();
  parallel_for(l.statistics(), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, 4 * size)),
               [&](int64_t first, int64_t last) {
                 std::array<std::vector<T>, kBuffers> buffers;
                 for (auto& buffer : buffers) buffer.resize(static_cast<size_t>(size));
                 for (int64_t group = first; group < last; ++group) body(group, buffers);
               });
}

/// The statistics of a group's values. squares: room for as many.
template <class T>
void group_statistics(const T* x, T* squares, int64_t n, int64_t group, T eps, bool centred,
                      const Interior& interior, T& mean, T& inverse) {
  mean = centred ? interior.one(0, strict_sum(x, n) / static_cast<T>(n), group) : T(0);
  const T about = mean;
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) squares[i] = norms::square_about(x[i], about);
  });
  const T variance = interior.one(1, strict_sum(squares, n) / static_cast<T>(n), group);
  inverse = interior.one(2, norms::inverse_deviation(variance, eps), group);
}

template <class T>
void group_norm_of(const GroupNormArgs& args) {
  const NormLayout& layout = args.layout;
  const Interior interior(args.interior.format, args.interior.key, args.interior.trace);
  const Columns<T> weight(args.weight, layout.channels, T(1)),
      bias(args.bias, layout.channels, T(0));
  const bool affine = args.weight.defined() || args.bias.defined();
  const Result<T> result(args.out, args.output, args.key);
  Tensor mean_tensor = args.mean, inverse_tensor = args.inverse_deviation;
  T* means = mean_tensor.defined() ? mean_tensor.mutable_data<T>() : nullptr;
  T* inverses = inverse_tensor.mutable_data<T>();
  const T eps = static_cast<T>(args.eps);
  for_groups<T, 2>(layout, [&](int64_t group, std::array<std::vector<T>, 2>& buffers) {
    T *x = buffers[0].data(), *squares = buffers[1].data();
    for_pieces(layout, group, [&](const Piece& p) {
      Block<T> buffer;
      const T* in = read_values<T>(args.x, p.begin, p.n, buffer.data());
      std::memcpy(x + p.at, in, static_cast<size_t>(p.n) * sizeof(T));
    });
    T mean, inverse;
    group_statistics(x, squares, layout.size(), group, eps, means != nullptr, interior, mean,
                     inverse);
    if (means != nullptr) means[group] = mean;
    inverses[group] = inverse;
    for_pieces(layout, group, [&](const Piece& p) {
      T* y = x + p.at;
      const int64_t n = p.n;
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) y[i] = norms::normalised(y[i], mean, inverse);
      });
      interior.apply(3, y, n, p.begin);
      if (affine) {
        const T *w = weight.from(p.channel), *b = bias.from(p.channel);
        with_isa([=]() ULP_INLINE {
          for (int64_t i = 0; i < n; ++i) y[i] = norms::scaled(y[i], w[i], b[i]);
        });
      }
      result.write(p.begin, n, y);
    });
  });
}

template <class T>
void group_norm_backward_of(const GroupNormBackwardArgs& args) {
  const NormLayout& layout = args.layout;
  const Interior interior(args.interior.format, args.interior.key);
  const Columns<T> weight(args.weight, layout.channels, T(1));
  const Result<T> result(args.out, args.output, args.key);
  const T* means = args.mean.defined() ? args.mean.data<T>() : nullptr;
  const T* inverses = args.inverse_deviation.data<T>();
  const int64_t size = layout.size();
  const T share = static_cast<T>(1.0 / static_cast<double>(std::max<int64_t>(1, size)));
  for_groups<T, 3>(layout, [&](int64_t group, std::array<std::vector<T>, 3>& buffers) {
    T *h = buffers[0].data(), *x_hat = buffers[1].data(), *products = buffers[2].data();
    const T mean = means == nullptr ? T(0) : means[group], inverse = inverses[group];
    for_pieces(layout, group, [&](const Piece& p) {
      Block<T> x_buffer, g_buffer;
      const T* x = read_values<T>(args.x, p.begin, p.n, x_buffer.data());
      const T* g = read_values<T>(args.grad, p.begin, p.n, g_buffer.data());
      const T* w = weight.from(p.channel);
      T *h_at = h + p.at, *x_at = x_hat + p.at, *products_at = products + p.at;
      const int64_t n = p.n;
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) x_at[i] = norms::normalised(x[i], mean, inverse);
      });
      interior.apply(3, x_at, n, p.begin);
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) {
          h_at[i] = g[i] * w[i];
          products_at[i] = h_at[i] * x_at[i];
        }
      });
    });
    const T mean_h = means == nullptr ? T(0) : strict_sum(h, size) * share;
    const T mean_hx = strict_sum(products, size) * share;
    for_pieces(layout, group, [&](const Piece& p) {
      T* out = products + p.at;
      const T *h_at = h + p.at, *x_at = x_hat + p.at;
      const int64_t n = p.n;
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i)
          out[i] = norms::input_gradient(h_at[i], x_at[i], mean_h, mean_hx, inverse);
      });
      result.write(p.begin, n, out);
    });
  });
}

}  // namespace

#define ULP_DEFINE(name, Args)                                                       \
  void name(Stream stream, const Args& args) {                                       \
    check_##name(stream, args);                                                      \
    args.x.dtype() == DType::F64 ? name##_of<double>(args) : name##_of<float>(args); \
  }
ULP_NORM_KERNELS(ULP_DEFINE)

}  // namespace ulp::cpu
