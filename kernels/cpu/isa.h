#pragma once

#include "core/macros.h"

namespace ulp::cpu {

/// Instruction sets a loop is compiled for; one is chosen at run time. All give the same bits.
enum class Isa { Portable, Avx2, Avx512 };

/// The widest one this machine has; the environment variable ULP_ISA=portable|avx2|avx512 lowers it.
/// Throws ulp::Error for another word or one that the machine lacks.
Isa current_isa();
/// Overrides the choice for the rest of the process (tests, benchmarks). Throws if the machine lacks it.
void set_isa(Isa isa);
bool has_isa(Isa isa);
const char* to_string(Isa isa);

#if defined(__x86_64__) && !defined(__CUDACC__) && !defined(__clang__)  // GCC names them so
#define ULP_X86_ISA 1
#define ULP_TARGET_AVX2 __attribute__((target("arch=x86-64-v3"), noinline))
#define ULP_TARGET_AVX512 \
  __attribute__((target("arch=x86-64-v4,prefer-vector-width=512"), noinline))

template <class Body>
ULP_TARGET_AVX2 void run_avx2(const Body& body) {
  body();
}
template <class Body>
ULP_TARGET_AVX512 void run_avx512(const Body& body) {
  body();
}
#endif

template <class Body>
__attribute__((noinline)) void run_portable(const Body& body) {
  body();
}

/// Runs body() compiled for the current instruction set. body is a lambda marked ULP_INLINE that captures by value:
///   with_isa([=]() ULP_INLINE { for (int64_t i = begin; i < end; ++i) out[i] = f(in[i]); });
/// Everything it calls must be ULP_HD or inlined. No OpenMP inside: split the work with parallel_for around it.
template <class Body>
void with_isa(const Body& body) {
#if defined(ULP_X86_ISA)
  switch (current_isa()) {
    case Isa::Avx512: return run_avx512(body);
    case Isa::Avx2: return run_avx2(body);
    case Isa::Portable: break;
  }
#endif
  run_portable(body);
}

}  // namespace ulp::cpu
