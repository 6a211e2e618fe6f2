#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "command.h"
#include "nn/data/dataset.h"

#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
namespace fs = std::filesystem;

namespace {

const std::string kTrain =
    "train --hidden 20 --batch-size 64 --epochs 2 --lr 0.05 --forward e4m3 --backward e5m2:sr "
    "--normalize data --augment crop:2,flip,cutout:3 ";  // 22 steps an epoch

std::string results(const std::string& out) {
  return slurp(out + "/config.json") + slurp(out + "/model.safetensors") +
         std::regex_replace(slurp(out + "/metrics.jsonl"), std::regex(",\"seconds\":[^}]*"), "");
}

/// Files of CIFAR-10 whose classes differ in colour.
void write_cifar10(const std::string& folder) {
  for (int file = 1; file <= 6; ++file) {
    std::string bytes;
    for (int i = 0; i < 20; ++i) {
      const int label = (i * 7 + file) % 10;
      bytes += static_cast<char>(label);
      for (int c = 0; c < 3; ++c)
        for (int at = 0; at < 1024; ++at)
          bytes += static_cast<char>(25 * ((label + 3 * c) % 10) + (at * 31 + i * 17) % 23);
    }
    const std::string name =
        file == 6 ? "test_batch.bin" : "data_batch_" + std::to_string(file) + ".bin";
    std::ofstream(folder + "/" + name, std::ios::binary) << bytes;
  }
}

}  // namespace

