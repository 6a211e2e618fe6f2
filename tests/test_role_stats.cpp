#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "autograd/role_stats.h"
#include "command.h"
#include "kernels/quantised.h"
#include "nn/models.h"
#include "optim/optimizer.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

constexpr int64_t kBatch = 32, kInputs = 64;

struct Trained {
  std::vector<Tensor> weights;
  std::vector<std::map<uint32_t, RoleStats::Total>> totals;  // of each step
};

OpFormats formats_of(const char* forward, const char* backward, const char* results) {
  OpFormats f = OpFormats::make(forward, backward);
  f.output = f.grad_input = f.grad_weight = results;
  return f;
}

Trained train(Device device, const OpFormats& formats, bool counted, int batches_a_step = 1) {
  Run run(device, 3);
  const auto net = nn::mlp(kInputs, std::vector<int64_t>{48, 32}, 10, formats);
  net->initialise(run);
  optim::Optimizer sgd(run, net->parameters(), {.lr = 0.1});
  RoleStats stats(device);
  Trained result;
  for (int step = 0; step < 4; ++step) {
    const bool counts = counted && step != 1;
    if (counts) run.set_role_stats(&stats);
    for (int k = 0; k < batches_a_step; ++k) {
      const auto seed = static_cast<uint64_t>(10 * step + k);
      const Tensor images = random_tensor({kBatch, kInputs}, -2, 2, seed).to(device);
      std::vector<int32_t> labels;
      for (int64_t i = 0; i < kBatch; ++i) labels.push_back(static_cast<int32_t>(i % 10));
      Tape tape(run);
      tape.backward(ops::cross_entropy(tape, (*net)(tape, tape.constant(images)),
                                       Tensor::from(labels, {kBatch}, device)));
    }
    sgd.step();
    run.set_role_stats(nullptr);
    if (counted) result.totals.push_back(stats.totals());
    stats.clear();
  }
  for (const Parameter* p : net->parameters()) result.weights.push_back(p->value.to(kCpu));
  return result;
}

}  // namespace

