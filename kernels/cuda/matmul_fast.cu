// a · b by cuBLASLt. What a kind of product needs (descriptors, the algorithm) is chosen once in a process and kept: the
// same product gives the same bits on the same GPU with the same library, and a call costs the host little. Nothing here
// waits for the GPU, so that products can be captured in a CUDA graph.

#include <cublasLt.h>

#include <array>
#include <compare>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "kernels/cuda/matmul.cuh"
#include "kernels/cuda/pack.cuh"

namespace ulp::cuda {
namespace {

void check_status(cublasStatus_t status, const char* call) {
  ULP_CHECK(status == CUBLAS_STATUS_SUCCESS, "matmul: cuBLASLt: {} failed with {}", call,
            cublasLtGetStatusString(status));
}
#define ULP_CUBLAS_CHECK(call) check_status(call, #call)

// ---- operands that cuBLASLt can read -----------------------------------------------------------------------------------

/// A matrix whose rows (or columns) are contiguous.
struct Stored {
  bool by_rows = false;
  int64_t leading = 0;  // distance of two rows (columns)
};

std::optional<Stored> stored(const Tensor& t) {
  const int64_t rows = t.size(0), columns = t.size(1);
  const int64_t row_stride = t.strides()[0], column_stride = t.strides()[1];
  const int64_t by_rows = rows == 1 ? columns : row_stride;
  if ((column_stride == 1 || columns == 1) && by_rows >= columns) return Stored{true, by_rows};
  const int64_t by_columns = columns == 1 ? rows : column_stride;
  if ((row_stride == 1 || rows == 1) && by_columns >= rows) return Stored{false, by_columns};
  return std::nullopt;
}

/// A strided matrix (rows, columns).
struct Strided {
  const void* data;
  DType dtype;
  int64_t rows, columns, row_stride, column_stride;
};

constexpr int kCopyTile = 64;

/// out (rows, columns), contiguous = in, exactly. Reads along the axis that lies closer in memory.
__global__ void __launch_bounds__(kThreads)
    convert_kernel(Strided in, void* out, DType dtype, bool by_rows, int64_t tiles_across) {
  __shared__ float tile[kCopyTile][kCopyTile + 1];
  constexpr int kStep = kThreads / kCopyTile;
  const int64_t row0 = blockIdx.x / tiles_across * kCopyTile,
                column0 = blockIdx.x % tiles_across * kCopyTile;
  const int fast = static_cast<int>(threadIdx.x) % kCopyTile,
            slow = static_cast<int>(threadIdx.x) / kCopyTile;
#pragma unroll 4
  for (int s = slow; s < kCopyTile; s += kStep) {
    const int r = by_rows ? s : fast, c = by_rows ? fast : s;
    if (row0 + r < in.rows && column0 + c < in.columns)
      tile[r][c] = load_as_float(in.data, in.dtype,
                                 (row0 + r) * in.row_stride + (column0 + c) * in.column_stride);
  }
  __syncthreads();
#pragma unroll 4
  for (int s = slow; s < kCopyTile; s += kStep)
    if (row0 + s < in.rows && column0 + fast < in.columns)
      store_float(out, dtype, (row0 + s) * in.columns + column0 + fast, tile[s][fast]);
}

/// A contiguous copy in a type that holds every value.
Tensor converted(Stream stream, const Tensor& t, DType dtype) {
  Tensor out = Tensor::empty(t.shape(), dtype, t.device());
  const Strided in{t.raw(), t.dtype(), t.size(0), t.size(1), t.strides()[0], t.strides()[1]};
  const int64_t across = (in.columns + kCopyTile - 1) / kCopyTile,
                down = (in.rows + kCopyTile - 1) / kCopyTile;
  launch("matmul", stream, across * down, kThreads, convert_kernel, in, written(out), dtype,
         std::abs(in.column_stride) <= std::abs(in.row_stride), across);
  return out;
}

/// The operand (rows, K), or a copy where cuBLASLt cannot read it as it is. fp8 units read along k only, 16 bytes at a time.
Tensor readable(Stream stream, const Tensor& t, DType dtype, MatrixUnit unit) {
  const std::optional<Stored> as = stored(t);
  bool suits = t.dtype() == dtype && as.has_value();
  if (suits && unit == MatrixUnit::Fp8)
    suits = as->by_rows && as->leading % 16 == 0 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
  return suits ? t : converted(stream, t, dtype);
}

// ---- kinds of products -------------------------------------------------------------------------------------------------

/// All that decides which algorithm is used.
struct Kind {
  int device;
  MatrixUnit unit;
  DType a_type, b_type, out_type;
  int64_t m, n, k;
  bool a_by_rows, b_by_rows;  // of a (M, K) and of b's transpose (N, K)
  int64_t a_leading, b_leading;
  bool bias, scaled;
  uint32_t a_alignment, b_alignment, out_alignment;  // bytes, at most 16
  int64_t count = 1, a_step = 0, b_step = 0;  // products, and how far their operands lie apart
  auto operator<=>(const Kind&) const = default;
};

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

/// cuBLAS counts by columns: what it calls D (N × M) = A (N × K) · B (K × M) is our row-major out with A = bᵀ, B = aᵀ.
struct Plan {
  OwnedDesc desc;
  OwnedLayout b, a, out;
  bool exists = false;  // cuBLASLt has an algorithm
  cublasLtMatmulAlgo_t algorithm{};
};

/// A device's share: made at its first product, kept for the life of the process.
struct Library {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;  // one for all products: they follow each other on the device's stream
};
constexpr size_t kWorkspace = size_t{32} << 20;

std::mutex mutex;  // of everything below
std::array<Library, 128> libraries{};
std::map<Kind, Plan>& plans() {
  static auto* all = new std::map<Kind, Plan>;  // never destroyed: CUDA may be gone before
  return *all;
}
std::vector<std::string>& used() {
  static std::vector<std::string> lines;
  return lines;
}

Library& library_of(Stream stream) {
  Library& library = libraries[static_cast<size_t>(stream.device.index)];
  if (library.handle != nullptr) return library;
  cudaStreamCaptureStatus capturing{};
  ULP_CUDA_CHECK(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream.handle), &capturing));
  ULP_CHECK(capturing == cudaStreamCaptureStatusNone,
            "matmul: run one product on {} before capturing a graph: its workspace is made then",
            stream.device);
  cublasLtHandle_t handle = nullptr;
  ULP_CUBLAS_CHECK(cublasLtCreate(&handle));
  try {
    library.workspace = allocate(stream.device, kWorkspace);
  } catch (...) {
    cublasLtDestroy(handle);
    throw;
  }
  library.handle = handle;  // the last: it says that all is there
  return library;
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::BF16: return CUDA_R_16BF;
    case DType::F16: return CUDA_R_16F;
    case DType::F8E4M3: return CUDA_R_8F_E4M3;
    case DType::F8E5M2: return CUDA_R_8F_E5M2;
    default: return CUDA_R_32F;
  }
}

