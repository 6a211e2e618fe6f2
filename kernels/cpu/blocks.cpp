#include "kernels/cpu/blocks.h"

#include "core/convert.h"
#include "core/error.h"
#include "kernels/cpu/isa.h"

namespace ulp::cpu {
namespace {

template <class Code, class Decode>
void decode(const void* data, int64_t begin, int64_t n, float* out, Decode function) {
  const Code* codes = static_cast<const Code*>(data) + begin;
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) out[i] = function(codes[i]);
  });
}

template <class Code, class Encode>
void encode(void* data, int64_t begin, int64_t n, const float* in, Encode function) {
  Code* codes = static_cast<Code*>(data) + begin;
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<Code>(function(in[i]));
  });
}

/// Words of elements index … index + n − 1, from out[0] on. `out` has room for n + 8.
const uint32_t* random_words(const RandomSource& random, int64_t index, int64_t n, uint32_t* out) {
  const uint64_t first = static_cast<uint64_t>(index) / 4;
  const int64_t groups = (index + n + 3) / 4 - index / 4;
  with_isa([=]() ULP_INLINE {
    for (int64_t g = 0; g < groups; ++g) {
      const PhiloxWords w = random.words(first + static_cast<uint64_t>(g));
      out[4 * g] = w.word[0];
      out[4 * g + 1] = w.word[1];
      out[4 * g + 2] = w.word[2];
      out[4 * g + 3] = w.word[3];
    }
  });
  return out + index % 4;
}

/// A grid whose rare cases are known to be absent, so that the loop around it vectorises.
ULP_HD Grid plain(const Grid& grid) {
  Grid g = grid;
  g.kind = GridKind::Lattice;
  g.wrap_bits = 0;
  g.bits = RandomBits{};
  return g;
}

template <Rounding kMode>
void plain_span(const float* in, float* out, int64_t n, const Grid& grid, const uint32_t* words) {
  with_isa([=]() ULP_INLINE {
    const Grid g = plain(grid);
    for (int64_t i = 0; i < n; ++i)
      out[i] = quantise_value(in[i], g, kMode, kMode == Rounding::Stochastic ? words[i] : 0u);
  });
}

template <Rounding kMode>
void block_span(const float* in, float* out, int64_t n, const Grid& grid, const uint32_t* words,
                const BlockRule& rule, const uint32_t* amax) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) {
      Grid g = plain(grid);
      set_block(g, rule, amax[i]);
      const float y =
          quantise_value(in[i], g, kMode, kMode == Rounding::Stochastic ? words[i] : 0u);
      out[i] = float_of(select_bits(amax[i] >= kInfinityBits, kNanBits, bits_of(y)));
    }
  });
}

template <class Call>
void for_rounding(Rounding rounding, Call call) {
  switch (rounding) {
    case Rounding::NearestEven: return call.template operator()<Rounding::NearestEven>();
    case Rounding::NearestAway: return call.template operator()<Rounding::NearestAway>();
    case Rounding::NearestUp: return call.template operator()<Rounding::NearestUp>();
    case Rounding::TowardZero: return call.template operator()<Rounding::TowardZero>();
    case Rounding::Up: return call.template operator()<Rounding::Up>();
    case Rounding::Down: return call.template operator()<Rounding::Down>();
    case Rounding::Odd: return call.template operator()<Rounding::Odd>();
    case Rounding::Stochastic: return call.template operator()<Rounding::Stochastic>();
  }
}

}  // namespace

const float* read_block(const void* data, DType dtype, int64_t begin, int64_t n, float* buffer) {
  switch (dtype) {
    case DType::F32: return static_cast<const float*>(data) + begin;
    case DType::BF16:
      decode<uint16_t>(data, begin, n, buffer,
                       [](uint16_t c) ULP_INLINE { return bf16_to_float(c); });
      break;
    case DType::F16:
      decode<uint16_t>(data, begin, n, buffer,
                       [](uint16_t c) ULP_INLINE { return f16_to_float(c); });
      break;
    case DType::F8E4M3:
      decode<uint8_t>(data, begin, n, buffer,
                      [](uint8_t c) ULP_INLINE { return e4m3_to_float(c); });
      break;
    case DType::F8E5M2:
      decode<uint8_t>(data, begin, n, buffer,
                      [](uint8_t c) ULP_INLINE { return e5m2_to_float(c); });
      break;
    default:
      for (int64_t i = 0; i < n; ++i) buffer[i] = load_as_float(data, dtype, begin + i);
  }
  return buffer;
}

