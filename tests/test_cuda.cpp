// Every kernel on the CPU and on CUDA, on the same inputs: the same bits. A row of kernels.h without a case here fails.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/convert.h"
#include "core/grid.h"
#include "core/random.h"
#include "core/step_state.h"
#include "core/storage.h"
#include "core/sum.h"
#include "kernels/kernels.h"
#include "kernels/pack.h"
#include "kernels/quantised.h"

namespace ulp {
namespace {

constexpr Device kGpu = cuda_device(0);

// ---- values ----------------------------------------------------------------------------------------------------------

enum class Domain {
  Modest,  // uniform in [−4, 4), some zeros
  Wide,    // finite, exponents −40 … 40
  Tiny,    // about 2^−75: products underflow, to −0 too
  Hard,    // Modest mixed with NaN, Inf, ±0, subnormals, format limits and random bits
  Few,     // −2, −1.5 … 2: ties
};

/// A reproducible stream of words.
class Words {
 public:
  explicit Words(uint64_t seed) {
    RandomKey key;
    key.seed = seed;
    source_ = RandomSource(key);
  }
  uint32_t next() { return source_.word(at_++); }
  uint32_t below(uint32_t n) { return next() % n; }

 private:
  RandomSource source_;
  uint64_t at_ = 0;
};

constexpr uint32_t kHardBits[] = {
    0x00000000, 0x80000000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000, 0x00000001,
    0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000, 0xBF800001,
    0x3F7FFFFF, 0x43E00000, 0x43E80000, 0x43E80001, 0x47600000, 0x47700000, 0xC7700000, 0x477FE000,
    0x477FF000, 0x40C00000, 0x40E00000, 0x33800000, 0x33000001, 0x3B000000, 0x7F000000, 0x00400000};

float draw(Domain domain, Words& words) {
  const uint32_t word = words.next();
  const float modest = (uniform01(word) - 0.5f) * 8.0f;
  switch (domain) {
    case Domain::Modest: return word % 16 == 0 ? 0.0f : modest;
    case Domain::Wide: return std::ldexp(modest, static_cast<int>(words.below(81)) - 40);
    case Domain::Tiny: return std::ldexp(modest, -75);
    case Domain::Few: return static_cast<float>(static_cast<int>(word % 9) - 4) * 0.5f;
    case Domain::Hard: break;
  }
  switch (words.below(4)) {
    case 0: return float_of(kHardBits[word % std::size(kHardBits)]);
    case 1: return float_of(word);
    default: return modest;
  }
}

const char* format_of(DType dtype) {
  switch (dtype) {
    case DType::BF16: return "bf16";
    case DType::F16: return "fp16";
    case DType::F8E4M3: return "e4m3";
    case DType::F8E5M2: return "e5m2";
    default: return "fp32";
  }
}

/// A CPU tensor. Small floats: the values rounded to the type; Hard ones are random codes half the time.
Tensor values(const Shape& shape, DType dtype, Domain domain, uint64_t seed) {
  Words words(seed);
  Tensor t = Tensor::empty(shape, dtype, kCpu);
  auto* bytes = static_cast<uint8_t*>(t.mutable_raw());
  const size_t width = size_of(dtype);
  const bool small_float = is_float_up_to_32(dtype) && dtype != DType::F32;
  const Grid grid = make_grid(Quantizer::parse(format_of(dtype)));
  for (int64_t i = 0; i < t.numel(); ++i) {
    const bool codes =
        !is_float_up_to_32(dtype) || (small_float && domain == Domain::Hard && words.below(2) == 0);
    if (codes) {
      for (size_t b = 0; b < width; ++b)
        bytes[static_cast<size_t>(i) * width + b] = static_cast<uint8_t>(words.next());
      continue;
    }
    const float x = draw(domain, words);
    if (small_float)
      store_float(bytes, dtype, i, quantise_value(x, grid, 0));
    else
      std::memcpy(bytes + i * 4, &x, 4);  // NaN payloads stay
  }
  return t;
}

// ---- both devices ----------------------------------------------------------------------------------------------------

/// The same tensor on both devices.
struct Pair {
  Tensor cpu, cuda;
  const Tensor& on(Device device) const { return device.type == DeviceType::Cpu ? cpu : cuda; }
};

Pair both(const Tensor& cpu) { return {cpu, cpu.to(kGpu)}; }

Pair input(const Shape& shape, DType dtype, Domain domain, uint64_t seed) {
  return both(values(shape, dtype, domain, seed));
}

/// Filled with a pattern, so that an element nobody wrote is seen.
Pair output(const Shape& shape, DType dtype = DType::F32) {
  Tensor t = Tensor::empty(shape, dtype, kCpu);
  std::memset(t.mutable_raw(), 0xCD, static_cast<size_t>(t.bytes()));
  Pair pair{t, t.to(kGpu)};
  return pair;
}

template <class View>
Pair view(const Pair& pair, View f) {
  return {f(pair.cpu), f(pair.cuda)};
}

/// Elements from 1 on: contiguous, but aligned to one element only.
Pair unaligned(const Pair& pair) {
  return view(pair, [](const Tensor& t) { return t.slice(0, 1, t.size(0)); });
}

Pair independent_copy(const Pair& pair) {
  Tensor cpu = Tensor::empty(pair.cpu.shape(), pair.cpu.dtype(), kCpu);
  std::memcpy(cpu.mutable_raw(), pair.cpu.raw(), static_cast<size_t>(cpu.bytes()));
  return both(cpu);
}

/// A step state in each device's memory.
Pair step_state(const StepState& state) {
  std::vector<uint8_t> bytes(sizeof state);
  std::memcpy(bytes.data(), &state, sizeof state);
  return both(Tensor::from(bytes, {static_cast<int64_t>(sizeof state)}));
}
const StepState* state_on(const Pair& state, Device device) {
  return static_cast<const StepState*>(state.on(device).raw());
}

StepState some_step() {
  StepState state;
  state.random_step = 77;
  state.loss_scale = 0.37f;
  return state;
}

RandomKey key_on(const Pair& state, Device device, uint32_t stream = 0x1234567) {
  RandomKey key;
  key.seed = 0x9876543210ABCDEF;
  key.stream = stream;
  key.ordinal = 3;
  key.state = state_on(state, device);
  return key;
}

/// Runs the kernel on both sides with what make(device) returns.
template <class Args, class Make>
void run(const Kernel<Args>& kernel, const Make& make) {
  for (const Device device : {kCpu, kGpu}) kernel(stream_of(device), make(device));
}

std::string hex(const uint8_t* bytes, size_t width) {
  std::string text = "0x";
  for (size_t b = width; b-- > 0;) {
    text += "0123456789ABCDEF"[bytes[b] >> 4];
    text += "0123456789ABCDEF"[bytes[b] & 15];
  }
  return text;
}

/// "" if every bit is the same, else where the first difference lies.
std::string difference(const Pair& pair) {
  const Tensor a = pair.cpu.to_cpu_contiguous(), b = pair.cuda.to(kCpu);
  const size_t width = size_of(a.dtype());
  const auto* x = static_cast<const uint8_t*>(a.raw());
  const auto* y = static_cast<const uint8_t*>(b.raw());
  int64_t wrong = 0;
  std::string first;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const size_t at = static_cast<size_t>(i) * width;
    if (std::memcmp(x + at, y + at, width) == 0) continue;
    if (wrong++ == 0)
      first = "element " + std::to_string(i) + " of " + to_string(a.shape()) + ": cpu " +
              hex(x + at, width) + ", cuda " + hex(y + at, width);
  }
  return wrong == 0 ? "" : first + " (" + std::to_string(wrong) + " differ)";
}

std::string text(DType dtype) { return std::string(to_string(dtype)); }

// ---- one case a kernel -----------------------------------------------------------------------------------------------

constexpr DType kFloats[] = {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2};

constexpr const char* kElementwiseFormats[] = {"e4m3",
                                               "e5m2",
                                               "e6m9",
                                               "e4m3-fnuz",
                                               "e5m2-sat",
                                               "e3m2",
                                               "e2m1",
                                               "bf16",
                                               "fp16",
                                               "tf32",
                                               "e8m7-none",
                                               "e5m2-ftz",
                                               "fixed8.4",
                                               "fixed8.4-sym",
                                               "fixed16.8-wrap",
                                               "fixed8.6-u",
                                               "fixed12.3-noclamp",
                                               "binary8p3",
                                               "binary8p4-finite-unsigned",
                                               "posit8.1",
                                               "posit16.2",
                                               "nf4",
                                               "pow2x6"};
constexpr const char* kBlockFormats[] = {"bfp8",
                                         "bfp8-axis0",
                                         "bfp8-axis1",
                                         "bfp8-g32",
                                         "bfp16-g5",
                                         "bfp8-t4x8",
                                         "hbfp8-g32",
                                         "mxfp8",
                                         "mxfp8-e5m2-rceil",
                                         "mxfp6-ceil",
                                         "mxfp6-e3m2-even",
                                         "mxfp4",
                                         "mxint8",
                                         "e4m3-t16x16",
                                         "e2m1-axis0-rceil",
                                         "nvfp4",
                                         "nvfp4-t16x16",
                                         "e2m1-g16-scalee4m3",
                                         "e4m3-g16-scalef32",
                                         "nf4-g64-scalef32",
                                         "e4m3-t16x16-scalef32",
                                         "e4m3+scale=current",
                                         "posit8.1+scale=row",
                                         "mxfp4+q34",
                                         "fixed8.4-g32-scalef32",
                                         "e5m2+scale=delayed3"};
constexpr const char* kRoundings[] = {"rne", "rna", "rnu", "rtz",  "ru",  "rd",
                                      "odd", "sr",  "sr4", "sr4f", "sr4c"};

/// The types that a format's values are kept in.
std::vector<DType> stores_of(const Quantizer& format) {
  std::vector<DType> types = {DType::F32};
  if (format.has_factor()) return types;
  for (const DType dtype : {storage_type(format), gemm_type(format)})
    if (std::find(types.begin(), types.end(), dtype) == types.end()) types.push_back(dtype);
  return types;
}

bool same_stats(const Pair& stats) {
  QuantiseStats a, b;
  const Tensor back = stats.cuda.to(kCpu);
  std::memcpy(&a, stats.cpu.raw(), sizeof a);
  std::memcpy(&b, back.raw(), sizeof b);
  const auto bits = [](double x) { return __builtin_bit_cast(uint64_t, x); };
  return a.count == b.count && a.overflow == b.overflow && a.underflow == b.underflow &&
         a.nan == b.nan && a.infinite == b.infinite && a.finite == b.finite &&
         a.amax_bits == b.amax_bits && bits(a.error) == bits(b.error) &&
         bits(a.square_error) == bits(b.square_error) && bits(a.square) == bits(b.square);
}

/// Two calls: delayed scaling takes the second scale from the first.
void quantise_once(const Quantizer& q, const Pair& in, DType store, bool with_mask,
                   int group_axis = 0) {
  INFO(to_string(q), " of ", text(in.cpu.dtype()), " ", to_string(in.cpu.shape()), " into ",
       text(store), ", group axis ", group_axis);
  const Pair state = step_state(some_step());
  const Pair out = output(in.cpu.shape(), store), mask = output(in.cpu.shape(), DType::U8);
  const bool delayed = q.scale.kind == Scale::Kind::Delayed;
  const Pair scaling = delayed ? both(fresh_scaling(q, kCpu)) : Pair{};
  const auto arguments = [&](Device d) {
    QuantiseArgs args{in.on(d), out.on(d), q, group_axis, key_on(state, d), {}};
    if (with_mask) args.mask = mask.on(d);
    if (delayed) args.scaling = scaling.on(d);
    return args;
  };
  for (int call = 0; call < (delayed ? 2 : 1); ++call) {
    run(kernels::quantise, arguments);
    CHECK(difference(out) == "");
    if (with_mask) CHECK(difference(mask) == "");
    if (delayed) CHECK(difference(scaling) == "");
  }
  const Pair stats = output({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8);
  run(kernels::quantise, [&](Device d) {
    QuantiseArgs args = arguments(d);
    args.stats = stats.on(d);
    return args;
  });
  CHECK(same_stats(stats));
  if (!q.has_factor()) return;
  const Pair values = output(in.cpu.shape(), gemm_type(q)),
             factors = output({factor_count(q, in.cpu.shape(), group_axis)});
  run(kernels::quantise, [&](Device d) {
    QuantiseArgs args = arguments(d);
    args.out = values.on(d);
    args.factors = factors.on(d);
    return args;
  });
  CHECK(difference(values) == "");
  CHECK(difference(factors) == "");
}

void check_quantise() {
  const Pair hard = input({61, 67}, DType::F32, Domain::Hard, 1);
  const Pair wide = input({61, 67}, DType::F32, Domain::Wide, 2);
  const Pair modest = input({61, 67}, DType::F32, Domain::Modest, 3);
  std::vector<std::string> formats(std::begin(kElementwiseFormats), std::end(kElementwiseFormats));
  formats.insert(formats.end(), std::begin(kBlockFormats), std::end(kBlockFormats));
  for (const std::string& format : formats)
    for (const char* rounding : kRoundings) {
      const Quantizer q = Quantizer::parse(format + ":" + rounding);
      for (const Pair& in : {hard, wide, modest})
        for (const DType store : stores_of(q))
          for (const bool mask : {false, true})
            for (const int axis : {0, 1})
              if (axis == 0 || q.follows_reduction()) quantise_once(q, in, store, mask, axis);
    }

  // Input types, ranks, and sizes that leave tails or nothing; blocks along every axis.
  const std::vector<Shape> shapes = {
      {},     {0},        {1},          {7},           {8},       {0, 5},   {5, 0},
      {1, 1}, {3, 7, 11}, {2, 3, 5, 9}, {4, 1, 8, 16}, {5, 2049}, {2049, 3}};
  for (const Shape& shape : shapes)
    for (const DType dtype : kFloats)
      for (const char* format :
           {"fp32", "e4m3", "e5m2:sr", "fixed8.4:sr4c", "bfp8", "bfp8-axis0:sr", "bfp8-axis1",
            "bfp8-g32:sr", "bfp16-g5:rnu", "mxfp4:sr", "e4m3-t2x3", "posit8.2:sr", "nf4",
            "nvfp4:sr", "e4m3-g5-scalef32", "e4m3+scale=row", "e5m2+scale=delayed2"}) {
        const Quantizer q = Quantizer::parse(format);
        if (q.block.kind == Block::Kind::Axis && q.block.axis >= shape.rank()) continue;
        for (int axis = 0; axis < std::max(1, shape.rank()); ++axis) {
          if (axis > 0 && !q.follows_reduction()) break;
          if (q.follows_reduction() && shape.rank() == 0) break;
          for (const Domain domain : {Domain::Modest, Domain::Hard})
            quantise_once(q, input(shape, dtype, domain, 4), storage_type(q), axis % 2 == 0, axis);
        }
      }

  // Unaligned input, output and mask, and a grid that strides.
  for (const char* format : {"e4m3:sr", "bfp8-g32:sr", "e5m2"})
    for (const DType dtype : kFloats) {
      const Quantizer q = Quantizer::parse(format);
      const Pair state = step_state(some_step());
      const Pair in = unaligned(input({4100}, dtype, Domain::Wide, 5));
      const Pair out = unaligned(output({4100}, storage_type(q)));
      const Pair mask = unaligned(output({4100}, DType::U8));
      run(kernels::quantise, [&](Device d) {
        return QuantiseArgs{in.on(d), out.on(d), q, 0, key_on(state, d), mask.on(d)};
      });
      INFO(std::string(format), " of unaligned ", text(dtype));
      CHECK(difference(out) == "");
      CHECK(difference(mask) == "");
    }
  const Pair large = input({17000003}, DType::F32, Domain::Wide, 6);
  quantise_once(Quantizer::parse("e4m3:sr"), large, DType::F8E4M3, true);
  quantise_once(Quantizer::parse("bfp8:sr"), large, DType::BF16, false);

  const Pair matrix = input({3, 4}, DType::F32, Domain::Modest, 7), out = output({3, 4});
  const auto quantise_on_gpu = [&](const char* format, int axis) {
    kernels::quantise(stream_of(kGpu),
                      {matrix.cuda, out.cuda, Quantizer::parse(format), axis, {}, {}});
  };
  CHECK_THROWS_WITH_AS(quantise_on_gpu("bfp8-axis2", 0), doctest::Contains("axis 2"), Error);
  CHECK_THROWS_WITH_AS(quantise_on_gpu("bfp8-g32", 5), doctest::Contains("(3, 4)"), Error);
}

/// Blocks in every layout that has a kernel of its own, some of them longer than a warp's or a thread block's share, with
/// tails of all kinds; and those that no layout takes.
void check_quantise_layouts() {
  struct Layout {
    Shape shape;
    int group_axis;
    std::vector<const char*> formats;
  };
  const std::vector<Layout> layouts = {
      {{64, 1024},
       1,
       {"bfp8-g1024", "bfp8-g4", "bfp8-g2", "mxfp8", "mxfp4", "nvfp4", "bfp8-axis0", "bfp8-axis1",
        "e4m3-g128-scalef32", "e4m3+scale=row", "mxint8-ceil"}},
      {{5, 4096}, 1, {"bfp8-g4096", "bfp8-g2048", "bfp8-axis0", "e4m3+scale=row", "hbfp8-g256"}},
      {{3, 5000}, 1, {"bfp8-g2048", "bfp8-g1024"}},
      {{48, 784},
       1,
       {"mxfp8", "bfp8-g512", "bfp8-g112", "bfp8-g1024", "e4m3-g128-scalef32", "bfp8-axis0",
        "nvfp4", "bfp8-g96"}},
      {{131, 96},
       0,
       {"mxfp8", "mxfp4+q34", "nvfp4", "bfp8-g100", "bfp8-g64", "bfp8-g17", "bfp8-axis0",
        "bfp8-axis1", "e4m3-g40-scalef32", "e4m3+scale=row"}},
      {{3, 70, 132}, 1, {"mxfp8", "bfp8-axis1", "bfp8-axis2", "bfp8-g200", "nvfp4-t16x16"}},
      {{3, 5, 1024}, 0, {"bfp8-axis1", "bfp8-axis0", "mxfp8", "bfp8-axis2"}},
      {{300007},
       0,
       {"bfp8", "e4m3+scale=current", "e5m2+scale=delayed2", "nvfp4", "mxfp8", "e4m3", "fixed8.6",
        "posit8.1", "nf4", "pow2x8", "bf16", "fixed8.4-u"}},
      {{1048576}, 0, {"bfp8", "nvfp4", "mxfp8", "e4m3", "fixed8.4-g32-scalef32", "nf4"}}};
  for (const Layout& layout : layouts)
    for (const char* format : layout.formats)
      for (const char* rounding : {"rne", "sr"}) {
        const Quantizer q = Quantizer::parse(std::string(format) + ":" + rounding);
        for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard}) {
          const Pair in = input(layout.shape, DType::F32, domain, 9);
          for (const DType store : stores_of(q))
            quantise_once(q, in, store, domain == Domain::Wide, layout.group_axis);
        }
        const Pair narrow = input(layout.shape, DType::BF16, Domain::Modest, 10);
        quantise_once(q, narrow, DType::F32, true, layout.group_axis);
      }

