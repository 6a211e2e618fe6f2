#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "command.h"

// ulp experiment: the comparisons of tools/experiments and files like them.
#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

const char* const kFile = R"({
  "title": "Bits", "source": "none", "differences": "none",
  "options": "--hidden 12 --epochs 2 --lr 0.1", "quick": "--epochs 1", "x": "bits of a number",
  "rows": [
    {"name": "plain", "options": "", "x": 32},
    {"name": "four, nearest", "options": "--forward e2m1 --backward e5m2:sr", "x": 4, "series": "few"},
    {"name": "eight", "options": "--forward e4m3 --backward=e5m2:sr", "x": 8, "series": "few"}
  ]})";

std::string write(const Folder& folder, const std::string& text) {
  const std::string path = folder / "bits.json";
  std::ofstream(path) << text;
  return path;
}

std::string without(std::string text, const std::string& words, const std::string& instead = "") {
  const size_t at = text.find(words);
  REQUIRE(at != std::string::npos);
  return text.replace(at, words.size(), instead);
}

}  // namespace

TEST_SUITE("experiments") {
  TEST_CASE("every experiment there is can be read, with all its rows, in both lengths") {
    const std::string listed = succeed("experiment").out;
    const std::pair<const char*, int> rows[] = {
        {"swalp", 4},       {"bf16", 4},        {"few-bits", 18}, {"mxfp4", 5},
        {"equal-bits", 16}, {"scale-rules", 5}, {"wage", 3}};
    for (const auto& [name, count] : rows) {
      CHECK(has(listed, name));
      for (const char* quick : {"", " --quick"}) {
        // The rows of a full form may be for a GPU; whether there is one is asked when they are trained.
        const Result r = succeed("experiment " + std::string(name) + quick + " --explain");
        CHECK(has(r.out, "source "));
        CAPTURE(name);
        CHECK(lines(r.out) == 4 + count);  // title, source, differences, options; rows
      }
    }
  }

  TEST_CASE("an experiment is what ulp train gives for each row and seed") {
    const Folder folder;
    const std::string file = write(folder, kFile), out = folder / "out";
    const std::string command = "experiment '" + file + "' --seeds 2 --out '" + out + "'";
    const Result r = succeed(command);
    CHECK(r.err.empty());
    const Json runs = Json::parse(slurp(out + "/sweep.json")).at("runs");
    REQUIRE(runs.size() == 6);
    succeed(
        "train --hidden 12 --epochs 2 --lr 0.1 --forward e2m1 --backward e5m2:sr --seed 2 --out '" +
        (folder / "one") + "'");
    CHECK(runs[3].at("formats") == "four, nearest");
    CHECK(runs[3].at("seed") == 2);
    CHECK(slurp(out + "/four-nearest-seed2/model.safetensors") ==
          slurp((folder / "one") + "/model.safetensors"));
    const std::string chart = slurp(out + "/results.svg"), curves = slurp(out + "/curves.svg");
    for (const char* words : {"Bits (mlp on digits)", "bits of a number", ">few<"})
      CHECK(has(chart, words));
    CHECK(has(curves, "four, nearest"));

    const Result again = succeed(command + " --json");
    const Json rows = Json::parse(again.out);
    CHECK(has(again.err, "(done before)"));
    REQUIRE(rows.size() == 3);
    double loss = 0, difference = 0;
    for (const int seed : {0, 1}) {
      loss += runs[4 + seed].at("loss").get<double>() / 2;
      difference +=
          (runs[4 + seed].at("loss").get<double>() - runs[seed].at("loss").get<double>()) / 2;
    }
    CHECK(std::abs(rows[2].at("loss").get<double>() - loss) < 1e-9);
    CHECK(std::abs(rows[2].at("loss_difference").get<double>() - difference) < 1e-9);
    CHECK(rows[0].at("loss_difference").is_null());
    const Result markdown = succeed(command + " --markdown");
    CHECK(markdown.out.starts_with("| setting | bits | accuracy % | to plain | loss | runs |"));
  }

  TEST_CASE("a row of last weights is what its training gives without an average") {
    const Folder folder;
    const char* const text = R"({
      "title": "Averages", "source": "none", "differences": "none",
      "options": "--hidden 12 --epochs 3 --lr 0.1",
      "rows": [
        {"name": "last", "last_of": "mean"},
        {"name": "mean", "options": "--average swa --average-start 0.34"},
        {"name": "own", "options": ""}
      ]})";
    const std::string file = write(folder, text), out = folder / "out";
    const std::string command = "experiment '" + file + "' --seeds 2 --out '" + out + "' --json";
    const Result r = succeed(command);
    const Json rows = Json::parse(r.out);
    REQUIRE(rows.size() == 3);
    CHECK(rows[0].at("formats") == "last");
    for (const char* key : {"accuracy", "loss"}) {
      // metrics.jsonl has six digits of accuracies, nine of losses.
      const double last = rows[0].at(key), own = rows[2].at(key);
      CHECK(std::abs(last - own) <= 1e-6 * own);
    }
    const double last = rows[0].at("loss"), mean = rows[1].at("loss");
    CHECK(std::abs(last - mean) > 1e-4);
    CHECK(rows[1].at("loss_difference") == doctest::Approx(mean - last));
    CHECK(!fs::exists(out + "/last-seed1"));
    CHECK(succeed(command).out == r.out);  // done before
    // Results of a version that kept no last weights: they are in the runs' own folders.
    Json older = Json::parse(slurp(out + "/sweep.json"));
    for (Json& run : older.at("runs")) run.erase("last");
    std::ofstream(out + "/sweep.json") << older.dump();
    CHECK(succeed(command).out == r.out);
    fs::remove(out + "/mean-seed2/metrics.jsonl");
    const Result lost = ulp_command(command);
    CHECK(lost.status == 1);
    CHECK(has(lost.err, "the score of its last weights is neither there nor in"));
    CHECK(has(succeed("experiment '" + file + "' --explain").out,
              "  last: the last weights of 'mean'\n"));
    const std::string json = succeed("experiment '" + file + "' --explain --json").out;
    CHECK(Json::parse(json).at("rows")[0].at("last_of") == "mean");

    const std::pair<const char*, const char*> wrong[] = {
        {R"("last_of": "")", "\"last_of\" is to name a row that is trained, got ''"},
        {R"("last_of": "none")", "\"last_of\" is to name a row that is trained, got 'none'"},
        {R"("last_of": "last")", "\"last_of\" is to name a row that is trained, got 'last'"},
        {R"("last_of": "own")", "it is the last weights of 'own', which averages none"},
        {R"("last_of": "mean", "options": "")", "it has no \"options\" of its own"}};
    for (const auto& [instead, message] : wrong) {
      CAPTURE(instead);
      const std::string other = write(folder, without(text, R"("last_of": "mean")", instead));
      const Result bad = ulp_command("experiment '" + other + "' --out '" + (folder / "bad") + "'");
      CHECK(bad.status != 0);
      CHECK(has(bad.err, message));
      CHECK(!fs::exists(folder / "bad"));
    }
  }

  TEST_CASE("--explain --json is a file that gives the same experiment") {
    const Folder folder;
    const std::string file = write(folder, kFile), quoted = "experiment '" + file + "' ";
    const Result r = succeed(quoted + "--quick --explain --json --lr=0.2 --data './two words'");
    CHECK(r.err.empty());
    const Json json = Json::parse(r.out);
    CHECK(json.at("title") == "Bits, short form");
    CHECK(json.at("source") == "none");
    CHECK(json.at("differences") == "none");
    CHECK(json.at("measure") == "accuracy");
    CHECK(json.at("x") == "bits of a number");
    CHECK(json.at("options") ==
          Json{"--hidden", "12", "--epochs", "1", "--lr", "0.2", "--data", "./two words"});
    REQUIRE(json.at("rows").size() == 3);
    CHECK(json.at("rows")[1] == Json{{"name", "four, nearest"},
                                     {"options", "--forward e2m1 --backward e5m2:sr"},
                                     {"x", 4},
                                     {"series", "few"}});
    CHECK(json.at("rows")[0] == Json{{"name", "plain"}, {"options", ""}, {"x", 32}});
    const std::string again = folder / "again.json";
    std::ofstream(again) << r.out;
    CHECK(succeed("experiment '" + again + "' --explain --json").out == r.out);
    for (const char* name : {"few-bits", "swalp", "scale-rules"}) {
      const Result long_form = succeed("experiment " + std::string(name) + " --explain --json");
      CHECK(Json::parse(long_form.out).at("options").is_string());
      std::ofstream(again) << long_form.out;
      CHECK(succeed("experiment '" + again + "' --explain --json").out == long_form.out);
    }
    check_refused(quoted + "--explain --markdown", 2, {"--markdown", "--explain takes --json"});
  }

  TEST_CASE("the short form has a title of its own") {
    CHECK(succeed("experiment swalp --explain").out.starts_with("SWALP on CIFAR-10\n"));
    CHECK(
        succeed("experiment swalp --quick --explain").out.starts_with("SWALP on Fashion-MNIST\n"));
    CHECK(succeed("experiment wage --quick --explain").out.starts_with("WAGE on Fashion-MNIST\n"));
    CHECK(succeed("experiment bf16 --quick --explain")
              .out.starts_with("bf16 without master weights, short form\n"));
    const Folder folder;
    const std::string file =
        write(folder, without(kFile, "\"quick\"", "\"quick_title\": \"Few epochs\", \"quick\""));
    const Result r =
        succeed("experiment '" + file + "' --quick --seeds 1 --out '" + (folder / "out") + "'");
    CHECK(r.out.starts_with("Few epochs\n"));
    for (const char* picture : {"/results.svg", "/curves.svg"})
      CHECK(has(slurp((folder / "out") + picture), "Few epochs (mlp on digits)"));
    check_refused("experiment '" +
                      write(folder, without(kFile, "--epochs 1", "--data fashion-mnist")) +
                      "' --explain",
                  1,
                  {"bits.json, line 3: \"quick\" trains on --data fashion-mnist, which \"title\" "
                   "says nothing of; "
                   "add \"quick_title\": \"...\", the title of that form"});
  }

  TEST_CASE("what a row cannot do with the data is told before any row is trained") {
    const Folder folder;
    std::string text;
    for (int i = 0; i < 100; ++i) text += "the number " + std::to_string(i) + "; ";
    std::ofstream(folder / "text.txt") << text;
    const std::string texts =
        R"({"title": "T", "source": "none", "differences": "none", "options": "--data text:)" +
        (folder / "text.txt") +
        R"( --model lstm --layers 1 --width 8 --batch-size 4 --steps 2", "rows": [
           {"name": "first", "options": "--context 16"}, {"name": "second", "options": "OPTIONS"}]})";
    const std::string out = folder / "out";
    const auto refused = [&](const std::string& file, const std::string& options,
                             std::initializer_list<const char*> words) {
      const std::string with_options = without(file, "OPTIONS", options);
      check_refused(
          "experiment '" + write(folder, with_options) + "' --seeds 1 --out '" + out + "'", 1,
          words);
      CHECK(!fs::exists(out));
    };
    refused(texts, "--context 900",
            {"row 'second'", "its validation part has", "a context of 900 needs at least 901"});
    const std::string images =
        R"({"title": "T", "source": "none", "differences": "none",
            "options": "--hidden 8 --epochs 2 --batch-size 500", "rows": [
           {"name": "first", "options": ""}, {"name": "second", "options": "OPTIONS"}]})";
    refused(images, "--accumulate-steps 3", {"row 'second'", "--accumulate-steps 3", "2 batches"});
    refused(images, "--average swa --average-start 50",
            {"row 'second'", "--average", "the run has 4 steps"});

    // Rows of different contexts are what ulp train makes of each.
    const std::string both = without(texts, "OPTIONS", "--context 24");
    succeed("experiment '" + write(folder, both) + "' --seeds 1 --out '" + out + "'");
    succeed("train --data 'text:" + (folder / "text.txt") +
            "' --model lstm --layers 1 --width 8 --batch-size 4 --steps 2 --context 24 --out '" +
            (folder / "one") + "'");
    for (const char* name : {"/config.json", "/model.safetensors"})
      CHECK(slurp(out + "/second-seed1" + name) == slurp((folder / "one") + name));
  }

  TEST_CASE("options behind the name win, but not over what the rows differ in") {
    const Folder folder;
    const std::string file = write(folder, kFile), quoted = "experiment '" + file + "' ";
    const std::string given = succeed(quoted + "--quick --explain --lr=0.2 --no-graph").out;
    CHECK(has(given, "--hidden 12 --epochs 1 --lr 0.2 --no-graph"));
    CHECK(has(succeed(quoted + "--explain").out, "--epochs 2"));
    check_refused(quoted + "--forward e4m3", 2, {"--forward", "rows"});
    check_refused(quoted + "--seed 3", 2, {"--seeds N"});
    check_refused(quoted + "--seeds 0", 2, {"--seeds", "from 1"});
    check_refused(quoted + "--epochs 0", 2, {"row 'plain'", "--epochs", "from 1"});
    check_refused(quoted + "--epoch 3", 2, {"row 'plain'", "--epoch"});
    check_refused(quoted + "3", 2, {"'3' belongs to no option"});
    check_refused(quoted + "--json --markdown", 2, {"one of them"});
    check_refused("experiment --epochs=3", 2, {"--epochs", "behind the name"});
    check_refused("experiment swap", 2, {"there is no 'swap'", "swalp"});
  }

  TEST_CASE("a file that is no experiment is refused with the place") {
    const Folder folder;
    const auto refuse = [&](const std::string& text, int status,
                            std::initializer_list<const char*> words) {
      check_refused("experiment '" + write(folder, text) + "' --explain", status, words);
    };
    refuse("{", 1, {"bits.json, line 1, column 2: no JSON: the text ends too early"});
    refuse("[]", 1, {"bits.json, line 1: ", "an object", "a list"});
    refuse(without(kFile, "\"rows\": [", "\"rows\": [,"), 1,
           {"bits.json, line 4, column 12: no JSON at", ","});
    refuse(without(kFile, "\"x\": 8, ", "\"x\": 8 "), 1,
           {"bits.json, line 7, column 85: no JSON at", "series"});
    refuse(without(kFile, "\"x\": 32", "\"x\": 1e999"), 1, {"line 5", "no JSON at", "1e999"});
    refuse(without(kFile, "\"quick\"", "\"options\": \"--epochs 3\", \"quick\""), 1,
           {"bits.json, line 3: the key \"options\" stands in line 3 already"});
    refuse(without(kFile, "\"series\": \"few\"},", "\"series\": \"few\",\n\"x\": 3},"), 1,
           {"bits.json, line 7: the key \"x\" stands in line 6 already"});
    refuse(without(kFile, "\"title\": \"Bits\", "), 1, {"bits.json, line 1: \"title\" is missing"});
    refuse(without(kFile, "\"source\": \"none\"", "\"source\": 7"), 1,
           {"bits.json, line 2: \"source\" is to be a text, got a whole number (7)"});
    refuse(without(kFile, "\"source\": \"none\"", "\"source\": null"), 1,
           {"bits.json, line 2: \"source\" is to be a text, got null"});
    refuse(without(kFile, "\"--epochs 1\"", "[\"--epochs\",\n1]"), 1,
           {"bits.json, line 4: \"quick\" is to be a text or a list of words, got a whole number"});
    refuse(without(kFile, "\"quick\"", "\"quickly\""), 1,
           {"bits.json, line 3: ", "'quickly'", "there are", "quick,"});
    refuse(without(kFile, "\"rows\": [", "\"rows\": 3, \"y\": ["), 1, {"line 4", "'y'"});
    refuse(without(kFile, "\"name\": \"eight\"", "\"names\": \"eight\""), 1,
           {"bits.json, line 7, row 3: ", "'names'", "there are name,"});
    refuse(without(kFile, ", \"x\": 8"), 1, {"line 7, row 3", "x", "missing"});
    refuse(without(kFile, "\"x\": 8", "\"x\": 0"), 1,
           {"bits.json, line 7, row 3: \"x\" is to be a number above 0, got a whole number (0)"});
    refuse(without(kFile, "\"x\": 8", "\"x\": -0.5"), 1, {"row 3", "above 0", "(-0.5)"});
    refuse(without(kFile, "\"x\": 8", "\"x\": true"), 1, {"row 3", "above 0", "(true)"});
    refuse("{\"title\": \"\", \"source\": \"\", \"differences\": \"\", \"rows\": [\n3]}", 1,
           {"bits.json, line 2, row 1: expected an object, got a whole number"});
    refuse("{\"title\": \"\", \"source\": \"\", \"differences\": \"\", \"rows\": []}", 1,
           {"bits.json, line 1: \"rows\" is to be a list of at least one row"});
    refuse(without(kFile, "\"eight\"", "\"plain\""), 1, {"row 3", "'plain'"});
    refuse(without(kFile, "\"four, nearest\"", "\"Plain\\n\""), 1, {"row 2", "one line", "Plain"});
    refuse(without(kFile, "\"four, nearest\"", "\"--\""), 1,
           {"row 2", "a letter (a to z) or a digit"});
    refuse(without(without(kFile, "\"four, nearest\"", "\"e/4\""), "\"eight\"", "\"e 4\""), 1,
           {"row 3", "'e/4'", "'e 4'", "folder"});
    for (const char* shared : {"--data digits", "--tokens bytes", "--validation 0.3", "--resume",
                               "--checkpoint-every 5", "--keep 3", "--threads 1"})
      refuse(without(kFile, "--forward e2m1", std::string(shared) + " --forward e2m1"), 1,
             {"row 2", "is for all rows", "\"options\""});
    refuse(without(kFile, "--hidden", "hidden"), 2, {"line 3, \"options\"", "'hidden'"});
    refuse(without(kFile, "--forward e2m1", "--forward e2m1x"), 2, {"four, nearest", "e2m1x"});
    refuse(without(kFile, "\"quick\"", "\"measure\": \"time\", \"quick\""), 1, {"measure", "time"});
    check_refused("experiment '" + (folder / "none.json") + "'", 1, {"none.json"});
  }
}

#endif
