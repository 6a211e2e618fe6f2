#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <vector>

#include "command.h"
#include "nn/data/safetensors.h"

// Scaling, clipping, schedules, micro-batches and averages as a user of ulp train meets them.
#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
using Json = nlohmann::json;

namespace {

const std::string kTrain = "train --hidden 20 --epochs 3 ";

std::string without_seconds(const std::string& metrics) {
  return std::regex_replace(metrics, std::regex(",\"seconds\":[^}]*"), "");
}

std::string found(const std::string& text, const char* regex) {
  std::smatch match;
  CAPTURE(text);
  REQUIRE(std::regex_search(text, match, std::regex(regex)));
  return match[1];
}

std::vector<Json> metrics_of(const std::string& out) {
  std::vector<Json> rows;
  std::istringstream lines(slurp(out + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) rows.push_back(Json::parse(line));
  return rows;
}

}  // namespace

TEST_SUITE("training_options") {
  TEST_CASE("a dynamic loss scale is printed, kept in the files and shown") {
    const Folder folder;
    const std::string out = folder / "run";
    const Result r = succeed(kTrain +
                             "--batch-size 64 --forward e4m3 --backward e5m2 --loss-scale dynamic "
                             "--loss-scale-start 1048576 --loss-scale-growth 4 "
                             "--loss-scale-backoff 0.25 --loss-scale-interval 5 --loss-scale-min 2 "
                             "--loss-scale-max 8388608 --clip-norm 1.5 --grad-order quantise-first "
                             "--grads bf16 --out " +
                             out);
    CHECK(has(r.out,
              "loss × 1048576 at first, × 4 after 5 good steps, × 0.25 after one that is "
              "skipped, from 2 to 8388608"));
    CHECK(has(r.out, "gradients × 1 after they are rounded, their norm at most 1.5"));
    const int64_t skipped = std::stoll(found(r.out, R"(epoch 3/3 .* skipped (\d+) )"));
    CHECK(skipped > 0);
    const Json optimizer = Json::parse(slurp(out + "/config.json")).at("optimizer");
    CHECK(optimizer.at("loss_scale") == 1048576);
    CHECK(optimizer.at("grad_scaling") == 1);
    CHECK(optimizer.at("clip_norm") == 1.5);
    CHECK(optimizer.at("grad_order") == "quantise-first");
    CHECK(optimizer.at("dynamic_loss_scale") ==
          Json{{"growth", 4}, {"interval", 5}, {"backoff", 0.25}, {"min", 2}, {"max", 8388608}});
    const std::vector<Json> rows = metrics_of(out);
    REQUIRE(rows.size() == 6);
    CHECK(rows[4].at("skipped_steps") == skipped);
    CHECK(rows[4].at("loss_scale") >= 2);
    CHECK(rows[4].at("grad_norm") > 0);
    CHECK(!rows[5].contains("skipped_steps"));
    // A scale that never changes gives the bits of the static one.
    const std::string plain = folder / "plain", fixed = folder / "fixed";
    succeed(kTrain + "--backward e5m2 --loss-scale 1024 --out " + plain);
    succeed(kTrain +
            "--backward e5m2 --loss-scale dynamic --loss-scale-start 1024 "
            "--loss-scale-interval 100000 --out " +
            fixed);
    CHECK(slurp(plain + "/model.safetensors") == slurp(fixed + "/model.safetensors"));
    CHECK(metrics_of(fixed)[0].at("skipped_steps") == 0);
    CHECK(!metrics_of(plain)[0].contains("skipped_steps"));
  }

  TEST_CASE("one cycle of the momentum is said, kept in the configuration, and changes the run") {
    const Folder folder;
    const std::string with = folder / "with", without = folder / "without";
    const Result r = succeed(kTrain + "--lr-schedule onecycle@0.95,0.85 --out " + with);
    CHECK(has(r.out, "momentum 0.95"));
    CHECK(has(r.out, "the momentum meanwhile from 0.95 to 0.85 and back"));
    const Json optimizer = Json::parse(slurp(with + "/config.json")).at("optimizer");
    CHECK(optimizer.at("lr_schedule") == "onecycle:0.45,10,100@0.95,0.85");
    CHECK(optimizer.at("momentum_coef") == 0.95);
    succeed(kTrain + "--lr-schedule onecycle --momentum-coef 0.95 --out " + without);
    CHECK(slurp(with + "/model.safetensors") != slurp(without + "/model.safetensors"));
    const Result adam =
        succeed(kTrain + "--optimizer adam --lr-schedule onecycle@0.9,0.8 --out " + with);
    CHECK(has(adam.out, "beta1 0.9,"));
  }

  TEST_CASE("a run whose every step is skipped ends with a line") {
    const Folder folder;
    check_refused(kTrain +
                      "--backward e5m2-nan --loss-scale dynamic --loss-scale-start 16777216 "
                      "--loss-scale-min 16777216 --out " +
                      (folder / "run"),
                  1, {"were skipped", "--loss-scale-start"});
    check_refused(
        kTrain + "--backward e5m2-nan --loss-scale 1e30 --clip-norm 1 --out " + (folder / "run"), 1,
        {"were skipped", "try a smaller --loss-scale or --loss-scale dynamic"});
  }

  TEST_CASE("accumulated steps: fewer updates, kept in the configuration") {
    const Folder folder;
    const std::string out = folder / "run", large = folder / "large";
    const Result r = succeed(kTrain +
                             "--batch-size 32 --accumulate-steps 4 --lr-schedule "
                             "warmup:5+cosine:0.1 --out " +
                             out);
    CHECK(has(r.out, "batches of 32, 4 a step"));
    CHECK(has(r.out, "rising over 5 steps, then a half cosine to 0.01 after 33 steps"));
    const Json config = Json::parse(slurp(out + "/config.json"));
    CHECK(config.at("accumulate_steps") == 4);
    CHECK(config.at("optimizer").at("lr_schedule") == "warmup:5+cosine:0.1");
    // Nearly the same sums as in batches of 128.
    succeed(kTrain + "--batch-size 128 --lr-schedule warmup:5+cosine:0.1 --out " + large);
    const auto a = metrics_of(out), b = metrics_of(large);
    CHECK(a[5].at("loss").get<double>() ==
          doctest::Approx(b[5].at("loss").get<double>()).epsilon(1e-4));
    check_refused("train --batch-size 1000 --accumulate-steps 2 --out " + (folder / "none"), 1,
                  {"--accumulate-steps 2", "1 batches of 1000"});
  }

  TEST_CASE("averages are tested, saved and evaluated") {
    const Folder folder;
    for (const char* options :
         {"--average swa --average-start 1e --average-format bf16:sr",
          "--average ema --ema-decay 0.9 --average-format bfp8-axis0:sr --average-every 2"}) {
      CAPTURE(std::string(options));
      const std::string out = folder / "run";
      const Result r = succeed(kTrain + "--weights bf16:sr --out " + out + " " + options);
      CHECK(has(r.out, "average    "));
      CHECK(has(r.out, "           average 3020 bytes\n"));  // both formats take two bytes a weight
      const std::vector<Json> rows = metrics_of(out);
      REQUIRE(rows.size() == 9);
      CHECK(rows[8].at("split") == "average");
      CHECK(rows[8].at("weights") ==
            (std::string(options).find("swa") != std::string::npos ? 3 : 16));
      const std::string accuracy = found(r.out, "\ntest accuracy ([.0-9]+)\n$");
      const Result average = succeed("eval " + out), last = succeed("eval --last " + out);
      CHECK(found(average.out, "test accuracy ([.0-9]+)") == accuracy);
      CHECK(std::stod(found(average.out, "test loss ([.0-9]+)")) ==
            doctest::Approx(rows[8].at("loss").get<double>()).epsilon(1e-8));
      CHECK(std::stod(found(last.out, "test loss ([.0-9]+)")) ==
            doctest::Approx(rows[7].at("loss").get<double>()).epsilon(1e-8));
      CHECK(has(average.out, "weights    the average of "));
      CHECK(has(last.out, "weights    the last ones, as stored"));
      const nn::SafetensorsFile saved = nn::load_safetensors(out + "/model.safetensors");
      CHECK(saved.tensors.contains("fc1.weight.average"));
      CHECK(saved.metadata.at("average") ==
            Json::parse(slurp(out + "/config.json")).at("average").at("format").get<std::string>());
    }
    const std::string plain = folder / "plain";
    succeed(kTrain + "--out " + plain);
    CHECK(has(succeed("eval --last " + plain).out, "weights    fp32 as stored"));
  }

  TEST_CASE("an average of a network with batch norm has running statistics of its own") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "run";
    // Weights that move fast: their average lies far from each of them, and so do its activations.
    const std::string train =
        "train --model preresnet20 --epochs 3 --batch-size 64 --lr 0.1 "
        "--augment crop:1 --forward e4m3:sr --average swa --average-start 1e --average-every 4 "
        "--checkpoint-every 11 --keep 10 ";
    const Result r = succeed(train + "--threads 2 --resident-mib 0 --out " + whole);
    const std::vector<Json> rows = metrics_of(whole);
    const Json &last = rows[rows.size() - 2], &average = rows.back();
    CHECK(average.at("split") == "average");
    CHECK(average.at("accuracy").get<double>() > 0.92);
    CHECK(average.at("accuracy").get<double>() > last.at("accuracy").get<double>());
    const nn::SafetensorsFile saved = nn::load_safetensors(whole + "/model.safetensors");
    for (const auto& [name, tensor] : saved.tensors)
      if (name.ends_with(".running_mean") || name.ends_with(".running_var"))
        CHECK(tensor.to_floats() != saved.tensors.at(name + ".average").to_floats());
    CHECK(saved.tensors.contains("layer1.block1.body.bn1.running_var.average"));
    // The saved model is what was scored.
    for (const auto& [flag, row] : {std::pair<std::string, Json>{"", average}, {"--last ", last}})
      CHECK(std::stod(found(succeed("eval " + flag + whole).out, "test loss ([.0-9]+)")) ==
            doctest::Approx(row.at("loss").get<double>()).epsilon(1e-8));

    // From the end of the second epoch, from its middle, and from the very end.
    succeed(train + "--threads 1 --resident-mib 1 --out " + out);
    CHECK(slurp(out + "/model.safetensors") == slurp(whole + "/model.safetensors"));
    for (const int64_t keep : {44, 33}) {
      for (const auto& entry : std::filesystem::directory_iterator(out)) {
        const std::string name = entry.path().filename().string();
        if (name.starts_with("checkpoint-") && std::stoll(name.substr(11)) > keep)
          std::filesystem::remove(entry.path());
      }
      std::filesystem::remove(out + "/model.safetensors");
      const Result again = succeed(train + "--threads 2 --out " + out + " --resume");
      CHECK(has(again.out, "resumed    checkpoint-"));
      CHECK(slurp(out + "/model.safetensors") == slurp(whole + "/model.safetensors"));
      CHECK(without_seconds(slurp(out + "/metrics.jsonl")) ==
            without_seconds(slurp(whole + "/metrics.jsonl")));
    }
    const Result again = succeed(train + "--out " + out + " --resume");
    CHECK(found(again.out, "\ntest accuracy ([.0-9]+)\n$") ==
          found(r.out, "\ntest accuracy ([.0-9]+)\n$"));
    CHECK(slurp(out + "/model.safetensors") == slurp(whole + "/model.safetensors"));

    nn::SafetensorsFile without = saved;
    without.tensors.erase("layer1.block1.body.bn1.running_var.average");
    nn::save_safetensors(out + "/model.safetensors", without.tensors, without.metadata);
    check_refused("eval " + out, 1,
                  {"there is no tensor layer1.block1.body.bn1.running_var.average"});
  }

