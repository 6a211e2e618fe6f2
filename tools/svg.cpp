#include "tools/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace ulp::tools::svg {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr double kLeastSize = 8;

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

/// Bytes of the UTF-8 character that the text begins with; 0 if there is none, or none that XML 1.0 has.
size_t character_size(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return first >= 0x20 && first != 0x7F ? 1 : 0;
  const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < size) return 0;
  if (!std::all_of(text.begin() + 1, text.begin() + static_cast<std::ptrdiff_t>(size), continues))
    return 0;
  uint32_t point = first & (0xFFu >> (size + 1));
  for (const char c : text.substr(1, size - 1))
    point = point << 6 | (static_cast<unsigned char>(c) & 0x3Fu);
  const bool overlong = (size == 3 && point < 0x800) || (size == 4 && point < 0x10000);
  const bool surrogate = point >= 0xD800 && point < 0xE000;
  const bool control = point < 0xA0 || (point & 0xFFFE) == 0xFFFE || point > 0x10FFFF;
  return overlong || surrogate || control ? 0 : size;
}

std::string_view entity(char c) {
  switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '"': return "&quot;";
    case '\'': return "&#39;";
    default: return "";
  }
}

size_t characters(std::string_view text) {
  return text.size() - static_cast<size_t>(std::count_if(text.begin(), text.end(), continues));
}

/// The bytes of the first `count` characters.
size_t bytes_of_first(std::string_view text, size_t count) {
  size_t at = 0;
  for (; at < text.size(); ++at)
    if (!continues(text[at]) && count-- == 0) break;
  return at;
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t size = character_size(text);
    const std::string_view name = entity(text[0]);
    out += size == 0 ? kReplacement : name.empty() ? text.substr(0, size) : name;
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return out;
}

std::string number(double value) {
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

double width_of(std::string_view text, double size) {
  return 0.6 * size * static_cast<double>(characters(text));
}

std::string shortened(std::string_view text, double size, double width) {
  const size_t all = characters(text);
  const auto most = static_cast<size_t>(std::max(width / (0.6 * size), 3.0));
  if (all <= most) return std::string(text);
  const size_t front = (most - 1) / 2, back = most - 1 - front;
  return std::string(text.substr(0, bytes_of_first(text, front))) + "…" +
         std::string(text.substr(bytes_of_first(text, all - back)));
}

std::vector<std::string> lines_of(std::string_view text, double size, double width) {
  std::vector<std::string> lines{""};
  while (!text.empty()) {
    const std::string word(text.substr(0, text.find(' ')));
    const std::string longer = lines.back() + (lines.back().empty() ? "" : " ") + word;
    if (lines.back().empty() || width_of(longer, size) <= width)
      lines.back() = longer;
    else
      lines.push_back(word);
    text.remove_prefix(std::min(word.size() + 1, text.size()));
  }
  return lines;
}

std::vector<int> Axis::whole_numbers(double apart) const {
  int step = 1;
  while (step * std::abs(at(1) - at(0)) < apart) step *= 2;
  std::vector<int> all;
  for (int i = static_cast<int>(std::ceil(from / step)) * step; i <= to; i += step)
    all.push_back(i);
  return all;
}

std::string Axis::attributes(std::string_view id) const {
  return fmt::format("id=\"{}\" data-axis=\"{} {} {} {}\"", id, from, to, begin, end);
}

void Drawing::open_group(std::string_view attributes, std::string_view title) {
  body_ += fmt::format("<g {}>\n", attributes);
  if (!title.empty()) body_ += fmt::format("<title>{}</title>\n", escaped(title));
}

void Drawing::path(std::string_view commands, std::string_view attributes) {
  if (!commands.empty()) body_ += fmt::format("<path d=\"{}\" {}/>\n", commands, attributes);
}

void Drawing::line(double x1, double y1, double x2, double y2, std::string_view attributes) {
  body_ += fmt::format("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" {}/>\n", number(x1),
                       number(y1), number(x2), number(y2), attributes);
}

void Drawing::rectangle(double x, double y, double width, double height,
                        std::string_view attributes) {
  body_ += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" {}/>\n", number(x),
                       number(y), number(width), number(height), attributes);
}

void Drawing::text(double x, double y, const TextStyle& style, std::string_view text) {
  double size = style.size;
  std::string shown(text);
  if (style.width > 0) {
    const double needed = width_of(text, size);
    if (needed > style.width) size = std::max(kLeastSize, size * style.width / needed);
    shown = shortened(text, size, style.width + 0.01);
  }
  body_ +=
      fmt::format("<text x=\"{}\" y=\"{}\" font-size=\"{}\" fill=\"{}\"{}{}>{}</text>\n", number(x),
                  number(y), number(size), style.fill,
                  style.anchor == "start" ? "" : fmt::format(" text-anchor=\"{}\"", style.anchor),
                  style.bold ? " font-weight=\"bold\"" : "", escaped(shown));
}

void Drawing::clip(std::string_view id, double x, double y, double width, double height) {
  body_ += fmt::format("<clipPath id=\"{}\">", id);
  rectangle(x, y, width, height, "");
  body_ += "</clipPath>\n";
}

std::string Drawing::document(const Head& head) const {
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {} {}\" "
      "role=\"img\" aria-labelledby=\"title description\" font-family=\"sans-serif\">\n"
      "<title id=\"title\">{}</title>\n<desc id=\"description\">{}</desc>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"{}\"/>\n{}</svg>\n",
      number(head.shown_width), number(head.height * head.shown_width / head.width),
      number(head.width), number(head.height), escaped(head.title), escaped(head.description),
      head.background, body_);
}

}  // namespace ulp::tools::svg
