#include "kernels/cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "core/error.h"

namespace ulp::cpu {
namespace {

constexpr Isa kAll[] = {Isa::Portable, Isa::Avx2, Isa::Avx512};

Isa choose_isa() {
  Isa best = Isa::Portable;
  for (const Isa isa : kAll)
    if (has_isa(isa)) best = isa;
  const char* wanted = std::getenv("ULP_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (const Isa isa : kAll)
    if (std::string_view(wanted) == to_string(isa)) {
      ULP_CHECK(has_isa(isa), "ULP_ISA={}: this machine has no {}; its widest is {}", wanted,
                wanted, to_string(best));
      return isa;
    }
  throw_error("ULP_ISA={}: wanted portable, avx2 or avx512", wanted);
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{choose_isa()};
  return isa;
}

}  // namespace

bool has_isa(Isa isa) {
#if defined(ULP_X86_ISA)
  if (isa == Isa::Avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::Avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
#endif
  return isa == Isa::Portable;
}

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(Isa isa) {
  ULP_CHECK(has_isa(isa), "set_isa: this machine has no {}", to_string(isa));
  chosen() = isa;
}

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::Portable: return "portable";
    case Isa::Avx2: return "avx2";
    case Isa::Avx512: return "avx512";
  }
  return "?";
}

}  // namespace ulp::cpu
