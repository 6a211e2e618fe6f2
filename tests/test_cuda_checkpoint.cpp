#include <doctest/doctest.h>

#include <string>

#include "checkpoint_case.h"

using namespace ulp;
using namespace ulp::tests;

TEST_SUITE("cuda_checkpoint") {
  TEST_CASE("a run goes on from one device on the other, to the same bits, recorded steps too") {
    const Folder folder;
    const Device gpu = cuda_device(0);
    for (const CheckpointCase& setting : checkpoint_cases()) {
      CAPTURE(std::string(setting.forward));
      SmallRun whole(kCpu, setting);
      whole.train_to(30);
      const auto go_on = [&](Device from, StepGraph::Use from_use, Device to,
                             StepGraph::Use to_use) {
        for (const int64_t stop : {7, 12, 15}) {
          CAPTURE(stop);
          {
            SmallRun first(from, setting, Math::Strict, from_use);
            first.train_to(stop);
            nn::save_checkpoint(folder / "c", first.checkpoint());
          }
          SmallRun second(to, setting, Math::Strict, to_use);
          second.resume(nn::load_checkpoint(folder / "c"), "c");
          second.train_to(30);
          check_same_runs(whole, second);
        }
      };
      using Use = StepGraph::Use;
      go_on(kCpu, Use::Off, gpu, Use::Auto);
      go_on(gpu, Use::Auto, kCpu, Use::Off);
      go_on(gpu, Use::Auto, gpu, Use::Auto);
      go_on(gpu, Use::Off, gpu, Use::Auto);
    }
  }

  TEST_CASE("both devices write the same bytes") {
    const Folder folder;
    for (const CheckpointCase& setting : checkpoint_cases()) {
      SmallRun cpu(kCpu, setting), gpu(cuda_device(0), setting);
      cpu.train_to(14);
      gpu.train_to(14);
      nn::save_checkpoint(folder / "cpu", cpu.checkpoint());
      nn::save_checkpoint(folder / "gpu", gpu.checkpoint());
      CHECK(slurp(folder / "cpu") == slurp(folder / "gpu"));
    }
  }

  TEST_CASE("a recorded step goes on after a checkpoint is put back: its memory stays") {
    const Folder folder;
    for (const CheckpointCase& setting : checkpoint_cases()) {
      for (const Math math : {Math::Strict, Math::Fast}) {
        const Device gpu = cuda_device(0);
        SmallRun whole(gpu, setting, math), run(gpu, setting, math);
        whole.train_to(30);
        run.train_to(12);
        nn::save_checkpoint(folder / "c", run.checkpoint());
        run.train_to(20);
        const bool recorded = run.recorded();
        run.resume(nn::load_checkpoint(folder / "c"), "c");
        CHECK(run.recorded() == recorded);
        run.train_to(30);
        check_same_runs(whole, run);
      }
    }
  }
}