void write_block(void* data, DType dtype, int64_t begin, int64_t n, const float* values) {
  switch (dtype) {
    case DType::F32:
      encode<float>(data, begin, n, values, [](float v) ULP_INLINE { return canonical(v); });
      break;
    case DType::BF16:
      encode<uint16_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_bf16(v); });
      break;
    case DType::F16:
      encode<uint16_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_f16(v); });
      break;
    case DType::F8E4M3:
      encode<uint8_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_e4m3(v); });
      break;
    case DType::F8E5M2:
      encode<uint8_t>(data, begin, n, values, [](float v) ULP_INLINE { return float_to_e5m2(v); });
      break;
    default: throw_error("internal error: fp32 values cannot be written as {}", dtype);
  }
}

void quantise_span(const float* in, float* out, int64_t n, const Grid& grid,
                   const RandomSource& random, int64_t index, uint8_t* mask) {
  std::array<uint32_t, kBlock + 8> buffer;
  const bool stochastic = grid.rounding == Rounding::Stochastic;
  const uint32_t* words = stochastic ? random_words(random, index, n, buffer.data()) : nullptr;
  if (mask != nullptr || grid.kind != GridKind::Lattice || grid.wrap_bits > 0 ||
      grid.bits != RandomBits{}) {
    for (int64_t i = 0; i < n; ++i) {
      bool clamped = false;
      out[i] = quantise_value(in[i], grid, grid.rounding, stochastic ? words[i] : 0u, &clamped);
      if (mask != nullptr) mask[i] = clamped ? 1 : 0;
    }
    return;
  }
  for_rounding(grid.rounding,
               [&]<Rounding kMode>() { plain_span<kMode>(in, out, n, grid, words); });
}

void quantise_span_blocks(const float* in, float* out, int64_t n, const Grid& grid,
                          const BlockRule& rule, const RandomSource& random, int64_t index,
                          const uint32_t* amax) {
  std::array<uint32_t, kBlock + 8> buffer;
  const bool stochastic = grid.rounding == Rounding::Stochastic;
  const uint32_t* words = stochastic ? random_words(random, index, n, buffer.data()) : nullptr;
  if (grid.bits != RandomBits{}) {
    for (int64_t i = 0; i < n; ++i) {
      Grid g = grid;
      set_block(g, rule, amax[i]);
      out[i] = quantise_value(in[i], g, stochastic ? words[i] : 0u);
      if (amax[i] >= kInfinityBits) out[i] = float_of(kNanBits);
    }
    return;
  }
  for_rounding(grid.rounding,
               [&]<Rounding kMode>() { block_span<kMode>(in, out, n, grid, words, rule, amax); });
}

uint32_t amax_span(const float* in, int64_t n, uint32_t amax) {
  uint32_t result = amax;
  uint32_t* target = &result;
  with_isa([=]() ULP_INLINE {
    uint32_t most = *target;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t a = bits_of(in[i]) & ~kSignBit;
      most = a > most ? a : most;
    }
    *target = most;
  });
  return result;
}

BlockQuantiser::BlockQuantiser(const Quantizer& quantizer, const RandomKey& key)
    : active_(!quantizer.is_identity()) {
  ULP_CHECK(quantizer.is_elementwise(), "{}: block formats cannot be applied inside this kernel",
            quantizer);
  if (!active_) return;
  grid_ = make_grid(quantizer);
  random_ = RandomSource(key);
}

void check_output_type(const char* kernel, const Tensor& out, const Quantizer& quantizer) {
  ULP_CHECK(is_float_up_to_32(out.dtype()) && fits(quantizer, out.dtype()),
            "{}: {} values do not fit the output's {}", kernel, quantizer, out.dtype());
}

}  // namespace ulp::cpu
