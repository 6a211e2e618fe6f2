#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ulp::nn {

/// A value of a JSON text that knows its line, for files that people write.
struct LocatedJson {
  enum class Kind : uint8_t { Null, Boolean, Integer, Number, Text, List, Object };
  struct Member;

  Kind kind = Kind::Null;
  int64_t line = 1;     // from 1, where it begins
  std::string text{};   // Text; Integer, Number, Boolean and Null as they are printed
  int64_t integer = 0;  // Integer
  double number = 0;    // Integer, Number
  std::vector<LocatedJson> items;
  std::vector<Member> members;  // in the order of the text

  const LocatedJson* find(std::string_view key) const;
  /// "a text", "a list" …: for messages.
  const char* what() const;
  /// The same with the value, where it is one: "a whole number (3)".
  std::string shown() const;
};
struct LocatedJson::Member {
  std::string key;
  int64_t line;  // of the key
  LocatedJson value;
};

/// `name` begins messages. Throws ulp::Error with line and column (in bytes, where reading stopped) for what is no
/// JSON, with the line for a key that an object has twice.
LocatedJson parse_located(std::string_view text, const std::string& name);

}  // namespace ulp::nn