  // Unaligned, and in place.
  for (const char* format : {"mxfp8:sr", "bfp8", "e4m3", "bfp8-g1024"}) {
    const Quantizer q = Quantizer::parse(format);
    const Pair state = step_state(some_step());
    const Pair in = unaligned(input({4097}, DType::F32, Domain::Wide, 5));
    const Pair out = unaligned(output({4097}));
    const Pair same = independent_copy(in);
    run(kernels::quantise,
        [&](Device d) { return QuantiseArgs{in.on(d), out.on(d), q, 0, key_on(state, d), {}}; });
    run(kernels::quantise,
        [&](Device d) { return QuantiseArgs{same.on(d), same.on(d), q, 0, key_on(state, d), {}}; });
    INFO(std::string(format));
    CHECK(difference(out) == "");
    CHECK(difference(same) == "");
  }
}

/// Packed, on both devices: scales, codes and what they stand for.
void pack_once(const Quantizer& q, const Tensor& x, int group_axis, DType store, bool askew) {
  INFO("packed ", to_string(q), " of ", to_string(x), " kept as ", text(store), ", group axis ",
       group_axis, askew ? ", askew" : "");
  const auto put = [&](const Tensor& t) {  // askew: from element 1 on
    if (!askew) return both(t);
    const int64_t n = t.numel();
    Tensor wide = Tensor::empty({n + 1}, t.dtype(), kCpu);
    std::memcpy(static_cast<char*>(wide.mutable_raw()) + size_of(t.dtype()), t.raw(),
                static_cast<size_t>(t.bytes()));
    return view(both(wide),
                [&](const Tensor& w) { return w.slice(0, 1, n + 1).reshape(t.shape()); });
  };
  Tensor y = Tensor::empty(x.shape(), store, kCpu);
  QuantiseArgs args{x, y, q, group_axis, {}, {}};
  if (q.has_factor())
    args.factors = Tensor::empty({factor_count(q, x.shape(), group_axis)}, DType::F32, kCpu);
  kernels::quantise(stream_of(kCpu), args);
  const Pair values = put(y), from = put(x);
  const Pair factor = output({1}), no_code = output({8}, DType::U8);
  Pair scales;
  if (packed_scale(q) != PackedScale::None) {
    const int64_t blocks = make_block_map(q, x.shape(), group_axis).blocks;
    scales = output({blocks}, packed_scale(q) == PackedScale::Factor ? DType::F32 : DType::U8);
    run(kernels::pack_scales, [&](Device d) {
      return PackScalesArgs{from.on(d), scales.on(d), factor.on(d), q, group_axis, store};
    });
    CHECK(difference(scales) == "");
    CHECK(difference(factor) == "");
  }
  const int64_t bytes = packed_bytes(x.numel(), code_bits(q.format));
  const Pair codes = askew ? unaligned(output({bytes + 1}, DType::U8)) : output({bytes}, DType::U8);
  run(kernels::pack_codes, [&](Device d) {
    return PackCodesArgs{values.on(d), scales.on(d), codes.on(d), no_code.on(d), q, group_axis};
  });
  CHECK(difference(no_code) == "");
  const bool all_coded = *static_cast<const int64_t*>(no_code.cpu.raw()) == x.numel();
  if (!all_coded) return;  // the CPU stops there
  CHECK(difference(codes) == "");
  const Pair back = askew ? put(Tensor::zeros(x.shape(), DType::F32, kCpu)) : output(x.shape());
  run(kernels::unpack_codes, [&](Device d) {
    return UnpackCodesArgs{codes.on(d), scales.on(d), back.on(d), q, group_axis, 0.3f};
  });
  CHECK(difference(back) == "");
}

