#include "nn/data/text.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "nn/data/read_file.h"
#include "nn/data/token_text.h"

namespace ulp::nn {
namespace {

constexpr int64_t kBytes = 256;

/// The length of a UTF-8 sequence by its first byte; 0 for a byte that begins none.
size_t length_of(uint8_t first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return 2;
  if (first >= 0xE0 && first < 0xF0) return 3;
  if (first >= 0xF0 && first < 0xF5) return 4;
  return 0;
}

/// The character that begins at byte `at`, which moves behind it; false where there is none.  Source: RFC 3629, section 4.
bool next_character(std::string_view text, size_t& at, char32_t& character) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const size_t length = length_of(byte(at));
  if (length == 0 || length > text.size() - at) return false;
  char32_t c = length == 1 ? byte(at) : byte(at) & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return false;
    c = c << 6 | (byte(at + i) & 0x3Fu);
  }
  const char32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return false;
  at += length;
  character = c;
  return true;
}

/// "'é' (U+00E9)".
std::string shown(char32_t character) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string code;
  for (char32_t rest = character; rest != 0 || code.size() < 4; rest >>= 4)
    code.insert(code.begin(), kDigits[rest & 15]);
  return "'" + utf8_of(character) + "' (U+" + code + ")";
}

Tensor tensor_of(const int32_t* tokens, int64_t n, bool narrow) {
  if (!narrow) return Tensor::from(std::vector<int32_t>(tokens, tokens + n), {n});
  std::vector<uint8_t> bytes(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(tokens[i]);
  return Tensor::from(bytes, {n});
}

}  // namespace

void check_context(const std::string& name, TokenKind kind, int64_t training, int64_t validation,
                   int64_t context) {
  for (const auto& [part, tokens] : {std::pair{"training", training}, {"validation", validation}})
    ULP_CHECK(tokens > context,
              "{}: its {} part has {}, and a context of {} needs at least {}; take a longer text "
              "or a shorter context",
              name, part, counted(tokens, kind), context, context + 1);
}

const char* to_string(TokenKind kind) { return kind == TokenKind::Bytes ? "bytes" : "characters"; }

std::string counted(int64_t tokens, TokenKind kind) {
  const std::string_view all = to_string(kind);
  return std::to_string(tokens) + " " +
         std::string(tokens == 1 ? all.substr(0, all.size() - 1) : all);
}

TokenKind parse_token_kind(std::string_view text) {
  if (text == "characters") return TokenKind::Characters;
  if (text == "bytes") return TokenKind::Bytes;
  throw_error("tokens are characters or bytes, got '{}'", text);
}

std::vector<char32_t> code_points(std::string_view text, const std::string& name) {
  std::vector<char32_t> characters;
  characters.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    char32_t character = 0;
    ULP_CHECK(next_character(text, at, character),
              "{}: byte {} is not UTF-8; take bytes as tokens, or convert the text", name, at);
    characters.push_back(character);
  }
  return characters;
}

std::string utf8_of(char32_t c) {
  const auto byte = [](char32_t value) { return static_cast<char>(static_cast<uint8_t>(value)); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 0x3F))};
  if (c < 0x10000)
    return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 0x3F)), byte(0x80 | (c & 0x3F))};
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 0x3F)), byte(0x80 | (c >> 6 & 0x3F)),
          byte(0x80 | (c & 0x3F))};
}

Vocabulary Vocabulary::bytes() {
  Vocabulary v;
  v.kind_ = TokenKind::Bytes;
  return v;
}

Vocabulary Vocabulary::characters_of(std::string_view text, const std::string& name) {
  Vocabulary v;
  v.characters_ = code_points(text, name);
  std::sort(v.characters_.begin(), v.characters_.end());
  v.characters_.erase(std::unique(v.characters_.begin(), v.characters_.end()), v.characters_.end());
  v.characters_.shrink_to_fit();
  return v;
}

int64_t Vocabulary::size() const {
  return kind_ == TokenKind::Bytes ? kBytes : static_cast<int64_t>(characters_.size());
}

std::string Vocabulary::characters() const {
  std::string text;
  for (const char32_t c : characters_) text += utf8_of(c);
  return text;
}

std::vector<int32_t> Vocabulary::encode(std::string_view text, const std::string& name) const {
  std::vector<int32_t> tokens;
  if (kind_ == TokenKind::Bytes) {
    for (const char c : text) tokens.push_back(static_cast<uint8_t>(c));
    return tokens;
  }
  for (const char32_t c : code_points(text, name)) {
    const auto at = std::lower_bound(characters_.begin(), characters_.end(), c);
    ULP_CHECK(at != characters_.end() && *at == c,
              "{}: character {}, {}, is none of the {} that the model knows", name,
              tokens.size() + 1, shown(c), characters_.size());
    tokens.push_back(static_cast<int32_t>(at - characters_.begin()));
  }
  return tokens;
}

std::string Vocabulary::decode(int32_t token) const {
  ULP_CHECK(token >= 0 && token < size(), "token {} is not in [0, {})", token, size());
  if (kind_ == TokenKind::Bytes) return {static_cast<char>(static_cast<uint8_t>(token))};
  return utf8_of(characters_[static_cast<size_t>(token)]);
}

Text split_text(std::string_view text, const std::string& name, const TextOptions& options) {
  ULP_CHECK(options.context >= 1 && options.validation > 0 && options.validation < 1,
            "{}: a context of at least 1 and a share for validation between 0 and 1 are wanted, "
            "got {} and {}",
            name, options.context, options.validation);
  ULP_CHECK(!text.empty(), "{}: the text is empty", name);
  ULP_CHECK(text.size() <= INT32_MAX, "{}: a text has at most {} bytes, got {}", name, INT32_MAX,
            text.size());
  Text result;
  if (!options.vocabulary.empty())
    result.vocabulary = options.vocabulary;
  else
    result.vocabulary = options.tokens == TokenKind::Bytes ? Vocabulary::bytes()
                                                           : Vocabulary::characters_of(text, name);
  ULP_CHECK(result.vocabulary.size() >= 2, "{}: all of its characters are the same", name);
  const std::vector<int32_t> tokens = result.vocabulary.encode(text, name);
  const auto count = static_cast<int64_t>(tokens.size());
  const auto validation =
      static_cast<int64_t>(std::floor(static_cast<double>(count) * options.validation));
  check_context(name, options.tokens, count - validation, validation, options.context);
  const bool narrow = result.vocabulary.size() <= kBytes;
  result.train = tensor_of(tokens.data(), count - validation, narrow);
  result.validation = tensor_of(tokens.data() + (count - validation), validation, narrow);
  return result;
}

Text load_text(const std::filesystem::path& file, const TextOptions& options) {
  const std::vector<uint8_t> bytes = read_file(file);
  return split_text({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file.string(),
                    options);
}

}  // namespace ulp::nn
