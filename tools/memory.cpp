#include "tools/memory.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

#include "core/memory_error.h"

namespace ulp::tools {
namespace {

constexpr size_t kAside = size_t{256} << 10;
constexpr size_t kMessage = size_t{4} << 10;  // what a message allocates is smaller

std::atomic<void*> aside{nullptr};
std::atomic<bool> begun{false};
std::terminate_handler usual_terminate = nullptr;

[[noreturn]] void end_without_memory(const std::bad_alloc& error) noexcept {
  print_out_of_memory(error);
  _exit(1);
}

/// What threads of the libraries throw, and what is thrown where nothing may be.
[[noreturn]] void terminated() {
  try {
    if (const std::exception_ptr error = std::current_exception()) std::rethrow_exception(error);
  } catch (const std::bad_alloc& error) {
    end_without_memory(error);
  } catch (...) {
  }
  usual_terminate();
  std::abort();
}

}  // namespace

void begin_memory() {
  usual_terminate = std::set_terminate(terminated);
  aside = std::malloc(kAside);
  begun = true;
}

void print_out_of_memory(const std::bad_alloc& error) noexcept {
  char line[96];
  const int length = std::snprintf(line, sizeof line, "ulp: %s\n", out_of_memory_text(error));
  for (int done = 0; done < length;) {
    const ssize_t n = ::write(STDERR_FILENO, line + done, static_cast<size_t>(length - done));
    if (n <= 0) return;
    done += static_cast<int>(n);
  }
}

/// Memory of malloc, or of aligned_alloc where `alignment` is not 0.
[[gnu::noinline]] static void* allocate(size_t bytes, size_t alignment) {
  const auto once = [&] {
    if (alignment == 0) return std::malloc(std::max(bytes, size_t{1}));
    if (bytes > SIZE_MAX - alignment) return static_cast<void*>(nullptr);
    return std::aligned_alloc(alignment,
                              std::max((bytes + alignment - 1) / alignment * alignment, alignment));
  };
  void* pointer = once();
  if (pointer != nullptr) return pointer;
  if (!begun) end_without_memory(AllocationFailed(bytes));  // before main() nothing could catch it
  std::free(aside.exchange(nullptr));
  if (bytes <= kMessage) pointer = once();
  if (pointer == nullptr) throw AllocationFailed(bytes);
  return pointer;
}

[[gnu::noinline]] static void release(void* pointer) noexcept { std::free(pointer); }

}  // namespace ulp::tools

// The sanitizers have operators of their own.
#if !defined(__SANITIZE_ADDRESS__)

void* operator new(size_t bytes) { return ulp::tools::allocate(bytes, 0); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return ulp::tools::allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* pointer) noexcept { ulp::tools::release(pointer); }
void operator delete(void* pointer, size_t) noexcept { ulp::tools::release(pointer); }
void operator delete(void* pointer, std::align_val_t) noexcept { ulp::tools::release(pointer); }
void operator delete(void* pointer, size_t, std::align_val_t) noexcept {
  ulp::tools::release(pointer);
}

#endif