void check_pack() {
  const char* formats[] = {"e4m3",
                           "e5m2",
                           "fp32",
                           "fp16",
                           "bf16",
                           "e2m1",
                           "e2m3",
                           "e3m2",
                           "e4m3-fnuz",
                           "fixed8.4",
                           "fixed4.0-u",
                           "fixed6.2",
                           "fixed16.8",
                           "fixed5.2",
                           "posit8.1",
                           "posit6.2",
                           "nf4",
                           "pow2x6",
                           "binary8p3",
                           "bfp8",
                           "bfp6-g16",
                           "bfp4-g8",
                           "bfp16-g64",
                           "bfp8-axis0",
                           "bfp8-axis1",
                           "hbfp5-g32",
                           "hbfp7-t4x8",
                           "mxfp8",
                           "mxfp8-e5m2",
                           "mxfp6",
                           "mxfp6-e3m2",
                           "mxfp4",
                           "mxfp4+q34",
                           "mxint8",
                           "nvfp4",
                           "nvfp4-t16x16",
                           "e4m3-g12",
                           "e2m1-g16-scalee4m3",
                           "e4m3-g128-scalef32",
                           "nf4-g64-scalef32",
                           "e4m3+scale=current",
                           "e5m2+scale=row"};
  for (const char* format : formats)
    for (const char* rounding : {"rne", "sr"}) {
      Quantizer q = Quantizer::parse(format);
      if (!q.is_identity()) q = Quantizer::parse(std::string(format) + ":" + rounding);
      for (const Shape& shape : {Shape{40, 384}, Shape{3, 5, 7}, Shape{2, 1030}, Shape{0, 4}})
        for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
          for (const int axis : {0, shape.rank() - 1}) {
            if (axis == 0 && !q.follows_reduction() && shape.rank() > 1) continue;
            const Tensor x = values(shape, DType::F32, domain, 31);
            for (const bool askew : {false, true})
              pack_once(q, x, axis, q.has_factor() ? gemm_type(q) : storage_type(q), askew);
            pack_once(q, x, axis, DType::F32, false);
          }
    }

  // Through pack and unpack, and the message that names the element.
  const Tensor x = values({64, 128}, DType::F32, Domain::Modest, 32);
  Tensor y = Tensor::empty(x.shape(), DType::F32, kCpu);
  kernels::quantise(stream_of(kCpu), {x, y, "mxfp4", 1, {}, {}});
  const PackedTensor packed = pack({y.to(kGpu), x.to(kGpu), "mxfp4", 1});
  CHECK(packed.codes.device() == kGpu);
  CHECK(unpack(packed).to_floats() == y.to_floats());
  CHECK_THROWS_WITH_AS(pack({x.to(kGpu), x.to(kGpu), "mxfp4", 1, 1, "weights"}),
                       doctest::Contains("weights: element "), Error);
}

