#pragma once

#include <memory>
#include <span>

#include "nn/sequential.h"

namespace ulp::nn {

/// inputs → hidden… → classes with ReLU between: layers fc1, relu1, fc2 … . Every linear layer has the same formats.
/// Throws unless all sizes are at least 1.
std::unique_ptr<Sequential> mlp(int64_t inputs, std::span<const int64_t> hidden, int64_t classes,
                                const OpFormats& formats = {});

}  // namespace ulp::nn
