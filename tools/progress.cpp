#include "tools/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace ulp::tools {
namespace {

constexpr int kBar = 24;

int quiet_count = 0;  // of Quiet

std::string time_left(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace

Quiet::Quiet() { ++quiet_count; }
Quiet::~Quiet() { --quiet_count; }

void say(const std::string& text) {
  if (quiet_count > 0) return;
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

Progress::Progress(int64_t epochs, int64_t steps_per_epoch, int64_t samples_per_step, int64_t first)
    : epochs_(epochs),
      steps_(steps_per_epoch),
      samples_(samples_per_step),
      first_(first),
      terminal_(isatty(STDOUT_FILENO) != 0 && quiet_count == 0),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (!drawn_) return;
  say("\r\033[K");
  drawn_ = false;
}

void Progress::step(int64_t epoch, int64_t step, double loss, double accuracy,
                    const std::string& more) {
  if (!terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < std::chrono::milliseconds(100) && step + 1 < steps_) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double done = static_cast<double>(epoch * steps_ + step + 1 - first_);
  const double total = static_cast<double>(epochs_ * steps_ - first_);
  const auto filled = static_cast<size_t>(kBar * (step + 1) / steps_);
  const std::string bar = std::string(filled, '=') + std::string(kBar - filled, ' ');
  say(fmt::format(
      "\r\033[Kepoch {}/{} [{}] loss {:.4f}  accuracy {:.4f}  {:.0f} samples/s  {} left{}",
      epoch + 1, epochs_, bar, loss, accuracy,
      done * static_cast<double>(samples_) / std::max(seconds, 1e-9),
      time_left(seconds / done * (total - done)), more));
  drawn_ = true;
}

void Progress::epoch_done(const std::string& line) {
  clear();
  say(line + "\n");
}

}  // namespace ulp::tools
