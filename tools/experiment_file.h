#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ulp::tools {

/// Options of `ulp train` in order: a flag and its value, none for a switch.
using Flags = std::vector<std::pair<std::string, std::optional<std::string>>>;
/// Reads words: --flag value, --flag=value, --switch. `where` begins messages. Throws UsageError for a value without a flag.
Flags parse_flags(const std::vector<std::string>& words, const std::string& where);
/// Those of `base` whose flag `top` does not have, then `top`.
Flags over(const Flags& base, const Flags& top);

/// A comparison of trainings: what a file of tools/experiments says.
///   {"title": "…", "source": "paper and section", "differences": "to it",
///    "options": "--data … --model …", "quick": "options instead for --quick", "quick_title": "of that form",
///    "measure": "accuracy" or "loss", "x": "bits", or a title for the rows' own x,
///    "rows": [{"name": "…", "options": "…", "x": 4, "series": "…"}, {"name": "…", "last_of": "another row"}]}
/// The first row is the reference. quick_title, measure, x, and a row's x and series may be left out; the first may not where
/// "quick" has other data. Options may be a list of words. Data, threads and checkpoints are options of all rows.
/// A row with last_of trains nothing: it is the last weights of a row whose result is an average of weights.
struct ExperimentFile {
  struct Row {
    std::string name;
    Flags options;
    std::optional<double> x{};  // above 0
    std::string series{};       // rows of one are joined in the picture
    std::string last_of{};      // empty: it is trained
    /// The part of a folder's name that says the row: letters, digits and '-'; no two rows of a file have the same.
    std::string folder() const;
  };
  std::string name, title, quick_title, source, differences;
  Flags options, quick;
  bool by_loss = false;
  std::string x{};  // empty: there is only the picture of losses over epochs
  std::vector<Row> rows;
};
/// Throws ulp::Error with the name, the line and the key for what is missing, wrong, unknown or there twice.
ExperimentFile parse_experiment(std::string_view text, const std::string& name);

/// The files of tools/experiments, by name.
std::vector<std::string> experiment_names();
/// One of them, or of a path that ends in .json. Throws UsageError with near names.
ExperimentFile load_experiment(const std::string& name);

}  // namespace ulp::tools
