#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ulp {

/// What every public function throws: one line that says what was wanted, what came and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A wrong command line: tools exit with 2 instead of 1.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// One argument of a message. Formatting itself lives in error.cpp, so that headers compile under nvcc without fmt.
class ErrorArg {
 public:
  enum class Kind : uint8_t { Integer, Real, Text };

  template <std::integral T>
  ErrorArg(T value) : kind_(Kind::Integer), integer_(static_cast<int64_t>(value)) {}
  template <std::floating_point T>
  ErrorArg(T value) : kind_(Kind::Real), real_(static_cast<double>(value)) {}
  ErrorArg(std::string_view value) : kind_(Kind::Text), text_(value) {}
  ErrorArg(const std::string& value) : kind_(Kind::Text), text_(value) {}
  ErrorArg(const char* value) : kind_(Kind::Text), text_(value) {}
  /// Anything with a `to_string` found by its namespace: shapes, types, formats, devices.
  template <class T>
  requires requires(const T& value) { std::string(to_string(value)); }
  ErrorArg(const T& value) : kind_(Kind::Text), text_(to_string(value)) {}

  Kind kind() const { return kind_; }
  int64_t integer() const { return integer_; }
  double real() const { return real_; }
  const std::string& text() const { return text_; }

 private:
  Kind kind_;
  int64_t integer_ = 0;
  double real_ = 0;
  std::string text_;
};

/// Replaces each {} (fmt's syntax, {:.3} and the like included) by the next argument.
std::string format_message(std::string_view format, std::initializer_list<ErrorArg> args);

template <class... A>
[[noreturn]] void throw_error(std::string_view format, const A&... args) {
  throw Error(format_message(format, {ErrorArg(args)...}));
}

}  // namespace ulp

/// For callers' mistakes: ULP_CHECK(cond, "linear: x must be (N, {}), got {}", in, x.shape()).
#define ULP_CHECK(condition, ...)                      \
  do {                                                 \
    if (!(condition)) ::ulp::throw_error(__VA_ARGS__); \
  } while (false)

/// For our own mistakes.
#define ULP_ASSERT(condition)                                                               \
  do {                                                                                      \
    if (!(condition))                                                                       \
      ::ulp::throw_error("internal error: {} does not hold at {}:{}", #condition, __FILE__, \
                         __LINE__);                                                         \
  } while (false)
