#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

namespace ulp::tools {

/// When a training writes checkpoints, and whether it goes on from one.
struct Checkpointing {
  int64_t every = 0;  // steps; 0: never
  int64_t keep = 2;
  bool resume = false;
};

/// --checkpoint-every, --keep and --resume.
class CheckpointOptions {
 public:
  void add_to(CLI::App& app);
  /// Throws UsageError naming the flag.
  Checkpointing resolve() const;

 private:
  std::optional<std::string> every_, keep_;
  bool resume_ = false;
};

}  // namespace ulp::tools
