#include <map>
#include <mutex>
#include <utility>

#include "core/codebook.h"
#include "kernels/cuda/rounder.cuh"

namespace ulp::cuda {

const float* table_on(Device device, int table) {
  static std::mutex mutex;
  // Never freed: a program uses few tables, and the device may be gone before statics are.
  static auto& copies = *new std::map<std::pair<int, int>, Tensor>;
  const std::lock_guard lock(mutex);
  Tensor& copy = copies[{device.index, table}];
  if (!copy.defined()) {
    const std::vector<float>& values = codebook(table).values;
    copy = Tensor::from(values, {static_cast<int64_t>(values.size())}, device);
  }
  return copy.data<float>();
}

}  // namespace ulp::cuda
