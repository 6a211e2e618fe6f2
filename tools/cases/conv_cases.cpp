// Cases of the kernels in kernels/conv.h.

#include <string>
#include <vector>

#include "kernels/conv.h"
#include "tools/cases/case_tools.h"

namespace ulp::cases {
namespace {

struct ConvCase {
  Windows windows;
  int64_t outputs = 1;  // of a group
  DType image = DType::F32, other = DType::F32;
  Domain domain = Domain::Modest;
  const char* output = "fp32";
  bool bias = false, factors = false;
  bool turned = false;     // the weight lies as (G, O, KH·KW, C)
  bool unaligned = false;  // the image begins one element late
  const char* sums = "fp32";
};

std::string text(const ConvCase& c) {
  const auto axis = [](const WindowAxis& a) {
    std::string all;
    for (const int64_t x : {a.in, a.out, a.taps, a.step, a.up, a.start, a.dilation})
      all += (all.empty() ? "" : " ") + std::to_string(x);
    return "(" + all + ")";
  };
  return std::to_string(c.windows.images) + " images, axes " + axis(c.windows.h) +
         axis(c.windows.w) + ", " + std::to_string(c.windows.groups) + " groups " +
         std::to_string(c.windows.channels) + " → " + std::to_string(c.outputs) + ", " +
         std::string(to_string(c.image)) + " · " + std::string(to_string(c.other)) + ", domain " +
         std::to_string(static_cast<int>(c.domain)) + ", output " + c.output +
         (c.bias ? ", bias" : "") + (c.factors ? ", factors" : "") + (c.turned ? ", turned" : "") +
         (c.unaligned ? ", unaligned" : "") + ", sums " + c.sums;
}

Pair image_of(const Comparison& compare, const Shape& shape, DType dtype, Domain domain,
              bool unaligned, uint64_t seed) {
  if (!unaligned) return compare.input(shape, dtype, domain, seed);
  return view(compare.input({shape.numel() + 1}, dtype, domain, seed),
              [&](const Tensor& t) { return t.slice(0, 1, t.size(0)).reshape(shape); });
}

RandomKey some_key() {
  RandomKey key;
  key.seed = 0x9876543210ABCDEF;
  key.stream = 0x7654321;
  key.ordinal = 2;
  return key;
}

/// Of Comparison::takes.
std::string kind_of(const ConvCase& c) { return c.sums == std::string("fp32") ? "" : c.sums; }

struct Shapes {
  Shape image, pixels;
  explicit Shapes(const ConvCase& c)
      : image{c.windows.images, c.windows.h.in, c.windows.w.in, c.windows.pixel()},
        pixels{c.windows.images, c.windows.h.out, c.windows.w.out, c.windows.groups * c.outputs} {}
};

void conv_once(Comparison& compare, const ConvCase& c) {
  const Windows& w = c.windows;
  if (!compare.takes(w.rows() * w.columns() * w.groups * c.outputs, kind_of(c))) return;
  const Shapes shapes(c);
  const Pair image = image_of(compare, shapes.image, c.image, c.domain, c.unaligned, 301);
  const Shape as_made = c.turned ? Shape{w.groups, c.outputs, w.taps(), w.channels}
                                 : Shape{w.groups, w.taps(), w.channels, c.outputs};
  const Pair weight = view(compare.input(as_made, c.other, c.domain, 302), [&](const Tensor& t) {
    return c.turned ? t.transpose(1, 2).transpose(2, 3) : t;
  });
  const Pair bias = compare.input({w.groups * c.outputs}, DType::F32, c.domain, 303);
  const Pair factors[] = {compare.both(Tensor::from(std::vector<float>{0.3f}, {1})),
                          compare.both(Tensor::from(std::vector<float>{-1.7f}, {1}))};
  const Pair out = compare.output(shapes.pixels);
  compare.run(kernels::conv, [&](Side d) {
    ConvArgs args;
    args.image = image.on(d);
    args.weight = weight.on(d);
    args.out = out.on(d);
    args.windows = w;
    args.output = Quantizer::parse(c.output);
    args.key = some_key();
    args.sums = {Accumulator(c.sums), some_key()};
    if (c.bias) args.bias = bias.on(d);
    if (c.factors) args.image_factor = factors[0].on(d);
    if (c.factors && !c.bias) args.weight_factor = factors[1].on(d);
    return args;
  });
  compare.same(out, text(c));
}

void weight_once(Comparison& compare, const ConvCase& c) {
  const Windows& w = c.windows;
  if (!compare.takes(w.rows() * w.columns() * w.groups * c.outputs, kind_of(c))) return;
  const Shapes shapes(c);
  const Pair image = image_of(compare, shapes.image, c.image, c.domain, c.unaligned, 311);
  const Pair grad = compare.input(shapes.pixels, c.other, c.domain, 312);
  const Pair factors[] = {compare.both(Tensor::from(std::vector<float>{0.3f}, {1})),
                          compare.both(Tensor::from(std::vector<float>{-1.7f}, {1}))};
  const Pair out = compare.output({w.groups * c.outputs, w.columns()});
  compare.run(kernels::conv_weight, [&](Side d) {
    ConvWeightArgs args;
    args.image = image.on(d);
    args.grad = grad.on(d);
    args.out = out.on(d);
    args.windows = w;
    args.output = Quantizer::parse(c.output);
    args.key = some_key();
    args.sums = {Accumulator(c.sums), some_key()};
    if (c.factors) args.image_factor = factors[0].on(d);
    if (c.factors && c.bias) args.grad_factor = factors[1].on(d);
    return args;
  });
  compare.same(out, text(c));
}

/// A convolution's axis: out follows from the rest.
WindowAxis plain(int64_t in, int64_t taps, int64_t stride, int64_t padding, int64_t dilation = 1) {
  return {in,      (in + 2 * padding - dilation * (taps - 1) - 1) / stride + 1,
          taps,    stride,
          1,       -padding,
          dilation};
}

Windows make(int64_t images, int64_t groups, int64_t channels, const WindowAxis& h,
             const WindowAxis& w) {
  return {images, groups, channels, h, w};
}

/// Windows and outputs of every kind, small ones first.
std::vector<ConvCase> geometries() {
  std::vector<ConvCase> all;
  const auto add = [&](const Windows& w, int64_t outputs) {
    ConvCase c;
    c.windows = w;
    c.outputs = outputs;
    all.push_back(c);
    c.windows = w.adjoint(outputs);  // as dx sees it
    c.outputs = w.channels;
    all.push_back(c);
  };
  add(make(1, 1, 1, plain(1, 1, 1, 0), plain(1, 1, 1, 0)), 1);
  add(make(0, 1, 3, plain(5, 3, 1, 1), plain(5, 3, 1, 1)), 4);
  add(make(2, 1, 3, plain(7, 3, 1, 1), plain(6, 3, 1, 1)), 5);
  add(make(3, 1, 1, plain(12, 5, 1, 2), plain(11, 5, 1, 2)), 6);
  add(make(2, 1, 8, plain(8, 3, 1, 1), plain(8, 3, 1, 1)), 16);
  add(make(2, 1, 16, plain(9, 3, 2, 1), plain(8, 3, 2, 1)), 24);
  add(make(2, 1, 5, plain(9, 2, 3, 0), plain(10, 4, 5, 1)),
      7);  // stride beyond kernel, even kernels
  add(make(2, 1, 4, plain(13, 3, 1, 2, 3), plain(12, 2, 2, 1, 4)), 9);
  add(make(2, 1, 20, plain(5, 1, 1, 0), plain(6, 1, 1, 0)), 33);
  add(make(2, 1, 20, plain(5, 1, 2, 0), plain(6, 1, 2, 1)), 12);
  add(make(2, 3, 8, plain(6, 3, 1, 1), plain(7, 3, 2, 1)), 4);
  add(make(2, 2, 2, plain(6, 3, 1, 1), plain(7, 3, 2, 1)), 3);     // narrow groups
  add(make(2, 70, 1, plain(6, 3, 1, 1), plain(7, 3, 1, 1)), 1);    // depthwise
  add(make(2, 33, 1, plain(6, 3, 2, 1), plain(7, 5, 2, 2)), 2);    // with a multiplier
  add(make(1, 1, 520, plain(4, 3, 1, 1), plain(4, 3, 1, 1)), 36);  // k beyond a chunk
  add(make(5, 1, 6, plain(33, 5, 1, 2), plain(34, 5, 1, 2)), 18);  // rows beyond a chunk
  add(make(5, 12, 1, plain(33, 3, 1, 1), plain(34, 3, 1, 1)), 1);
  add(make(2, 1, 64, plain(40, 3, 1, 1), plain(41, 3, 1, 1)), 128);  // large tiles
  return all;
}

constexpr DType kTypes[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2};

void for_each_case(Comparison& compare, void (*once)(Comparison&, const ConvCase&)) {
  const std::vector<ConvCase> all = geometries();
  for (ConvCase c : all) {
    once(compare, c);
    c.bias = c.turned = true;
    once(compare, c);
  }
  for (ConvCase c : all)
    for (const Domain domain : {Domain::Hard, Domain::Tiny, Domain::Wide}) {
      c.domain = domain;
      c.unaligned = domain == Domain::Tiny;
      once(compare, c);
    }
  for (size_t i = 2; i < all.size() - 1; i += 3)
    for (const DType image : kTypes)
      for (const DType other : kTypes) {
        ConvCase c = all[i];
        c.image = image;
        c.other = other;
        c.domain = Domain::Hard;
        c.turned = image != other;
        c.unaligned = image == DType::BF16;
        once(compare, c);
      }
  for (size_t i = 3; i < all.size() - 1; i += 4)
    for (const char* format : {"e4m3", "e5m2:sr", "bf16:sr4f", "fixed8.4:rnu", "e6m9:sr"})
      for (const bool bias : {false, true}) {
        ConvCase c = all[i];
        c.output = format;
        c.bias = bias;
        once(compare, c);
        c.factors = true;
        once(compare, c);
      }
  for (size_t i = 0; i < all.size() - 1; ++i) {  // groups of every size
    ConvCase c = all[i];
    c.sums = kSimulatedSums[i % std::size(kSimulatedSums)];
    once(compare, c);
    c.image = DType::BF16;
    c.other = DType::F8E5M2;
    c.domain = Domain::Hard;
    c.turned = c.bias = true;
    c.output = "e4m3";
    once(compare, c);
  }
}

void check_conv(Comparison& compare) { for_each_case(compare, conv_once); }
void check_conv_weight(Comparison& compare) { for_each_case(compare, weight_once); }

}  // namespace

std::span<const KernelCase> conv_kernel_cases() {
  static constexpr KernelCase kAll[] = {{"conv", check_conv}, {"conv_weight", check_conv_weight}};
  return kAll;
}

}  // namespace ulp::cases
