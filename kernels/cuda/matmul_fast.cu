// a · b by cuBLASLt: exact products of 8-bit and 11-bit significands on the tensor cores, sums in fp32; F32 operands stay
// fp32 (no tf32).

#include <cublasLt.h>

#include <array>
#include <memory>
#include <mutex>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul.cuh"

namespace ulp::cuda {
namespace {

void check_status(cublasStatus_t status, const char* call) {
  ULP_CHECK(status == CUBLAS_STATUS_SUCCESS, "matmul: cuBLASLt: {} failed with {}", call,
            cublasLtGetStatusString(status));
}
#define ULP_CUBLAS_CHECK(call) check_status(call, #call)

/// One handle a device, kept for the life of the process. The device must be the current one.
cublasLtHandle_t handle_of(Device device) {
  static std::array<cublasLtHandle_t, 128> handles{};
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  cublasLtHandle_t& handle = handles[static_cast<size_t>(device.index)];
  if (handle == nullptr) ULP_CUBLAS_CHECK(cublasLtCreate(&handle));
  return handle;
}

template <class T, cublasStatus_t (*kDestroy)(T)>
struct Destroy {
  using pointer = T;
  void operator()(T object) const { kDestroy(object); }
};
template <class T, cublasStatus_t (*kDestroy)(T)>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, Destroy<T, kDestroy>>;
using OwnedDesc = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using OwnedLayout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using OwnedPreference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t data_type(DType dtype) {
  if (dtype == DType::BF16) return CUDA_R_16BF;
  return dtype == DType::F16 ? CUDA_R_16F : CUDA_R_32F;
}

OwnedLayout make_layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t leading) {
  cublasLtMatrixLayout_t layout = nullptr;
  ULP_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(columns), leading));
  return OwnedLayout(layout);
}

/// A matrix whose rows (or columns) are contiguous.
struct Stored {
  bool by_rows;
  int64_t leading;  // distance of two rows (columns)
};

Stored stored(const char* name, const Tensor& t) {
  const int64_t rows = t.size(0), columns = t.size(1);
  const int64_t row_stride = t.strides()[0], column_stride = t.strides()[1];
  const int64_t by_rows = rows == 1 ? columns : row_stride;
  if ((column_stride == 1 || columns == 1) && by_rows >= columns) return {true, by_rows};
  const int64_t by_columns = columns == 1 ? rows : column_stride;
  if ((row_stride == 1 || rows == 1) && by_columns >= rows) return {false, by_columns};
  throw_error(
      "matmul: fast math reads row-major or column-major operands; {} has shape {} and strides {}; "
      "copy it first",
      name, t.shape(), t.strides());
}

/// The transpose of t as cuBLAS sees it: column-major, to be transposed (CUBLAS_OP_T) if it is stored by columns.
OwnedLayout transposed_layout(const Tensor& t, const Stored& s) {
  const int64_t rows = s.by_rows ? t.size(1) : t.size(0),
                columns = s.by_rows ? t.size(0) : t.size(1);
  return make_layout(data_type(t.dtype()), rows, columns, s.leading);
}

uint32_t alignment_of(const void* data) {
  uint32_t bytes = 256;
  while (reinterpret_cast<uintptr_t>(data) % bytes != 0) bytes /= 2;
  return bytes;
}

template <class T>
void prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t what,
            T value) {
  ULP_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value));
}

}  // namespace

void matmul_fast(Stream stream, const Tensor& a, const Tensor& b, float* sums) {
  const DType dtype = a.dtype();
  ULP_CHECK(b.dtype() == dtype, "matmul: fast math needs operands of one type, got {} and {}",
            dtype, b.dtype());
  ULP_CHECK(dtype == DType::BF16 || dtype == DType::F16 || dtype == DType::F32,
            "matmul: fast math reads BF16, F16 or F32, got {} and {}", dtype, b.dtype());
  const Stored a_stored = stored("a", a), b_stored = stored("b", b);
  const int64_t m = a.size(0), n = b.size(1);
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  const cublasLtHandle_t handle = handle_of(stream.device);

  // cuBLAS counts by columns: what it calls sums (N × M) = bᵀ (N × K) · aᵀ (K × M) is our row-major product.
  cublasLtMatmulDesc_t raw_desc = nullptr;
  ULP_CUBLAS_CHECK(cublasLtMatmulDescCreate(&raw_desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const OwnedDesc desc(raw_desc);
  const cublasOperation_t b_op = b_stored.by_rows ? CUBLAS_OP_N : CUBLAS_OP_T;
  const cublasOperation_t a_op = a_stored.by_rows ? CUBLAS_OP_N : CUBLAS_OP_T;
  ULP_CUBLAS_CHECK(
      cublasLtMatmulDescSetAttribute(desc.get(), CUBLASLT_MATMUL_DESC_TRANSA, &b_op, sizeof b_op));
  ULP_CUBLAS_CHECK(
      cublasLtMatmulDescSetAttribute(desc.get(), CUBLASLT_MATMUL_DESC_TRANSB, &a_op, sizeof a_op));
  const OwnedLayout b_layout = transposed_layout(b, b_stored),
                    a_layout = transposed_layout(a, a_stored),
                    out_layout = make_layout(CUDA_R_32F, n, m, n);

  constexpr size_t kWorkspace = size_t{32} << 20;
  constexpr size_t kAlignment = 256;
  Tensor space =
      Tensor::empty({static_cast<int64_t>(kWorkspace + kAlignment)}, DType::U8, stream.device);
  const uintptr_t start = reinterpret_cast<uintptr_t>(space.mutable_raw());
  void* workspace = reinterpret_cast<void*>((start + kAlignment - 1) / kAlignment * kAlignment);

  cublasLtMatmulPreference_t raw_preference = nullptr;
  ULP_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&raw_preference));
  const OwnedPreference preference(raw_preference);
  prefer(preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  prefer(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(b.raw()));
  prefer(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(a.raw()));
  prefer(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(sums));
  prefer(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(sums));

  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, desc.get(), b_layout.get(), a_layout.get(), out_layout.get(), out_layout.get(),
      preference.get(), 1, &best, &found);
  ULP_CHECK(status == CUBLAS_STATUS_SUCCESS && found > 0,
            "matmul: cuBLASLt has no algorithm for {} {} · {} ({}); use strict math", dtype,
            a.shape(), b.shape(), cublasLtGetStatusString(status));
  const float one = 1, zero = 0;
  ULP_CUBLAS_CHECK(cublasLtMatmul(handle, desc.get(), &one, b.raw(), b_layout.get(), a.raw(),
                                  a_layout.get(), &zero, sums, out_layout.get(), sums,
                                  out_layout.get(), &best.algo, workspace, kWorkspace,
                                  static_cast<cudaStream_t>(stream.handle)));
}

}  // namespace ulp::cuda
