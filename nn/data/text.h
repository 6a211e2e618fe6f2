#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace ulp::nn {

/// What one token of a text is: a Unicode character (its text is UTF-8) or a byte.
enum class TokenKind : uint8_t { Characters, Bytes };
/// "characters", "bytes".
const char* to_string(TokenKind kind);
/// Throws ulp::Error for another word.
TokenKind parse_token_kind(std::string_view text);

/// The characters that a model knows, numbered in the order of their code points; or all 256 bytes.
class Vocabulary {
 public:
  /// None: there is no text.
  Vocabulary() = default;
  static Vocabulary bytes();
  /// Those that occur in a UTF-8 text. Throws, naming the byte, where it is not UTF-8. `name` begins messages.
  static Vocabulary characters_of(std::string_view text, const std::string& name);

  bool empty() const { return size() == 0; }
  int64_t size() const;
  TokenKind kind() const { return kind_; }
  /// All characters in order, as UTF-8: characters_of makes the same vocabulary of it. Empty for bytes.
  std::string characters() const;

  /// The numbers of a text's tokens. Throws, naming the first token that is unknown and its place.
  std::vector<int32_t> encode(std::string_view text, const std::string& name) const;
  /// The UTF-8 of a character, or a byte. Throws if there is no such token.
  std::string decode(int32_t token) const;

  bool operator==(const Vocabulary&) const = default;

 private:
  TokenKind kind_ = TokenKind::Characters;
  std::vector<char32_t> characters_;
};

/// The code points of a UTF-8 text. Throws, naming the byte, where it is not UTF-8.
std::vector<char32_t> code_points(std::string_view text, const std::string& name);
std::string utf8_of(char32_t character);

/// Throws unless both parts of a text are longer than a context. `name` begins messages.
void check_context(const std::string& name, TokenKind kind, int64_t training, int64_t validation,
                   int64_t context);

struct TextOptions {
  TokenKind tokens = TokenKind::Characters;
  /// The share of the tokens, from the end of the text, that is for validation.
  double validation = 0.1;
  /// Tokens of a window. Both parts must be longer.
  int64_t context = 256;
  /// Whose numbers the tokens get, that of a trained model for instance; empty: the text's own.
  Vocabulary vocabulary{};
};

/// A text cut by position. train and validation: (L), U8 for vocabularies of at most 256 tokens, else I32.
struct Text {
  Vocabulary vocabulary;
  Tensor train, validation;
};

/// Reads a file. Throws ulp::Error, one line, for a file that cannot be read, is not UTF-8, has too few tokens, or one that the
/// given vocabulary has not.
Text load_text(const std::filesystem::path& file, const TextOptions& options);
/// The same of a text in memory. `name` begins messages.
Text split_text(std::string_view text, const std::string& name, const TextOptions& options);

}  // namespace ulp::nn
