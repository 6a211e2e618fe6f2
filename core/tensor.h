#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"
#include "core/storage.h"

namespace ulp {

/// A handle to shared storage with a shape and strides (in elements). Copying a Tensor copies the handle.
/// Images are (N, H, W, C), weights (Out, …, In). An empty handle is !defined().
class Tensor {
 public:
  Tensor() = default;

  /// Uninitialised, contiguous.
  static Tensor empty(const Shape& shape, DType dtype, Device device);
  static Tensor zeros(const Shape& shape, DType dtype, Device device);
  /// Copies host values, given in row-major order. Throws if their number is not shape.numel().
  template <class T>
  static Tensor from(std::span<const T> values, const Shape& shape, Device device) {
    return from_bytes(values.data(), static_cast<int64_t>(values.size()), shape, DTypeOf<T>::value,
                      device);
  }
  template <class T>
  static Tensor from(const std::vector<T>& values, const Shape& shape, Device device = kCpu) {
    return from(std::span<const T>(values), shape, device);
  }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int axis) const;
  int64_t numel() const { return shape_.numel(); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int64_t bytes() const { return numel() * static_cast<int64_t>(size_of(dtype_)); }
  /// Row-major without gaps. Empty tensors and scalars are.
  bool is_contiguous() const;

  const void* raw() const;
  /// Counts as a write: tensors saved for backward notice it.
  void* mutable_raw();
  template <class T>
  const T* data() const {
    check_type(DTypeOf<T>::value);
    return static_cast<const T*>(raw());
  }
  template <class T>
  T* mutable_data() {
    check_type(DTypeOf<T>::value);
    return static_cast<T*>(mutable_raw());
  }
  /// The same for all views of one storage.
  const void* storage() const { return storage_.get(); }
  uint32_t version() const { return storage_ == nullptr ? 0 : storage_->version(); }

  /// Views of the same storage.
  Tensor reshape(const Shape& shape) const;  // contiguous tensors only
  Tensor transpose(int axis_a, int axis_b) const;
  Tensor slice(int axis, int64_t begin, int64_t end) const;
  /// Elements begin, begin + step … below end; step ≥ 1.
  Tensor slice(int axis, int64_t begin, int64_t end, int64_t step) const;

  /// A contiguous copy on another device; this tensor itself if it is there already.
  Tensor to(Device device) const;
  /// A contiguous copy on the CPU, whatever the strides.
  Tensor to_cpu_contiguous() const;
  /// The values in row-major order on the host. Any dtype becomes float / double.
  std::vector<float> to_floats() const;
  std::vector<double> to_doubles() const;
  /// The one value of a one-element tensor.
  double item() const;

 private:
  static Tensor from_bytes(const void* values, int64_t count, const Shape& shape, DType dtype,
                           Device device);
  void check_type(DType wanted) const;

  std::shared_ptr<Storage> storage_;
  Shape shape_;
  Shape strides_;
  int64_t offset_ = 0;
  DType dtype_ = DType::F32;
  Device device_{};
};

/// "F32 (2, 3) on cpu", for messages.
std::string to_string(const Tensor& tensor);

}  // namespace ulp
