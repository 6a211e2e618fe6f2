#include "kernels/cpu/codes.h"

#include <algorithm>

#include "core/packed.h"
#include "kernels/cpu/isa.h"
#include "kernels/state_code.h"

namespace ulp::cpu {

// ---- bits -----------------------------------------------------------------------------------------------------------
namespace {

/// What a loop uses, copied to where stores of bytes cannot change it.
struct Copying {
  const uint32_t* codes;
  uint8_t* out;
  int64_t n;
};

void write_bytes(const uint32_t* codes, int64_t n, uint8_t* out) {
  with_isa([=]() ULP_INLINE {
    const Copying c{codes, out, n};
#pragma GCC ivdep
    for (int64_t i = 0; i < c.n; ++i) c.out[i] = static_cast<uint8_t>(c.codes[i]);
  });
}

void write_nibbles(const uint32_t* codes, int64_t n, uint8_t* out) {
  with_isa([=]() ULP_INLINE {
    const Copying c{codes, out, n / 2};
#pragma GCC ivdep
    for (int64_t i = 0; i < c.n; ++i)
      c.out[i] = static_cast<uint8_t>(c.codes[2 * i] | c.codes[2 * i + 1] << 4);
  });
  if (n % 2 != 0) out[n / 2] = static_cast<uint8_t>(codes[n - 1]);
}

void write_halves(const uint32_t* codes, int64_t n, uint8_t* out) {
  with_isa([=]() ULP_INLINE {
    const Copying c{codes, out, n / 2};
    // Two at a time: a word's bytes are those of two codes.
#pragma GCC ivdep
    for (int64_t i = 0; i < c.n; ++i) {
      const uint32_t both = c.codes[2 * i] | c.codes[2 * i + 1] << 16;
      __builtin_memcpy(c.out + 4 * i, &both, sizeof both);
    }
  });
  if (n % 2 != 0) {
    out[2 * n - 2] = static_cast<uint8_t>(codes[n - 1]);
    out[2 * n - 1] = static_cast<uint8_t>(codes[n - 1] >> 8);
  }
}

}  // namespace

void write_codes(const uint32_t* codes, int64_t n, int bits, uint8_t* out) {
  if (bits == 16) return write_halves(codes, n, out);
  if (bits == 8) return write_bytes(codes, n, out);
  if (bits == 4) return write_nibbles(codes, n, out);
  uint64_t waiting = 0;
  int count = 0;  // of bits waiting, < 32 between codes
  for (int64_t i = 0; i < n; ++i) {
    waiting |= uint64_t{codes[i]} << count;
    count += bits;
    if (count < 32) continue;
    for (int byte = 0; byte < 4; ++byte, waiting >>= 8) *out++ = static_cast<uint8_t>(waiting);
    count -= 32;
  }
  for (; count > 0; count -= 8, waiting >>= 8) *out++ = static_cast<uint8_t>(waiting);
}

namespace {

void read_bytes(const uint8_t* in, int64_t n, uint32_t* codes) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) codes[i] = in[i];
  });
}

void read_nibbles(const uint8_t* in, int64_t n, uint32_t* codes) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n / 2; ++i) {
      codes[2 * i] = in[i] & 15u;
      codes[2 * i + 1] = in[i] >> 4;
    }
  });
  if (n % 2 != 0) codes[n - 1] = in[n / 2] & 15u;
}

void read_halves(const uint8_t* in, int64_t n, uint32_t* codes) {
  with_isa([=]() ULP_INLINE {
    for (int64_t i = 0; i < n; ++i) {
      uint16_t code;
      __builtin_memcpy(&code, in + 2 * i, sizeof code);
      codes[i] = code;
    }
  });
}

}  // namespace

