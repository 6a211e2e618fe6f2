#include "nn/data/located_json.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace ulp::nn {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostDepth = 64;

/// Characters of a text, which counts the lines that a parser has read.
class Reading {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  Reading(const char* at, int64_t* line) : at_(at), line_(line) {}
  reference operator*() const { return *at_; }
  Reading& operator++() {
    if (*at_++ == '\n') ++*line_;
    return *this;
  }
  Reading operator++(int) {
    const Reading before = *this;
    ++*this;
    return before;
  }
  bool operator==(const Reading& other) const { return at_ == other.at_; }
  bool operator!=(const Reading& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  int64_t* line_;
};

/// Makes the tree. Members of objects have the line of their key, which numbers at the end of a line would miss.
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  int64_t* line() { return &line_; }
  LocatedJson result() { return std::move(root_); }

  bool null() override { return add(LocatedJson::Kind::Null, "null"); }
  bool boolean(bool v) override { return add(LocatedJson::Kind::Boolean, v ? "true" : "false"); }
  bool number_integer(int64_t v) override {
    return add(LocatedJson::Kind::Integer, std::to_string(v), v, static_cast<double>(v));
  }
  bool number_unsigned(uint64_t v) override {
    if (v > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return number_float(static_cast<double>(v), std::to_string(v));
    return number_integer(static_cast<int64_t>(v));
  }
  bool number_float(double v, const std::string& text) override {
    return add(LocatedJson::Kind::Number, text, 0, v);
  }
  bool string(std::string& text) override { return add(LocatedJson::Kind::Text, text); }
  bool binary(Json::binary_t&) override { return false; }
  bool start_object(size_t) override { return open(LocatedJson::Kind::Object); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(LocatedJson::Kind::List); }
  bool end_array() override { return close(); }

  bool key(std::string& key) override {
    LocatedJson& object = *open_.back();
    if (const auto at =
            std::find_if(object.members.begin(), object.members.end(),
                         [&](const LocatedJson::Member& member) { return member.key == key; });
        at != object.members.end())
      throw_error("{}, line {}: the key \"{}\" stands in line {} already", name_, line_, key,
                  at->line);
    object.members.push_back({key, line_, {}});
    return true;
  }

  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    const bool ended = position > text_.size();
    const size_t at = ended ? text_.size() : position - std::min<size_t>(position, 1);
    const std::string_view before = text_.substr(0, at);
    const int64_t line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t column = at - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
    if (ended)
      throw_error("{}, line {}, column {}: no JSON: the text ends too early", name_, line, column);
    throw_error("{}, line {}, column {}: no JSON at '{}'", name_, line, column, token);
  }

 private:
  /// Where the next value goes.
  LocatedJson& place() {
    if (open_.empty()) return root_;
    LocatedJson& parent = *open_.back();
    if (parent.kind == LocatedJson::Kind::Object) return parent.members.back().value;
    return parent.items.emplace_back();
  }
  LocatedJson& put(LocatedJson::Kind kind) {
    LocatedJson& value = place();
    value.kind = kind;
    const bool member = !open_.empty() && open_.back()->kind == LocatedJson::Kind::Object;
    value.line = member ? open_.back()->members.back().line : line_;
    return value;
  }
  bool add(LocatedJson::Kind kind, std::string text, int64_t integer = 0, double number = 0) {
    LocatedJson& value = put(kind);
    value.text = std::move(text);
    value.integer = integer;
    value.number = number;
    return true;
  }
  bool open(LocatedJson::Kind kind) {
    ULP_CHECK(open_.size() < kMostDepth, "{}, line {}: more than {} brackets within each other",
              name_, line_, kMostDepth);
    open_.push_back(&put(kind));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  std::string name_;
  int64_t line_ = 1;
  LocatedJson root_;
  std::vector<LocatedJson*>
      open_;  // a parent gets no other child while one is open: addresses stay
};

}  // namespace

const LocatedJson* LocatedJson::find(std::string_view key) const {
  for (const Member& member : members)
    if (member.key == key) return &member.value;
  return nullptr;
}

const char* LocatedJson::what() const {
  switch (kind) {
    case Kind::Null: return "null";
    case Kind::Boolean: return "a truth value";
    case Kind::Integer: return "a whole number";
    case Kind::Number: return "a number";
    case Kind::Text: return "a text";
    case Kind::List: return "a list";
    case Kind::Object: return "an object";
  }
  return "?";
}

std::string LocatedJson::shown() const {
  const bool plain = text.empty() || kind == Kind::Null;
  return plain ? what() : std::string(what()) + " (" + text + ")";
}

LocatedJson parse_located(std::string_view text, const std::string& name) {
  Builder builder(text, name);
  const Reading begin(text.data(), builder.line()), end(text.data() + text.size(), builder.line());
  ULP_CHECK(Json::sax_parse(begin, end, &builder), "{}: no JSON", name);
  return builder.result();
}

}  // namespace ulp::nn
