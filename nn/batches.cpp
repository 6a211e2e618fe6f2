#include "nn/batches.h"

#include <algorithm>
#include <numeric>

#include "core/arena.h"
#include "kernels/embedding.h"
#include "nn/augmentation.h"

namespace ulp::nn {
namespace {

void check_labels(const Dataset& data, const Split& split) {
  ULP_CHECK(split.labels.defined() && split.labels.numel() > 0, "batches: {} has no samples",
            data.name);
  const int32_t* labels = split.labels.data<int32_t>();
  for (int64_t i = 0; i < split.labels.numel(); ++i)
    ULP_CHECK(labels[i] >= 0 && labels[i] < data.classes,
              "batches: {}: label {} of sample {} is not in [0, {})", data.name, labels[i], i,
              data.classes);
}

/// (2, C): what brings samples to mean 0 and deviation 1.
Tensor factors_of(const Normalisation& n, float scale, Device device) {
  std::vector<float> values;
  for (const double std : n.std)
    values.push_back(static_cast<float>(static_cast<double>(scale) / std));
  for (size_t c = 0; c < n.std.size(); ++c)
    values.push_back(static_cast<float>(-n.mean[c] / n.std[c]));
  return Tensor::from(values, {2, static_cast<int64_t>(n.std.size())}, device);
}

StepState* state_in(const Tensor& memory) {
  Tensor handle = memory;
  return static_cast<StepState*>(handle.mutable_raw());
}

/// Fisher–Yates with word i of the epoch's draw for position i.
std::vector<int32_t> epoch_order(uint64_t seed, const StepState& epoch, int64_t samples) {
  std::vector<int32_t> order(static_cast<size_t>(samples));
  std::iota(order.begin(), order.end(), 0);
  const RandomSource random({seed, RandomSite("data").stream("shuffle"), 0, &epoch});
  for (uint64_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[(uint64_t{random.word(i)} * i) >> 32]);
  return order;
}

}  // namespace

BatchSource::BatchSource(int64_t size) : size_(size) {
  ULP_CHECK(size >= 1, "batches: a batch has at least one sample, got {}", size);
}

void BatchSource::move_on(Run& run, const std::function<void(int64_t)>& before) const {
  run.mirror_state([before, size = size_, samples = samples()](StepState& state) {
    ULP_CHECK(state.batch_offset + size <= samples,
              "batches: the epoch has no further whole batch after {} of {} samples",
              state.batch_offset, samples);
    if (before) before(state.batch_offset);
    state.batch_offset += size;
  });
}

BatchSource::Range BatchSource::shuffled(int64_t epoch) {
  shuffle(epoch);
  return {*this, Range::Order::Shuffled, steps()};
}

BatchSource::Range BatchSource::in_order() {
  return {*this, Range::Order::AsTheyStand, (samples_in_order() + size_ - 1) / size_};
}

Batch BatchSource::Range::Iterator::operator*() const {
  BatchSource& source = *range_->source_;
  if (range_->order_ == Order::Shuffled) return source.next();
  const int64_t begin = at_ * source.size();
  return source.slice(begin, std::min(begin + source.size(), source.samples_in_order()));
}

Batches::Batches(Run& run, const Dataset& data, const Split& split, int64_t size,
                 const BatchOptions& options)
    : BatchSource(size), run_(run), scale_(data.scale), augmentation_(options.augmentation) {
  check_labels(data, split);
  const bool images = data.sample_shape.rank() == 3 &&
                      data.sample_shape.numel() == split.images.size(1) &&
                      data.sample_shape.numel() <= INT32_MAX;
  ULP_CHECK(images || (options.normalisation.empty() && !augmentation_.any()),
            "batches: {}: samples of shape {} are no images (H, W, C)", data.name,
            data.sample_shape);
  const Shape shape = images ? data.sample_shape : Shape{1, 1, split.images.size(1)};
  height_ = static_cast<int32_t>(shape[0]);
  width_ = static_cast<int32_t>(shape[1]);
  channels_ = static_cast<int32_t>(shape[2]);
  const int32_t side = std::min(height_, width_);
  ULP_CHECK(augmentation_.crop < side && augmentation_.cutout <= side,
            "augmentation {}: images of {} x {} pixels allow a crop of less than {} and a cutout "
            "of at most {}",
            nn::to_string(augmentation_), height_, width_, side, side);
  if (!options.normalisation.empty()) {
    check_normalisation(options.normalisation, channels_);
    normal_ = factors_of(options.normalisation, scale_, run.device());
  }
  if (augmentation_.any())
    epoch_ = Tensor::zeros({static_cast<int64_t>(sizeof(StepState))}, DType::U8, run.device());
  resident_ = split.images.bytes() + split.labels.bytes() <= options.resident_bytes;
  const Device home = resident_ ? run.device() : kCpu;
  images_ = split.images.to(home);
  labels_ = split.labels.to(home);
  size_ = std::min(size_, samples());
}

Batch Batches::empty_batch(int64_t n) const {
  return {Tensor::empty({n, images_.size(1)}, DType::F32, run_.device()),
          Tensor::empty({n}, DType::I32, run_.device())};
}

GatherRowsArgs Batches::gather_into(const Batch& batch) const {
  GatherRowsArgs args;
  args.in = images_;
  args.out = batch.inputs;
  args.scale = scale_;
  args.labels = labels_;
  args.out_labels = batch.labels;
  return args;
}

AugmentRowsArgs Batches::augment_into(const Batch& batch) const {
  AugmentRowsArgs args;
  args.in = images_;
  args.out = batch.inputs;
  args.labels = labels_;
  args.out_labels = batch.labels;
  args.normal = normal_;
  args.scale = scale_;
  args.height = height_;
  args.width = width_;
  args.channels = channels_;
  return args;
}

void Batches::shuffle(int64_t epoch, int64_t batch_offset) {
  ULP_CHECK(batch_offset >= 0 && batch_offset <= samples(),
            "batches: an epoch of {} samples has no batch at {}", samples(), batch_offset);
  StepState draws;
  draws.random_step = static_cast<uint32_t>(epoch);
  std::vector<int32_t> order = epoch_order(run_.seed(), draws, samples());
  if (epoch_.defined()) copy_bytes(epoch_.mutable_raw(), run_.device(), &draws, kCpu, sizeof draws);
  if (resident_) {
    if (!order_.defined()) {
      order_ = Tensor::empty({samples()}, DType::I32, run_.device());
      run_.note_replaced();
    }
    copy_bytes(order_.mutable_raw(), run_.device(), order.data(), kCpu,
               static_cast<size_t>(order_.bytes()));
  } else {
    if (loader_ == nullptr)
      loader_ = std::make_unique<Loader>(run_.device(), images_, labels_, size_);
    loader_->begin(std::move(order), batch_offset);
  }
  begun_ = true;
  StepState start = run_.state();
  start.batch_offset = batch_offset;
  run_.set_state(start);
}

Batch Batches::next() {
  ULP_CHECK(begun_, "batches: no epoch was begun; call shuffle first");
  const Batch batch = empty_batch(size_);
  AugmentRowsArgs args = augment_into(batch);
  if (resident_) {
    args.indices = order_;
  } else {
    // The loader writes there before a recorded step runs, whatever that did before with the memory.
    const UnsharedMemory unshared(run_.device());
    args.in = Tensor::empty({size_, images_.size(1)}, images_.dtype(), run_.device());
    args.labels = Tensor::empty({size_}, DType::I32, run_.device());
  }
  // What the loader writes to lives as long as a recorded step does.
  Loader* const loader = loader_.get();
  move_on(run_, [loader, images = args.in, labels = args.labels](int64_t offset) {
    if (loader != nullptr) loader->send(offset, images, labels);
  });
  if (resident_ && plain()) {
    GatherRowsArgs gather = gather_into(batch);
    gather.indices = order_;
    gather.state = run_.device_state();
    kernels::gather_rows(run_.stream(), gather);
    return batch;
  }
  args.how = augmentation_;
  args.state = run_.device_state();
  if (augmentation_.any())
    args.key = {run_.seed(), RandomSite("data").stream("augment"), 0, state_in(epoch_)};
  kernels::augment_rows(run_.stream(), args);
  return batch;
}

Batch Batches::slice(int64_t begin, int64_t end) const {
  const Batch batch = empty_batch(end - begin);
  if (resident_ && plain()) {
    GatherRowsArgs args = gather_into(batch);
    args.begin = begin;
    kernels::gather_rows(run_.stream(), args);
    return batch;
  }
  AugmentRowsArgs args = augment_into(batch);
  args.in = images_.slice(0, begin, end).to(run_.device());
  args.labels = labels_.slice(0, begin, end).to(run_.device());
  kernels::augment_rows(run_.stream(), args);
  return batch;
}

TextBatches::TextBatches(Run& run, const Tensor& text, int64_t length, int64_t size,
                         int64_t epoch_windows)
    : BatchSource(size), run_(run), length_(length) {
  ULP_CHECK(text.defined() && text.rank() == 1 && length >= 1 && text.numel() > length,
            "batches: windows of {} tokens want a text of at least {}, got {}", length, length + 1,
            text);
  text_ = text.to(run.device());
  windows_ = epoch_windows > 0 ? epoch_windows : samples_in_order();
  if (epoch_windows == 0) size_ = std::min(size_, windows_);
  epoch_ = Tensor::zeros({static_cast<int64_t>(sizeof(StepState))}, DType::U8, run.device());
}

Batch TextBatches::empty_batch(int64_t n) const {
  return {Tensor::empty({n, length_}, DType::I32, run_.device()),
          Tensor::empty({n * length_}, DType::I32, run_.device())};
}

void TextBatches::shuffle(int64_t epoch, int64_t batch_offset) {
  ULP_CHECK(batch_offset >= 0 && batch_offset <= samples(),
            "batches: an epoch of {} samples has no batch at {}", samples(), batch_offset);
  StepState draws;
  draws.batch_offset = epoch * windows_;
  copy_bytes(epoch_.mutable_raw(), run_.device(), &draws, kCpu, sizeof draws);
  begun_ = true;
  StepState start = run_.state();
  start.batch_offset = batch_offset;
  run_.set_state(start);
}

Batch TextBatches::next() {
  ULP_CHECK(begun_, "batches: no epoch was begun; call shuffle first");
  const Batch batch = empty_batch(size_);
  move_on(run_);
  GatherWindowsArgs args;
  args.text = text_;
  args.out = batch.inputs;
  args.labels = batch.labels;
  args.random = true;
  args.key = {run_.seed(), RandomSite("data").stream("windows"), 0, state_in(epoch_)};
  args.state = run_.device_state();
  args.epoch = state_in(epoch_);
  kernels::gather_windows(run_.stream(), args);
  return batch;
}

Batch TextBatches::slice(int64_t begin, int64_t end) const {
  const Batch batch = empty_batch(end - begin);
  GatherWindowsArgs args;
  args.text = text_;
  args.out = batch.inputs;
  args.labels = batch.labels;
  args.begin = begin;
  kernels::gather_windows(run_.stream(), args);
  return batch;
}

}  // namespace ulp::nn
