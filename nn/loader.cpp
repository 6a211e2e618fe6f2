#include "nn/loader.h"

#include <cstring>

#include "core/error.h"

namespace ulp::nn {
namespace {

constexpr size_t kSent = 2;           // copies that may be on their way
constexpr size_t kSlots = kSent + 3;  // one being filled, some ready

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

Loader::Loader(Device device, Tensor images, Tensor labels, int64_t size)
    : images_(std::move(images)), labels_(std::move(labels)), size_(size) {
  ULP_CHECK(images_.device() == kCpu && labels_.device() == kCpu && images_.is_contiguous() &&
                labels_.is_contiguous() && labels_.dtype() == DType::I32 &&
                labels_.numel() == images_.size(0) && labels_.numel() > 0,
            "loader: wanted contiguous samples and a label each on the CPU, got {} and {}", images_,
            labels_);
  ULP_CHECK(size_ >= 1 && size_ <= labels_.numel(), "loader: batches of {} of {} samples", size_,
            labels_.numel());
  row_bytes_ = static_cast<size_t>(images_.bytes() / images_.size(0));
  label_offset_ = aligned(row_bytes_ * static_cast<size_t>(size_));
  const size_t bytes = label_offset_ + sizeof(int32_t) * static_cast<size_t>(size_);
  for (size_t i = 0; i < kSlots; ++i)
    free_.push_back({std::make_unique<StagingBlock>(device, bytes), 0});
  thread_ = std::thread([this] { work(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

bool Loader::can_fill() const {
  return order_ != nullptr && !free_.empty() &&
         next_ + size_ <= static_cast<int64_t>(order_->size());
}

void Loader::fill(const Slot& slot, const std::vector<int32_t>& order) {
  unsigned char* rows = slot.block->data();
  auto* labels = reinterpret_cast<int32_t*>(rows + label_offset_);
  const auto* from = static_cast<const unsigned char*>(images_.raw());
  const auto* from_labels = labels_.data<int32_t>();
  for (int64_t n = 0; n < size_; ++n) {
    const int32_t row = order[static_cast<size_t>(slot.position + n)];
    std::memcpy(rows + static_cast<size_t>(n) * row_bytes_,
                from + static_cast<size_t>(row) * row_bytes_, row_bytes_);
    labels[n] = from_labels[row];
  }
}

void Loader::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || can_fill(); });
    if (stop_) return;
    Slot slot = std::move(free_.front());
    free_.pop_front();
    slot.position = next_;
    next_ += size_;
    const auto order = order_;
    const uint64_t beginning = beginning_;
    lock.unlock();
    fill(slot, *order);
    lock.lock();
    (beginning == beginning_ ? ready_ : free_).push_back(std::move(slot));
    changed_.notify_all();
  }
}

void Loader::restart(int64_t position) {
  ++beginning_;
  next_ = coming_ = position;
  for (Slot& slot : ready_) free_.push_back(std::move(slot));
  ready_.clear();
}

void Loader::begin(std::vector<int32_t> order, int64_t position) {
  {
    const std::lock_guard lock(mutex_);
    order_ = std::make_shared<const std::vector<int32_t>>(std::move(order));
    restart(position);
  }
  changed_.notify_all();
}

void Loader::send(int64_t position, Tensor images, Tensor labels) {
  Slot slot;
  {
    std::unique_lock lock(mutex_);
    ULP_CHECK(order_ != nullptr && position >= 0 &&
                  position + size_ <= static_cast<int64_t>(order_->size()),
              "loader: there is no batch at {}", position);
    if (position != coming_) restart(position);
    changed_.notify_all();
    changed_.wait(lock, [this] { return !ready_.empty(); });
    slot = std::move(ready_.front());
    ready_.pop_front();
    coming_ = position + size_;
  }
  slot.block->send(images.mutable_raw(), 0, row_bytes_ * static_cast<size_t>(size_));
  slot.block->send(labels.mutable_raw(), label_offset_,
                   sizeof(int32_t) * static_cast<size_t>(size_));
  sent_.push_back(std::move(slot));
  if (sent_.size() <= kSent) return;
  sent_.front().block->wait();
  {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(sent_.front()));
  }
  sent_.pop_front();
  changed_.notify_all();
}

}  // namespace ulp::nn
