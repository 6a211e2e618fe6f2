#include "tools/format_bits.h"

#include "core/codes.h"

namespace ulp::tools {

int element_bits(const Format& f) {
  const bool words =
      f.kind == FormatKind::BlockFloat || f.kind == FormatKind::Hbfp || f.kind == FormatKind::Fixed;
  return words ? f.word_bits : code_bits(f);
}

int scale_bits(const Quantizer& q) {
  if (q.block.kind == Block::Kind::None) return 0;
  if (q.scale.kind == Scale::Kind::Squeeze) return 64;  // a shift and a factor
  return q.scale.kind == Scale::Kind::F32 || q.scale.kind == Scale::Kind::Delayed ? 32 : 8;
}

std::optional<double> bits_per_element(const Quantizer& q) {
  const Block& block = q.block;
  const int bits = element_bits(q.format);
  switch (block.kind) {
    case Block::Kind::None: return bits;
    case Block::Kind::Group: return bits + static_cast<double>(scale_bits(q)) / block.columns;
    case Block::Kind::Tile:
      return bits + static_cast<double>(scale_bits(q)) / block.rows / block.columns;
    default: return std::nullopt;
  }
}

}  // namespace ulp::tools
