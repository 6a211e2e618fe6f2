#include "tools/checkpoint_options.h"

#include "core/error.h"
#include "tools/format_options.h"
#include "tools/values.h"

namespace ulp::tools {

void CheckpointOptions::add_to(CLI::App& app) {
  const char* group = "Stop and go on";
  add_text(app, "--checkpoint-every", every_,
           "write OUT/checkpoint-STEP.safetensors after every so many steps and at the end "
           "(default: never)")
      ->group(group);
  add_text(app, "--keep", keep_, "how many checkpoints stay, the newest (default: 2)")
      ->group(group);
  app.add_flag("--resume", resume_,
               "go on from the newest whole checkpoint in OUT, to the same bits as a run that was "
               "never stopped; start from the beginning if there is none")
      ->group(group);
}

Checkpointing CheckpointOptions::resolve() const {
  constexpr int64_t kMost = 1'000'000'000;
  Checkpointing c;
  if (every_) c.every = integer_value<int64_t>("--checkpoint-every", *every_, 1, kMost);
  if (keep_) c.keep = integer_value<int64_t>("--keep", *keep_, 1, kMost);
  if (keep_ && !every_) throw UsageError("--keep needs --checkpoint-every");
  c.resume = resume_;
  return c;
}

}  // namespace ulp::tools