OwnedLayout make_layout(DType type, int64_t rows, int64_t columns, int64_t leading) {
  cublasLtMatrixLayout_t layout = nullptr;
  ULP_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&layout, data_type(type), static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(columns), leading));
  return OwnedLayout(layout);
}

/// The layout of `count` matrices, `step` elements apart.
void repeat(const OwnedLayout& layout, int64_t count, int64_t step) {
  const auto times = static_cast<int32_t>(count);
  ULP_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(
      layout.get(), CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &times, sizeof times));
  ULP_CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(
      layout.get(), CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step));
}

template <class T>
void set(const OwnedDesc& desc, cublasLtMatmulDescAttributes_t what, T value) {
  ULP_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(desc.get(), what, &value, sizeof value));
}
template <class T>
void set(const OwnedPreference& preference, cublasLtMatmulPreferenceAttributes_t what, T value) {
  ULP_CUBLAS_CHECK(
      cublasLtMatmulPreferenceSetAttribute(preference.get(), what, &value, sizeof value));
}
template <class T>
T get(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t what) {
  T value{};
  size_t bytes = 0;
  ULP_CUBLAS_CHECK(
      cublasLtMatmulAlgoConfigGetAttribute(&algorithm, what, &value, sizeof value, &bytes));
  return value;
}

