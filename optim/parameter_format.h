#pragma once

#include <string>

#include "autograd/tape.h"
#include "core/codebook.h"
#include "core/error.h"

namespace ulp::optim {

/// A state's format as one parameter has it: a vector has one axis, whatever axis is asked for.
inline Quantizer at_rank(Quantizer q, int rank) {
  if (q.block.kind == Block::Kind::Axis && rank == 1) q.block.axis = 0;
  return q;
}

/// Are there negative numbers among a format's?
inline bool has_negatives(const Format& format) {
  const bool table = format.kind == FormatKind::Codebook;
  return table ? codebook(format.table).values.front() < 0 : !format.is_unsigned;
}

/// Throws, naming the parameter, if its tensor lacks the format's axis.
inline void check_axis(const std::string& who, const Parameter& parameter, const char* what,
                       const Quantizer& q) {
  ULP_CHECK(q.block.kind != Block::Kind::Axis || parameter.value.rank() == 1 ||
                q.block.axis < parameter.value.rank(),
            "{}: the {} format {} needs axis {}, but {} has shape {}", who, what, q, q.block.axis,
            parameter.path, parameter.value.shape());
}

}  // namespace ulp::optim
