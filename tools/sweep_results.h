#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace ulp::tools {

/// What held-out samples say of a model.
struct SweepScore {
  double accuracy = 0, loss = 0;
  std::vector<double> curve{};  // the loss after each epoch
};

/// One training of a sweep.
struct SweepRun {
  std::string formats;  // as the list has them
  uint64_t seed = 0;
  double bits = 0;  // the mean of the operands of all products
  std::string config,
      data;  // texts that tell what was run: config.json, and the fingerprint of the samples
  std::string problem{};  // not empty: it diverged, and how
  double accuracy = 0, loss = 0, seconds = 0;
  std::vector<double> curve{};       // the loss on held-out samples after each epoch
  std::optional<SweepScore> last{};  // where all this is of an average: of the last weights
};

/// The runs of a sweep that are done, in a file that is written whole after each.
class SweepResults {
 public:
  /// Reads the file if there is one. Throws ulp::Error if it is no such file.
  explicit SweepResults(std::filesystem::path file);

  /// The run with these formats and seed, if it is done. Throws ulp::Error naming what is different if it was another one
  /// than `wanted`.
  const SweepRun* find(const SweepRun& wanted) const;
  /// Adds it and writes the file.
  void add(const SweepRun& run);

 private:
  std::filesystem::path file_;
  std::vector<SweepRun> runs_;
};

/// A mean and the standard deviation of a sample; none of one value.
struct Spread {
  double mean = 0;
  std::optional<double> deviation{};
};
std::optional<Spread> spread_of(const std::vector<double>& values);

/// What a sweep says of one list entry. Accuracies in percent.
struct SweepRow {
  std::string formats;
  double bits = 0;
  int64_t runs = 0, diverged = 0;
  std::vector<double> accuracies{}, losses{};
  std::optional<Spread> accuracy{}, loss{};
  std::optional<Spread> difference{};  // of accuracy to the first row with the same seed, in points
  std::optional<Spread> loss_difference{};  // the same of the loss
  double x = 0;                             // where a picture has it; rows_of takes the bits
  std::string series{};                     // rows of one are joined in a picture; empty: none
};

/// What a table calls its rows and their reference, and which of the two results it compares.
struct TableStyle {
  std::string rows = "formats", reference = "fp32";
  bool by_loss = false;
};
/// What a picture shows.
struct ChartStyle {
  const char* x_title;
  bool by_loss = false;
};
inline constexpr ChartStyle kAccuracyOverBits{"bits of an operand, mean over all products"};
/// A row for each of `formats`, whose first one is the reference.
std::vector<SweepRow> rows_of(const std::vector<SweepRun>& runs,
                              const std::vector<std::string>& formats);

std::string table_text(const std::vector<SweepRow>& rows, const TableStyle& style);
std::string table_markdown(const std::vector<SweepRow>& rows, const TableStyle& style);
std::string table_json(const std::vector<SweepRow>& rows);

/// Accuracy or loss against x on a logarithmic scale, an SVG document.
std::string draw_sweep(const std::vector<SweepRow>& rows, const std::string& title,
                       const ChartStyle& style);
/// Loss on held-out samples against epochs, an SVG document: for each of `formats` the mean over the seeds that came so far,
/// and thinly every seed. Losses much above those after the first quarter of the epochs are outside of the picture.
std::string draw_curves(const std::vector<SweepRun>& runs, const std::vector<std::string>& formats,
                        const std::string& title);

}  // namespace ulp::tools
