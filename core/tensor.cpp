#include "core/tensor.h"

#include <algorithm>
#include <cstring>

#include "core/convert.h"
#include "core/error.h"
#include "core/tensor_limit.h"

namespace ulp {
namespace {

Shape row_major(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= shape[axis];
  }
  return strides;
}

}  // namespace

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  ULP_CHECK(is_within_limit(shape), "tensor: shape {} has more than 2^59 elements", shape);
  Tensor t;
  t.shape_ = shape;
  t.strides_ = row_major(shape);
  t.dtype_ = dtype;
  t.device_ = device;
  t.storage_ = std::make_shared<Storage>(device, static_cast<size_t>(t.bytes()));
  return t;
}

Tensor Tensor::from_bytes(const void* values, int64_t count, const Shape& shape, DType dtype,
                          Device device) {
  ULP_CHECK(count == shape.numel(), "tensor: shape {} holds {} values, got {}", shape,
            shape.numel(), count);
  Tensor t = empty(shape, dtype, device);
  copy_bytes(t.mutable_raw(), device, values, kCpu, static_cast<size_t>(t.bytes()));
  return t;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  const std::vector<uint8_t> bytes(static_cast<size_t>(shape.numel()) * size_of(dtype));
  return from_bytes(bytes.data(), shape.numel(), shape, dtype, device);
}

int64_t Tensor::size(int axis) const {
  ULP_CHECK(axis >= 0 && axis < rank(), "tensor: axis {} of a tensor of shape {}", axis, shape_);
  return shape_[axis];
}

bool Tensor::is_contiguous() const {
  int64_t step = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    if (shape_[axis] != 1 && strides_[axis] != step && numel() > 0) return false;
    step *= shape_[axis];
  }
  return true;
}

const void* Tensor::raw() const {
  ULP_CHECK(defined(), "tensor: this handle holds no tensor");
  return static_cast<const char*>(storage_->data()) +
         offset_ * static_cast<int64_t>(size_of(dtype_));
}

void* Tensor::mutable_raw() {
  ULP_CHECK(defined(), "tensor: this handle holds no tensor");
  return static_cast<char*>(storage_->mutable_data()) +
         offset_ * static_cast<int64_t>(size_of(dtype_));
}

void Tensor::check_type(DType wanted) const {
  ULP_CHECK(dtype_ == wanted, "tensor: its elements are {}, asked for as {}", dtype_, wanted);
}

Tensor Tensor::reshape(const Shape& shape) const {
  ULP_CHECK(shape.numel() == numel(), "reshape: {} has {} elements and {} has {}", shape_, numel(),
            shape, shape.numel());
  ULP_CHECK(is_contiguous(), "reshape: a tensor of shape {} with gaps; copy it first", shape_);
  Tensor t = *this;
  t.shape_ = shape;
  t.strides_ = row_major(shape);
  return t;
}

Tensor Tensor::transpose(int axis_a, int axis_b) const {
  ULP_CHECK(axis_a >= 0 && axis_a < rank() && axis_b >= 0 && axis_b < rank(),
            "transpose: axes {} and {} of a tensor of shape {}", axis_a, axis_b, shape_);
  Tensor t = *this;
  std::swap(t.shape_[axis_a], t.shape_[axis_b]);
  std::swap(t.strides_[axis_a], t.strides_[axis_b]);
  return t;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end) const {
  ULP_CHECK(axis >= 0 && axis < rank() && 0 <= begin && begin <= end && end <= shape_[axis],
            "slice: [{}, {}) along axis {} of a tensor of shape {}", begin, end, axis, shape_);
  Tensor t = *this;
  t.offset_ += begin * strides_[axis];
  t.shape_[axis] = end - begin;
  return t;
}

Tensor Tensor::slice(int axis, int64_t begin, int64_t end, int64_t step) const {
  ULP_CHECK(step >= 1, "slice: the step must be at least 1, got {}", step);
  Tensor t = slice(axis, begin, end);
  t.shape_[axis] = (end - begin) / step + ((end - begin) % step != 0 ? 1 : 0);
  if (t.shape_[axis] > 1)
    t.strides_[axis] *= step;  // of one element or none the stride says nothing
  return t;
}

Tensor Tensor::to(Device device) const {
  if (device == device_) return *this;
  if (!is_contiguous() && device_.type != DeviceType::Cpu) {
    // All that lies from its first element to its last, whose gaps the CPU closes.
    Tensor all = *this;
    int64_t span = numel() == 0 ? 0 : 1;
    for (int axis = 0; axis < rank() && span > 0; ++axis)
      span += (shape_[axis] - 1) * strides_[axis];
    all.shape_ = {span};
    all.strides_ = {1};
    Tensor own = all.to(kCpu);
    own.shape_ = shape_;
    own.strides_ = strides_;
    return own.to_cpu_contiguous().to(device);
  }
  const Tensor source = device_.type == DeviceType::Cpu ? to_cpu_contiguous() : *this;
  Tensor t = empty(shape_, dtype_, device);
  copy_bytes(t.mutable_raw(), device, source.raw(), source.device(), static_cast<size_t>(bytes()));
  return t;
}

Tensor Tensor::to_cpu_contiguous() const {
  if (device_.type != DeviceType::Cpu) return to(kCpu);
  if (is_contiguous()) return *this;
  Tensor t = empty(shape_, dtype_, kCpu);
  const size_t width = size_of(dtype_);
  const char* from = static_cast<const char*>(raw());
  char* to = static_cast<char*>(t.mutable_raw());
  Shape at = shape_;
  for (int axis = 0; axis < rank(); ++axis) at[axis] = 0;
  for (int64_t i = 0; i < numel(); ++i) {
    int64_t offset = 0;
    for (int axis = 0; axis < rank(); ++axis) offset += at[axis] * strides_[axis];
    std::memcpy(to + static_cast<size_t>(i) * width, from + offset * static_cast<int64_t>(width),
                width);
    for (int axis = rank() - 1; axis >= 0 && ++at[axis] == shape_[axis]; --axis) at[axis] = 0;
  }
  return t;
}

std::vector<double> Tensor::to_doubles() const {
  const Tensor t = to_cpu_contiguous();
  std::vector<double> values(static_cast<size_t>(numel()));
  for (int64_t i = 0; i < numel(); ++i)
    values[static_cast<size_t>(i)] = dtype_ == DType::F64
                                         ? t.data<double>()[i]
                                         : static_cast<double>(load_as_float(t.raw(), dtype_, i));
  return values;
}

std::vector<float> Tensor::to_floats() const {
  const Tensor t = to_cpu_contiguous();
  std::vector<float> values(static_cast<size_t>(numel()));
  for (int64_t i = 0; i < numel(); ++i)
    values[static_cast<size_t>(i)] = load_as_float(t.raw(), dtype_, i);
  return values;
}

double Tensor::item() const {
  ULP_CHECK(numel() == 1, "item: a tensor of shape {} has {} values, not one", shape_, numel());
  return to_doubles().front();
}

std::string to_string(const Tensor& tensor) {
  if (!tensor.defined()) return "no tensor";
  return std::string(to_string(tensor.dtype())) + " " + to_string(tensor.shape()) + " on " +
         to_string(tensor.device());
}

}  // namespace ulp
