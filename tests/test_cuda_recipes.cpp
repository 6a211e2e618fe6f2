#include <doctest/doctest.h>

#include <fstream>
#include <string>

#include "command.h"
#include "core/device.h"
#include "nn/data/safetensors.h"
#include "nn/recipes.h"
#include "tests/op_table.h"

// Every recipe as a user runs it, on both devices.
#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
using namespace ulp::tests;

TEST_SUITE("cuda_recipes") {
  TEST_CASE("twenty steps of each recipe leave the same bits on the CPU, the GPU and in a graph") {
    if (cuda_device_count() == 0) return;
    const Folder folder;
    for (const nn::Recipe& recipe : nn::recipes()) {
      CAPTURE(std::string(recipe.name));
      const std::string train =
          "train --hidden 72,48 --epochs 1 --batch-size 64 --seed 5 --math strict "
          "--checkpoint-every 20 --keep 9 --recipe " +
          std::string(recipe.name) + " --out ";
      const auto trained = [&](const char* name, const std::string& device) {
        const std::string out = folder / name;
        const Result r = ulp_command(train + out + " --device " + device);
        CAPTURE(r.err);
        REQUIRE(r.status == 0);
        return out;
      };
      const std::string cpu = trained("cpu", "cpu");
      const nn::SafetensorsFile expected = nn::load_safetensors(cpu + "/checkpoint-20.safetensors");
      CHECK(expected.tensors.size() >= 6);  // weights and biases, and the optimizer's states
      for (const char* device : {"cuda --no-graph", "cuda"}) {
        CAPTURE(std::string(device));
        const std::string gpu = trained("gpu", device);
        const nn::SafetensorsFile states = nn::load_safetensors(gpu + "/checkpoint-20.safetensors");
        REQUIRE(states.tensors.size() == expected.tensors.size());
        for (const auto& [name, tensor] : expected.tensors) {
          CAPTURE(name);
          REQUIRE(states.tensors.contains(name));
          CHECK(same_bits(tensor, states.tensors.at(name)));
        }
        CHECK(slurp(gpu + "/model.safetensors") == slurp(cpu + "/model.safetensors"));
      }
    }
  }

  TEST_CASE("unit scaling: the same bits with convolutions, residual sums and attention") {
    if (cuda_device_count() == 0) return;
    const Folder folder;
    const std::string text = folder / "text.txt";
    {
      std::ofstream out(text);
      for (int i = 0; i < 400; ++i) out << "line " << i * 7919 % 1009 << " of the text\n";
    }
    for (const std::string& model : std::initializer_list<std::string>{
             "--model preresnet20 --epochs 1 --batch-size 128",
             "--model vit-tiny --epochs 1 --batch-size 256",
             "--model gpt --layers 2 --width 32 --heads 2 --context 16 --steps 20 --batch-size 8 "
             "--data text:" +
                 text}) {
      CAPTURE(model);
      const auto weights = [&](const std::string& device) {
        const std::string out = folder / "run";
        succeed("train --recipe unit-scaling --seed 5 --math strict " + model + " --out " + out +
                " --device " + device);
        return slurp(out + "/model.safetensors");
      };
      const std::string expected = weights("cpu");
      CHECK(weights("cuda --no-graph") == expected);
      CHECK(weights("cuda") == expected);
    }
  }
}

#endif
