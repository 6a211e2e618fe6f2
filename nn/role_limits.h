#pragma once

#include <string>

#include "core/op_formats.h"

namespace ulp::nn {

/// What a module implements beside Module if its op refuses formats that other layers of its type take, so that a policy is
/// refused before anything is computed.
class RoleLimits {
 public:
  virtual ~RoleLimits() = default;
  /// Why a role of the module's op cannot have a format; empty if it can.
  virtual std::string misfit(const Role& role, const Quantizer& quantizer) const = 0;
};

}  // namespace ulp::nn
