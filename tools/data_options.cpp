#include "tools/data_options.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "nn/augmentation.h"
#include "tools/format_options.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

std::vector<double> numbers(const std::string& whole, std::string_view text, bool positive) {
  std::vector<double> values;
  while (true) {
    const std::string_view part = text.substr(0, text.find(','));
    double value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size() || !std::isfinite(value) ||
        (positive && value <= 0))
      throw UsageError(fmt::format("--normalize '{}': '{}' is no {}number", whole, part,
                                   positive ? "positive " : ""));
    values.push_back(value);
    if (part.size() == text.size()) return values;
    text.remove_prefix(part.size() + 1);
  }
}

}  // namespace

void DataOptions::add_to(CLI::App& app) {
  const char* group = "Samples";
  app.add_option(
         "--normalize", normalize_,
         "none; data: by mean and standard deviation of each channel over the training "
         "samples; or MEAN,...:STD,... for values in [0, 1], one of each serving all channels")
      ->capture_default_str()
      ->group(group);
  app.add_option("--augment", augment_,
                 "none, or of crop:PIXELS, flip and cutout:PIXELS those that training samples go "
                 "through, such as crop:4,flip; tests never do")
      ->capture_default_str()
      ->group(group);
  app.add_option("--resident-mib", resident_mib_,
                 "a training or test set of more MiB stays on the host, where a thread gathers "
                 "batches ahead of the steps; the same bits")
      ->capture_default_str()
      ->group(group);
}

void DataOptions::resolve(Experiment& e) const {
  try {
    e.augmentation = nn::parse_augmentation(augment_);
  } catch (const Error& error) {
    throw UsageError(std::string("--augment: ") + error.what());
  }
  if (normalize_ != "none" && normalize_ != "data") parse_normalisation(normalize_);
  e.resident_bytes = integer_value<int64_t>("--resident-mib", resident_mib_, 0, 1 << 30) << 20;
}

void DataOptions::fit(Experiment& e, const nn::Dataset& data) const {
  if (data.is_text()) {
    ULP_CHECK(normalize_ == "none" && !e.augmentation.any(),
              "--normalize and --augment are for images, and {} is a text", data.name);
    return;
  }
  const int64_t side = std::min(data.sample_shape[0], data.sample_shape[1]);
  ULP_CHECK(e.augmentation.crop < side && e.augmentation.cutout <= side,
            "--augment {}: {} has images of {} x {} pixels, which allow a crop of less than {} and "
            "a cutout of at most {}",
            nn::to_string(e.augmentation), data.name, data.sample_shape[0], data.sample_shape[1],
            side, side);
  if (normalize_ == "none") return;
  try {
    e.normalisation =
        normalize_ == "data" ? nn::channel_statistics(data) : parse_normalisation(normalize_);
    const auto channels = static_cast<size_t>(data.sample_shape[2]);
    if (e.normalisation.mean.size() == 1) {  // as many standard deviations
      e.normalisation.mean.resize(channels, e.normalisation.mean[0]);
      e.normalisation.std.resize(channels, e.normalisation.std[0]);
    }
    nn::check_normalisation(e.normalisation, data.sample_shape[2]);
  } catch (const Error& error) {
    throw_error("--normalize {}: {}", normalize_, error.what());
  }
}

nn::Normalisation parse_normalisation(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == text.npos)
    throw UsageError("--normalize takes none, data or MEAN,...:STD,..., got '" + text + "'");
  const std::string_view all = text;
  nn::Normalisation n{numbers(text, all.substr(0, colon), false),
                      numbers(text, all.substr(colon + 1), true)};
  if (n.mean.size() != n.std.size())
    throw UsageError(fmt::format("--normalize '{}': {} means and {} standard deviations", text,
                                 n.mean.size(), n.std.size()));
  try {
    nn::check_normalisation(n, static_cast<int64_t>(n.mean.size()));
  } catch (const Error& error) {
    throw UsageError(fmt::format("--normalize {}: {}", text, error.what()));
  }
  return n;
}

std::string to_string(const nn::Normalisation& n) {
  if (n.empty()) return "none";
  return fmt::format("{}:{}", fmt::join(n.mean, ","), fmt::join(n.std, ","));
}

nn::BatchOptions batch_options(const Experiment& e) {
  return {e.normalisation, e.augmentation, e.resident_bytes};
}

}  // namespace ulp::tools
