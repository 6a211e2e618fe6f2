// Norms, pools and dropout: one case a kernel, instances of every type, layout, format and rounding.

#include <cstring>
#include <string>
#include <vector>

#include "core/sum.h"
#include "kernels/dropout.h"
#include "kernels/norm.h"
#include "kernels/pool.h"
#include "tools/cases/comparison.h"

namespace ulp::cases {
namespace {

constexpr DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2};
constexpr Domain kDomains[] = {Domain::Modest, Domain::Hard, Domain::Few, Domain::Wide};
constexpr const char* kRounding[] = {"fp32",     "e4m3",     "e5m2:sr", "fixed8.4:rtz",
                                     "posit8.1", "e6m9:sr4", "bf16:odd"};
constexpr const char* kInteriors[] = {"fp32", "bf16:sr", "e5m2", "fixed16.8:sr"};

std::string text(DType dtype) { return std::string(to_string(dtype)); }

/// A step and its draws in each device's memory.
class Draws {
 public:
  explicit Draws(const Comparison& compare) {
    StepState state;
    state.random_step = 77 + static_cast<uint32_t>(compare.options().seed);
    std::vector<uint8_t> bytes(sizeof state);
    std::memcpy(bytes.data(), &state, sizeof state);
    state_ = compare.both(Tensor::from(bytes, {static_cast<int64_t>(sizeof state)}));
  }
  RandomKey key(Side side, uint32_t stream) const {
    return {0x9876543210ABCDEF, stream, 3, static_cast<const StepState*>(state_.on(side).raw())};
  }

 private:
  Pair state_;
};

/// Elements from 1 on where `askew`, aligned to one element only; else a tensor of that shape as it is.
Pair placed(const Comparison& compare, const Shape& shape, DType dtype, Domain domain,
            uint64_t seed, bool askew) {
  if (!askew) return compare.input(shape, dtype, domain, seed);
  const int64_t n = shape.numel();
  const Pair wide = compare.input({n + 1}, dtype, domain, seed);
  return {wide.reference.slice(0, 1, n + 1).reshape(shape),
          wide.other.slice(0, 1, n + 1).reshape(shape)};
}
Pair placed_output(const Comparison& compare, const Shape& shape, DType dtype, bool askew) {
  if (!askew) return compare.output(shape, dtype);
  const int64_t n = shape.numel();
  const Pair wide = compare.output({n + 1}, dtype);
  return {wide.reference.slice(0, 1, n + 1).reshape(shape),
          wide.other.slice(0, 1, n + 1).reshape(shape)};
}

/// One instance of a norm.
struct NormCase {
  NormLayout layout;
  DType x = DType::F32, grad = DType::F32;
  Domain domain = Domain::Modest;
  const char *output = "fp32", *interior = "fp32";
  bool affine = true, centred = true, askew = false;

