#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "nn/data/checkpoint.h"
#include "tools/checkpoint_options.h"

namespace ulp::tools {

/// The files checkpoint-STEP.safetensors of a run's folder. STEP counts the steps since the beginning.
class CheckpointFolder {
 public:
  CheckpointFolder(std::filesystem::path dir, const Checkpointing& settings)
      : dir_(std::move(dir)), settings_(settings) {}

  bool writes() const { return settings_.every > 0; }
  /// Is a checkpoint to be written after so many steps?
  bool due(int64_t step) const { return writes() && step % settings_.every == 0; }

  struct Found {
    std::filesystem::path file;
    nn::Checkpoint checkpoint;
  };
  /// The newest that is whole to the last bit. Those that are newer and broken are named on the standard output. Whole is not
  /// fitting: that is for the caller to check.
  std::optional<Found> newest_whole();

  /// Writes one, then removes the oldest beyond those to be kept. Newer ones, which a broken run may have left, stay.
  void write(int64_t step, const nn::Checkpoint& checkpoint);

  /// Does `write`, which writes some file of the run. What goes wrong is one message that also says from where a run can go
  /// on.
  template <class F>
  void guard(F write) const {
    try {
      write();
    } catch (const Error& error) {
      throw_error("{}{}", error.what(), way_on());
    }
  }

  /// Removes them all.
  static void clear(const std::filesystem::path& dir);

 private:
  using Files = std::vector<std::pair<int64_t, std::filesystem::path>>;
  static Files list(const std::filesystem::path& dir);  // oldest first
  static void remove(const std::filesystem::path& file);
  std::string way_on() const;

  std::filesystem::path dir_;
  Checkpointing settings_;
  std::string last_;  // the name of the newest that is known to be whole
};

/// Compares two configurations, texts of config.json. Throws ulp::Error naming `file`, where `saved` comes from, and the
/// first key that differs. Only "epochs" may: where the learning rate is constant and an average's moments are no shares of
/// the run, so that no step depends on it.
void check_same_config(const std::string& saved, const std::string& wanted,
                       const std::string& file);

}  // namespace ulp::tools
