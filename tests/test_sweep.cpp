#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "command.h"

#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

const std::string kSweep = "sweep --hidden 12 --epochs 2 --batch-size 128 ";

int64_t count(const std::string& text, const std::string& words) {
  int64_t n = 0;
  for (size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_SUITE("sweep") {
  TEST_CASE("a sweep is a table of what single trainings give, a file and a picture") {
    const Folder folder;
    const std::string out = folder / "sweep";
    std::ofstream(folder / "mixed.json")
        << R"({"rules": [{"type": "linear", "forward": "e2m1"}, {"position": "first", "forward": "fp32"}]})";
    const std::string list = "--formats e4m3/e5m2:sr,fp32,bfp8," + (folder / "mixed.json");
    const Result r = succeed(kSweep + list + " --seeds 3,7 --out '" + out + "'");
    CHECK(r.err.empty());
    CHECK(count(r.out, "epoch 1/2") == 0);  // trainings are silent
    const Json file = Json::parse(slurp(out + "/sweep.json"));
    REQUIRE(file.at("runs").size() == 8);
    CHECK(file.at("runs")[0].at("formats") == "fp32");
    CHECK(file.at("runs")[2].at("formats") == "e4m3/e5m2:sr");
    CHECK(file.at("runs")[2].at("seed") == 3);
    CHECK(file.at("runs")[7].at("formats") == "mixed.json");

    succeed(
        "train --hidden 12 --epochs 2 --batch-size 128 --seed 7 --forward e4m3 --backward "
        "e5m2:sr --baseline --out '" +
        (folder / "one") + "'");
    const auto accuracy = [](const std::string& dir) {
      std::string last, line;
      std::ifstream metrics(dir + "/metrics.jsonl");
      while (std::getline(metrics, line)) last = line;
      return Json::parse(last).at("accuracy").get<double>();
    };
    const double quantised = accuracy(folder / "one"),
                 plain = accuracy((folder / "one") + "/baseline");
    CHECK(std::abs(file.at("runs")[3].at("accuracy").get<double>() - quantised) < 1e-5);
    CHECK(std::abs(file.at("runs")[1].at("accuracy").get<double>() - plain) < 1e-5);
    CHECK(slurp(out + "/e4m3_e5m2_sr-seed7/model.safetensors") ==
          slurp((folder / "one") + "/model.safetensors"));

    const Json rows =
        Json::parse(succeed(kSweep + list + " --seeds 3,7 --json --out '" + out + "'").out);
    REQUIRE(rows.size() == 4);
    std::vector<double> a, differences;
    for (const int i : {2, 3}) {
      a.push_back(100 * file.at("runs")[i].at("accuracy").get<double>());
      differences.push_back(a.back() - 100 * file.at("runs")[i - 2].at("accuracy").get<double>());
    }
    const Json& row = rows[1];
    CHECK(row.at("formats") == "e4m3/e5m2:sr");
    CHECK(row.at("bits") == 8);
    CHECK(rows[2].at("bits") == 8);  // bfp8 in both passes
    CHECK(row.at("runs") == 2);
    CHECK(row.at("diverged") == 0);
    CHECK(std::abs(row.at("accuracy").get<double>() - (a[0] + a[1]) / 2) < 1e-9);
    CHECK(std::abs(row.at("accuracy_deviation").get<double>() -
                   std::abs(a[0] - a[1]) / std::sqrt(2.0)) < 1e-9);
    CHECK(std::abs(row.at("difference").get<double>() - (differences[0] + differences[1]) / 2) <
          1e-9);
    CHECK(rows[0].at("difference").is_null());
    CHECK(rows[0].at("bits") == 32);
    // Two layers: the first one's operands have 32 bits, the last one's four forward operands 4 and the gradients 32.
    CHECK(std::abs(rows[3].at("bits").get<double>() - (6 * 32 + 4 * 4 + 2 * 32) / 12.0) < 1e-9);

    const Result markdown = succeed(kSweep + list + " --seeds 3,7 --markdown --out '" + out + "'");
    CHECK(
        markdown.out.starts_with("| formats | bits | accuracy % | to fp32 | loss | runs |\n|---|"));
    CHECK(lines(markdown.out) == 6);
    const std::string svg = slurp(out + "/sweep.svg");
    CHECK(svg.starts_with("<"));
    for (const char* words :
         {"</svg>", "e4m3/e5m2:sr", "bfp8", "mixed.json", "accuracy on held-out samples"})
      CHECK(has(svg, words));
    for (const Json& run : file.at("runs")) {
      REQUIRE(run.at("curve").size() == 2);
      CHECK(std::abs(run.at("curve")[1].get<double>() - run.at("loss").get<double>()) < 1e-6);
      CHECK(run.at("curve")[0] > run.at("curve")[1]);  // it learns
    }
    const std::string curves = slurp(out + "/curves.svg");
    for (const char* words : {"</svg>", "e4m3/e5m2:sr", "mixed.json", "epochs", "loss on held-out"})
      CHECK(has(curves, words));
    CHECK(count(curves, "stroke-width=\"1.8\"") == 4);  // the means
    CHECK(count(curves, "stroke-width=\"0.7\"") == 8);  // two seeds each
  }

  TEST_CASE("a sweep that was stopped goes on, and what is done is not repeated") {
    const Folder folder;
    const std::string out = folder / "sweep";
    const std::string sweep = kSweep + "--formats e4m3,e2m1 --out '" + out + "' ";
    succeed(sweep + "--seeds 1");
    const std::string before = slurp(out + "/sweep.json");
    // As if it had been stopped in the middle of the last run.
    Json file = Json::parse(before);
    file.at("runs").erase(2);
    std::ofstream(out + "/sweep.json") << file.dump(2);
    fs::remove(out + "/e2m1-seed1/model.safetensors");
    const Result r = succeed(sweep + "--seeds 1");
    CHECK(count(r.out, "(done before)") == 2);
    const auto timeless = [](const std::string& text) {
      Json json = Json::parse(text);
      for (Json& run : json.at("runs")) run.erase("seconds");
      return json;
    };
    CHECK(timeless(slurp(out + "/sweep.json")) == timeless(before));
    CHECK(fs::exists(out + "/e2m1-seed1/model.safetensors"));
    // More seeds and formats.
    const Result more =
        succeed(kSweep + "--formats e4m3,bf16,e2m1 --seeds 1,2 --out '" + out + "'");
    CHECK(count(more.out, "(done before)") == 3);
    CHECK(Json::parse(slurp(out + "/sweep.json")).at("runs").size() == 8);

    // Another configuration is noticed before anything is run.
    const std::string now = slurp(out + "/sweep.json");
    check_refused(kSweep + "--formats e4m3 --seeds 1 --lr 0.5 --out '" + out + "'", 1,
                  {"sweep.json", "\"optimizer.lr\"", "0.1", "0.5", "--out"});
    check_refused(
        "sweep --hidden 12 --epochs 3 --batch-size 128 --formats e4m3 --seeds 1,5 --out '" + out +
            "'",
        1, {"sweep.json", "\"epochs\"", "2", "3"});
    check_refused(kSweep + "--formats e4m3 --seeds 1 --output bf16 --out '" + out + "'", 1,
                  {"sweep.json", "\"policy\"", "e4m3 with seed 1"});
    CHECK(slurp(out + "/sweep.json") == now);
    for (const char* spoilt : {"{", "[]", "{\"runs\": [{}]}", "{\"runs\": [{\"formats\": 3}]}"}) {
      std::ofstream(out + "/sweep.json") << spoilt;
      check_refused(sweep, 1, {"sweep.json", "no results of ulp sweep"});
    }
  }

  TEST_CASE("a run that diverges is a result, and checkpoints let a run go on") {
    const Folder folder;
    const std::string out = folder / "sweep";
    // The passes saturate and the stored weights overflow to Inf; or Inf meets zero in a product.
    const std::string sweep =
        "sweep --hidden 8 --epochs 1 --batch-size 32 --lr 1e6 --seeds 1 --formats "
        "e4m3-sat,e5m2-inf --output e4m3-sat --weights e5m2-inf --out '" +
        out + "'";
    const Result r = succeed(sweep);
    CHECK(count(r.out, "diverged: ") == 2);
    CHECK(has(r.out, "fc1."));
    CHECK(has(r.out, "the loss is"));
    CHECK(has(slurp(out + "/sweep.svg"), "e5m2-inf (diverged)"));
    const Json rows = Json::parse(succeed(sweep + " --json").out);
    REQUIRE(rows.size() == 3);
    CHECK(rows[0].at("diverged") == 0);
    for (const int i : {1, 2}) {
      CHECK(rows[i].at("diverged") == 1);
      CHECK(rows[i].at("accuracy").is_null());
    }

    const std::string kept = folder / "kept";
    const std::string with =
        kSweep + "--formats bf16 --seeds 1 --checkpoint-every 5 --out '" + kept + "'";
    succeed(with);
    const std::string model = slurp(kept + "/bf16-seed1/model.safetensors");
    Json file = Json::parse(slurp(kept + "/sweep.json"));
    file.at("runs").erase(1);
    std::ofstream(kept + "/sweep.json") << file.dump(2);
    fs::remove(kept + "/bf16-seed1/model.safetensors");
    succeed(with);
    CHECK(slurp(kept + "/bf16-seed1/model.safetensors") == model);
  }

  TEST_CASE("what is wrong with a list is said before anything is run") {
    const Folder folder;
    const std::string out = folder / "sweep";
    const std::string sweep = kSweep + "--out '" + out + "' --formats ";
    check_refused(kSweep, 2, {"--formats"});
    check_refused(sweep + "''", 2, {"--formats"});
    check_refused(sweep + "e4m3,e9m30", 2, {"--formats", "e9m30"});
    check_refused(sweep + "e4m3/e9m30", 2, {"--formats", "e9m30"});
    check_refused(sweep + "e4m3,,e5m2", 2, {"--formats"});
    check_refused(sweep + "e4m3,e4m3", 2, {"--formats", "e4m3", "twice"});
    check_refused(sweep + "bfp8-axis2", 2, {"--formats", "axes 0 and 1"});
    check_refused(sweep + "none.json", 1, {"none.json"});
    check_refused(sweep + "e4m3 --seeds 1,1", 2, {"--seeds", "twice"});
    check_refused(sweep + "e4m3 --seeds 1,x", 2, {"--seeds", "'x'"});
    check_refused(sweep + "e4m3 --seed 3", 2, {"--seed"});
    check_refused(sweep + "e4m3 --json --markdown", 2, {"--json", "--markdown"});
    std::ofstream(folder / "p.json") << R"({"rules": [{"path": "fc7", "input": "e4m3"}]})";
    check_refused(sweep + "e4m3,'" + (folder / "p.json") + "'", 1, {"p.json, line 1", "fc7"});
    CHECK(!fs::exists(out));
  }
}

#endif
