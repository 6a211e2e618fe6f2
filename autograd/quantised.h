#pragma once

// What differentiable ops share: rounding operands and results by their role.

#include "autograd/tape.h"
#include "kernels/quantised.h"

namespace ulp::ops {

/// One role of an op on the tape: its quantizer and its random stream.
struct RoleUse {
  Tape& tape;
  RandomSite site;

  /// `in` as the role makes it, as a GEMM reads it; `in` itself if the role changes nothing. mask: as in QuantiseArgs.
  Operand operand(const Tensor& in, const Quantizer& quantizer, const char* role, int group_axis,
                  Side side, const Tensor& mask = {}) const;
  /// `in` as the role makes it, in a narrow type where there is one, to be kept.
  Tensor narrow(const Tensor& in, const Quantizer& quantizer, const char* role, int group_axis,
                const Tensor& mask = {}) const;
  /// `in` as the role makes it, in F32; `in` itself if the role changes nothing.
  Tensor result(const Tensor& in, const Quantizer& quantizer, const char* role,
                int group_axis) const;
  /// The same, in the type of results.
  Tensor kept(const Tensor& in, const Quantizer& quantizer, const char* role, int group_axis) const;
  /// The type of what a kernel makes of `in` and rounds itself: F64 of F64; the narrowest that holds the format, if the run
  /// keeps results so; else F32.
  DType result_type(const Tensor& in, const Quantizer& quantizer) const;
  /// What a kernel that rounds its own result gets: the quantizer if it is element-wise, else none. None too where roles are
  /// counted (autograd/role_stats.h): `after` rounds then, to the same bits.
  Quantizer fused(const Quantizer& quantizer) const {
    return fuses(quantizer) ? quantizer : Quantizer{};
  }
  QuantiseUse use_of(const Quantizer& quantizer, const char* role, int group_axis) const;
  /// The draw for a fused quantizer; none is taken if nothing is fused.
  RandomKey fused_key(const Quantizer& quantizer, const char* role) const;
  /// How a product keeps its sums, with the draws of a call.
  Sums sums(const Accumulator& accumulator, const char* role) const;
  /// Applies a quantizer that was not fused.
  Tensor after(const Tensor& in, const Quantizer& quantizer, const char* role,
               int group_axis) const {
    return fuses(quantizer) ? in : kept(in, quantizer, role, group_axis);
  }
  bool fuses(const Quantizer& quantizer) const {
    return quantizer.is_elementwise() && tape.run().role_stats() == nullptr;
  }
  /// Where a use of the role on this tensor is to be counted; undefined: nowhere.
  Tensor stats_for(const Tensor& in, const Quantizer& quantizer, const char* role) const;
  /// Counts a use of a role that changes nothing, if roles are counted.
  void count(const Tensor& in, const char* role) const;

 private:
  Tensor rounded(const Tensor& in, const Quantizer& quantizer, const char* role, int group_axis,
                 DType dtype, const Tensor& mask = {}) const;
};

/// Both uses of one tensor see the same values: one draw and one tensor serve both.
inline bool shares(const Quantizer& a, const Quantizer& b) {
  return a == b && !a.follows_reduction();
}

Tensor make_like(const Tensor& tensor);

/// The mask of a role with OpFormats::clamp_mask, to be filled by the operand; undefined where nothing is rounded or nobody asks.
/// Throws for a quantizer that has none (mask_misfit).
Tensor clamp_mask(const char* op, const Tensor& in, const Quantizer& quantizer, bool wanted);
/// g, 0 where the mask is 1, in F32; g itself without a mask.
Tensor unclamped(Stream stream, const Tensor& mask, const Tensor& g);

/// x itself if it is contiguous and F32 or F64, else its numbers so, in F32: for kernels that take no others.
Tensor wide(Stream stream, const Tensor& x);

}  // namespace ulp::ops