void check_rotate() {
  for (const Shape& shape :
       {Shape{64}, Shape{5}, Shape{0}, Shape{3, 0, 5}, Shape{37, 70}, Shape{3, 33, 50}})
    for (const DType dtype : kFloats)
      for (int axis = 0; axis < shape.rank(); ++axis)
        for (const int size : {16, 32})
          for (const bool inverse : {false, true}) {
            const Pair in = input(shape, dtype, inverse ? Domain::Hard : Domain::Modest, 8);
            const Pair out = output(shape);
            run(kernels::rotate, [&](Device d) {
              return RotateArgs{in.on(d), out.on(d), axis, size, -2, 99, inverse};
            });
            INFO("rotate ", to_string(shape), " along ", axis);
            CHECK(difference(out) == "");
          }
}

void check_scaled_add() {
  struct Extent {
    int64_t rows, columns;
  };
  const int64_t depth = 96;
  for (const Shape& shape : {Shape{1, 1}, Shape{37, 70}, Shape{0, 3}, Shape{128, 64}})
    for (const Extent& a : {Extent{0, 0}, Extent{1, 96}, Extent{1, 32}, Extent{16, 16}})
      for (const Extent& b : {Extent{0, 0}, Extent{128, 96}, Extent{1, 32}})
        for (const char* rounding : {"fp32", "e4m3:sr"}) {
          const auto factors = [&](const Extent& e, int64_t rows, uint64_t seed) {
            if (e.rows == 0) return Pair{};
            const int64_t count = ((rows + e.rows - 1) / e.rows) * (depth / e.columns);
            return input({count}, DType::F32, Domain::Modest, seed);
          };
          const Pair fa = factors(a, shape[0], 9), fb = factors(b, shape[1], 10);
          const Pair state = step_state(some_step());
          const Pair sums = input(shape, DType::F32, Domain::Hard, 11),
                     bias = input({shape[1]}, DType::BF16, Domain::Modest, 12), out = output(shape);
          for (const int64_t k : {0, 32, 64}) {
            run(kernels::scaled_add, [&](Device d) {
              ScaledAddArgs args;
              args.sums = sums.on(d);
              args.out = out.on(d);
              args.a_factors = {fa.on(d), std::max<int64_t>(1, a.rows),
                                std::max<int64_t>(1, a.columns)};
              args.b_factors = {fb.on(d), std::max<int64_t>(1, b.rows),
                                std::max<int64_t>(1, b.columns)};
              args.k = k;
              args.depth = depth;
              args.first = k == 0;
              args.last = k == 64;
              args.bias = bias.on(d);
              args.output = rounding;
              args.key = key_on(state, d);
              return args;
            });
            INFO("scaled_add ", to_string(shape), " at ", k, " into ", std::string(rounding));
            CHECK(difference(out) == "");
          }
        }
}

struct MatmulCase {
  int64_t m, k, n;
  DType a = DType::F32, b = DType::F32;
  Domain domain = Domain::Modest;
  int layout = 0;  // bits: 1 a transposed, 2 b transposed, 4 both sliced
  const char* output = "fp32";
  bool bias = false;
  bool factors = false;
};

