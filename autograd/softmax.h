#pragma once

// What ops of rows share.

#include "autograd/interior.h"

namespace ulp::ops {

/// Throws unless x is (…, C) with two axes at least and C ≥ 1.
void check_softmax_rows(const char* op, const Var& x);
/// Throws unless x is (N, C) with C ≥ 1.
void check_matrix_rows(const char* op, const Var& x);

/// A contiguous (…, C) seen as (N, C).
Tensor matrix_of(const Tensor& x);

/// Log-softmax of the rows of a contiguous (…, C); with labels also the loss of each row, see LogSoftmaxArgs.
Tensor log_softmax_of(const RoleUse& use, const Tensor& in, const Quantizer& interior,
                      const Tensor& labels = {}, const Tensor& losses = {});

}  // namespace ulp::ops
