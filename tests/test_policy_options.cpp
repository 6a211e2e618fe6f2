#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <vector>

#include "command.h"
#include "nn/data/dataset.h"
#include "nn/data/safetensors.h"
#include "nn/evaluate.h"
#include "nn/models.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

// Policies as a user of ulp train and ulp eval meets them.
#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

const std::string kTrain = "train --hidden 20,12 --batch-size 64 --lr 0.05 ";

std::string results(const std::string& out) {
  return slurp(out + "/config.json") + slurp(out + "/model.safetensors") +
         std::regex_replace(slurp(out + "/metrics.jsonl"), std::regex(",\"seconds\":[^}]*"), "");
}

std::string write(const Folder& folder, const char* name, const std::string& text) {
  std::ofstream(folder / name) << text;
  return folder / name;
}

std::string number_after(const std::string& text, const std::string& words) {
  const size_t at = text.rfind(words);
  CAPTURE(text);
  REQUIRE(at != std::string::npos);
  return text.substr(at + words.size(), text.find('\n', at) - at - words.size());
}

/// As if the run had been killed right after the checkpoint of that step.
void stop_at(const std::string& out, int64_t step) {
  std::vector<fs::path> later;
  for (const auto& entry : fs::directory_iterator(out)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("checkpoint-") && std::stoll(name.substr(11)) > step)
      later.push_back(entry.path());
  }
  for (const fs::path& file : later) fs::remove(file);
  fs::remove(out + "/model.safetensors");
}

const std::string kPhases = R"({"rules": [
  {"type": "linear", "forward": "e4m3", "backward": "e5m2:sr"},
  {"path": "fc1", "from_epoch": 2, "to_epoch": 3, "forward": "e2m1+scale=delayed4:sr"},
  {"position": "last", "from_epoch": 3, "output": "bf16:sr"},
  {"type": "loss", "interior": "fp16"},
  {"type": "loss", "interior": "bf16", "from_epoch": 2}
]})";

}  // namespace