/// A matrix that lies in memory as the case's layout says.
Pair operand(int64_t rows, int64_t columns, DType dtype, const MatmulCase& c, bool transposed,
             uint64_t seed) {
  const int64_t margin = (c.layout & 4) != 0 ? 3 : 0;
  Shape shape = {rows + margin, columns + 2 * margin};
  if (transposed) std::swap(shape[0], shape[1]);
  return view(input(shape, dtype, c.domain, seed), [&](Tensor t) {
    if (transposed) t = t.transpose(0, 1);
    return t.slice(0, margin, margin + rows).slice(1, margin, margin + columns);
  });
}

void matmul_once(const MatmulCase& c) {
  const Pair a = operand(c.m, c.k, c.a, c, (c.layout & 1) != 0, 11);
  const Pair b = operand(c.k, c.n, c.b, c, (c.layout & 2) != 0, 12);
  const Pair bias = input({c.n}, DType::F32, c.domain, 13);
  const Pair factors[] = {both(Tensor::from(std::vector<float>{0.3f}, {1})),
                          both(Tensor::from(std::vector<float>{-1.7f}, {1}))};
  const Pair out = output({c.m, c.n}), state = step_state(some_step());
  const Quantizer q = Quantizer::parse(c.output);
  const auto args_on = [&](Device d) {
    MatmulArgs args;
    args.a = a.on(d);
    args.b = b.on(d);
    args.out = out.on(d);
    if (c.bias) args.bias = bias.on(d);
    if (c.factors) args.a_factor = factors[0].on(d);
    if (c.factors && !c.bias) args.b_factor = factors[1].on(d);
    args.output = q;
    args.key = key_on(state, d);
    return args;
  };
  run(kernels::matmul, args_on);
  INFO("(", c.m, ", ", c.k, ") · (", c.k, ", ", c.n, "), ", text(c.a), " · ", text(c.b),
       ", layout ", c.layout, ", domain ", static_cast<int>(c.domain), ", bias ", c.bias,
       ", factors ", c.factors, ", output ", std::string(c.output));
  CHECK(difference(out) == "");
  const DType store = storage_type(q);
  if (store == DType::F32) return;
  MatmulArgs narrow = args_on(kGpu);  // the same values in the format's own type
  narrow.out = Tensor::empty({c.m, c.n}, store, kGpu);
  kernels::matmul(stream_of(kGpu), narrow);
  Tensor widened = Tensor::empty({c.m, c.n}, DType::F32, kGpu);
  kernels::copy(stream_of(kGpu), {narrow.out, widened});
  CHECK(difference({out.cpu, widened}) == "");
}

void check_matmul() {
  for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                   {5, 0, 7},
                                                                   {0, 5, 3},
                                                                   {3, 5, 0},
                                                                   {3, 1, 2},
                                                                   {17, 31, 33},
                                                                   {64, 64, 64},
                                                                   {65, 129, 130},
                                                                   {8, 4095, 11},
                                                                   {8, 4096, 11},
                                                                   {8, 4097, 11},
                                                                   {33, 10000, 65},
                                                                   {259, 515, 1031}})
    for (const bool bias : {false, true}) {
      MatmulCase c{m, k, n};
      c.bias = bias;
      matmul_once(c);
    }
  matmul_once({1600, 70, 1500});    // the large tile
  matmul_once({1536, 4200, 1536});  // the large tile carrying its sums from chunk to chunk
  // Every tile on a GPU of about 132 multiprocessors, and four neighbours at a time: rows and columns that end inside a
  // tile, k that ends inside a slice.
  for (const int layout : {0, 1, 2, 3})
    for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{{1500, 76, 1612},
                                                                     {828, 52, 788},
                                                                     {332, 76, 420},
                                                                     {92, 4, 44},
                                                                     {68, 4124, 36},
                                                                     {28, 20004, 16}})
      for (const auto& [a, b] : {std::pair{DType::F32, DType::F32},
                                 {DType::BF16, DType::F8E4M3},
                                 {DType::F8E5M2, DType::F32},
                                 {DType::F16, DType::F16}}) {
        MatmulCase c{m, k, n, a, b};
        c.layout = layout;
        matmul_once(c);
      }
  for (const Domain domain : {Domain::Hard, Domain::Tiny, Domain::Wide})
    for (const int64_t k : {1, 3, 15, 16, 17, 100}) {
      MatmulCase c{37, k, 70};
      c.domain = domain;
      matmul_once(c);
      c.bias = true;
      matmul_once(c);
    }
  for (const int layout : {1, 2, 3, 4, 5, 6, 7})
    for (const int64_t k : {40, 4100}) {
      MatmulCase c{67, k, 41};
      c.layout = layout;
      matmul_once(c);
    }
  for (const DType a : kFloats)
    for (const DType b : kFloats)
      for (const int layout : {0, 3, 7}) {
        MatmulCase c{35, 77, 66};
        c.a = a;
        c.b = b;
        c.layout = layout;
        matmul_once(c);
        c.domain = Domain::Hard;
        matmul_once(c);
      }
  for (const char* format :
       {"e4m3", "e5m2:sr", "bf16:sr4f", "fixed8.4:rnu", "fixed16.8-wrap", "e6m9:sr"})
    for (const bool bias : {false, true})
      for (const int64_t k : {50, 9000}) {
        MatmulCase c{45, k, 67};
        c.output = format;
        c.bias = bias;
        matmul_once(c);
        c.factors = true;
        matmul_once(c);
      }
}

