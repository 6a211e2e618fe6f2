#include "autograd/misfit.h"

namespace ulp::ops {

std::string windows_misfit(const Quantizer& q) {
  const bool each = q.scale.kind == Scale::Kind::F32 && q.block.kind != Block::Kind::None &&
                    q.block.kind != Block::Kind::Tensor;
  if (q.transform.hadamard == 0 && !each) return "";
  return std::string(each ? "a factor for each block" : "a rotation") +
         " is for kernels of one pixel with stride 1, no padding and one group; for others give "
         "power-of-two scales (mx…, -gN), one scale for the tensor (+scale=current) or none";
}

std::string mask_misfit(const Quantizer& q) {
  if (q.transform.hadamard != 0)
    return to_string(q) + " rotates; a clamp mask is for the values themselves";
  const Format& f = q.format;
  const bool open = f.kind == FormatKind::Fixed && q.scale.kind == Scale::Kind::None &&
                    (f.overflow == Overflow::None || f.overflow == Overflow::Wrap);
  if (!open) return "";
  return to_string(q) + " has no bounds, so its clamp mask would hold nothing back; leave " +
         (f.overflow == Overflow::Wrap ? "-wrap or the mask out" : "-noclamp or the mask out");
}

std::string rotations_misfit(int a, int b) {
  if (a == b) return "";
  return "are rotated in groups of " + std::to_string(a) + " and " + std::to_string(b) +
         "; give both +rht" + std::to_string(a > b ? a : b) + " or neither";
}

std::string interior_misfit(const Quantizer& q) {
  if (q.is_elementwise()) return "";
  return "interior takes element-wise formats, got " + to_string(q) +
         "; blocks and scales are for inputs and results";
}

}  // namespace ulp::ops
