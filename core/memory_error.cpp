#include "core/memory_error.h"

#include <cstdio>

namespace ulp {

AllocationFailed::AllocationFailed(size_t bytes) noexcept {
  std::snprintf(text_, sizeof text_, "out of memory, asked for %zu bytes", bytes);
}

const char* out_of_memory_text(const std::bad_alloc& error) {
  const auto* known = dynamic_cast<const AllocationFailed*>(&error);
  return known == nullptr ? "out of memory" : known->what();
}

}  // namespace ulp
