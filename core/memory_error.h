#pragma once

#include <cstddef>
#include <new>
#include <string>

#include "core/error.h"

namespace ulp {

/// Memory that was asked for and is not there. Says nothing about what was to be put into it: who turns an ulp::Error into a
/// verdict on a file, a setting or a run lets this one pass.
class MemoryError : public Error {
 public:
  using Error::Error;
};

/// A failed allocation of the language that knows its size. The operator new of the ulp command throws it; that of other
/// programs throws a plain std::bad_alloc.
class AllocationFailed : public std::bad_alloc {
 public:
  explicit AllocationFailed(size_t bytes) noexcept;
  /// "out of memory, asked for N bytes".
  const char* what() const noexcept override { return text_; }

 private:
  char text_[64];
};

/// "out of memory, asked for N bytes", without the number where nobody knows it.
const char* out_of_memory_text(const std::bad_alloc& error);

/// f(). Where memory is missing in it a MemoryError "WHAT: out of memory, asked for N bytes" is thrown, and what hint() says
/// then at its end.
template <class F, class Hint>
auto with_memory_for(const std::string& what, F f, Hint hint) {
  const auto failed = [&](const std::string& why) {
    return MemoryError(what + ": " + why + hint());
  };
  try {
    return f();
  } catch (const MemoryError& error) {
    throw failed(error.what());
  } catch (const std::bad_alloc& error) {
    throw failed(out_of_memory_text(error));
  }
}
template <class F>
auto with_memory_for(const std::string& what, F f) {
  return with_memory_for(what, f, [] { return ""; });
}

}  // namespace ulp