void read_codes(const uint8_t* in, int64_t n, int bits, uint32_t* codes) {
  if (bits == 16) return read_halves(in, n, codes);
  if (bits == 8) return read_bytes(in, n, codes);
  if (bits == 4) return read_nibbles(in, n, codes);
  const uint8_t* end = in + packed_bytes(n, bits);
  uint64_t waiting = 0;
  int count = 0;  // of bits waiting
  for (int64_t i = 0; i < n; ++i) {
    if (count < bits) {
      const int64_t bytes = std::min<int64_t>(4, end - in);
      for (int64_t byte = 0; byte < bytes; ++byte) waiting |= uint64_t{*in++} << (count + 8 * byte);
      count += 32;  // at the end fewer, but enough
    }
    codes[i] = static_cast<uint32_t>(waiting) & low_bits(bits);
    waiting >>= bits;
    count -= bits;
  }
}

// ---- elements -------------------------------------------------------------------------------------------------------
namespace {

template <CodeRule::Kind kKind>
void encode_as(const float* values, const float* scale, int64_t n, const CodeRule& rule,
               uint32_t* codes) {
  with_isa([=]() ULP_INLINE {
    CodeRule r = rule;
    r.kind = kKind;
    for (int64_t i = 0; i < n; ++i) codes[i] = encode_scaled(r, values[i], scale[i]);
  });
}

template <CodeRule::Kind kKind>
void decode_as(const uint32_t* codes, const float* scale, const float* factor, int64_t n,
               const CodeRule& rule, float* out) {
  with_isa([=]() ULP_INLINE {
    CodeRule r = rule;
    r.kind = kKind;
    for (int64_t i = 0; i < n; ++i) out[i] = decode_scaled(r, codes[i], scale[i], factor[i]);
  });
}

template <class Call>
void for_kind(CodeRule::Kind kind, Call call) {
  switch (kind) {
    case CodeRule::Kind::Float: return call.template operator()<CodeRule::Kind::Float>();
    case CodeRule::Kind::Integer: return call.template operator()<CodeRule::Kind::Integer>();
    case CodeRule::Kind::Posit: return call.template operator()<CodeRule::Kind::Posit>();
    case CodeRule::Kind::Table: return call.template operator()<CodeRule::Kind::Table>();
    case CodeRule::Kind::None: ULP_ASSERT(kind != CodeRule::Kind::None);
  }
}

template <CodeRule::Kind kKind>
void encode_numbers_as(const float* values, int64_t n, const CodeRule& rule, uint32_t* codes) {
  with_isa([=]() ULP_INLINE {
    CodeRule r = rule;
    r.kind = kKind;
    for (int64_t i = 0; i < n; ++i) codes[i] = number_code(r, values[i]);
  });
}

template <CodeRule::Kind kKind>
void decode_numbers_as(const uint32_t* codes, int64_t n, const CodeRule& rule, float* out) {
  with_isa([=]() ULP_INLINE {
    CodeRule r = rule;
    r.kind = kKind;
    for (int64_t i = 0; i < n; ++i) out[i] = decode(r, codes[i]);
  });
}

}  // namespace

void decode_numbers(const uint32_t* codes, int64_t n, const CodeRule& rule, float* out) {
  for_kind(rule.kind,
           [&]<CodeRule::Kind kKind>() { decode_numbers_as<kKind>(codes, n, rule, out); });
}

void encode_numbers(const float* values, int64_t n, const CodeRule& rule, uint32_t* codes) {
  for_kind(rule.kind,
           [&]<CodeRule::Kind kKind>() { encode_numbers_as<kKind>(values, n, rule, codes); });
}

void encode_span(const float* values, const float* scale, int64_t n, const CodeRule& rule,
                 uint32_t* codes) {
  for_kind(rule.kind,
           [&]<CodeRule::Kind kKind>() { encode_as<kKind>(values, scale, n, rule, codes); });
}

void decode_span(const uint32_t* codes, const float* scale, const float* factor, int64_t n,
                 const CodeRule& rule, float* out) {
  for_kind(rule.kind,
           [&]<CodeRule::Kind kKind>() { decode_as<kKind>(codes, scale, factor, n, rule, out); });
}

}  // namespace ulp::cpu
