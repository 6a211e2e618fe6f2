#include "nn/augmentation.h"

#include <charconv>

#include "core/error.h"

namespace ulp::nn {
namespace {

constexpr int32_t kMostPixels = 4096;

int32_t pixels(std::string_view text, std::string_view number) {
  int32_t value = 0;
  const char* const end = number.data() + number.size();
  const auto [stop, error] = std::from_chars(number.data(), end, value);
  ULP_CHECK(error == std::errc() && stop == end && value >= 1 && value <= kMostPixels,
            "augmentation '{}': '{}' is no number of pixels from 1 to {}", text, number,
            kMostPixels);
  return value;
}

}  // namespace

Augmentation parse_augmentation(std::string_view text) {
  Augmentation result;
  if (text == "none") return result;
  std::string_view rest = text;
  while (true) {
    const std::string_view part = rest.substr(0, rest.find(','));
    const size_t colon = part.find(':');
    const std::string_view name = part.substr(0, colon),
                           number = colon == part.npos ? "" : part.substr(colon + 1);
    const bool flip = part == "flip";
    ULP_CHECK(flip || (colon != part.npos && (name == "crop" || name == "cutout")),
              "augmentation '{}': '{}' is none; there are crop:PIXELS, flip and cutout:PIXELS, "
              "separated by commas, and none",
              text, part);
    const bool twice = flip ? result.flip : name == "crop" ? result.crop != 0 : result.cutout != 0;
    ULP_CHECK(!twice, "augmentation '{}': {} is given twice", text, name);
    if (flip)
      result.flip = true;
    else
      (name == "crop" ? result.crop : result.cutout) = pixels(text, number);
    if (part.size() == rest.size()) return result;
    rest.remove_prefix(part.size() + 1);
  }
}

std::string to_string(const Augmentation& a) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ",") + part; };
  if (a.crop != 0) add("crop:" + std::to_string(a.crop));
  if (a.flip) add("flip");
  if (a.cutout != 0) add("cutout:" + std::to_string(a.cutout));
  return text.empty() ? "none" : text;
}

}  // namespace ulp::nn
