#include "nn/batches.h"

#include <algorithm>
#include <numeric>

namespace ulp::nn {

Batches::Batches(Run& run, const Dataset& data, const Split& split, int64_t size)
    : run_(run), scale_(data.scale), size_(size) {
  ULP_CHECK(size >= 1, "batches: a batch has at least one sample, got {}", size);
  ULP_CHECK(split.labels.defined() && split.labels.numel() > 0, "batches: {} has no samples",
            data.name);
  images_ = split.images.to(run.device());
  labels_ = split.labels;
  size_ = std::min(size_, samples());
}

Batch Batches::gather(const std::vector<int32_t>& order, int64_t begin, int64_t end) const {
  const std::vector<int32_t> indices(order.begin() + begin, order.begin() + end);
  std::vector<int32_t> labels;
  for (const int32_t i : indices) labels.push_back(labels_.data<int32_t>()[i]);
  const int64_t n = end - begin;
  Batch batch{Tensor::empty({n, images_.size(1)}, DType::F32, run_.device()),
              Tensor::from(labels, {n}, run_.device())};
  kernels::gather_rows(run_.stream(),
                       {images_, Tensor::from(indices, {n}, run_.device()), batch.images, scale_});
  return batch;
}

Batches::Range Batches::in_order() const {
  std::vector<int32_t> order(static_cast<size_t>(samples()));
  std::iota(order.begin(), order.end(), 0);
  return {*this, std::move(order), (samples() + size_ - 1) / size_};
}

Batches::Range Batches::shuffled(int64_t epoch) const {
  // Fisher–Yates with word i of the epoch's draw for position i.
  Range range = in_order();
  std::vector<int32_t>& order = range.order_;
  StepState state;
  state.random_step = static_cast<uint32_t>(epoch);
  const RandomSource random({run_.seed(), RandomSite("data").stream("shuffle"), 0, &state});
  for (uint64_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[(uint64_t{random.word(i)} * i) >> 32]);
  range.count_ = steps();
  return range;
}

Batch Batches::Range::Iterator::operator*() const {
  const int64_t begin = at_ * range_->batches_->size();
  const int64_t end = std::min(begin + range_->batches_->size(), range_->batches_->samples());
  return range_->batches_->gather(range_->order_, begin, end);
}

}  // namespace ulp::nn