TEST_SUITE("role_stats") {
  TEST_CASE("steps that are counted leave the same weights, to the bit") {
    const char* settings[][3] = {
        {"e4m3", "e5m2:sr", "bf16:sr"},
        {"bfp8:sr", "mxfp8", "mxfp4:sr"},
        {"nvfp4", "nvfp4:sr", "e4m3-g16-scalef32:sr"},
        {"mxfp4+rht16", "mxfp4+rht16+q34:sr", "fp32"},
        {"e4m3+scale=delayed4", "e5m2+scale=delayed4:sr", "e4m3+scale=current:sr"},
        {"fixed8.5:sr", "posit16.1", "e6m9:odd"},
        {"fp32", "fp32", "fp32"}};
    for (const auto& s : settings) {
      CAPTURE(std::string(s[0]));
      const OpFormats f = formats_of(s[0], s[1], s[2]);
      const Trained plain = train(kCpu, f, false), counted = train(kCpu, f, true);
      for (size_t i = 0; i < plain.weights.size(); ++i)
        CHECK(same_bits(plain.weights[i], counted.weights[i]));
      CHECK(counted.totals[1].empty());
      CHECK(!counted.totals[0].empty());
    }
  }

  TEST_CASE("each role of each layer once, with what it rounds") {
    const OpFormats f = formats_of("e4m3", "e5m2:sr", "bf16");
    const Trained trained = train(kCpu, f, true);
    const auto& totals = trained.totals[2];
    const auto of = [&](const char* layer, const char* role) -> const RoleStats::Total* {
      const auto at = totals.find(RandomSite(layer).stream(role));
      return at == totals.end() ? nullptr : &at->second;
    };
    const auto counts = [&](const char* layer, const char* role, int64_t count,
                            const Quantizer& quantizer) {
      CAPTURE(std::string(layer));
      CAPTURE(std::string(role));
      REQUIRE(of(layer, role) != nullptr);
      CHECK(of(layer, role)->stats.count == count);
      CHECK(of(layer, role)->quantizer == quantizer);
    };
    counts("fc1", "input", kBatch * 64, f.input);
    counts("fc1", "weight", 48 * 64, f.weight);
    counts("fc1", "output", kBatch * 48, f.output);
    // With equal quantizers both products of a gradient read one rounding, that of grad_output_dx.
    counts("fc1", "grad_output_dx", kBatch * 48, f.grad_output_dx);
    counts("fc1", "grad_weight", 48 * 64, f.grad_weight);
    counts("fc2", "grad_output_dx", kBatch * 32, f.grad_output_dx);
    counts("fc2", "grad_input", kBatch * 48, f.grad_input);
    counts("fc3", "output", kBatch * 10, f.output);
    CHECK(of("fc1", "grad_output_dw") == nullptr);
    CHECK(of("fc1", "input_dw") == nullptr);
    CHECK(of("fc1", "grad_input") == nullptr);            // no gradient of the images is made
    counts("relu1", "output", kBatch * 48, Quantizer());  // has no format: counted as it is
    const QuantiseStats plain = of("relu1", "output")->stats;
    CHECK(plain.amax() > 0);
    CHECK(plain.overflow + plain.underflow + plain.nan == 0);
  }

  TEST_CASE("the numbers are those of the kernel") {
    for (const char* format :
         {"e4m3", "e2m1:sr", "bfp4:sr", "e4m3-g16-scalef32:sr", "nvfp4:sr", "e5m2+scale=current"}) {
      CAPTURE(std::string(format));
      const Tensor x = random_tensor({24, 32}, -9, 9, 5), w = random_tensor({16, 32}, -1, 1, 6);
      OpFormats f;
      f.input = format;
      Run run(kCpu, 9);
      RoleStats stats(kCpu);
      {
        const CountRoles counting(run, stats);
        Tape tape(run);
        ops::linear(tape, tape.constant(x), tape.leaf(w), {}, f, RandomSite("here"));
      }
      CHECK(run.role_stats() == nullptr);
      QuantiseUse use;
      use.quantizer = format;
      use.axis = 1;
      use.key = {9, RandomSite("here").stream("input"), 0, run.device_state()};
      use.stats = Tensor::empty({static_cast<int64_t>(sizeof(QuantiseStats))}, DType::U8, kCpu);
      const Tensor y = quantised(stream_of(kCpu), x, use);
      QuantiseStats want;
      std::memcpy(&want, use.stats.raw(), sizeof want);
      REQUIRE(stats.totals().contains(RandomSite("here").stream("input")));
      const QuantiseStats got = stats.totals().at(RandomSite("here").stream("input")).stats;
      CHECK(got.count == 24 * 32);
      CHECK(got.underflow == want.underflow);
      CHECK(got.overflow == want.overflow);
      CHECK(got.amax_bits == want.amax_bits);
      CHECK(got.square_error == want.square_error);
      // Once more by hand.
      const std::vector<float> a = x.to_floats(), b = y.to_floats();
      double error = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        const double d = static_cast<double>(b[i]) - static_cast<double>(a[i]);
        error += d * d;
      }
      CHECK(got.square_error == doctest::Approx(error).epsilon(1e-5));
    }
  }

  TEST_CASE("the batches of a step are added up") {
    const OpFormats f = formats_of("e4m3", "e5m2:sr", "fp32");
    const Trained once = train(kCpu, f, true, 1), thrice = train(kCpu, f, true, 3);
    const uint32_t input = RandomSite("fc1").stream("input");
    CHECK(once.totals[0].at(input).stats.count == kBatch * kInputs);
    CHECK(thrice.totals[0].at(input).stats.count == 3 * kBatch * kInputs);
    CHECK(thrice.totals[0].at(input).stats.square > 2 * once.totals[0].at(input).stats.square);
    const Trained plain = train(kCpu, f, false, 3);
    for (size_t i = 0; i < plain.weights.size(); ++i)
      CHECK(same_bits(plain.weights[i], thrice.weights[i]));
  }

  TEST_CASE("tensors without elements and bad numbers") {
    OpFormats f;
    f.input = "e4m3";
    f.output = "e4m3";
    Run run;
    RoleStats stats(kCpu);
    const CountRoles counting(run, stats);
    Tape tape(run);
    ops::relu(tape, tape.constant(Tensor::empty({0, 4}, DType::F32, kCpu)), f, RandomSite("none"));
    CHECK(stats.totals().empty());
    ops::relu(
        tape,
        tape.constant(Tensor::from(std::vector<float>{NAN, INFINITY, 1e9f, 1e-9f, 1, -2}, {6})), f,
        RandomSite("r"));
    const QuantiseStats input = stats.totals().at(RandomSite("r").stream("input")).stats;
    CHECK(input.nan == 1);
    CHECK(input.infinite == 1);
    CHECK(input.overflow == 1);
    CHECK(input.underflow == 1);
    CHECK(input.amax() == 1e9f);
    // A scalar result.
    ops::scale(tape, tape.constant(Tensor::from(std::vector<float>{3.3f}, {})), 1, f,
               RandomSite("s"));
    CHECK(stats.totals().at(RandomSite("s").stream("output")).stats.count == 1);
  }
}

