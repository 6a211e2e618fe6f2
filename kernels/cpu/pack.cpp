#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "core/packed.h"
#include "kernels/cpu/codes.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/spans.h"
#include "kernels/kernels.h"

namespace ulp::cpu {
namespace {

// ---- blocks ---------------------------------------------------------------------------------------------------------
/// Calls f(begin, end, block, step) for consecutive runs of [first, last): element i lies in block + (i − begin)·step.
template <class F>
void for_runs(const BlockMap& map, int64_t first, int64_t last, const F& f) {
  const bool along_axis = map.inner == 1;  // else within a row of inner elements
  const int64_t line = along_axis ? map.axis : map.inner;
  const int64_t step = along_axis ? map.group_step : map.inner_step;
  const int64_t unit = step == 0 ? line : along_axis ? map.group : map.columns;
  for (int64_t at = first; at < last;) {
    const int64_t line_begin = at / line * line, end = std::min(last, line_begin + line);
    const int64_t block = map.block_of(line_begin);
    if (unit == 1) {
      f(at, end, block + (at - line_begin) * step, step);
      at = end;
    }
    while (at < end) {
      const int64_t index = (at - line_begin) / unit;
      const int64_t run_end = std::min(end, line_begin + (index + 1) * unit);
      f(at, run_end, block + index * step, int64_t{0});
      at = run_end;
    }
  }
}

void raise(uint32_t& most, uint32_t amax) {
  std::atomic_ref<uint32_t> target(most);
  uint32_t seen = target.load(std::memory_order_relaxed);
  while (seen < amax && !target.compare_exchange_weak(seen, amax, std::memory_order_relaxed)) {
  }
}

/// The largest magnitude in each block, as bits. A maximum is the same in any order.
std::vector<uint32_t> block_amaxes(const Tensor& x, const BlockMap& map) {
  std::vector<uint32_t> amax(static_cast<size_t>(map.blocks), 0);
  parallel_for_units(x.numel(), kBlock, kGrain, [&](int64_t first, int64_t last) {
    BlockBuffer buffer;
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t end = std::min(last, begin + kBlock);
      const float* in = read_block(x.raw(), x.dtype(), begin, end - begin, buffer.data());
      for_runs(map, begin, end, [&](int64_t from, int64_t to, int64_t block, int64_t step) {
        uint32_t* own = amax.data() + block;
        if (step == 0) return raise(*own, amax_span(in + (from - begin), to - from, 0));
        for (int64_t i = from; i < to; ++i)
          raise(own[(i - from) * step], bits_of(in[i - begin]) & ~kSignBit);
      });
    }
  });
  return amax;
}

/// What the elements of a packed tensor are multiplied by, block by block.
class ScaleReader {
 public:
  ScaleReader(const Quantizer& how, const Tensor& scales, float factor, const BlockMap& map)
      : map_(map), kind_(packed_scale(how)), factor_(factor) {
    if (kind_ == PackedScale::None) return;
    if (kind_ == PackedScale::Factor) {
      factors_ = scales.data<float>();
      return;
    }
    codes_ = scales.data<uint8_t>();
    for (uint32_t code = 0; code < 256; ++code) table_[code] = scale_of_code(how, code);
  }

  /// Of the elements begin … end − 1. NaN in a block's factor is NaN in its scale.
  void read(int64_t begin, int64_t end, float* scale, float* factor) const {
    const int64_t n = end - begin;
    std::fill_n(factor, n, factor_);
    if (kind_ == PackedScale::None) {
      std::fill_n(scale, n, 1.0f);
    } else if (kind_ == PackedScale::Factor) {
      read_blocks(begin, end, factor, [&](int64_t block) { return factors_[block]; });
      for (int64_t i = 0; i < n; ++i) scale[i] = factor[i] != factor[i] ? factor[i] : 1.0f;
    } else {
      read_blocks(begin, end, scale, [&](int64_t block) { return table_[codes_[block]]; });
    }
  }

 private:
  template <class Number>
  void read_blocks(int64_t begin, int64_t end, float* out, const Number& number) const {
    for_runs(map_, begin, end, [&](int64_t from, int64_t to, int64_t block, int64_t step) {
      float* own = out + (from - begin);
      if (step == 0) return void(std::fill_n(own, to - from, number(block)));
      for (int64_t i = 0; i < to - from; ++i) own[i] = number(block + i * step);
    });
  }