TEST_SUITE("data_options") {
  TEST_CASE("what is done to samples is printed, kept in config.json, and done by eval too") {
    const Folder folder;
    const std::string out = folder / "run";
    const Result r = succeed(kTrain + "--out " + out);
    CHECK(has(r.out, "samples    (value in [0, 1] - ["));
    CHECK(has(r.out, "by channel, crop:2,flip,cutout:3 in training, in the memory of cpu"));
    const auto config = nlohmann::json::parse(slurp(out + "/config.json"));
    CHECK(config.at("augment") == "crop:2,flip,cutout:3");
    CHECK(config.at("sample_shape") == nlohmann::json({8, 8, 1}));
    const nn::Dataset digits = nn::load_dataset("digits");
    double sum = 0, squares = 0;
    for (const float v : digits.train.images.to_floats()) {
      sum += static_cast<double>(v) / 16;
      squares += static_cast<double>(v) * static_cast<double>(v) / 256;
    }
    const double mean = sum / (1437 * 64),
                 deviation = std::sqrt(squares / (1437 * 64) - mean * mean);
    CHECK(config.at("normalize").at("mean")[0].get<double>() == doctest::Approx(mean));
    CHECK(config.at("normalize").at("std")[0].get<double>() == doctest::Approx(deviation));
    const std::string metrics = slurp(out + "/metrics.jsonl");
    const std::string last = metrics.substr(metrics.rfind('{'));
    std::smatch loss;
    REQUIRE(std::regex_search(last, loss, std::regex("\"loss\":([^,]+),")));
    for (const char* more : {"", " --threads 3"})
      CHECK(has(succeed("eval " + out + more).out, "test loss " + loss[1].str() + "\n"));

    // As explicit numbers they are the same run; nothing and other numbers are not.
    const std::string plain =
        "train --hidden 20 --batch-size 64 --epochs 2 --lr 0.05 --forward "
        "e4m3 --backward e5m2:sr --out " +
        (folder / "other");
    const auto number = [](const nlohmann::json& j) { return j[0].dump(); };
    const std::string same = " --normalize " + number(config.at("normalize").at("mean")) + ":" +
                             number(config.at("normalize").at("std")) +
                             " --augment flip,cutout:3,crop:2";
    succeed(plain + same);
    CHECK(results(folder / "other") == results(out));
    succeed(plain);
    CHECK(slurp(folder / "other/model.safetensors") != slurp(out + "/model.safetensors"));
    CHECK(nlohmann::json::parse(slurp(folder / "other/config.json")).at("normalize").is_null());
    CHECK(nlohmann::json::parse(slurp(folder / "other/config.json")).at("augment") == "none");
  }

  TEST_CASE("the same bits for any number of threads, from memory and from a loader, and resumed") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    succeed(kTrain + "--out " + whole);
    for (const char* more :
         {"--threads 1 ", "--threads 3 ", "--resident-mib 0 ", "--resident-mib 0 --threads 3 "}) {
      const Result r = succeed(kTrain + more + "--out " + out);
      CHECK(results(out) == results(whole));
      CHECK(has(r.out, std::string(more).find("resident") == std::string::npos
                           ? "in the memory of cpu"
                           : "gathered by a thread of the host"));
    }
    succeed(kTrain + "--checkpoint-every 5 --keep 20 --out " + out);
    CHECK(results(out) == results(whole));
    for (const int64_t step : {40, 25, 20, 5})
      for (const char* more : {"", "--resident-mib 0 --threads 3 "}) {
        for (const auto& entry : fs::directory_iterator(out)) {
          const std::string name = entry.path().filename().string();
          if (name.starts_with("checkpoint-") && std::stoll(name.substr(11)) > step)
            fs::remove(entry.path());
        }
        fs::remove(out + "/model.safetensors");
        const Result r = succeed(kTrain + more + "--resume --out " + out);
        CHECK(has(r.out, "resumed    checkpoint-" + std::to_string(step) + ".safetensors"));
        CHECK(results(out) == results(whole));
      }
    const auto refused = [&](const std::string& from, const std::string& to, const char* words) {
      std::string changed = kTrain + "--resume --out " + out;
      changed.replace(changed.find(from), from.size(), to);
      check_refused(changed, 1, {words});
    };
    refused("crop:2,flip", "crop:1,flip", "\"augment\": \"crop:2,flip,cutout:3\"");
    refused("--normalize data", "--normalize 0.5:0.5", "\"normalize.");
    refused("--normalize data", "", "\"normalize\"");
  }

  TEST_CASE("micro-batches, dynamic scaling and a baseline go with them") {
    const Folder folder;
    const std::string a = folder / "a", b = folder / "b";
    const std::string train =
        kTrain + "--accumulate-steps 3 --loss-scale dynamic --baseline --out ";
    succeed(train + a);
    succeed(train + b + " --resident-mib 0 --threads 2");
    CHECK(results(a) == results(b));
    CHECK(results(a + "/baseline") == results(b + "/baseline"));
  }

  TEST_CASE("CIFAR-10 files are trained on and evaluated, and named where they are wrong") {
    const Folder folder;
    write_cifar10(folder.path.string());
    const std::string out = folder / "run";
    const std::string train = "train --data " + folder.path.string() +
                              " --hidden 16 --batch-size 20 --epochs 4 --normalize data --augment "
                              "crop:4,flip --out " +
                              out;
    const Result r = succeed(train);
    CHECK(has(r.out, "100 training and 20 test samples of 32×32×3, 10 classes"));
    const auto config = nlohmann::json::parse(slurp(out + "/config.json"));
    CHECK(config.at("normalize").at("mean").size() == 3);
    CHECK(has(succeed("eval " + out).out, "20 test samples"));
    CHECK(has(succeed("eval " + out + " --data cifar10:" + folder.path.string()).out,
              "20 test samples"));
    check_refused("eval " + out + " --data digits", 1, {"\"inputs\"", "3072", "64"});
    std::ofstream(folder / "data_batch_2.bin", std::ios::binary) << "short";
    check_refused(train, 1, {"data_batch_2.bin", "5 bytes", "3073"});
  }

  TEST_CASE("one mean and deviation serve all channels") {
    const Folder folder;
    // Two images of 8 × 8 × 3 bytes, by hand: magic, version, length of the head, head, data.
    const auto npy = [](const std::string& shape, size_t bytes) {
      std::string head = "{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + ", }";
      head.resize(117, ' ');
      head += '\n';
      std::string data(bytes, '\0');
      for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(bytes > 2 ? i * 7 % 251 : i);
      return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + head + data;
    };
    for (const char* part : {"train", "test"}) {
      std::ofstream(folder / (std::string(part) + "_x.npy").c_str()) << npy("(2, 8, 8, 3)", 384);
      std::ofstream(folder / (std::string(part) + "_y.npy").c_str()) << npy("(2,)", 2);
    }
    const std::string train =
        "train --data " + folder.path.string() + " --hidden 4 --epochs 1 --out ";
    succeed(train + (folder / "one") + " --normalize 0.5:0.25");
    succeed(train + (folder / "three") + " --normalize 0.5,0.5,0.5:0.25,0.25,0.25");
    CHECK(slurp(folder / "one/model.safetensors") == slurp(folder / "three/model.safetensors"));
    CHECK(slurp(folder / "one/config.json") == slurp(folder / "three/config.json"));
  }

  TEST_CASE("flags that are wrong") {
    const Folder folder;
    const std::string out = " --out " + (folder / "run");
    check_refused("train --augment crop" + out, 2, {"--augment", "crop:PIXELS"});
    check_refused("train --augment flip,flip" + out, 2, {"--augment", "twice"});
    check_refused("train --augment crop:8" + out, 1,
                  {"--augment crop:8", "8 x 8 pixels", "less than 8"});
    check_refused("train --augment cutout:9" + out, 1, {"--augment cutout:9", "at most 8"});
    check_refused("train --normalize yes" + out, 2, {"--normalize", "none, data or MEAN"});
    check_refused("train --normalize 0.5:0" + out, 2, {"--normalize", "'0' is no positive number"});
    check_refused("train --normalize x:1" + out, 2, {"--normalize", "'x' is no number"});
    check_refused("train --normalize 1,2:1" + out, 2, {"2 means and 1 standard deviations"});
    check_refused("train --normalize 1,2,3:1,1,1" + out, 1,
                  {"--normalize 1,2,3:1,1,1", "3 means", "1 channels"});
    check_refused("train --resident-mib -1" + out, 2, {"--resident-mib", "0 to"});
    check_refused("train --data ''" + out, 2, {"--data", "cifar100-coarse"});
    CHECK(!fs::exists(folder / "run"));
  }

  TEST_CASE("eval names what is wrong with config.json, and takes an older one") {
    const Folder folder;
    const std::string out = folder / "run", file = out + "/config.json";
    succeed("train --hidden 8 --epochs 1 --normalize 0.3:0.4 --out " + out);
    const auto config = nlohmann::ordered_json::parse(slurp(file));
    const auto with = [&](auto change) {
      nlohmann::ordered_json other = config;
      change(other);
      std::ofstream(file) << other.dump(2);
    };
    using Json = nlohmann::ordered_json;
    const auto refused = [&](auto change, std::initializer_list<const char*> words) {
      with(change);
      check_refused("eval " + out, 1, words);
    };
    refused([](Json& j) { j["normalize"] = 3; }, {"\"normalize\"", "object"});
    refused([](Json& j) { j["normalize"].erase("std"); }, {"\"normalize.std\"", "missing"});
    refused([](Json& j) { j["normalize"]["mean"] = 0.5; }, {"\"normalize.mean\"", "list"});
    refused([](Json& j) { j["normalize"]["mean"] = {0.5, 0.5}; }, {"2 means and 1"});
    refused([](Json& j) { j["normalize"]["std"] = {"x"}; }, {"\"normalize\"", "channel 0"});
    refused([](Json& j) { j["normalize"]["std"] = {0}; }, {"\"normalize\"", "channel 0"});
    refused([](Json& j) { j["sample_shape"] = {8, 8}; }, {"\"sample_shape\"", "channels"});
    refused([](Json& j) { j["sample_shape"] = {8, 0, 1}; }, {"\"sample_shape\""});
    with([](Json& j) {
      for (const char* key : {"sample_shape", "normalize", "augment"}) j.erase(key);
    });
    succeed("eval " + out);
  }
}

#endif
