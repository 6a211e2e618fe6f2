#pragma once

// Eight consecutive elements a thread: reading any storage type as fp32 and writing it back. Full, aligned packs move in
// 16-byte accesses (8 for one-byte types); tails and unaligned arrays go element by element. The type switch is the same
// for all threads.

#include "core/convert.h"
#include "core/tensor.h"
#include "kernels/cuda/launch.cuh"

namespace ulp::cuda {

inline constexpr int kPack = 8;

/// A contiguous array as a kernel reads it.
struct Source {
  const void* data = nullptr;
  DType dtype = DType::F32;
  bool aligned = false;
};

/// A contiguous array as a kernel writes (and may read) it.
struct Sink {
  void* data = nullptr;
  DType dtype = DType::F32;
  bool aligned = false;

  __device__ Source source() const { return {data, dtype, aligned}; }
};

inline bool is_aligned(const void* data, DType dtype) {
  const uintptr_t bytes = size_of(dtype) == 1 ? 8 : 16;
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

/// Four neighbours from a multiple of four on are one access.
__device__ __forceinline__ bool is_aligned_for_quads(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % (4 * size_of(dtype)) == 0;
}

inline Source source_of(const Tensor& tensor) {
  return {tensor.raw(), tensor.dtype(), is_aligned(tensor.raw(), tensor.dtype())};
}

inline Sink sink_of(const Tensor& tensor) {
  void* data = written(tensor);
  return {data, tensor.dtype(), is_aligned(data, tensor.dtype())};
}

/// One element's bytes, zero-extended → fp32.
__device__ __forceinline__ float decode(uint32_t word, DType dtype) {
  switch (dtype) {
    case DType::BF16: return bf16_to_float(static_cast<uint16_t>(word));
    case DType::F16: return f16_to_float(static_cast<uint16_t>(word));
    case DType::F8E4M3: return e4m3_to_float(static_cast<uint8_t>(word));
    case DType::F8E5M2: return e5m2_to_float(static_cast<uint8_t>(word));
    case DType::I32: return static_cast<float>(static_cast<int32_t>(word));
    case DType::I8: return static_cast<float>(static_cast<int8_t>(word));
    case DType::U8: return static_cast<float>(word);
    default: return float_of(word);
  }
}

__device__ __forceinline__ uint32_t encode(float value, DType dtype) {
  switch (dtype) {
    case DType::BF16: return float_to_bf16(value);
    case DType::F16: return float_to_f16(value);
    case DType::F8E4M3: return float_to_e4m3(value);
    case DType::F8E5M2: return float_to_e5m2(value);
    default: return bits_of(canonical(value));
  }
}

/// load_as_float and store_float out of line, for the paths where size matters more than speed.
__device__ __noinline__ inline float load_one(const void* data, DType dtype, int64_t i) {
  return load_as_float(data, dtype, i);
}
__device__ __noinline__ inline void store_one(void* data, DType dtype, int64_t i, float value) {
  store_float(data, dtype, i, value);
}

/// Element i where the type is known but for the 8-bit ones, which are read out of line.
template <DType kType>
__device__ __forceinline__ float load_plain(const Source& s, int64_t i) {
  if constexpr (kType == DType::F32)
    return static_cast<const float*>(s.data)[i];
  else if constexpr (kType == DType::BF16)
    return bf16_to_float(static_cast<const uint16_t*>(s.data)[i]);
  else if constexpr (kType == DType::F16)
    return f16_to_float(static_cast<const uint16_t*>(s.data)[i]);
  else
    return load_one(s.data, s.dtype, i);
}

template <class Body>
__device__ __forceinline__ void for_plain_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::F32: return body.template operator()<DType::F32>();
    case DType::BF16: return body.template operator()<DType::BF16>();
    case DType::F16: return body.template operator()<DType::F16>();
    default: return body.template operator()<DType::F8E4M3>();
  }
}

/// values[k] = element i + k for k < count ≤ kPack, 0 beyond. i is a multiple of kPack.
__device__ __forceinline__ void load_pack(const Source& s, int64_t i, int count,
                                          float (&values)[kPack]) {
  if (!s.aligned || count < kPack) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) values[k] = k < count ? load_one(s.data, s.dtype, i + k) : 0.0f;
    return;
  }
  uint32_t words[kPack];
  const char* at = static_cast<const char*>(s.data) + i * static_cast<int64_t>(size_of(s.dtype));
  switch (size_of(s.dtype)) {
    case 4: {
      const uint4 low = reinterpret_cast<const uint4*>(at)[0];
      const uint4 high = reinterpret_cast<const uint4*>(at)[1];
      words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
      words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
      break;
    }
    case 2: {
      const uint4 all = *reinterpret_cast<const uint4*>(at);
      const uint32_t pairs[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
      for (int k = 0; k < kPack; ++k) words[k] = pairs[k / 2] >> (16 * (k % 2)) & 0xFFFFu;
      break;
    }
    default: {
      const uint2 all = *reinterpret_cast<const uint2*>(at);
      const uint32_t quads[2] = {all.x, all.y};
#pragma unroll
      for (int k = 0; k < kPack; ++k) words[k] = quads[k / 4] >> (8 * (k % 4)) & 0xFFu;
    }
  }
#pragma unroll
  for (int k = 0; k < kPack; ++k) values[k] = decode(words[k], s.dtype);
}

/// Element i + k = values[k] for k < count ≤ kPack. i is a multiple of kPack.
__device__ __forceinline__ void store_pack(const Sink& s, int64_t i, int count,
                                           const float (&values)[kPack]) {
  if (!s.aligned || count < kPack) {
#pragma unroll
    for (int k = 0; k < kPack; ++k)
      if (k < count) store_one(s.data, s.dtype, i + k, values[k]);
    return;
  }
  uint32_t words[kPack];
#pragma unroll
  for (int k = 0; k < kPack; ++k) words[k] = encode(values[k], s.dtype);
  char* at = static_cast<char*>(s.data) + i * static_cast<int64_t>(size_of(s.dtype));
  switch (size_of(s.dtype)) {
    case 4:
      reinterpret_cast<uint4*>(at)[0] = make_uint4(words[0], words[1], words[2], words[3]);
      reinterpret_cast<uint4*>(at)[1] = make_uint4(words[4], words[5], words[6], words[7]);
      break;
    case 2:
      *reinterpret_cast<uint4*>(at) =
          make_uint4(words[0] | words[1] << 16, words[2] | words[3] << 16,
                     words[4] | words[5] << 16, words[6] | words[7] << 16);
      break;
    default:
      *reinterpret_cast<uint2*>(at) =
          make_uint2(words[0] | words[1] << 8 | words[2] << 16 | words[3] << 24,
                     words[4] | words[5] << 8 | words[6] << 16 | words[7] << 24);
  }
}

/// Calls body(i, count) for the packs of [0, n) that are this thread's: element i is its first.
template <class Body>
__device__ __forceinline__ void for_packs(int64_t n, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kPack;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack;
  for (int64_t i = first; i < n; i += step)
    body(i, n - i < kPack ? static_cast<int>(n - i) : kPack);
}

inline int64_t pack_blocks(int64_t n) { return blocks_for(n, int64_t{kThreads} * kPack); }

}  // namespace ulp::cuda
