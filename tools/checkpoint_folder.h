#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/memory_error.h"
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
  /// The newest that is whole to the last bit. Those that are newer and damaged are named on the standard output. Throws for
  /// one that cannot be read, which may be whole. Whole is not fitting: that is for the caller to check.
  std::optional<Found> newest_whole();
  /// Those that newest_whole() found damaged get the ending .broken, and count as checkpoints no more.
  void set_aside();

  /// Writes one, then removes those that are older than the `keep` newest whole ones. Newer ones stay.
  void write(int64_t step, const nn::Checkpoint& checkpoint);

  /// Does `write`, which writes some file of the run. What goes wrong is one message that also says from where a run can go
  /// on.
  template <class F>
  void guard(F write) const {
    try {
      write();
    } catch (const MemoryError&) {
      throw;  // whoever called says the same of all memory that is missing
    } catch (const Error& error) {
      throw_error("{}{}", error.what(), way_on());
    }
  }

  /// "; FILE is whole, --resume goes on from it", or what else is known; may be empty.
  std::string way_on() const;

  /// Removes them all, those that were set aside too.
  static void clear(const std::filesystem::path& dir);
  /// Throws if something that is no file, such as a folder, has the name of a checkpoint. No such folder: nothing has.
  static void check(const std::filesystem::path& dir);

 private:
  using Files = std::vector<std::pair<int64_t, std::filesystem::path>>;
  static Files list(const std::filesystem::path& dir);  // oldest first
  bool is_whole(const std::filesystem::path& file);

  std::filesystem::path dir_;
  Checkpointing settings_;
  std::string last_;                       // the name of the newest that is known to be whole
  std::set<std::filesystem::path> whole_;  // that is known of these
  std::vector<std::filesystem::path> damaged_;
};

/// Compares two configurations, texts of config.json. Throws ulp::Error naming `file`, where `saved` comes from, and the
/// first key that differs. Only "epochs" may: where the learning rate is constant and an average's moments are no shares of
/// the run, so that no step depends on it.
void check_same_config(const std::string& saved, const std::string& wanted,
                       const std::string& file);

/// Throws if something that is no regular file, nor a link to one or to nothing, has the name of a file of a run.
void check_is_file(const std::filesystem::path& file);
/// Removes it if it is there. Throws ulp::Error naming it.
void remove_file(const std::filesystem::path& file);

/// The step in the name of a checkpoint; none: it is no such name.
std::optional<int64_t> step_of(const std::string& name);

}  // namespace ulp::tools
