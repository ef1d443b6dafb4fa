#include "gpusim/ptx_lexer.h"

#include <cstddef>

#include "model/error.h"

namespace gpusim::ptx {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '$' || c == '%' || c == '.';
}
bool is_word(char c) { return is_word_start(c) || is_digit(c); }

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  std::vector<Token> run() {
    std::vector<Token> tokens;
    while (skip_blanks()) tokens.push_back(next());
    tokens.push_back({.kind = Token::Kind::end, .text = {}, .line = line_});
    return tokens;
  }

 private:
  char at(std::size_t i) const { return i < text_.size() ? text_[i] : '\0'; }

  /// To the next token; false at the end.
  bool skip_blanks() {
    while (position_ < text_.size()) {
      const char c = text_[position_];
      if (c == '\n') {
        ++line_;
        ++position_;
      } else if (c == ' ' || c == '\t' || c == '\r' || c == '\0') {
        ++position_;
      } else if (c == '/' && at(position_ + 1) == '/') {
        position_ = find("\n", position_, text_.size());
      } else if (c == '/' && at(position_ + 1) == '*') {
        skip_comment();
      } else {
        return true;
      }
    }
    return false;
  }

  std::size_t find(std::string_view what, std::size_t from, std::size_t otherwise) const {
    const std::size_t found = text_.find(what, from);
    return found == std::string_view::npos ? otherwise : found;
  }

  void skip_comment() {
    const std::size_t end = text_.find("*/", position_ + 2);
    DSV2_CHECK(end != std::string_view::npos, "PTX line ", line_, ": a comment without an end");
    for (; position_ < end + 2; ++position_) line_ += text_[position_] == '\n';
  }

  Token next() {
    const std::size_t begin = position_;
    const char c = text_[begin];
    if (c == '"') return string();
    if (is_word_start(c)) {
      skip_word();
      return token(Token::Kind::word, begin);
    }
    if (is_digit(c)) {
      while (is_word(at(position_)) && at(position_) != '%' && at(position_) != '$') ++position_;
      return token(Token::Kind::number, begin);
    }
    ++position_;
    return token(Token::Kind::punctuation, begin);
  }

  void skip_word() {
    for (;;) {
      if (is_word(at(position_))) {
        ++position_;
      } else if (at(position_) == ':' && at(position_ + 1) == ':') {
        position_ += 2;
      } else {
        return;
      }
    }
  }

  Token string() {
    const std::size_t end = text_.find('"', position_ + 1);
    DSV2_CHECK(end != std::string_view::npos, "PTX line ", line_, ": a string without an end");
    const Token result{
        .kind = Token::Kind::string, .text = text_.substr(position_ + 1, end - position_ - 1), .line = line_};
    position_ = end + 1;
    return result;
  }

  Token token(Token::Kind kind, std::size_t begin) const {
    return {.kind = kind, .text = text_.substr(begin, position_ - begin), .line = line_};
  }

  std::string_view text_;
  std::size_t position_ = 0;
  int line_ = 1;
};

}  // namespace

std::vector<Token> tokenize(std::string_view text) { return Lexer(text).run(); }

}  // namespace gpusim::ptx