std::string line_of(const Kind& kind, const Plan& plan) {
  const auto number = [](auto x) { return std::to_string(x); };
  std::string line = (kind.count > 1 ? number(kind.count) + " times " : "") + number(kind.m) +
                     " x " + number(kind.n) + " x " + number(kind.k) +
                     (kind.a_by_rows ? " N" : " T") + (kind.b_by_rows ? "T: " : "N: ");
  if (!plan.exists) return line + "fp32 in strict order, cuBLASLt has no algorithm for it";
  const size_t version = cublasLtGetVersion();
  const cublasLtMatmulAlgo_t& algorithm = plan.algorithm;
  return line + std::string(to_string(kind.unit)) + ", cuBLASLt " + number(version / 10000) + "." +
         number(version / 100 % 100) + "." + number(version % 100) + " algorithm " +
         number(get<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_ID)) + ", tile " +
         number(get<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID)) + ", stages " +
         number(get<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID)) + ", split-k " +
         number(get<int32_t>(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM)) + ", cluster " +
         number(get<uint16_t>(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID));
}

Plan make_plan(const Library& library, const Kind& kind) {
  Plan plan;
  const bool tf32 = kind.unit == MatrixUnit::Tf32;
  cublasLtMatmulDesc_t desc = nullptr;
  ULP_CUBLAS_CHECK(cublasLtMatmulDescCreate(
      &desc, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.desc.reset(desc);
  set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, kind.b_by_rows ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, kind.a_by_rows ? CUBLAS_OP_N : CUBLAS_OP_T);
  if (kind.unit == MatrixUnit::Fp8)
    set(plan.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(0));
  if (kind.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  if (kind.scaled) set(plan.desc, CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
  const auto by_columns = [&](DType type, bool by_rows, int64_t rows, int64_t leading) {
    return by_rows ? make_layout(type, kind.k, rows, leading)
                   : make_layout(type, rows, kind.k, leading);
  };
  plan.b = by_columns(kind.b_type, kind.b_by_rows, kind.n, kind.b_leading);
  plan.a = by_columns(kind.a_type, kind.a_by_rows, kind.m, kind.a_leading);
  plan.out = make_layout(kind.out_type, kind.n, kind.m, kind.n);
  if (kind.count > 1) {
    repeat(plan.b, kind.count, kind.b_step);
    repeat(plan.a, kind.count, kind.a_step);
    repeat(plan.out, kind.count, kind.m * kind.n);
  }

  cublasLtMatmulPreference_t raw = nullptr;
  ULP_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&raw));
  const OwnedPreference preference(raw);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  // Split sums meet in the workspace, in a fixed order; never by turns in out.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kind.b_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kind.a_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kind.out_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kind.out_alignment);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library.handle, plan.desc.get(), plan.b.get(), plan.a.get(), plan.out.get(), plan.out.get(),
      preference.get(), 1, &best, &found);
  ULP_CHECK(status == CUBLAS_STATUS_SUCCESS || status == CUBLAS_STATUS_NOT_SUPPORTED,
            "matmul: cuBLASLt cannot choose an algorithm ({})", cublasLtGetStatusString(status));
  plan.exists = status == CUBLAS_STATUS_SUCCESS && found > 0;
  plan.algorithm = best.algo;
  return plan;
}

const Plan& plan_of(const Library& library, const Kind& kind) {
  const auto found = plans().find(kind);
  if (found != plans().end()) return found->second;
  const Plan& plan = plans().emplace(kind, make_plan(library, kind)).first->second;
  used().push_back(line_of(kind, plan));
  return plan;
}

uint32_t alignment_of(const void* data) {
  uint32_t bytes = 16;
  while (reinterpret_cast<uintptr_t>(data) % bytes != 0) bytes /= 2;
  return bytes;
}

/// scalars = {a · b · last, before}: what multiplies the product and what was in out before.
__global__ void scalars_kernel(const float* a, const float* b, float last, float before,
                               float* scalars) {
  scalars[0] = (a != nullptr ? *a : 1.0f) * (b != nullptr ? *b : 1.0f) * last;
  scalars[1] = before;
}

const float* data_or_null(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }

/// Of a (M, K) · bᵀ (N, K), as they can be read.
Kind kind_of(Stream stream, const UnitChoice& choice, const Tensor& a, const Tensor& b,
             FastOut out) {
  const Stored a_stored = *stored(a), b_stored = *stored(b);
  Kind kind{};
  kind.device = stream.device.index;
  kind.unit = choice.unit;
  kind.a_type = choice.a;
  kind.b_type = choice.b;
  kind.out_type = out.dtype;
  kind.m = a.size(0);
  kind.n = b.size(0);
  kind.k = a.size(1);
  kind.a_by_rows = a_stored.by_rows;
  kind.b_by_rows = b_stored.by_rows;
  kind.a_leading = a_stored.leading;
  kind.b_leading = b_stored.leading;
  kind.a_alignment = alignment_of(a.raw());
  kind.b_alignment = alignment_of(b.raw());
  kind.out_alignment = alignment_of(out.data);
  return kind;
}

