#include "kernels/cpu/state_blocks.h"

#include <algorithm>

#include "core/packed.h"
#include "kernels/cpu/codes.h"
#include "kernels/cpu/isa.h"
#include "kernels/state_code.h"

namespace ulp::cpu {
namespace {

constexpr int64_t kLeastGroup = 4, kMostGroup = 256;
static_assert(kBlock % kMostGroup == 0, "a block holds whole groups");
constexpr int64_t kMostGroups = kBlock / kLeastGroup;

/// The codes that a native type's bytes are; none for fp32.
CodeRule native_rule(DType dtype) {
  switch (dtype) {
    case DType::BF16: return make_code_rule(float_format(8, 7));
    case DType::F16: return make_code_rule(float_format(5, 10));
    case DType::F8E4M3: return make_code_rule(float_format(4, 3));
    case DType::F8E5M2: return make_code_rule(float_format(5, 2));
    default: return {};
  }
}

}  // namespace

StateBlocks::StateBlocks(const StoredState& state, const Quantizer& q, const RandomKey& key) {
  if (!state.defined()) return;
  Tensor data = state.data, scales = state.scales;
  data_ = data.mutable_raw();
  dtype_ = data.dtype();
  random_ = RandomSource(key);
  rounds_ = !q.is_identity();
  code_ = dtype_ == DType::U8 ? make_code_rule(q.format) : native_rule(dtype_);
  if (dtype_ == DType::U8) {
    // Formulas are faster than look-ups where there are some.
    looks_up_ = code_.bits <= 8 &&
                (code_.kind == CodeRule::Kind::Posit || code_.kind == CodeRule::Kind::Table);
    for (uint32_t code = 0; looks_up_ && code <= low_bits(code_.bits); ++code)
      numbers_[code] = decode(code_, code);
  }
  if (!rounds_) return;
  element_ = make_grid(q);
  const FastCodes fast = make_fast_codes(element_, code_);
  const bool aligned = reinterpret_cast<uintptr_t>(data_) % 2 == 0;
  if (has_code_spans(fast) && (fast.bits < 16 || aligned)) fast_ = fast;
  if (q.is_elementwise()) {
    grid_ = SpanGrid(element_, q);
    return;
  }
  group_ = q.block.columns;
  factors_ = scales.mutable_data<float>();
  rule_ = make_block_rule(q, DType::F32);
  grid_ = SpanGrid(make_block_grid(q, rule_), q);
}

uint8_t* StateBlocks::bytes_from(int64_t begin) const {
  return static_cast<uint8_t*>(data_) + packed_bytes(begin, code_.bits);
}

const float* StateBlocks::read(int64_t begin, int64_t n, float* buffer) const {
  const RunFactors factors{group_, group_ == 0 ? nullptr : factors_ + begin / group_};
  if (fast_.possible && dtype_ != DType::BF16) {  // whose bytes are a number's upper half
    read_numbers(bytes_from(begin), n, factors, fast_, buffer);
    return buffer;
  }
  if (dtype_ != DType::U8) return read_block(data_, dtype_, begin, n, buffer);
  const uint8_t* in = bytes_from(begin);
  const float* numbers = numbers_.data();
  if (looks_up_ && code_.bits == 8) {
    with_isa([=]() ULP_INLINE {
      for (int64_t i = 0; i < n; ++i) buffer[i] = numbers[in[i]];
    });
  } else {
    CodeBuffer codes;
    read_codes(in, n, code_.bits, codes.data());
    const uint32_t* c = codes.data();
    if (looks_up_)
      with_isa([=]() ULP_INLINE {
        for (int64_t i = 0; i < n; ++i) buffer[i] = numbers[c[i]];
      });
    else
      decode_numbers(c, n, code_, buffer);
  }
  if (group_ != 0) multiply_runs(buffer, n, factors);
  return buffer;
}

float* StateBlocks::place(int64_t begin, float* buffer) const {
  return dtype_ == DType::F32 && !rounds_ && exists() ? static_cast<float*>(data_) + begin : buffer;
}

void StateBlocks::write(float* values, int64_t begin, int64_t n, After after) const {
  if (place(begin, nullptr) == values) return;
  if (group_ != 0) {
    write_groups(values, begin, n);
    if (after == After::Kept) read(begin, n, values);
    return;
  }
  // A NaN that has no code is kept as NaN.
  if (fast_.possible && (after == After::Dropped || fast_.nan != 0)) {
    write_rounded(values, n, {}, fast_, random_, begin, bytes_from(begin));
    if (after == After::Kept) read(begin, n, values);
    return;
  }
  if (dtype_ == DType::U8 && write_table_codes(values, begin, n)) {
    if (after == After::Kept) quantise_span(values, values, n, grid_, random_, begin);
    return;
  }
  if (rounds_) quantise_span(values, values, n, grid_, random_, begin);
  if (dtype_ != DType::U8) return write_block(data_, dtype_, begin, n, values);
  write_numbers(values, begin, n, {});
}

void StateBlocks::write_numbers(const float* values, int64_t begin, int64_t n,
                                RunFactors factors) const {
  CodeBuffer codes;
  encode_numbers(values, n, code_, codes.data());
  for (int64_t at = 0; factors.run != 0 && at < n; at += factors.run) {
    const float factor = factors.each[at / factors.run];
    for (int64_t i = at; i < std::min(n, at + factors.run); ++i)
      codes[static_cast<size_t>(i)] = grouped_code(codes[static_cast<size_t>(i)], factor);
  }
  write_codes(codes.data(), n, code_.bits, bytes_from(begin));
}

bool StateBlocks::write_table_codes(const float* values, int64_t begin, int64_t n) const {
  if (code_.bits == 8)
    return round_to_table_codes(values, n, grid_, random_, begin, bytes_from(begin));
  std::array<uint8_t, kBlock> bytes;
  if (!round_to_table_codes(values, n, grid_, random_, begin, bytes.data())) return false;
  CodeBuffer codes;
  std::copy_n(bytes.begin(), n, codes.begin());
  write_codes(codes.data(), n, code_.bits, bytes_from(begin));
  return true;
}

void StateBlocks::write_groups(float* values, int64_t begin, int64_t n) const {
  const int64_t whole = n / group_, groups = (n + group_ - 1) / group_;
  std::array<uint32_t, kMostGroups> amax;
  std::array<int32_t, kMostGroups> shift;
  std::array<float, kMostGroups> before, one;
  amax_runs(values, whole * group_, group_, amax.data());
  if (groups > whole)
    amax[static_cast<size_t>(whole)] = amax_span(values + whole * group_, n - whole * group_, 0);
  float* const factors = factors_ + begin / group_;
  make_steps(rule_, 1.0f, /*apart=*/false, groups, amax.data(), shift.data(), before.data(),
             factors);
  const RunFactors scale{group_, before.data()}, back{group_, factors};
  if (fast_.possible) {
    write_rounded(values, n, scale, fast_, random_, begin, bytes_from(begin));
    for (int64_t at = 0; at < n; at += group_)
      if (factors[at / group_] != factors[at / group_])
        std::fill_n(bytes_from(begin + at), packed_bytes(std::min(group_, n - at), code_.bits),
                    uint8_t{0});
  } else if (grid_.steps != nullptr) {  // a table's own grid, times a factor; NaN has the code 0
    multiply_runs(values, n, scale);
    if (write_table_codes(values, begin, n)) return;
    quantise_span(values, values, n, grid_, random_, begin);
    write_numbers(values, begin, n, back);
  } else {
    one.fill(1.0f);
    const BlockSpan span{
        grid_,      element_, rule_, 1.0f, {amax.data(), shift.data(), before.data(), one.data()},
        {group_, 0}};
    quantise_block_span(values, values, n, span, random_, begin);
    write_numbers(values, begin, n, back);
  }
}

}  // namespace ulp::cpu