  Shape shape() const { return {layout.rows, layout.channels}; }
};

std::string text(const NormCase& c) {
  return "(" + std::to_string(c.layout.rows) + ", " + std::to_string(c.layout.channels) +
         "), span " + std::to_string(c.layout.span) + ", " + std::to_string(c.layout.groups) +
         " groups, x " + text(c.x) + ", g " + text(c.grad) + ", domain " +
         std::to_string(static_cast<int>(c.domain)) + ", output " + c.output + ", interior " +
         c.interior + (c.affine ? "" : ", no parameters") + (c.centred ? "" : ", no mean") +
         (c.askew ? ", askew" : "");
}

NormLayout batch(int64_t rows, int64_t channels) { return {rows, channels, rows, channels}; }

/// Types, domains, formats and interiors in turn over the layouts; each layout at least `kInstances` times.
std::vector<NormCase> norm_cases(const std::vector<NormLayout>& layouts, int64_t instances = 12) {
  std::vector<NormCase> all;
  uint32_t turn = 0;
  for (const NormLayout& layout : layouts)
    for (int64_t k = 0; k < instances; ++k, ++turn) {
      NormCase c;
      c.layout = layout;
      c.x = kFloats[turn % std::size(kFloats)];
      c.grad = kFloats[turn / 2 % std::size(kFloats)];
      c.domain = kDomains[turn / 3 % std::size(kDomains)];
      c.output = kRounding[turn % std::size(kRounding)];
      c.interior = turn % 3 == 0 ? kInteriors[turn / 3 % std::size(kInteriors)] : "fp32";
      c.affine = turn % 4 != 3;
      c.centred = turn % 5 != 4;
      c.askew = turn % 7 == 5;
      all.push_back(c);
    }
  return all;
}

const std::vector<NormLayout> kBatches = {batch(2, 1),       batch(3, 5),      batch(64, 16),
                                          batch(65, 17),     batch(513, 40),   batch(4096, 24),
                                          batch(4097, 16),   batch(8200, 3),   batch(9000, 33),
                                          batch(20000, 130), batch(300, 1000), batch(5, 70000)};
const std::vector<NormLayout> kGroups = {
    {0, 4, 1, 1},      {3, 1, 1, 1},        {7, 31, 1, 1},      {9, 32, 1, 1},   {5, 33, 1, 1},
    {6, 128, 1, 1},    {300, 100, 1, 4},    {5, 129, 1, 1},     {9, 1000, 1, 1}, {4, 1024, 1, 2},
    {3, 1025, 1, 1},   {2, 5000, 1, 1},     {2, 20000, 1, 2},   {12, 6, 4, 3},   {128, 16, 64, 4},
    {600, 12, 300, 1}, {2050, 32, 1025, 8}, {4200, 10, 2100, 2}};

struct Parameters {
  Pair weight, bias;
};
Parameters parameters_of(const Comparison& compare, const NormCase& c) {
  if (!c.affine) return {};
  const Shape channels{c.layout.channels};
  return {placed(compare, channels, c.x, Domain::Modest, 61, c.askew),
          placed(compare, channels, DType::F32, Domain::Modest, 62, c.askew)};
}

NormInterior interior_on(const NormCase& c, const Draws& draws, Side side) {
  return {Quantizer::parse(c.interior), draws.key(side, 0x2222)};
}

/// Statistics as a forward pass may leave them.
struct Statistics {
  Pair mean, inverse;
};
Statistics statistics_of(const Comparison& compare, const NormCase& c) {
  const Shape shape{c.layout.statistics()};
  Statistics s;
  if (c.centred) s.mean = placed(compare, shape, DType::F32, c.domain, 63, c.askew);
  s.inverse = placed(compare, shape, DType::F32, Domain::Modest, 64, c.askew);
  return s;
}

void check_batch_statistics(Comparison& compare) {
  const Draws draws(compare);
  for (const NormCase& c : norm_cases(kBatches))
    for (const bool evaluate : {false, true}) {
      if (!compare.takes(c.shape().numel())) continue;
      const Shape channels{c.layout.channels};
      const Pair x = placed(compare, c.shape(), c.x, c.domain, 60, c.askew);
      const Pair mean = compare.output(channels), inverse = compare.output(channels);
      Pair running_mean, running_variance;
      if (c.affine || evaluate) {
        running_mean = compare.input(channels, DType::F32, Domain::Modest, 65);
        running_variance = compare.input(channels, DType::F32, c.domain, 66);
      }
      compare.run(kernels::batch_statistics, [&](Side d) {
        BatchStatisticsArgs args{x.on(d), mean.on(d), inverse.on(d)};
        args.running_mean = running_mean.on(d);
        args.running_variance = running_variance.on(d);
        args.eps = 1e-3;
        args.momentum = 0.3;
        args.evaluate = evaluate;
        args.interior = interior_on(c, draws, d);
        return args;
      });
      const char* const how = evaluate ? ", running" : "";
      compare.same(mean, "means of ", text(c), how);
      compare.same(inverse, "inverse deviations of ", text(c), how);
      if (!running_mean.reference.defined()) continue;
      compare.same(running_mean, "running means of ", text(c), how);
      compare.same(running_variance, "running variances of ", text(c), how);
    }
}

void check_norm_apply(Comparison& compare) {
  const Draws draws(compare);
  for (const auto* layouts : {&kBatches, &kGroups})
    for (const NormCase& c : norm_cases(*layouts)) {
      if (!compare.takes(c.shape().numel())) continue;
      const Quantizer output = Quantizer::parse(c.output);
      const Pair x = placed(compare, c.shape(), c.x, c.domain, 60, c.askew);
      const Parameters p = parameters_of(compare, c);
      const Statistics s = statistics_of(compare, c);
      const Pair out = placed_output(compare, c.shape(), storage_type(output), c.askew);
      compare.run(kernels::norm_apply, [&](Side d) {
        return NormApplyArgs{
            x.on(d),      s.mean.on(d),        s.inverse.on(d), p.weight.on(d),
            p.bias.on(d), out.on(d),           c.layout,        interior_on(c, draws, d),
            output,       draws.key(d, 0x3333)};
      });
      compare.same(out, text(c));
    }
}

void check_group_norm(Comparison& compare) {
  const Draws draws(compare);
  for (const NormCase& c : norm_cases(kGroups)) {
    if (!compare.takes(c.shape().numel())) continue;
    const Quantizer output = Quantizer::parse(c.output);
    const Shape statistics{c.layout.statistics()};
    const Pair x = placed(compare, c.shape(), c.x, c.domain, 60, c.askew);
    const Parameters p = parameters_of(compare, c);
    const Pair out = placed_output(compare, c.shape(), storage_type(output), c.askew);
    Pair mean;
    if (c.centred) mean = compare.output(statistics);
    const Pair inverse = compare.output(statistics);
    compare.run(kernels::group_norm, [&](Side d) {
      return GroupNormArgs{x.on(d),
                           p.weight.on(d),
                           p.bias.on(d),
                           out.on(d),
                           mean.on(d),
                           inverse.on(d),
                           c.layout,
                           1e-3,
                           interior_on(c, draws, d),
                           output,
                           draws.key(d, 0x3333)};
    });
    compare.same(out, text(c));
    compare.same(inverse, "inverse deviations of ", text(c));
    if (c.centred) compare.same(mean, "means of ", text(c));
  }
}

void check_norm_sums(Comparison& compare) {
  const Draws draws(compare);
  for (const auto* layouts : {&kBatches, &kGroups})
    for (const NormCase& c : norm_cases(*layouts)) {
      if (!compare.takes(c.shape().numel())) continue;
      const Pair x = placed(compare, c.shape(), c.x, c.domain, 60, c.askew);
      const Pair g = placed(compare, c.shape(), c.grad, c.domain, 67, c.askew);
      const Statistics s = statistics_of(compare, c);
      const Pair grads = compare.output({c.layout.channels}),
                 products = compare.output({c.layout.channels});
      compare.run(kernels::norm_sums, [&](Side d) {
        return NormSumsArgs{x.on(d),     g.on(d),        s.mean.on(d), s.inverse.on(d),
                            grads.on(d), products.on(d), c.layout,     interior_on(c, draws, d)};
      });
      compare.same(grads, "sums of gradients of ", text(c));
      compare.same(products, "sums of products of ", text(c));
    }
}

void check_batch_norm_backward(Comparison& compare) {
  const Draws draws(compare);
  for (NormCase c : norm_cases(kBatches))
    for (const bool sums : {true, false}) {
      if (!compare.takes(c.shape().numel())) continue;
      c.centred = true;
      const Quantizer output = Quantizer::parse(c.output);
      const Pair x = placed(compare, c.shape(), c.x, c.domain, 60, c.askew);
      const Pair g = placed(compare, c.shape(), c.grad, c.domain, 67, c.askew);
      const Parameters p = parameters_of(compare, c);
      const Statistics s = statistics_of(compare, c);
      Pair grads, products;
      if (sums) {
        grads = placed(compare, {c.layout.channels}, DType::F32, c.domain, 68, c.askew);
        products = placed(compare, {c.layout.channels}, DType::F32, Domain::Modest, 69, c.askew);
      }
      const Pair out = placed_output(compare, c.shape(), storage_type(output), c.askew);
      compare.run(kernels::batch_norm_backward, [&](Side d) {
        return BatchNormBackwardArgs{x.on(d),
                                     g.on(d),
                                     s.mean.on(d),
                                     s.inverse.on(d),
                                     p.weight.on(d),
                                     grads.on(d),
                                     products.on(d),
                                     out.on(d),
                                     interior_on(c, draws, d),
                                     output,
                                     draws.key(d, 0x3333)};
      });
      compare.same(out, text(c), sums ? "" : ", fixed statistics");
    }
}

void check_group_norm_backward(Comparison& compare) {
  const Draws draws(compare);
  for (const NormCase& c : norm_cases(kGroups)) {
    if (!compare.takes(c.shape().numel())) continue;
    const Quantizer output = Quantizer::parse(c.output);
    const Pair x = placed(compare, c.shape(), c.x, c.domain, 60, c.askew);
    const Pair g = placed(compare, c.shape(), c.grad, c.domain, 67, c.askew);
    const Parameters p = parameters_of(compare, c);
    const Statistics s = statistics_of(compare, c);
    const Pair out = placed_output(compare, c.shape(), storage_type(output), c.askew);
    compare.run(kernels::group_norm_backward, [&](Side d) {
      return GroupNormBackwardArgs{x.on(d),        g.on(d),
                                   s.mean.on(d),   s.inverse.on(d),
                                   p.weight.on(d), out.on(d),
                                   c.layout,       interior_on(c, draws, d),
                                   output,         draws.key(d, 0x3333)};
    });
    compare.same(out, text(c));
  }
}

// ---- pools -----------------------------------------------------------------------------------------------------------

struct PoolCase {
  Shape image, pooled;
  PoolWindow window;
  DType type = DType::F32;
  Domain domain = Domain::Modest;
  const char* output = "fp32";
  bool askew = false;
};

std::string text(const PoolCase& c) {
  return to_string(c.image) + " to " + to_string(c.pooled) + ", window " +
         std::to_string(c.window.kernel_h) + "×" + std::to_string(c.window.kernel_w) + ", " +
         text(c.type) + ", domain " + std::to_string(static_cast<int>(c.domain)) + ", output " +
         c.output + (c.askew ? ", askew" : "");
}

int64_t windows(int64_t length, int64_t kernel, int64_t stride, int64_t padding, bool ceil) {
  const int64_t room = length + 2 * padding - kernel;
  const int64_t count = (ceil ? (room + stride - 1) / stride : room / stride) + 1;
  return ceil && (count - 1) * stride >= length + padding ? count - 1 : count;
}

std::vector<PoolCase> pool_cases() {
  const std::vector<Shape> images = {{1, 1, 1, 1},    {0, 4, 4, 3},   {2, 7, 5, 3},
                                     {3, 8, 8, 16},   {1, 32, 30, 5}, {2, 33, 31, 64},
                                     {5, 6, 6, 1030}, {1, 40, 1, 7}};
  const std::vector<PoolWindow> all = {{1, 1, 1, 1, 0, 0},  {2, 2, 2, 2, 0, 0}, {3, 3, 2, 2, 1, 1},
                                       {3, 1, 1, 1, 1, 0},  {2, 3, 3, 1, 1, 1}, {5, 4, 7, 6, 2, 0},
                                       {18, 17, 2, 3, 9, 8}};
  std::vector<PoolCase> cases;
  uint32_t turn = 0;
  for (const Shape& image : images)
    for (const PoolWindow& w : all)
      for (int k = 0; k < 4; ++k, ++turn) {
        const bool ceil = k % 2 == 1;
        if (image[1] + 2 * w.padding_h < w.kernel_h || image[2] + 2 * w.padding_w < w.kernel_w)
          continue;
        PoolCase c;
        c.image = image;
        c.window = w;
        c.pooled = {image[0], windows(image[1], w.kernel_h, w.stride_h, w.padding_h, ceil),
                    windows(image[2], w.kernel_w, w.stride_w, w.padding_w, ceil), image[3]};
        c.type = kFloats[turn % std::size(kFloats)];
        c.domain = kDomains[turn / 2 % std::size(kDomains)];
        c.output = kRounding[turn % std::size(kRounding)];
        c.askew = turn % 6 == 4;
        cases.push_back(c);
      }
  return cases;
}

/// Also the backward pass, whose places are those that the forward pass found.
void check_max_pool(Comparison& compare) {
  const Draws draws(compare);
  for (const PoolCase& c : pool_cases()) {
    if (!compare.takes(c.pooled.numel() * c.window.size())) continue;
    const Quantizer output = Quantizer::parse(c.output);
    const DType places = c.window.size() <= kMostByteIndices ? DType::U8 : DType::I32;
    const Pair in = placed(compare, c.image, c.type, c.domain, 81, c.askew);
    const Pair out = placed_output(compare, c.pooled, storage_type(output), c.askew);
    const Pair index = placed_output(compare, c.pooled, places, c.askew);
    compare.run(kernels::max_pool, [&](Side d) {
      return MaxPoolArgs{in.on(d), out.on(d), index.on(d), c.window, output, draws.key(d, 0x4444)};
    });
    compare.same(out, text(c));
    compare.same(index, "places of ", text(c));
    const Pair grad = placed(compare, c.pooled, c.type, c.domain, 82, c.askew);
    const Pair back = placed_output(compare, c.image, storage_type(output), c.askew);
    compare.run(kernels::max_pool_backward, [&](Side d) {
      return MaxPoolBackwardArgs{grad.on(d), index.on(d), back.on(d),
                                 c.window,   output,      draws.key(d, 0x5555)};
    });
    compare.same(back, "gradients of ", text(c));
  }
}

void check_average_pool(Comparison& compare) {
  const Draws draws(compare);
  for (const PoolCase& c : pool_cases())
    for (const PoolDivisor divisor : {PoolDivisor::Window, PoolDivisor::Inside}) {
      if (!compare.takes(c.pooled.numel() * c.window.size())) continue;
      const Quantizer output = Quantizer::parse(c.output);
      const char* const how = divisor == PoolDivisor::Inside ? ", padding not counted" : "";
      const Pair in = placed(compare, c.image, c.type, c.domain, 83, c.askew);
      const Pair out = placed_output(compare, c.pooled, storage_type(output), c.askew);
      compare.run(kernels::average_pool, [&](Side d) {
        return AveragePoolArgs{in.on(d), out.on(d), c.window,
                               divisor,  output,    draws.key(d, 0x4444)};
      });
      compare.same(out, text(c), how);
      const Pair grad = placed(compare, c.pooled, c.type, c.domain, 84, c.askew);
      const Pair back = placed_output(compare, c.image, storage_type(output), c.askew);
      compare.run(kernels::average_pool_backward, [&](Side d) {
        return AveragePoolBackwardArgs{grad.on(d), back.on(d), c.window,
                                       divisor,    output,     draws.key(d, 0x5555)};
      });
      compare.same(back, "gradients of ", text(c), how);
    }
}

void check_spread(Comparison& compare) {
  const Draws draws(compare);
  for (const Shape& shape :
       {Shape{0, 3, 4}, Shape{3, 0, 4}, Shape{1, 1, 1}, Shape{3, 7, 5}, Shape{5, 64, 128}})
    for (const DType type : kFloats)
      for (const char* format : kRounding)
        for (const bool askew : {false, true}) {
          if (!compare.takes(shape.numel())) continue;
          const Quantizer output = Quantizer::parse(format);
          const Pair grad = placed(compare, {shape[0], shape[2]}, type, Domain::Hard, 85, askew);
          const Pair out = placed_output(compare, shape, storage_type(output), askew);
          compare.run(kernels::spread, [&](Side d) {
            return SpreadArgs{grad.on(d), out.on(d), 1.0 / 3, output, draws.key(d, 0x4444)};
          });
          compare.same(out, to_string(shape), " ", text(type), " as ", std::string(format),
                       askew ? ", askew" : "");
        }
}

void check_dropout(Comparison& compare) {
  const Draws draws(compare);
  for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{7}, Shape{33, 65}, Shape{5, 4099}})
    for (const DType type : kFloats)
      for (const char* format : kRounding)
        for (const bool askew : {false, true})
          for (const uint32_t threshold : {0u, 0x40000001u, 0xFFFFFFFFu}) {
            if (!compare.takes(shape.numel())) continue;
            const Quantizer output = Quantizer::parse(format);
            const Pair in = placed(compare, shape, type, Domain::Hard, 86, askew);
            const Pair out = placed_output(compare, shape, storage_type(output), askew);
            compare.run(kernels::dropout, [&](Side d) {
              return DropoutArgs{
                  in.on(d), out.on(d),           threshold, 1.3, draws.key(d, 0x6666),
                  output,   draws.key(d, 0x4444)};
            });
            compare.same(out, to_string(shape), " ", text(type), " as ", std::string(format),
                         ", threshold ", threshold, askew ? ", askew" : "");
          }
}

}  // namespace

std::span<const KernelCase> norm_kernel_cases() {
  static constexpr KernelCase kAll[] = {{"batch_statistics", check_batch_statistics},
                                        {"norm_apply", check_norm_apply},
                                        {"group_norm", check_group_norm},
                                        {"norm_sums", check_norm_sums},
                                        {"batch_norm_backward", check_batch_norm_backward},
                                        {"group_norm_backward", check_group_norm_backward},
                                        {"max_pool", check_max_pool},
                                        {"max_pool_backward", nullptr, "max_pool"},
                                        {"average_pool", check_average_pool},
                                        {"average_pool_backward", nullptr, "average_pool"},
                                        {"spread", check_spread},
                                        {"dropout", check_dropout}};
  return kAll;
}

}  // namespace ulp::cases
