#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ulp::tools::svg {

/// Text for an XML document: markup escaped; control characters and what is no UTF-8 become U+FFFD.
std::string escaped(std::string_view text);

/// A coordinate: at most two decimals, "12.5", "0".
std::string number(double value);

/// About what a sans-serif font needs, so that texts can be kept apart whatever font the viewer has.
double width_of(std::string_view text, double size);

/// "…" in place of the middle of a text that is wider than `width`.
std::string shortened(std::string_view text, double size, double width);

/// The text in lines that are no wider than `width`, unless a word is.
std::vector<std::string> lines_of(std::string_view text, double size, double width);

/// A scale along x or y.
struct Axis {
  double from, to, begin, end;
  double at(double value) const { return begin + (value - from) / (to - from) * (end - begin); }
  double value(double place) const { return from + (place - begin) / (end - begin) * (to - from); }
  bool holds(double value) const { return from <= value && value <= to; }
  /// Multiples of 1, 2, 4 …, so that they keep a distance of `apart`.
  std::vector<int> whole_numbers(double apart) const;
  /// For a group: its name, and what makes the picture readable for programs.
  std::string attributes(std::string_view id) const;
};

struct TextStyle {
  double size = 12;
  std::string_view fill;
  std::string_view anchor = "start";
  bool bold = false;
  double width = 0;  // > 0: wider text gets smaller, down to 8, then it is shortened
};

/// A drawing from the top left corner, y downwards. Plain presentation attributes, no style sheet: office programs read it.
class Drawing {
 public:
  /// Everything up to close_group() belongs together; viewers show `title` for it.
  void open_group(std::string_view attributes, std::string_view title = "");
  void close_group() { body_ += "</g>\n"; }
  /// `commands`: as in SVG's d attribute.
  void path(std::string_view commands, std::string_view attributes);
  void line(double x1, double y1, double x2, double y2, std::string_view attributes);
  void rectangle(double x, double y, double width, double height, std::string_view attributes);
  void text(double x, double y, const TextStyle& style, std::string_view text);
  /// Defines a region that attributes can name: clip-path="url(#ID)".
  void clip(std::string_view id, double x, double y, double width, double height);

  struct Head {
    double width, height;  // of the drawing
    double shown_width;    // what a viewer gives it
    std::string background, title, description;
  };
  /// The whole document.
  std::string document(const Head& head) const;

 private:
  std::string body_;
};

}  // namespace ulp::tools::svg
