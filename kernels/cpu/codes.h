#pragma once

// Codes of consecutive elements, at most kBlock at a time: their bits in a stream (core/packed.h), and what they stand for.

#include <array>
#include <cstdint>

#include "core/codes.h"
#include "kernels/cpu/blocks.h"

namespace ulp::cpu {

using CodeBuffer = std::array<uint32_t, kBlock>;
static_assert(kBlock % 8 == 0, "a chunk's codes fill whole bytes, whatever their size");

/// From a byte boundary on; the last byte is filled up with zeros.
void write_codes(const uint32_t* codes, int64_t n, int bits, uint8_t* out);
void read_codes(const uint8_t* in, int64_t n, int bits, uint32_t* codes);

/// encode_scaled and decode_scaled.
void encode_span(const float* values, const float* scale, int64_t n, const CodeRule& rule,
                 uint32_t* codes);
void decode_span(const uint32_t* codes, const float* scale, const float* factor, int64_t n,
                 const CodeRule& rule, float* out);

/// codes[i] = number_code(rule, values[i]) (kernels/state_code.h).
void encode_numbers(const float* values, int64_t n, const CodeRule& rule, uint32_t* codes);
/// out[i] = decode(rule, codes[i]).
void decode_numbers(const uint32_t* codes, int64_t n, const CodeRule& rule, float* out);

}  // namespace ulp::cpu