  BlockMap map_;
  PackedScale kind_;
  float factor_;
  const float* factors_ = nullptr;
  const uint8_t* codes_ = nullptr;
  std::array<float, 256> table_{};
};

/// Packs the elements first … last − 1; `first` is a multiple of kBlock. Returns the first that has no code, or `last`;
/// those that have none become 0.
int64_t pack_range(const Tensor& values, const ScaleReader& scales, const CodeRule& rule,
                   uint8_t* out, int64_t first, int64_t last) {
  BlockBuffer buffer, scale, factor;
  CodeBuffer codes;
  int64_t first_bad = last;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t end = std::min(last, begin + kBlock), n = end - begin;
    const float* in = read_block(values.raw(), values.dtype(), begin, n, buffer.data());
    scales.read(begin, end, scale.data(), factor.data());
    encode_span(in, scale.data(), n, rule, codes.data());
    const auto bad = std::find(codes.data(), codes.data() + n, kNoCode);
    if (bad != codes.data() + n) {
      first_bad = std::min(first_bad, begin + (bad - codes.data()));
      std::replace(bad, codes.data() + n, kNoCode, 0u);
    }
    write_codes(codes.data(), n, rule.bits, out + packed_bytes(begin, rule.bits));
  }
  return first_bad;
}

void unpack_range(const uint8_t* in, const ScaleReader& scales, const CodeRule& rule, float* out,
                  int64_t first, int64_t last) {
  BlockBuffer scale, factor;
  CodeBuffer codes;
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t end = std::min(last, begin + kBlock), n = end - begin;
    read_codes(in + packed_bytes(begin, rule.bits), n, rule.bits, codes.data());
    scales.read(begin, end, scale.data(), factor.data());
    decode_span(codes.data(), scale.data(), factor.data(), n, rule, out + begin);
  }
}

}  // namespace

void pack_scales(Stream, const PackScalesArgs& args) {
  const BlockMap map = make_block_map(args.how, args.x.shape(), args.group_axis);
  const ScaleRule rule = make_scale_rule(args.how, args.stored);
  const std::vector<uint32_t> amax = block_amaxes(args.x, map);
  const uint32_t most = amax.empty() ? 0 : *std::max_element(amax.begin(), amax.end());
  const float tensor = tensor_scale(rule.block, most);
  Tensor scales = args.scales, factor = args.factor;
  *factor.mutable_data<float>() = tensor_factor(rule, tensor);
  if (rule.kind == PackedScale::Factor) {
    float* out = scales.mutable_data<float>();
    for (const uint32_t a : amax) *out++ = block_scale(rule.block, a, tensor).factor;
    return;
  }
  uint8_t* out = scales.mutable_data<uint8_t>();
  parallel_for(map.blocks, kGrain / 16, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      out[b] = static_cast<uint8_t>(scale_code(rule, amax[static_cast<size_t>(b)], tensor));
  });
}

void pack_codes(Stream, const PackCodesArgs& args) {
  const int64_t n = args.values.numel();
  const BlockMap map = make_block_map(args.how, args.values.shape(), args.group_axis);
  const CodeRule rule = make_code_rule(args.how.format);
  const ScaleReader scales(args.how, args.scales, 1, map);
  Tensor codes = args.codes, no_code = args.no_code;
  uint8_t* out = codes.mutable_data<uint8_t>();
  std::atomic<int64_t> bad{n};
  parallel_for_units(n, kBlock, kGrain, [&](int64_t first, int64_t last) {
    const int64_t own = pack_range(args.values, scales, rule, out, first, last);
    int64_t seen = bad.load();
    while (own < last && own < seen && !bad.compare_exchange_weak(seen, own)) {
    }
  });
  *static_cast<int64_t*>(no_code.mutable_raw()) = bad;
}

void unpack_codes(Stream, const UnpackCodesArgs& args) {
  const BlockMap map = make_block_map(args.how, args.values.shape(), args.group_axis);
  const CodeRule rule = make_code_rule(args.how.format);
  const float factor =
      args.device_factor.defined() ? *args.device_factor.data<float>() : args.factor;
  const ScaleReader scales(args.how, args.scales, factor, map);
  const uint8_t* in = args.codes.data<uint8_t>();
  Tensor values = args.values;
  float* out = values.mutable_data<float>();
  parallel_for_units(values.numel(), kBlock, kGrain, [&](int64_t first, int64_t last) {
    unpack_range(in, scales, rule, out, first, last);
  });
}

}  // namespace ulp::cpu
