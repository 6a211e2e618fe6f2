#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "command.h"
#include "nn/data/policy_file.h"
#include "nn/models/by_name.h"
#include "nn/training_loss.h"
#include "tests/paths.h"

// What cannot be trained is refused before anything is computed or written.
#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
namespace fs = std::filesystem;

namespace {

std::string write(const Folder& folder, const char* name, const std::string& rules) {
  std::ofstream(folder / name) << "{\"rules\": [" << rules << "]}";
  return folder / name;
}

/// Fails with one line that has the words.
void refused(const std::string& arguments, std::initializer_list<const char*> words) {
  const Result r = ulp_command(arguments);
  CAPTURE(arguments);
  CAPTURE(r.err);
  CHECK(r.status != 0);
  CHECK(std::count(r.err.begin(), r.err.end(), '\n') == 1);
  for (const char* word : words) CHECK(has(r.err, word));
}

}  // namespace

TEST_SUITE("preflight") {
  TEST_CASE("the policy in README fits the models of the commands beside it") {
    const std::string readme = slurp(std::string(paths::kTestData) + "/../../README.md");
    const size_t begin = readme.find("```json\n{\"rules\"");
    REQUIRE(begin != std::string::npos);
    const std::string text = readme.substr(begin + 8, readme.find("```", begin + 8) - begin - 8);
    const nn::Policy policy = nn::parse_policy(text, "README.md");
    CHECK(policy.rules.size() >= 3);
    for (const char* name : {"preresnet20", "vgg7", "lenet5"}) {
      CAPTURE(name);
      nn::ModelOptions options;
      options.image = {32, 32, 3};
      options.classes = 10;
      const auto model = nn::make_model(name, options);
      nn::TrainingLoss loss;
      nn::check(policy, nn::layers_of(*model, loss), 10);
    }
    const Folder folder;
    std::ofstream(folder / "rules.json") << text;
    for (const char* model : {"preresnet20", "vgg7"}) {
      const Result r = ulp_command("train --explain --model " + std::string(model) + " --policy '" +
                                   (folder / "rules.json") + "'");
      CAPTURE(r.err);
      CHECK(r.status == 0);
      CHECK(has(r.out, "from epoch 10 on"));
    }
  }

  TEST_CASE("eval says what it takes of a policy, and in which epoch") {
    const Folder folder;
    const std::string out = folder / "out";
    REQUIRE(
        ulp_command(
            "train --epochs 2 --hidden 8,8,8,8 --forward e4m3 --out '" + out + "' --policy '" +
            write(folder, "p.json", R"({"type": "loss", "from_epoch": 2, "interior": "bf16"})") +
            "'")
            .status == 0);
    const Result r = ulp_command("eval '" + out + "'");
    CHECK(has(r.out, "policy     as in epoch 2, the last of the training\n"));
    CHECK(has(r.out,
              "formats    fc1, fc2, fc3 … (5 layers)  input e4m3  weight e4m3  output fp32\n"));
    CHECK(has(r.out, "           loss  interior bf16\n           the other 4 layers in fp32\n"));
    refused("eval '" + out + "' --policy '" +
                write(folder, "b.json", R"({"type": "linear", "backward": "e5m2"})") + "'",
            {"backward passes only", "evaluation has none"});
    REQUIRE(ulp_command("train --epochs 1 --hidden 8 --out '" + out + "'").status == 0);
    const Result plain = ulp_command("eval '" + out + "'");
    CHECK(has(plain.out, "formats    all 4 layers in fp32\n"));
    CHECK(plain.out.find("policy") == std::string::npos);
  }

  TEST_CASE("values of --normalize that no sample survives are errors of the command line") {
    for (const char* given : {"1e300:1", "0:1e31"}) {
      const Result r = ulp_command("train --explain --normalize " + std::string(given));
      CAPTURE(r.err);
      CHECK(r.status == 2);
      CHECK(has(r.err, std::string("--normalize ") + given));
    }
  }

  TEST_CASE("formats that a convolution cannot take leave an earlier run as it is") {
    const Folder folder;
    const std::string out = folder / "out";
    REQUIRE(ulp_command("train --epochs 1 --hidden 8 --out '" + out + "'").status == 0);
    const std::string before = slurp(out + "/model.safetensors");
    REQUIRE(!before.empty());
    const std::string late = write(folder, "late.json",
                                   R"({"type": "conv", "weight": "bf16"},
                 {"type": "conv", "from_epoch": 3, "backward": "e5m2-g32-scalef32"})");
    const std::string train = "train --model preresnet20 --epochs 4 --out '" + out + "' ";
    for (const char* more : {"", "--explain ", "--resume ", "--baseline "}) {
      refused(train + more + "--forward e4m3+rht16",
              {"the format flags: conv1 (Conv2d 1 → 16, 3 × 3", "input cannot be", "a rotation"});
      refused(train + more + "--policy '" + late + "'",
              {"late.json, line 2", "grad_output_dx", "a factor for each block"});
    }
    CHECK(slurp(out + "/model.safetensors") == before);
    CHECK(!fs::exists(out + "/baseline"));
    // Kernels of one pixel take them; so does a phase that the run does not reach by its end.
    CHECK(ulp_command(train + "--explain --policy '" +
                      write(folder, "ends.json",
                            R"({"type": "conv", "weight": "e4m3-g16-scalef32", "weight_dx": "bf16"},
                               {"type": "conv", "to_epoch": 4, "weight": "bf16"})") +
                      "'")
              .status == 0);
  }

  TEST_CASE("what only a step shows is shown by one of two samples, in every phase") {
    const Folder folder;
    const std::string out = folder / "out";
    refused("train --hidden 16 --epochs 4 --explain --policy '" +
                write(folder, "turned.json",
                      R"({"type": "linear", "from_epoch": 3, "grad_output_dw": "mxfp4+rht16"})") +
                "'",
            {"turned.json, line 1: fc1",
             "grad_output_dw and input_dw are rotated in groups of 16 and 0"});
    for (const char* more : {"", "--explain "})
      refused("train --model resnet18 --batch-size 1 " + std::string(more) + "--out '" + out + "'",
              {"batch_norm: training wants more than one value a channel"});
    CHECK(!fs::exists(out + "/config.json"));
  }

  TEST_CASE("a sweep trains nothing if one of its entries cannot be trained") {
    const Folder folder;
    const std::string out = folder / "out",
                      sweep = "sweep --seeds 1 --epochs 1 --out '" + out + "' ";
    refused(sweep + "--model preresnet20 --formats bf16,e4m3+rht16",
            {"--formats e4m3+rht16: conv1", "a rotation"});
    CHECK(!fs::exists(out));
    const std::string path = write(folder, "p.json", R"({"path": "fc9", "weight": "e4m3"})");
    refused(sweep + "--formats 'bf16," + path + "'", {"p.json, line 1", "fc9"});
    CHECK(!fs::exists(out));
  }

  TEST_CASE("sweep: entries by number in errors, flags that an entry sets, files of one name") {
    const Folder folder;
    const std::string out = folder / "out",
                      sweep = "sweep --seeds 1 --epochs 1 --out '" + out + "' ";
    refused(sweep + "--formats e4m3,zz/e5m2", {"--formats, entry 2 ('zz/e5m2'): unknown format"});
    refused(sweep + "--formats e4m3,none.json", {"--formats, entry 2 ('none.json')"});
    refused(sweep + "--formats e4m3 --forward e3m2", {"--forward: the entry 'e4m3'"});
    refused(sweep + "--formats bf16,e4m3 --weight-dx e3m2", {"--weight-dx: the entry 'bf16'"});
    const std::string a = write(folder, "r.json", R"({"type": "linear", "weight": "e4m3"})");
    fs::create_directory(folder / "b");
    const std::string b = write(folder, "b/r.json", R"({"type": "linear", "weight": "e3m2"})");
    refused(sweep + "--formats '" + a + "' --weight e3m2", {"--weight: the entry 'r.json'"});
    refused(sweep + "--formats '" + a + "," + a + "'", {"twice"});
    const Result r =
        ulp_command(sweep + "--hidden 8 --output bf16 --formats '" + a + "," + b + "'");
    CAPTURE(r.err);
    CHECK(r.status == 0);
    CHECK(has(r.out, a));
    CHECK(has(r.out, b));
  }
}

#endif
