#pragma once

#include <functional>
#include <vector>

namespace ulp::tests {

/// Kernels that no differentiable op runs; test_kernels.cpp runs the check of each row.
struct KernelRow {
  const char* name;
  std::function<void()> check;
};
const std::vector<KernelRow>& kernel_rows();

/// In test_augment.cpp.
void check_augment_rows();
/// In test_text.cpp.
void check_gather_windows();
/// In test_squeeze.cpp.
void check_squeeze_rows();

}  // namespace ulp::tests