TEST_SUITE("policy_options") {
  TEST_CASE("a policy decides what is trained, is kept in config.json and read again") {
    const Folder folder;
    const std::string out = folder / "out", flags = folder / "flags";
    const std::string file = write(folder, "p.json", R"({"rules": [
  {"type": "linear", "forward": "e4m3", "backward": "e5m2:sr"},
  {"type": "loss", "interior": "fp16"}]})");
    const Result r = succeed(kTrain + "--epochs 2 --policy '" + file + "' --out '" + out + "'");
    succeed(kTrain + "--epochs 2 --forward e4m3 --backward e5m2:sr --interior fp16 --out '" +
            flags + "'");
    CHECK(slurp(out + "/model.safetensors") == slurp(flags + "/model.safetensors"));
    for (const char* words : {"input e4m3  weight e4m3  output fp32", "interior fp16"})
      CHECK(has(r.out, words));
    const Json config = Json::parse(slurp(out + "/config.json"));
    CHECK(config.at("policy") == Json::parse(slurp(file)).at("rules"));
    const Result eval = succeed("eval '" + out + "'");
    CHECK(has(eval.out, "fc1, fc2, fc3  input e4m3  weight e4m3  output fp32"));
    CHECK(has(eval.out, "loss  interior fp16"));
    CHECK(number_after(eval.out, "test accuracy ") == number_after(r.out, "test accuracy "));
    // Nothing of the file is needed any more.
    fs::remove(file);
    CHECK(succeed("eval '" + out + "'").out == eval.out);
  }

  TEST_CASE("flags win over the file, in training and in evaluation") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string file = write(folder, "p.json", R"({"rules": [
  {"type": "linear", "forward": "e2m1"}, {"path": "relu1", "output": "bf16"}]})");
    const Result r = succeed(kTrain + "--epochs 1 --forward e4m3 --weight bfp8 --policy '" + file +
                             "' --out '" + out + "'");
    CHECK(has(r.out, "input e4m3  weight bfp8  output fp32"));
    CHECK(has(r.out, "input fp32  output bf16"));
    const Result other =
        succeed("eval '" + out + "' --forward e3m4 --policy '" + file + "' --output bf16");
    CHECK(has(other.out, "fc1, fc2, fc3  input e3m4  weight e3m4  output bf16"));
    const Result file_only = succeed("eval '" + out + "' --policy '" + file + "'");
    CHECK(has(file_only.out, "fc1, fc2, fc3  input e2m1  weight e2m1  output fp32"));
    check_refused("eval '" + out + "' --backward e5m2 --policy '" + file + "'", 2,
                  {"--backward", "no backward pass"});
  }

  TEST_CASE("a policy that is wrong is one line with file, line and key, and no folder changes") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string train = kTrain + "--epochs 2 --out '" + out + "' --policy ";
    check_refused(train + "''", 2, {"--policy"});
    check_refused(train + "'" + (folder / "none.json") + "'", 1, {"none.json"});
    const auto refused = [&](const std::string& text, std::initializer_list<const char*> words) {
      const std::string file = write(folder, "p.json", text);
      check_refused(train + "'" + file + "'", 1, words);
      CHECK(!fs::exists(out + "/config.json"));
    };
    refused("{\"rules\": [\n {\"forwrad\": \"e4m3\"}]}",
            {"p.json, line 2", "\"forwrad\"", "\"forward\""});
    refused("{\"rules\": [\n {\"forward\": \"e4m3\",}]}", {"p.json, line 2", "no JSON"});
    refused("{\"rules\": [\n {\"path\": \"fcc1\", \"forward\": \"e4m3\"}]}",
            {"p.json, line 2", "'fcc1'", "near it are fc1"});
    refused("{\"rules\": [\n\n {\"type\": \"conv\", \"forward\": \"e4m3\"}]}",
            {"p.json, line 3", "conv", "linear (fc1, fc2, fc3)"});
    refused("{\"rules\": [{\"type\": \"linear\", \"interior\": \"fp16\"}]}",
            {"p.json, line 1", "\"interior\"", "fc1"});
    refused("{\"rules\": [{\"from_epoch\": 3, \"forward\": \"e4m3\"}]}",
            {"p.json, line 1", "epoch 3", "has 2"});
  }

  TEST_CASE("training through a change of formats gives the bits of switching by hand") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string file = write(folder, "p.json", R"({"rules": [
  {"type": "linear", "forward": "e4m3", "backward": "e5m2:sr"},
  {"path": "fc1", "from_epoch": 2, "forward": "e2m1:sr"},
  {"type": "loss", "from_epoch": 2, "to_epoch": 2, "interior": "bf16"}]})");
    const Result r = succeed(
        "train --hidden 20 --batch-size 100 --epochs 3 --lr 0.05 --seed 5 "
        "--policy '" +
        file + "' --out '" + out + "'");
    CHECK(has(r.out, "from epoch 2 on\nfc1 "));
    CHECK(has(r.out, "from epoch 3 on\nloss "));

    const nn::Dataset digits = nn::load_dataset("digits");
    Run run(kCpu, 5);
    const auto net = nn::mlp(64, std::vector<int64_t>{20}, 10, OpFormats::make("e4m3", "e5m2:sr"));
    net->initialise(run);
    optim::Optimizer sgd(run, net->parameters(), {.lr = 0.05, .momentum = 0.9});
    nn::Batches batches(run, digits, digits.train, 100), test(run, digits, digits.test, 256);
    nn::TrainingLoss loss;
    for (int64_t epoch = 1; epoch <= 3; ++epoch) {
      if (epoch == 2) *net->modules()[1]->formats() = OpFormats::make("e2m1:sr", "e5m2:sr");
      loss.formats.interior = Quantizer(epoch == 2 ? "bf16" : "fp32");
      for (const nn::Batch& batch : batches.shuffled(epoch - 1)) {
        Tape tape(run);
        const Var logits = (*net)(tape, tape.constant(batch.inputs));
        tape.backward(loss.of(tape, logits, batch.labels));
        sgd.step();
      }
      nn::evaluate(run, *net, test, loss);
    }
    const auto saved = nn::load_safetensors(out + "/model.safetensors");
    for (const Parameter* p : net->parameters()) {
      CAPTURE(p->path);
      CHECK(tests::same_bits(saved.tensors.at(p->path), p->value));
    }
  }

  TEST_CASE("a run that is stopped in any phase is resumed to the same bits") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    const std::string file = write(folder, "p.json", kPhases);
    const std::string train = kTrain + "--epochs 4 --policy '" + file + "' ";  // 22 steps an epoch
    succeed(train + "--out '" + whole + "'");
    succeed(train + "--checkpoint-every 11 --keep 100 --out '" + out + "'");
    CHECK(results(out) == results(whole));
    for (const int64_t step : {88, 77, 66, 55, 44, 33, 22, 11}) {
      CAPTURE(step);
      stop_at(out, step);
      const Result r = succeed(train + "--resume --out '" + out + "'");
      CHECK(has(r.out, "resumed    checkpoint-" + std::to_string(step) + ".safetensors"));
      CHECK(results(out) == results(whole));
    }
    // The formats of eval are those of the last epoch.
    const Result eval = succeed("eval '" + out + "'");
    CHECK(has(eval.out, "fc1, fc2  input e4m3  weight e4m3"));
    CHECK(has(eval.out, "fc3  input e4m3  weight e4m3  output bf16:sr"));
    CHECK(has(eval.out, "loss  interior bf16"));

    const auto refused = [&](const std::string& from, const std::string& to,
                             std::initializer_list<const char*> words) {
      write(folder, "p.json", std::regex_replace(kPhases, std::regex(from), to));
      check_refused(train + "--resume --out '" + out + "'", 1, words);
    };
    refused("\"to_epoch\": 3", "\"to_epoch\": 2", {"\"policy 2.to_epoch\"", "3", "2", "--resume"});
    refused("\"bf16:sr\"", "\"bf16\"", {"\"policy 3.output\"", "bf16"});
    refused("\"fp16\"\\},", "\"fp16\"},{\"interior\": \"fp32\"},", {"a list of 5", "a list of 6"});
  }

  TEST_CASE("--explain tells the products of attention and of recurrent layers too") {
    const Folder folder;
    std::string lines;
    for (int i = 0; i < 200; ++i) lines += "line " + std::to_string(i) + " of a text\n";
    const std::string common = "train --data 'text:" + write(folder, "t.txt", lines) +
                               "' --layers 1 --width 32 --context 24 --batch-size 4 --explain ";
    /// What is told of a part, up to the next one.
    const auto of = [](const std::string& out, const std::string& part) {
      const size_t at = out.find(part);
      REQUIRE(at != std::string::npos);
      return out.substr(at, out.find("├", at + part.size()) - at);
    };
    const std::string gpt = succeed(common +
                                    "--model gpt --heads 2 --device cuda --forward bf16 "
                                    "--backward e5m2 --dw-acc chunk64/e6m9")
                                .out;
    const std::string qk = of(gpt, "scores = q kᵀ"), pv = of(gpt, "probabilities · v");
    for (const char* words : {"forward  24 × 24 × 16: bf16 tensor cores, 8 matrices",
                              "dx       24 × 16 × 24: bf16 tensor cores, 8 matrices",
                              "dw       24 × 16 × 24: simulated sums, 8 matrices"})
      CHECK(has(qk, words));
    for (const char* words : {"forward  24 × 16 × 24: bf16 tensor cores, 8 matrices",
                              "dx       24 × 24 × 16: bf16 tensor cores, 8 matrices",
                              "dw       24 × 16 × 24: simulated sums, 8 matrices"})
      CHECK(has(pv, words));
    const std::string gru = succeed(common + "--model gru --forward-acc e6m9").out;
    const std::string input = of(gru, "Input product"), hidden = of(gru, "Hidden product");
    CHECK(has(input, "forward  96 × 96 × 32: simulated sums\n"));
    CHECK(has(input, "dw       96 × 32 × 96: fp32 in strict order\n"));
    CHECK(has(hidden, "forward  4 × 96 × 32: simulated sums, 24 steps"));
    CHECK(has(hidden, "dx       4 × 32 × 96: fp32 in strict order, 23 steps"));
    CHECK(has(hidden, "dw       96 × 32 × 96: fp32 in strict order\n"));
  }

  TEST_CASE("--explain prints the tree of the model and trains nothing") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string file = write(folder, "p.json", kPhases);
    const Result r = succeed(kTrain + "--epochs 4 --weights bf16 --policy '" + file +
                             "' --explain --out '" + out + "'");
    CHECK(r.err.empty());
    CHECK(!fs::exists(out));
    for (const char* words : {"mlp",
                              "├ fc1",
                              "└ fc3",
                              "Linear 64 → 20",
                              "1300 parameters, 2600 bytes",
                              "input e4m3  weight e4m3  output fp32",
                              "grad_output_dx e5m2:sr  weight_dx e4m3",
                              "forward  64 × 20 × 64: fp32 in strict order",
                              "dw       20 × 64 × 64",
                              "dx       not needed",
                              "dx       64 × 20 × 12",
                              "loss",
                              "cross-entropy",
                              "interior fp16",
                              "from epoch 2 on",
                              "from epoch 3 on",
                              "from epoch 4 on",
                              "input e2m1+scale=delayed4:sr",
                              "total      1682 parameters in 3364 bytes",
                              "optimizer states"})
      CHECK(has(r.out, words));
    // What a GPU would do is told without one.
    const Result gpu = succeed(kTrain + "--device cuda --forward e4m3 --backward e5m2 --explain");
    CHECK(has(gpu.out, "64 × 20 × 64: bf16 tensor cores"));
    const Result fp8 = succeed(
        "train --hidden 32 --batch-size 64 --device cuda --math fp8 "
        "--forward e4m3 --backward e5m2 --explain");
    CHECK(has(fp8.out, "64 × 32 × 64: fp8 tensor cores"));
    CHECK(has(fp8.out, "64 × 10 × 32: bf16 tensor cores"));  // 10 is no multiple of 16
    check_refused(kTrain + "--explain --policy '" +
                      write(folder, "q.json", R"({"rules": [{"path": "fc9", "weight": "e4m3"}]})") +
                      "'",
                  1, {"q.json, line 1", "fc9"});
  }
}

#endif