#if defined(ULP_COMMAND)

using namespace ulp::command;

TEST_SUITE("role_stats") {
  TEST_CASE("ulp train --stats: a line for each role and layer; nothing else changes") {
    const Folder folder;
    const std::string plain = folder / "plain", counted = folder / "counted", out = folder / "out";
    const std::string train =
        "train --hidden 12 --batch-size 64 --epochs 2 --accumulate-steps 2 --forward e4m3 "
        "--backward e5m2:sr --output bf16 --interior bf16 --out ";
    REQUIRE(ulp_command(train + plain).status == 0);
    REQUIRE(ulp_command(train + counted + " --stats --checkpoint-every 4 --keep 9").status == 0);
    CHECK(slurp(plain + "/model.safetensors") == slurp(counted + "/model.safetensors"));
    CHECK(slurp(plain + "/metrics.jsonl").find("stats") == std::string::npos);
    const auto stats_lines = [](const std::string& dir) {
      std::istringstream text(slurp(dir + "/metrics.jsonl"));
      std::vector<nlohmann::json> lines;
      for (std::string line; std::getline(text, line);) {
        const auto json = nlohmann::json::parse(line);
        if (json.at("split") == "stats") lines.push_back(json);
      }
      return lines;
    };
    const auto lines = stats_lines(counted);
    std::map<std::string, int> seen;
    for (const auto& line : lines) {
      ++seen[line.at("layer").get<std::string>() + "/" + line.at("role").get<std::string>()];
      CHECK(line.at("step") == 11);
      CHECK(line.at("count").get<int64_t>() > 0);
      CHECK(line.at("nan") == 0);
      CHECK(line.at("amax").get<double>() > 0);
      if (line.at("role") == "grads" || line.at("role") == "weights") {
        CHECK(!line.contains("overflow"));
        continue;
      }
      CHECK(line.contains("shares") ==
            (line.at("role") == "weight_dx" || line.at("role") == "input_dw" ||
             line.at("role") == "grad_output_dw"));
      // The digits are numbers of e4m3: nothing is lost there.
      const bool exact = line.at("format") == "fp32" ||
                         (line.at("layer") == "fc1" &&
                          (line.at("role") == "input" || line.at("role") == "input_dw"));
      CHECK(line.at("sqnr_db").is_null() == exact);
      if (!exact) CHECK(line.at("sqnr_db").get<double>() > 10);
    }
    CHECK(lines.size() == 2 * seen.size());
    for (const char* role :
         {"fc1/input", "fc1/weight", "fc1/output", "fc1/grad_output_dx", "fc2/input", "fc2/weight",
          "fc2/output", "fc2/grad_output_dx", "relu1/input", "relu1/grad_input", "fc1/input_dw",
          "fc2/weight_dx", "fc2/grad_output_dw", "fc1/grad_weight", "loss/grad_input",
          "fc1.weight/grads", "fc1.weight/weights", "fc2.bias/grads", "fc2.bias/weights"})
      CHECK_MESSAGE(seen[role] == 2, role);
    CHECK(seen["loss/interior"] == 0);
    for (const auto& [name, times] : seen) CHECK_MESSAGE(name[0] != '?', name);
    CHECK(lines[0].at("layer") == "fc1");
    CHECK(lines[0].at("role") == "input");
    CHECK(lines[0].at("format") == "e4m3");
    CHECK(lines[0].at("count") == 2 * 64 * 64);
    // Resumed, with another number of threads.
    std::filesystem::copy(counted, out, std::filesystem::copy_options::recursive);
    for (const char* step : {"12", "16", "20", "22"})
      std::filesystem::remove(out + "/checkpoint-" + step + ".safetensors");
    const Result r = ulp_command(train + out + " --stats --resume --threads 3");
    REQUIRE(r.status == 0);
    CHECK(r.out.find("checkpoint-8.safetensors") != std::string::npos);
    CHECK(stats_lines(out) == lines);
    CHECK(slurp(plain + "/model.safetensors") == slurp(out + "/model.safetensors"));
  }
}

#endif
