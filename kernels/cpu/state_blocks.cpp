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

}  // namespace

StateBlocks::StateBlocks(const StoredState& state, const Quantizer& q, const RandomKey& key) {
  if (!state.defined()) return;
  Tensor data = state.data, scales = state.scales;
  data_ = data.mutable_raw();
  dtype_ = data.dtype();
  random_ = RandomSource(key);
  rounds_ = !q.is_identity();
  if (dtype_ == DType::U8) {
    code_ = make_code_rule(q.format);
    // Formulas are faster than look-ups where there are some.
    looks_up_ = code_.bits <= 8 &&
                (code_.kind == CodeRule::Kind::Posit || code_.kind == CodeRule::Kind::Table);
    for (uint32_t code = 0; looks_up_ && code <= low_bits(code_.bits); ++code)
      numbers_[code] = decode(code_, code);
  }
  if (q.is_elementwise()) {
    if (rounds_) grid_ = SpanGrid(make_grid(q), q);
    return;
  }
  group_ = q.block.columns;
  factors_ = scales.mutable_data<float>();
  rule_ = make_block_rule(q, DType::F32);
  element_ = make_grid(q);
  grid_ = SpanGrid(make_block_grid(q, rule_), q);
}

const float* StateBlocks::read(int64_t begin, int64_t n, float* buffer) const {
  if (dtype_ != DType::U8) return read_block(data_, dtype_, begin, n, buffer);
  const uint8_t* in = static_cast<const uint8_t*>(data_) + packed_bytes(begin, code_.bits);
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
  for (int64_t at = 0; group_ != 0 && at < n; at += group_) {
    const float factor = factors_[(begin + at) / group_];
    const int64_t end = std::min(n, at + group_);
    with_isa([=]() ULP_INLINE {
      for (int64_t i = at; i < end; ++i) buffer[i] = grouped_number(buffer[i], factor);
    });
  }
  return buffer;
}

void StateBlocks::write(float* values, int64_t begin, int64_t n, After after) const {
  if (group_ != 0) return write_groups(values, begin, n, after);
  CodeBuffer codes;
  uint32_t* const code = codes.data();
  const bool coded =
      dtype_ == DType::U8 && quantise_span_to_codes(values, values, n, grid_, random_, begin, code);
  if (!coded && rounds_) quantise_span(values, values, n, grid_, random_, begin);
  if (dtype_ != DType::U8) return write_block(data_, dtype_, begin, n, values);
  if (!coded) encode_numbers(values, n, code_, code);
  write_codes(code, n, code_.bits, static_cast<uint8_t*>(data_) + packed_bytes(begin, code_.bits));
}

void StateBlocks::write_groups(float* values, int64_t begin, int64_t n, After after) const {
  const int64_t whole = n / group_, groups = (n + group_ - 1) / group_;
  std::array<uint32_t, kMostGroups> amax;
  std::array<int32_t, kMostGroups> shift;
  std::array<float, kMostGroups> before, behind;
  amax_runs(values, whole * group_, group_, amax.data());
  if (groups > whole)
    amax[static_cast<size_t>(whole)] = amax_span(values + whole * group_, n - whole * group_, 0);
  make_steps(rule_, 1.0f, /*apart=*/true, groups, amax.data(), shift.data(), before.data(),
             behind.data());
  CodeBuffer codes;
  uint32_t* const code = codes.data();
  const bool table = grid_.steps != nullptr;  // whose blocks are the table's, times a factor
  if (table) {
    for (int64_t b = 0; b < groups; ++b)
      scale_span(values + b * group_, std::min(group_, n - b * group_),
                 before[static_cast<size_t>(b)]);
  }
  const bool coded =
      table && quantise_span_to_codes(values, values, n, grid_, random_, begin, code);
  const BlockSpan span{
      grid_,      element_, rule_, 1.0f, {amax.data(), shift.data(), before.data(), behind.data()},
      {group_, 0}};
  if (table && !coded) quantise_span(values, values, n, grid_, random_, begin);
  if (!table) quantise_block_span(values, values, n, span, random_, begin);
  if (!coded) encode_numbers(values, n, code_, code);
  for (int64_t b = 0; b < groups; ++b) {
    const float factor = block_scale(rule_, amax[static_cast<size_t>(b)], 1.0f).factor;
    factors_[begin / group_ + b] = factor;
    const int64_t first = b * group_, end = std::min(n, first + group_);
    if (factor != factor) std::fill(code + first, code + end, 0u);
    if (after == After::Dropped) continue;
    with_isa([=]() ULP_INLINE {
      for (int64_t i = first; i < end; ++i) values[i] = grouped_number(values[i], factor);
    });
  }
  write_codes(code, n, code_.bits, static_cast<uint8_t*>(data_) + packed_bytes(begin, code_.bits));
}

}  // namespace ulp::cpu
