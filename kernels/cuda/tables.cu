#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/codebook.h"
#include "core/codes.h"
#include "kernels/cuda/rounder.cuh"
#include "kernels/cuda/table_tree.cuh"

namespace ulp::cuda {
namespace {

/// Puts steps `next`, next + 1 … into the tree in order; Inf where there are no more.
void plant(std::vector<float>& tree, size_t node, const std::vector<float>& steps, size_t& next) {
  if (node >= tree.size()) return;
  plant(tree, 2 * node, steps, next);
  tree[node] = next < steps.size() ? steps[next] : float_of(kInfinityBits);
  ++next;
  plant(tree, 2 * node + 1, steps, next);
}

/// What TableTree says of steps; one less than there are numbers where the rounding draws.
std::vector<float> steps_of(const Quantizer& q) {
  if (q.rounding != Rounding::Stochastic) return staircase(make_grid(q));
  std::vector<float> steps = codebook(q.format.table).values;
  steps.pop_back();
  return steps;
}

}  // namespace

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

TableTree tree_on(Device device, const Quantizer& q) {
  const std::vector<float>& numbers = codebook(q.format.table).values;
  const bool stochastic = q.rounding == Rounding::Stochastic;
  TableTree tree;
  tree.size = static_cast<int32_t>(numbers.size());
  while (1 << tree.levels < tree.size) ++tree.levels;
  tree.lowest = numbers.front();
  tree.highest = numbers.back();
  static std::mutex mutex;
  // Never freed: see table_on.
  static auto& copies = *new std::map<std::tuple<int, int, Rounding>, Tensor>;
  const std::lock_guard lock(mutex);
  Tensor& copy = copies[{device.index, q.format.table, q.rounding}];
  const size_t nodes = size_t{1} << tree.levels;
  if (!copy.defined()) {
    std::vector<float> all(nodes);
    size_t next = 1;
    plant(all, 1, steps_of(q), next);
    for (size_t i = 0; stochastic && i < numbers.size(); ++i) {
      const float gap = i + 1 < numbers.size() ? numbers[i + 1] - numbers[i] : 0.0f;
      all.push_back(gap > 0x1p-90f && gap < 0x1p100f ? 0x1p32f / gap : float_of(kNanBits));
    }
    copy = Tensor::from(all, {static_cast<int64_t>(all.size())}, device);
  }
  tree.steps = copy.data<float>();
  tree.inverses = tree.steps + nodes;
  tree.numbers = table_on(device, q.format.table);
  return tree;
}

TableSteps steps_on(Device device, const Quantizer& q) {
  struct Copy {
    StepBuckets buckets;
    Tensor steps, starts;
  };
  static std::mutex mutex;
  // Never freed: see table_on.
  static auto& copies = *new std::map<std::tuple<int, int, Rounding>, Copy>;
  const std::lock_guard lock(mutex);
  Copy& copy = copies[{device.index, q.format.table, q.rounding}];
  if (!copy.starts.defined()) {
    const StepTable table = make_step_table(steps_of(q));
    copy.buckets = table.buckets;
    copy.steps = Tensor::from(table.steps, {StepBuckets::kSteps}, device);
    copy.starts = Tensor::empty({StepBuckets::kBuckets}, DType::U8, device);
    copy_bytes(copy.starts.mutable_raw(), device, table.starts.data(), kCpu, table.starts.size());
  }
  return {copy.steps.data<float>(), copy.starts.data<uint8_t>(), copy.buckets,
          static_cast<int32_t>(codebook(q.format.table).values.size())};
}

const float* code_numbers_on(Device device, const Format& format) {
  static std::mutex mutex;
  // Never freed: see table_on.
  static auto& copies = *new std::map<std::pair<int, std::string>, Tensor>;
  const std::lock_guard lock(mutex);
  Tensor& copy = copies[{device.index, to_string(format)}];
  if (!copy.defined()) {
    const CodeRule rule = make_code_rule(format);
    std::vector<float> numbers;
    for (uint32_t code = 0; code <= low_bits(rule.bits); ++code)
      numbers.push_back(decode(rule, code));
    copy = Tensor::from(numbers, {static_cast<int64_t>(numbers.size())}, device);
  }
  return copy.data<float>();
}

}  // namespace ulp::cuda