void check_sum() {
  const auto once = [](int64_t outer, int64_t axis, int64_t inner, DType dtype, Domain domain,
                       bool shifted) {
    Pair in = input({outer * axis * inner + 1}, dtype, domain, 31);
    in = shifted ? unaligned(in)
                 : view(in, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
    const Pair out = output({outer, inner});
    run(kernels::sum, [&](Device d) {
      SumArgs args;
      args.in = in.on(d);
      args.out = out.on(d);
      args.outer = outer;
      args.axis = axis;
      args.inner = inner;
      args.factor = inner == 1 ? 1 : 1.0 / 3;
      return args;
    });
    INFO("(", outer, ", ", axis, ", ", inner, ") ", text(dtype), " domain ",
         static_cast<int>(domain));
    CHECK(difference(out) == "");
  };
  const std::vector<std::array<int64_t, 3>> shapes = {
      {1, 0, 1},      {3, 0, 5},     {0, 5, 3},    {2, 5, 0},     {1, 1, 1},      {4, 1, 6},
      {1, 31, 1},     {1, 32, 1},    {3, 33, 1},   {1, 63, 1},    {5, 64, 1},     {5, 65, 1},
      {3, 4095, 1},   {3, 4096, 1},  {3, 4097, 1}, {2, 10000, 1}, {1, 300001, 1}, {1, 1, 7},
      {2, 63, 33},    {1, 64, 32},   {2, 65, 31},  {1, 128, 515}, {2, 4096, 5},   {3, 4097, 5},
      {2, 10000, 37}, {1000, 10, 1}, {10, 1000, 3}};
  for (const auto& [outer, axis, inner] : shapes)
    for (const DType dtype : kFloats)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
        once(outer, axis, inner, dtype, domain, outer % 2 == 0);
  once(1, kSumChunk * kSumChunk + 5000, 1, DType::F32, Domain::Modest, false);  // three levels
}

Pair labels_for(int64_t rows, int64_t columns, uint64_t seed) {
  Words words(seed);
  std::vector<int32_t> labels(static_cast<size_t>(rows));
  for (int32_t& label : labels)
    label = static_cast<int32_t>(words.below(static_cast<uint32_t>(std::max<int64_t>(1, columns))));
  return both(Tensor::from(labels, {rows}));
}

const std::vector<Shape> kRows = {{0, 10}, {1, 1},  {3, 2},    {64, 10},  {7, 31},
                                  {7, 32}, {5, 33}, {3, 4096}, {2, 4097}, {2, 50001}};

/// Rows made of the values that decide a softmax's special cases.
Pair special_rows(int64_t columns) {
  const float inf = float_of(kInfinityBits), nan = float_of(kNanBits);
  const float patterns[][3] = {
      {-0.0f, -0.0f, -0.0f},  {-0.0f, 0.0f, -0.0f}, {0.0f, -0.0f, 0.0f},    {-inf, -inf, -inf},
      {inf, 1.0f, inf},       {-inf, 2.0f, -inf},   {1.0f, nan, inf},       {3e38f, -3e38f, 3e38f},
      {-200.0f, 0.0f, -0.0f}, {nan, nan, nan},      {1e-40f, -1e-40f, 0.0f}};
  std::vector<float> all;
  for (const auto& pattern : patterns)
    for (int64_t j = 0; j < columns; ++j) all.push_back(pattern[j % 3]);
  return both(Tensor::from(all, {static_cast<int64_t>(std::size(patterns)), columns}));
}

void check_log_softmax() {
  const Pair state = step_state(some_step());
  const auto once = [&](const Pair& in, const char* interior) {
    const int64_t rows = in.cpu.size(0);
    const Pair out = output(in.cpu.shape()), losses = output({rows});
    const Pair labels = labels_for(rows, in.cpu.size(1), 43);
    run(kernels::log_softmax, [&](Device d) {
      return LogSoftmaxArgs{in.on(d),         out.on(d),    Quantizer::parse(interior),
                            key_on(state, d), labels.on(d), losses.on(d)};
    });
    INFO(to_string(in.cpu.shape()), " interior ", std::string(interior));
    CHECK(difference(out) == "");
    CHECK(difference(losses) == "");
    run(kernels::log_softmax, [&](Device d) {
      return LogSoftmaxArgs{in.on(d), out.on(d), Quantizer::parse(interior), key_on(state, d)};
    });
    CHECK(difference(out) == "");
  };
  for (const char* interior :
       {"fp32", "e5m2", "bf16:sr", "fixed8.4:sr", "fixed8.-2", "e4m3:rtz", "e6m9:sr4c"}) {
    for (const Shape& shape : kRows)
      for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Few})
        once(input(shape, DType::F32, domain, 41), interior);
    for (const int64_t columns : {1, 2, 3, 40}) once(special_rows(columns), interior);
    once(input({300, 3}, DType::F32, Domain::Hard, 42), interior);
  }
}

void check_log_softmax_backward() {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard}) {
      const Pair grad = input(shape, DType::F32, domain, 51),
                 y = input(shape, DType::F32, domain, 52);
      const Pair out = output(shape);
      run(kernels::log_softmax_backward, [&](Device d) {
        return LogSoftmaxBackwardArgs{grad.on(d), y.on(d), out.on(d)};
      });
      INFO(to_string(shape), " domain ", static_cast<int>(domain));
      CHECK(difference(out) == "");
    }
}

void check_cross_entropy_backward() {
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Modest, Domain::Wide, Domain::Hard})
      for (const double alpha : {1.0, 1.0 / 3.0}) {
        const Pair log_probs = input(shape, DType::F32, domain, 71),
                   grad = input({1}, DType::F32, Domain::Modest, 72);
        const Pair labels = labels_for(shape[0], shape[1], 73), out = output(shape);
        run(kernels::cross_entropy_backward, [&](Device d) {
          return CrossEntropyBackwardArgs{log_probs.on(d), labels.on(d), grad.on(d), out.on(d),
                                          alpha};
        });
        INFO(to_string(shape), " alpha ", alpha);
        CHECK(difference(out) == "");
      }
}

void check_tally() {
  const auto once = [](const Pair& logits, float loss) {
    const int64_t rows = logits.cpu.size(0);
    for (const uint64_t seed : {81, 82, 83}) {
      const Pair labels =
          labels_for(rows, std::min<int64_t>(logits.cpu.size(1), seed == 81 ? 1 : 3), seed);
      ScoreTotals before;
      before.correct = 5;
      before.loss = 0.1;
      std::vector<uint8_t> bytes(sizeof before);
      std::memcpy(bytes.data(), &before, sizeof before);
      const Pair totals = both(Tensor::from(bytes, {sizeof before}));
      const Pair mean = both(Tensor::from(std::vector<float>{loss}, {}));
      for (int batch = 0; batch < 2; ++batch)
        run(kernels::tally, [&](Device d) {
          return TallyArgs{mean.on(d), logits.on(d), labels.on(d), totals.on(d)};
        });
      INFO(to_string(logits.cpu.shape()), " ", loss);
      CHECK(difference(totals) == "");
    }
  };
  for (const Shape& shape : kRows)
    for (const Domain domain : {Domain::Few, Domain::Modest})
      once(input(shape, DType::F32, domain, 84), 0.7f);
  for (const int64_t columns : {1, 2, 3, 40}) once(special_rows(columns), -INFINITY);
  once(input({500, 3}, DType::F32, Domain::Hard, 85), 1e-3f);
}

void check_copy() {
  const auto once = [](const Pair& in, DType to) {
    const Pair out = output(in.cpu.shape(), to);
    run(kernels::copy, [&](Device d) { return CopyArgs{in.on(d), out.on(d)}; });
    INFO(text(in.cpu.dtype()), " to ", text(to), " ", to_string(in.cpu.shape()));
    CHECK(difference(out) == "");
    for (const uint32_t found_inf : {1u, 0u}) {  // what is skipped is not written
      StepState step;
      step.found_inf = found_inf;
      const Pair state = step_state(step), kept = output(in.cpu.shape(), to);
      run(kernels::copy, [&](Device d) {
        return CopyArgs{in.on(d), kept.on(d), state_on(state, d)};
      });
      CHECK(difference(kept) == "");
    }
  };
  for (const DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                            DType::F8E5M2, DType::I32, DType::I8, DType::U8}) {
    const Pair cube = input({6, 35, 4, 9}, dtype, Domain::Hard, 91),
               matrix = input({67, 130}, dtype, Domain::Hard, 92);
    const std::vector<Pair> views = {
        matrix,
        cube,
        unaligned(input({1001}, dtype, Domain::Hard, 93)),
        input({}, dtype, Domain::Hard, 94),
        input({3, 0}, dtype, Domain::Hard, 95),
        view(matrix, [](const Tensor& t) { return t.transpose(0, 1); }),
        view(matrix, [](const Tensor& t) { return t.slice(1, 3, 4); }),
        view(matrix, [](const Tensor& t) { return t.slice(0, 5, 60).slice(1, 1, 99); }),
        view(cube, [](const Tensor& t) { return t.transpose(1, 3); }),
        view(cube,
             [](const Tensor& t) { return t.transpose(0, 2).slice(1, 4, 31).transpose(2, 3); })};
    for (const Pair& in : views) {
      once(in, dtype);
      if (is_float_up_to_32(dtype)) once(in, DType::F32);
    }
  }
}