/// A contiguous (B, rows, columns) in that type.
Tensor batch_in(Stream stream, const Tensor& t, DType dtype) {
  if (t.dtype() == dtype) return t;
  return converted(stream, t.reshape({t.size(0) * t.size(1), t.size(2)}), dtype).reshape(t.shape());
}

/// Its first matrix, turned or not.
Tensor first_of(const Tensor& t, bool turned) {
  const Tensor one = t.slice(0, 0, 1).reshape({t.size(1), t.size(2)});
  return turned ? one.transpose(0, 1) : one;
}

}  // namespace

std::vector<std::string> matrix_units_used() {
  const std::lock_guard lock(mutex);
  return used();
}

bool matmul_fast(Stream stream, const MatmulArgs& args, const UnitChoice& choice, bool whole,
                 FastOut out, bool onto) {
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  const Tensor a = readable(stream, args.a, choice.a, choice.unit);
  const Tensor b = readable(stream, args.b.transpose(0, 1), choice.b, choice.unit);
  Kind kind = kind_of(stream, choice, a, b, out);
  kind.bias = whole && args.bias.defined();
  kind.scaled = whole && (args.a_factor.defined() || args.b_factor.defined());

  const std::lock_guard lock(mutex);
  const Library& library = library_of(stream);
  const Plan& plan = plan_of(library, kind);
  if (!plan.exists) return false;
  Tensor scalars;
  const float before = onto ? 1.0f : 0.0f;
  const float last = whole ? static_cast<float>(args.factor) : 1.0f;
  const float host_scalars[] = {last, before};
  const float* factors = host_scalars;
  if (kind.scaled) {
    scalars = Tensor::empty({2}, DType::F32, stream.device);
    auto* device_scalars = static_cast<float*>(written(scalars));
    launch("matmul", stream, 1, 1, scalars_kernel, data_or_null(args.a_factor),
           data_or_null(args.b_factor), last, before, device_scalars);
    factors = device_scalars;
  }
  if (kind.bias) set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias.raw());
  ULP_CUBLAS_CHECK(cublasLtMatmul(library.handle, plan.desc.get(), factors, b.raw(), plan.b.get(),
                                  a.raw(), plan.a.get(), factors + 1, out.data, plan.out.get(),
                                  out.data, plan.out.get(), &plan.algorithm, library.workspace,
                                  kWorkspace, static_cast<cudaStream_t>(stream.handle)));
  return true;
}

bool batched_fast(Stream stream, const BatchedMatmulArgs& args, const UnitChoice& choice,
                  FastOut out) {
  ULP_CUDA_CHECK(cudaSetDevice(stream.device.index));
  const Tensor a = batch_in(stream, args.a, choice.a), b = batch_in(stream, args.b, choice.b);
  Kind kind = kind_of(stream, choice, first_of(a, args.turn_a), first_of(b, !args.turn_b), out);
  kind.count = a.size(0);
  kind.a_step = a.size(1) * a.size(2);
  kind.b_step = b.size(1) * b.size(2);
  const auto also = [](uint32_t& alignment, int64_t step, DType dtype) {
    while (step * static_cast<int64_t>(size_of(dtype)) % alignment != 0) alignment /= 2;
  };
  also(kind.a_alignment, kind.a_step, choice.a);
  also(kind.b_alignment, kind.b_step, choice.b);
  also(kind.out_alignment, kind.m * kind.n, out.dtype);

  const std::lock_guard lock(mutex);
  const Library& library = library_of(stream);
  const Plan& plan = plan_of(library, kind);
  if (!plan.exists) return false;
  const float scalars[] = {static_cast<float>(args.factor), 0.0f};
  ULP_CUBLAS_CHECK(cublasLtMatmul(library.handle, plan.desc.get(), scalars, b.raw(), plan.b.get(),
                                  a.raw(), plan.a.get(), scalars + 1, out.data, plan.out.get(),
                                  out.data, plan.out.get(), &plan.algorithm, library.workspace,
                                  kWorkspace, static_cast<cudaStream_t>(stream.handle)));
  return true;
}

}  // namespace ulp::cuda
