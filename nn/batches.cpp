#include "nn/batches.h"

#include <algorithm>
#include <numeric>

namespace ulp::nn {

Batches::Batches(Run& run, const Dataset& data, const Split& split, int64_t size)
    : run_(run), scale_(data.scale), size_(size) {
  ULP_CHECK(size >= 1, "batches: a batch has at least one sample, got {}", size);
  ULP_CHECK(split.labels.defined() && split.labels.numel() > 0, "batches: {} has no samples",
            data.name);
  for (int64_t i = 0; i < split.labels.numel(); ++i)
    ULP_CHECK(
        split.labels.data<int32_t>()[i] >= 0 && split.labels.data<int32_t>()[i] < data.classes,
        "batches: {}: label {} of sample {} is not in [0, {})", data.name,
        split.labels.data<int32_t>()[i], i, data.classes);
  images_ = split.images.to(run.device());
  labels_ = split.labels.to(run.device());
  size_ = std::min(size_, samples());
}

Batch Batches::empty_batch(int64_t n) const {
  return {Tensor::empty({n, images_.size(1)}, DType::F32, run_.device()),
          Tensor::empty({n}, DType::I32, run_.device())};
}

GatherRowsArgs Batches::gather_into(const Batch& batch) const {
  GatherRowsArgs args;
  args.in = images_;
  args.out = batch.images;
  args.scale = scale_;
  args.labels = labels_;
  args.out_labels = batch.labels;
  return args;
}

void Batches::shuffle(int64_t epoch, int64_t batch_offset) {
  ULP_CHECK(batch_offset >= 0 && batch_offset <= samples(),
            "batches: an epoch of {} samples has no batch at {}", samples(), batch_offset);
  // Fisher–Yates with word i of the epoch's draw for position i.
  std::vector<int32_t> order(static_cast<size_t>(samples()));
  std::iota(order.begin(), order.end(), 0);
  StepState state;
  state.random_step = static_cast<uint32_t>(epoch);
  const RandomSource random({run_.seed(), RandomSite("data").stream("shuffle"), 0, &state});
  for (uint64_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[(uint64_t{random.word(i)} * i) >> 32]);
  if (!order_.defined()) {
    order_ = Tensor::empty({samples()}, DType::I32, run_.device());
    run_.note_replaced();
  }
  copy_bytes(order_.mutable_raw(), run_.device(), order.data(), kCpu,
             static_cast<size_t>(order_.bytes()));
  StepState start = run_.state();
  start.batch_offset = batch_offset;
  run_.set_state(start);
}

Batch Batches::next() {
  ULP_CHECK(order_.defined(), "batches: no epoch was begun; call shuffle first");
  run_.mirror_state([size = size_, samples = samples()](StepState& state) {
    ULP_CHECK(state.batch_offset + size <= samples,
              "batches: the epoch has no further whole batch after {} of {} samples",
              state.batch_offset, samples);
    state.batch_offset += size;
  });
  const Batch batch = empty_batch(size_);
  GatherRowsArgs args = gather_into(batch);
  args.indices = order_;
  args.state = run_.device_state();
  kernels::gather_rows(run_.stream(), args);
  return batch;
}

Batches::Range Batches::shuffled(int64_t epoch) {
  shuffle(epoch);
  return {*this, Range::Order::Shuffled, steps()};
}

Batches::Range Batches::in_order() {
  return {*this, Range::Order::AsTheyStand, (samples() + size_ - 1) / size_};
}

Batch Batches::Range::Iterator::operator*() const {
  Batches& batches = *range_->batches_;
  if (range_->order_ == Order::Shuffled) return batches.next();
  const int64_t begin = at_ * batches.size();
  const Batch batch = batches.empty_batch(std::min(batches.size(), batches.samples() - begin));
  GatherRowsArgs args = batches.gather_into(batch);
  args.begin = begin;
  kernels::gather_rows(batches.run_.stream(), args);
  return batch;
}

}  // namespace ulp::nn