void check_fill() {
  for (const DType dtype : {DType::F32, DType::F64})
    for (const int64_t n : {0, 1, 5, 4099})
      for (const double value : {0.0, -0.0, 1.0 / 3.0, 1e-42, std::nan("")}) {
        const Pair out = output({n}, dtype);
        run(kernels::fill, [&](Device d) { return FillArgs{out.on(d), value}; });
        INFO(text(dtype), " ", n, " ", value);
        CHECK(difference(out) == "");
      }
  const Pair state = step_state(some_step()), scale = output({1});
  run(kernels::fill, [&](Device d) { return FillArgs{scale.on(d), 0, state_on(state, d)}; });
  CHECK(difference(scale) == "");
  CHECK(scale.cpu.to_floats()[0] == 0.37f);
}

void check_uniform() {
  const Pair state = step_state(some_step());
  for (const int64_t n : {0, 1, 2, 3, 4, 5, 8, 9, 4099, 100000})
    for (const bool shifted : {false, true}) {
      const Pair whole = output({n + 1});
      const Pair out =
          shifted ? unaligned(whole)
                  : view(whole, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
      run(kernels::uniform, [&](Device d) {
        return UniformArgs{out.on(d), -0.3f, 1.7f, key_on(state, d)};
      });
      INFO(n);
      CHECK(difference(whole) == "");  // the element beside the slice too
    }
}

void check_gather_rows() {
  for (const DType dtype : {DType::U8, DType::F32})
    for (const int64_t width : {1, 3, 4, 10, 784})
      for (const int64_t rows : {0, 1, 65})
        for (const bool shifted : {false, true})
          for (const bool stateful : {false, true}) {
            Pair in = input({51, width}, dtype, Domain::Hard, 101);
            if (shifted) in = unaligned(in);
            const Pair indices = labels_for(rows + 20, 50, 102), out = output({rows, width});
            const Pair labels = labels_for(in.cpu.size(0), 10, 103),
                       out_labels = output({rows}, DType::I32);
            StepState step = some_step();
            step.batch_offset = 13;
            const Pair state = step_state(step);
            run(kernels::gather_rows, [&](Device d) {
              GatherRowsArgs args{in.on(d), indices.on(d), out.on(d), 1.0f / 255.0f};
              if (!stateful) return args;
              args.labels = labels.on(d);
              args.out_labels = out_labels.on(d);
              args.state = const_cast<StepState*>(state_on(state, d));
              return args;
            });
            INFO(text(dtype), " ", rows, " rows of ", width);
            CHECK(difference(out) == "");
            CHECK(difference(out_labels) == "");
            CHECK(difference(state) == "");
            if (rows > 50) continue;
            run(kernels::gather_rows, [&](Device d) {
              return GatherRowsArgs{in.on(d),         {}, out.on(d), 0.5f, labels.on(d),
                                    out_labels.on(d), 7};
            });
            CHECK(difference(out) == "");
            CHECK(difference(out_labels) == "");
          }
}

void check_advance_step() {
  for (const uint32_t found_inf : {0u, 1u}) {
    StepState step = some_step();
    step.found_inf = found_inf;
    const Pair state = step_state(step);
    const Pair updates = both(Tensor::from(std::vector<int32_t>{41}, {1}));
    run(kernels::advance_step, [&](Device d) {
      return AdvanceStepArgs{const_cast<StepState*>(state_on(state, d)), updates.on(d)};
    });
    CHECK(difference(state) == "");
    CHECK(difference(updates) == "");
  }
}

struct SgdCase {
  const char* weight = "fp32";
  const char* master = nullptr;    // nullptr: none
  const char* momentum = nullptr;  // nullptr: none
  const char* grad = "fp32";
  bool narrow = false;  // states in their format's own type
  bool nesterov = false, found_inf = false, shifted = false;
  float weight_decay = 0, grad_scaling = 1;
  int64_t n = 4099;
  int64_t copies = 1;  // parameters of one step, of n, n + 1, … elements
};

void sgd_once(const SgdCase& c) {
  StepState step = some_step();
  step.found_inf = c.found_inf ? 1 : 0;
  const Pair state = step_state(step);
  const auto quantizer = [](const char* format) {
    return format == nullptr ? Quantizer{} : Quantizer::parse(format);
  };
  const auto tensor = [&](const char* format, int64_t n, uint64_t seed) -> Pair {
    if (format == nullptr) return {};
    const DType dtype = c.narrow ? storage_type(quantizer(format)) : DType::F32;
    const Pair whole = input({n + 1}, dtype, Domain::Modest, seed);
    return c.shifted ? unaligned(whole)
                     : view(whole, [](const Tensor& t) { return t.slice(0, 0, t.size(0) - 1); });
  };
  struct States {
    Pair weight, master, momentum, grad;
  };
  std::vector<States> all;
  for (int64_t k = 0; k < c.copies; ++k) {
    const int64_t n = c.n + k;
    all.push_back({tensor(c.weight, n, 111), tensor(c.master, n, 112), tensor(c.momentum, n, 113),
                   input({n}, DType::F32, n % 2 == 0 ? Domain::Hard : Domain::Modest, 114)});
  }
  const Pair rates = both(Tensor::from(std::vector<float>{0.5f, 0.05f, 0.2f}, {3}));
  const Pair updates = both(Tensor::from(std::vector<int32_t>{c.nesterov ? 1 : 9}, {1}));
  run(kernels::sgd, [&](Device d) {
    SgdArgs args;
    uint32_t stream = 0;
    for (const States& s : all) {
      SgdParameter p;
      p.weight = s.weight.on(d);
      p.master = s.master.on(d);
      p.momentum = s.momentum.on(d);
      p.grad = s.grad.on(d);
      p.weight_key = key_on(state, d, ++stream);
      p.master_key = key_on(state, d, ++stream);
      p.grad_key = key_on(state, d, ++stream);
      p.momentum_key = key_on(state, d, ++stream);
      args.parameters.push_back(p);
    }
    args.weight_format = quantizer(c.weight);
    args.master_format = quantizer(c.master);
    args.grad_format = quantizer(c.grad);
    args.momentum_format = quantizer(c.momentum);
    args.grad_scaling = c.grad_scaling;
    args.momentum_coef = 0.9f;
    args.weight_decay = c.weight_decay;
    args.nesterov = c.nesterov;
    args.rates = rates.on(d);
    args.updates = updates.on(d);
    args.state = state_on(state, d);
    return args;
  });
  const auto name = [](const char* format) {
    return std::string(format == nullptr ? "none" : format);
  };
  INFO("weight ", name(c.weight), ", master ", name(c.master), ", momentum ", name(c.momentum),
       ", grad ", name(c.grad), ", narrow ", c.narrow, ", nesterov ", c.nesterov, ", decay ",
       c.weight_decay, ", found_inf ", c.found_inf, ", n ", c.n, ", copies ", c.copies);
  for (const States& s : all)
    for (const Pair* pair : {&s.weight, &s.master, &s.momentum}) {
      if (!pair->cpu.defined()) continue;
      CHECK(difference(*pair) == "");
    }
}

void check_sgd() {
  for (const char* master : {static_cast<const char*>(nullptr), "fp32", "bf16:sr"})
    for (const char* momentum : {static_cast<const char*>(nullptr), "fp32", "e5m2:sr", "bf16:sr4c"})
      for (const char* weight : {"fp32", "e4m3", "e5m2:sr", "fixed8.6:rnu"})
        for (const bool narrow : {false, true})
          for (const bool nesterov : {false, true})
            for (const float decay : {0.0f, 0.01f})
              for (const int64_t n : {0, 1, 4099, 2050}) {
                SgdCase c;
                c.weight = weight;
                c.master = master;
                c.momentum = momentum;
                c.grad = nesterov ? "e5m2:sr" : "fp32";
                c.narrow = narrow;
                c.nesterov = nesterov;
                c.weight_decay = decay;
                c.n = n;
                c.shifted = n == 2050;
                c.grad_scaling = decay > 0 ? 0.37f : 1.0f;
                sgd_once(c);
                if (n != 1) continue;
                c.found_inf = true;
                sgd_once(c);
              }
  for (const int64_t copies : {0, 2, 32, 33, 70}) {  // one launch takes 32
    SgdCase c;
    c.weight = "e4m3";
    c.master = "e6m9:sr";
    c.momentum = "bf16:sr";
    c.grad = "e5m2:sr";
    c.n = 2047;
    c.copies = copies;
    sgd_once(c);
  }
}

void check_elementwise(const Kernel<ElementwiseArgs>& kernel, size_t inputs) {
  const Pair state = step_state(some_step());
  const auto once = [&](const std::array<Pair, 2>& in, const Pair& out, const char* format,
                        double alpha) {
    run(kernel, [&](Device d) {
      ElementwiseArgs args;
      for (size_t k = 0; k < inputs; ++k) args.in[k] = in[k].on(d);
      args.out = out.on(d);
      args.alpha = alpha;
      args.output = Quantizer::parse(format);
      args.key = key_on(state, d);
      return args;
    });
    INFO(to_string(in[0].cpu), ", ", to_string(in[1].cpu), " to ", to_string(out.cpu), " as ",
         std::string(format));
    CHECK(difference(out) == "");
  };
  const std::vector<Shape> shapes = {{},     {0},      {1},       {5},         {8},
                                     {4099}, {33, 65}, {3, 5, 7}, {2, 3, 5, 7}};
  for (const Shape& shape : shapes)
    for (const Domain domain : {Domain::Hard, Domain::Modest, Domain::Wide})
      for (const char* format : {"fp32", "e4m3", "e5m2:sr", "fixed16.8-wrap:sr4f"})
        once({input(shape, DType::F32, domain, 121), input(shape, DType::F32, domain, 122)},
             output(shape), format, -0.7);
  for (const DType a : {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2,
                        DType::I32, DType::I8, DType::U8})
    for (const DType b : kFloats)
      for (const char* format : {"fp32", "bf16", "e5m2:sr", "e4m3:rtz"}) {
        const Pair x = input({1003}, a, Domain::Hard, 123), y = input({1003}, b, Domain::Hard, 124);
        const DType store = storage_type(Quantizer::parse(format));
        once({x, y}, output({1003}, store), format, 1.5);
        once({unaligned(x), unaligned(y)}, output({1002}, store), format, 1.5);
        once({unaligned(x), unaligned(y)}, unaligned(output({1003}, store)), format, 1.5);
        const Pair one = input({1}, b, Domain::Modest, 125);  // serves every element
        once({x, one}, output({1003}, store), format, 1.5);
        once({one, y}, output({1003}, store), format, 1.5);
      }
  // In place.
  const Pair x = independent_copy(input({2051}, DType::F32, Domain::Hard, 126));
  once({x, input({2051}, DType::F32, Domain::Hard, 127)}, x, "fp32", 0.5);

  const Tensor doubles = Tensor::zeros({3}, DType::F64, kGpu);
  CHECK_THROWS_WITH_AS(kernel(stream_of(kGpu), {{doubles, doubles}, doubles, 0, {}, {}}),
                       doctest::Contains("F64 is for the CPU's gradient checks"), Error);
  const Pair six = input({6}, DType::F32, Domain::Modest, 128), five = output({5});
  CHECK_THROWS_WITH_AS(kernel(stream_of(kGpu), {{six.cuda, six.cuda}, five.cuda, 0, {}, {}}),
                       doctest::Contains("(5)"), Error);
  CHECK_THROWS_WITH_AS(kernel(stream_of(kGpu), {{six.cpu, six.cpu}, output({6}).cuda, 0, {}, {}}),
                       doctest::Contains("cuda:0"), Error);
}

struct Case {
  std::string_view name;
  std::function<void()> run;
};

const std::vector<Case>& cases() {
#define ULP_ELEMENTWISE_CASE(name, Functor, inputs) \
  {#name, [] { check_elementwise(kernels::name, inputs); }},
  static const std::vector<Case> all = {{"quantise", check_quantise},
                                        {"pack_scales", [] {}},   // these three have
                                        {"pack_codes", [] {}},    // a test case
                                        {"unpack_codes", [] {}},  // of their own
                                        {"rotate", check_rotate},
                                        {"scaled_add", check_scaled_add},
                                        {"matmul", check_matmul},
                                        {"sum", check_sum},
                                        {"log_softmax", check_log_softmax},
                                        {"log_softmax_backward", check_log_softmax_backward},
                                        {"cross_entropy_backward", check_cross_entropy_backward},
                                        {"tally", check_tally},
                                        {"copy", check_copy},
                                        {"fill", check_fill},
                                        {"uniform", check_uniform},
                                        {"gather_rows", check_gather_rows},
                                        {"sgd", check_sgd},
                                        {"advance_step", check_advance_step},
                                        ULP_ELEMENTWISE_KERNELS(ULP_ELEMENTWISE_CASE)};
  return all;
}

}  // namespace

TEST_SUITE("cuda") {
  TEST_CASE("every kernel has a case") {
    for (const std::string_view name : kernels::kAllNames) {
      INFO(name);
      CHECK(std::count_if(cases().begin(), cases().end(),
                          [&](const Case& c) { return c.name == name; }) == 1);
    }
    CHECK(cases().size() == std::size(kernels::kAllNames));
  }

  TEST_CASE("every kernel gives the CPU's bits") {
    if (cuda_device_count() == 0) return;
    for (const Case& c : cases()) {
      INFO(c.name);
      c.run();
      synchronize(stream_of(kGpu));
    }
  }

  TEST_CASE("packing gives the CPU's bits") {
    if (cuda_device_count() == 0) return;
    check_pack();
  }

  TEST_CASE("quantise gives the CPU's bits in every layout of blocks") {
    if (cuda_device_count() == 0) return;
    check_quantise_layouts();
  }

  TEST_CASE("no kernel writes outside its tensors") {
    if (cuda_device_count() == 0) return;
    CHECK(guard_violations() == 0);
  }
}

}  // namespace ulp