  TEST_CASE("a run with all of it goes on from a checkpoint to the same bits") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "run";
    const std::string train =
        kTrain +
        "--batch-size 64 --forward e4m3+scale=delayed4 --backward e5m2:sr "
        "--loss-scale dynamic --loss-scale-start 1048576 --loss-scale-interval 4 "
        "--clip-norm 1 --accumulate-steps 2 --lr-schedule onecycle@0.95,0.85 --average ema "
        "--ema-decay 0.9 --average-format bf16:sr --checkpoint-every 7 --keep 10 --out ";
    succeed(train + whole);
    succeed(train + out);
    for (const int step : {14, 21, 28, 33})
      std::filesystem::remove(out + "/checkpoint-" + std::to_string(step) + ".safetensors");
    std::filesystem::remove(out + "/model.safetensors");
    const Result r = succeed(train + out + " --resume");
    CHECK(has(r.out, "resumed    checkpoint-7.safetensors"));
    CHECK(slurp(out + "/model.safetensors") == slurp(whole + "/model.safetensors"));
    CHECK(without_seconds(slurp(out + "/metrics.jsonl")) ==
          without_seconds(slurp(whole + "/metrics.jsonl")));
    const Result again = succeed(train + out + " --resume");
    CHECK(found(again.out, "\ntest accuracy ([.0-9]+)\n$") ==
          found(r.out, "\ntest accuracy ([.0-9]+)\n$"));
    CHECK(slurp(out + "/model.safetensors") == slurp(whole + "/model.safetensors"));
  }

  TEST_CASE("the sum of squares trains, is scored as a mean, and is that of the saved model") {
    const Folder folder;
    const std::string out = folder / "run";
    const std::string squares = "train --hidden 64 --epochs 3 --loss sum-of-squares --lr 0.002 ";
    const Result r = succeed(squares + "--batch-size 16 --out " + out);
    CHECK(has(r.out, "loss       sum-of-squares"));
    CHECK(has(r.out, "loss       sum of squares          grad_input fp32"));
    CHECK(std::stod(found(r.out, "\ntest accuracy ([.0-9]+)\n$")) > 0.5);
    CHECK(Json::parse(slurp(out + "/config.json")).at("loss") == "sum-of-squares");
    const std::vector<Json> rows = metrics_of(out);
    CHECK(rows[0].at("loss").get<double>() < 2);  // half the squares of one sample, not of a batch
    const Result again = succeed("eval " + out);
    CHECK(std::stod(found(again.out, "test loss ([.0-9]+)")) ==
          doctest::Approx(rows.back().at("loss").get<double>()).epsilon(1e-8));
    // A sum over two halves of a batch is that of the batch, but for the order of fp32 additions.
    const std::string halves = folder / "halves";
    succeed(squares + "--batch-size 8 --accumulate-steps 2 --out " + halves);
    CHECK(metrics_of(halves)[0].at("loss").get<double>() ==
          doctest::Approx(rows[0].at("loss").get<double>()).epsilon(1e-3));
    check_refused("train --loss mse", 2, {"--loss: 'mse' is no loss; there are cross-entropy and"});
    check_refused("train --loss sum-of-squares --data text:x --model gpt", 2,
                  {"--loss sum-of-squares is for images"});
    std::ofstream(folder / "p.json") << R"({"rules": [{"type": "loss", "interior": "bf16"}]})";
    check_refused("train --loss sum-of-squares --policy " + (folder / "p.json") + " --out " + out,
                  1, {"no layer that it matches uses \"interior\""});
  }

  TEST_CASE("what is wrong is told in a line") {
    struct Case {
      const char* arguments;
      std::vector<const char*> words;
    };
    for (const Case& c :
         {Case{"--loss-scale dynamc", {"--loss-scale", "dynamc", "or dynamic"}},
          {"--loss-scale-start 8", {"--loss-scale-start needs --loss-scale dynamic"}},
          {"--loss-scale dynamic --loss-scale-backoff 2", {"backoff"}},
          {"--loss-scale dynamic --loss-scale-growth 0.5", {"growth"}},
          {"--loss-scale dynamic --loss-scale-start 1e30",
           {"--loss-scale-start 1e30 is above --loss-scale-max 16777216 (the default)"}},
          {"--loss-scale dynamic --loss-scale-min 100000",
           {"--loss-scale-start 65536 (the default) is below --loss-scale-min 100000"}},
          {"--loss-scale dynamic --loss-scale-min 8 --loss-scale-max 4",
           {"--loss-scale-min 8 is above --loss-scale-max 4"}},
          {"--loss-scale dynamic --loss-scale-max 1e38",
           {"--loss-scale-max 1e38: it must be from 2^-126 to 2^126"}},
          {"--loss-scale dynamic --loss-scale-growth 0.9", {"--loss-scale-growth takes", "0.9"}},
          {"--loss-scale dynamic --loss-scale-backoff 1", {"--loss-scale-backoff takes", "1"}},
          {"--momentum-coef 1", {"--momentum-coef takes a number >= 0 and below 1, got '1'"}},
          {"--lr-schedule onecycle@0.95,0.85 --momentum-coef 0.9",
           {"--momentum-coef 0.9: --lr-schedule", "sets it, from 0.95 on"}},
          {"--optimizer adam --beta1 0.8 --lr-schedule onecycle@0.95,0.85", {"--beta1 0.8: "}},
          {"--moment1 dynamic8u-g256-scalef32",
           {"--moment1 dynamic8u-g256-scalef32: the format has no negative numbers"}},
          {"--momentum-format fixed8.4-u", {"--momentum-format fixed8.4-u: the format has"}},
          {"--weights fixed8.4-u", {"--weights fixed8.4-u: the format has no negative"}},
          {"--accumulator fixed8.4-u", {"--accumulator fixed8.4-u: "}},
          {"--grads dynamic8u-g256-scalef32", {"--grads dynamic8u-g256-scalef32: "}},
          {"--param-group 'fc1.*:weights=fixed8.4-u'", {"weights fixed8.4-u: "}},
          {"--update kahan --compensation fixed8.4-u", {"--compensation fixed8.4-u: "}},
          {"--optimizer adam --param-group 'fc1.*:moment1=dynamic8u'",
           {"--param-group fc1.*: moment1 dynamic8u: the format has no negative numbers"}},
          {"--loss-scale dynamic --loss-scale-interval 0", {"--loss-scale-interval"}},
          {"--clip-norm 0", {"--clip-norm"}},
          {"--grad-order first", {"--grad-order", "scale-first or quantise-first"}},
          {"--accumulate-steps 0", {"--accumulate-steps"}},
          {"--grad-normalize norm", {"--grad-normalize takes none or shift, got 'norm'"}},
          {"--init wgae", {"--init: 'wgae' is no way to begin; there are standard, unit and wage"}},
          {"--lr-schedule cosin", {"--lr-schedule", "cosine[:FLOOR]"}},
          {"--lr-schedule step:0.1@2.5", {"--lr-schedule", "'2.5'"}},
          {"--lr-schedule onecycle@0.9", {"--lr-schedule", "the momenta are two"}},
          {"--lr-schedule onecycle@0.9,0.8 --momentum-coef 0", {"--momentum-coef above 0"}},
          {"--average mean", {"--average takes none, swa or ema, got 'mean'"}},
          {"--average-format bf16", {"--average-format needs --average"}},
          {"--average swa --ema-decay 0.5", {"--ema-decay needs --average ema"}},
          {"--average ema --ema-decay 1", {"--ema-decay"}},
          {"--average swa --average-format e4m3+scale=delayed4", {"--average-format"}},
          {"--average swa --average-format bfp8-axis2", {"--average-format", "axis 2"}},
          {"--average swa --average-start soon", {"--average-start", "'soon'"}},
          {"--average swa --average-every 0", {"--average-every"}}}) {
      const Result r = ulp_command(std::string("train ") + c.arguments);
      CAPTURE(std::string(c.arguments));
      CAPTURE(r.err);
      CHECK(r.status == 2);
      CHECK(lines(r.err) == 1);
      for (const char* word : c.words) CHECK(r.err.find(word) != std::string::npos);
    }
    const Folder folder;
    check_refused("train --epochs 1 --average swa --average-start 2e --out " + (folder / "a"), 1,
                  {"--average", "the run has"});
    check_refused("train --epochs 1 --lr-schedule warmup:500+cosine --out " + (folder / "b"), 2,
                  {"--lr-schedule: ", "warms up for 500 steps", "the run has 11"});
    for (const char* schedule : {"step:0.1@5,12", "swalp:0.2@2e"})
      check_refused(
          std::string("train --epochs 1 --lr-schedule ") + schedule + " --out " + (folder / "b"), 2,
          {"--lr-schedule: ", schedule, "steps, and the run has 11"});
    check_refused("train --epochs 1 --lr-schedule step:0.1@0.5,3 --out " + (folder / "b"), 2,
                  {"--lr-schedule: ", "do not ascend"});
  }
}

#endif
