#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace ulp::tools {

/// While one exists, trainings print nothing: say() and Progress are silent.
class Quiet {
 public:
  Quiet();
  ~Quiet();
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

/// Prints at once. A training goes on where nobody listens; main reports what could not be written when it ends.
void say(const std::string& text);

/// On a terminal: one line that is drawn again a few times a second. Piped: nothing until the epoch's plain line.
class Progress {
 public:
  /// `first`: steps that were made before.
  Progress(int64_t epochs, int64_t steps_per_epoch, int64_t samples_per_step, int64_t first = 0);
  ~Progress();

  /// `more` is shown behind the rest.
  void step(int64_t epoch, int64_t step, double loss, double accuracy,
            const std::string& more = "");
  /// Ends the drawn line and prints `line`.
  void epoch_done(const std::string& line);

 private:
  void clear();

  int64_t epochs_, steps_, samples_, first_;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace ulp::tools
