#include "kernels/cpu/code_spans.h"

#include <array>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/random_words.h"

namespace ulp::cpu {
namespace {

using ByteBuffer = std::array<uint8_t, kBlock>;

/// body(begin, end, factor) for every run of n elements.
template <class Body>
ULP_HD void for_runs(int64_t n, RunFactors factors, const Body& body) {
  if (factors.run == 0) return body(0, n, 1.0f);
  for (int64_t begin = 0; begin < n; begin += factors.run) {
    const int64_t end = begin + factors.run;
    body(begin, end < n ? end : n, factors.each[begin / factors.run]);
  }
}

/// The roundings of FastCodes.
struct Way {
  bool cut, stochastic;
};

template <Way kWay>
ULP_HD uint32_t rounded_code(float x, const FastCodes& c, uint32_t word) {
  if constexpr (kWay.cut && kWay.stochastic) return fast::stochastic_cut_code(x, c, word);
  if constexpr (kWay.cut) return fast::nearest_cut_code(x, c);
  if constexpr (kWay.stochastic) return fast::stochastic_spaced_code(x, c, word);
  return fast::nearest_spaced_code(x, c);
}

template <Way kWay, class Code>
void write_as(const float* values, int64_t n, RunFactors factors, const FastCodes& given,
              const uint32_t* words, Code* out) {
  with_isa([=]() ULP_INLINE {
    const FastCodes codes = given;  // copies, which stores of bytes cannot change
    for_runs(n, factors, [=](int64_t begin, int64_t end, float factor) ULP_INLINE {
      const float* const x = values;
      const uint32_t* const word = words;
      Code* const to = out;
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i)
        to[i] = static_cast<Code>(
            rounded_code<kWay>(x[i] * factor, codes, kWay.stochastic ? word[i] : 0u));
    });
  });
}

template <class Code>
void write_spaced(const float* values, int64_t n, RunFactors factors, const FastCodes& codes,
                  const uint32_t* words, Code* out) {
  if (codes.stochastic)
    write_as<Way{false, true}>(values, n, factors, codes, words, out);
  else
    write_as<Way{false, false}>(values, n, factors, codes, words, out);
}

template <fast::Specials kSpecials, class Code>
ULP_HD void read_runs(const Code* in, int64_t n, RunFactors factors, const FastCodes& c,
                      float* out) {
  if (factors.run == 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = fast::number_of_code<kSpecials>(in[i], c);
    return;
  }
  for_runs(n, factors, [=](int64_t begin, int64_t end, float factor) ULP_INLINE {
    for (int64_t i = begin; i < end; ++i)
      out[i] = canonical(fast::number_of_code<kSpecials>(in[i], c) * factor);
  });
}

template <class Code>
void read_as(const Code* in, int64_t n, RunFactors factors, const FastCodes& codes, float* out) {
  with_isa([=]() ULP_INLINE {
    const FastCodes c = codes;
    const auto magnitude = static_cast<Code>(c.sign - 1u);
    Code most = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto code = static_cast<Code>(in[i] & magnitude);
      most = code > most ? code : most;
    }
    if (most < c.first_infinity && most < c.first_nan)
      read_runs<fast::Specials::Absent>(in, n, factors, c, out);
    else
      read_runs<fast::Specials::Possible>(in, n, factors, c, out);
  });
}

void write_nibbles(const uint8_t* codes, int64_t n, uint8_t* out) {
  with_isa([=]() ULP_INLINE {
    const uint8_t* const from = codes;
    uint8_t* const to = out;
    const int64_t count = (n + 1) / 2;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i)
      to[i] = static_cast<uint8_t>(from[2 * i] | from[2 * i + 1] << 4);
  });
}

void read_nibbles(const uint8_t* in, int64_t n, uint8_t* codes) {
  with_isa([=]() ULP_INLINE {
    const uint8_t* const from = in;
    uint8_t* const to = codes;
    const int64_t count = (n + 1) / 2;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      to[2 * i] = from[i] & 15u;
      to[2 * i + 1] = from[i] >> 4;
    }
  });
}

}  // namespace

void write_rounded(const float* values, int64_t n, RunFactors factors, const FastCodes& codes,
                   const RandomSource& random, int64_t index, uint8_t* out) {
  std::array<uint32_t, kBlock + kWordSlack> buffer;
  const uint32_t* words =
      codes.stochastic ? random_words(random, index, n, buffer.data()) : nullptr;
  if (codes.bits == 16) {
    auto* const to = reinterpret_cast<uint16_t*>(out);
    if (codes.grid.form != FastGrid::Form::CutBits)
      return write_spaced(values, n, factors, codes, words, to);
    return codes.stochastic ? write_as<Way{true, true}>(values, n, factors, codes, words, to)
                            : write_as<Way{true, false}>(values, n, factors, codes, words, to);
  }
  if (codes.bits == 8) return write_spaced(values, n, factors, codes, words, out);
  ByteBuffer bytes;
  write_spaced(values, n, factors, codes, words, bytes.data());
  if (n < kBlock) bytes[static_cast<size_t>(n)] = 0;
  write_nibbles(bytes.data(), n, out);
}

void read_numbers(const uint8_t* in, int64_t n, RunFactors factors, const FastCodes& codes,
                  float* out) {
  if (codes.bits == 16)
    return read_as(reinterpret_cast<const uint16_t*>(in), n, factors, codes, out);
  if (codes.bits == 8) return read_as(in, n, factors, codes, out);
  ByteBuffer bytes;
  read_nibbles(in, n, bytes.data());
  read_as(bytes.data(), n, factors, codes, out);
}

void multiply_runs(float* values, int64_t n, RunFactors factors) {
  with_isa([=]() ULP_INLINE {
    for_runs(n, factors, [=](int64_t begin, int64_t end, float factor) ULP_INLINE {
      for (int64_t i = begin; i < end; ++i) values[i] = canonical(values[i] * factor);
    });
  });
}

}  // namespace ulp::cpu
