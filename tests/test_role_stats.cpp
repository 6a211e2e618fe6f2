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

  TEST_CASE("an optimizer's roundings are counted, and its bits stay") {
    using optim::Algorithm;
    struct Setting {
      Algorithm algorithm;
      const char *weight, *accumulator, *grad, *moment1, *moment2, *compensation;
    };
    const char* const none = "";
    for (const Setting& s : {
             Setting{Algorithm::Sgd, "e4m3", "e6m9:sr", "e5m2-sat:sr", "e4m3:sr", "fp32", none},
             Setting{Algorithm::Sgd, "bf16:sr", none, "e4m3+scale=delayed4", "bfp8-axis0:sr",
                     "fp32", none},
             Setting{Algorithm::AdamW, "e4m3:sr", "fp32", "mxfp8:sr", "e4m3-g32-scalef32",
                     "e5m2:sr", none},
             Setting{Algorithm::Adam, "nvfp4", "bf16", "fp32", "e2m1-g16-scalef32:sr",
                     "e4m3+scale=delayed4", none},
             Setting{Algorithm::AdamW, "bf16", none, "bf16", "fp16", "bf16", "e4m3"},
             Setting{Algorithm::Lion, "e4m3", "bf16", "e5m2-sat", "bfp8:sr", "fp32", "bf16:sr"},
         }) {
      optim::OptimizerOptions o = optim::OptimizerOptions::of(s.algorithm);
      o.lr = s.algorithm == Algorithm::Sgd ? 0.1 : 0.01;
      o.weight_decay = 0.01;
      o.grad_scaling = 0.25;
      const bool sgd = s.algorithm == Algorithm::Sgd;
      if (sgd) o.momentum = 0.9;
      if (sgd) o.grad_order = GradOrder::QuantiseFirst;
      o.weight = s.weight;
      if (*s.accumulator != 0) o.accumulator = Quantizer(s.accumulator);
      o.grad = s.grad;
      o.moment1 = s.moment1;
      if (!sgd && s.algorithm != Algorithm::Lion) o.moment2 = s.moment2;
      if (*s.compensation != 0) {
        o.update = optim::Update::Kahan;
        o.compensation = s.compensation;
      }
      CAPTURE(std::string(s.weight));
      const Tensor first = random_tensor({8, 32}, -1, 1, 1);
      const auto gradient = [](int step) {
        Tensor g = random_tensor({8, 32}, -1, 1, static_cast<uint64_t>(10 + step));
        g.mutable_data<float>()[5] = 1e-6f;
        g.mutable_data<float>()[6] = 3e5f;
        return g;
      };
      Run plain_run, run;
      Parameter plain{"w", Tensor::from(first.to_floats(), first.shape()), {}},
          p{"w", Tensor::from(first.to_floats(), first.shape()), {}};
      optim::Optimizer alone(plain_run, {&plain}, o), counted(run, {&p}, o);
      std::map<uint32_t, RoleStats::Total> totals;
      std::map<std::string, Tensor> moments_before;
      for (int step = 0; step < 5; ++step) {
        plain.grad = gradient(step);
        alone.step();
        const optim::Optimizer::State& state = counted.states()[0];
        for (const optim::Slot slot : optim::kSlots)
          if (state[slot].defined())
            moments_before[optim::to_string(slot)] =
                Tensor::from(counted.read(state, slot).to_floats(), first.shape());
        p.grad = gradient(step);
        RoleStats stats(kCpu);
        {
          const CountRoles counting(run, stats);
          counted.step();
        }
        totals = stats.totals();
        CHECK(same_bits(plain.value, p.value));
      }
      for (const auto& [name, tensor] : alone.tensors()) {
        CAPTURE(name);
        CHECK(same_bits(tensor, counted.tensors().at(name)));
      }
      for (const auto& [stream, state] : plain_run.scalings())
        CHECK(same_bits(state, run.scalings().at(stream)));

      // What was counted, against what the update left and what it should have been in fp64.
      const std::vector<float> g = gradient(4).to_floats();
      const optim::Optimizer::State& state = counted.states()[0];
      const auto total = [&](const char* role) {
        REQUIRE_MESSAGE(totals.contains(RandomSite("w").stream(role)), role);
        return totals.at(RandomSite("w").stream(role));
      };
      const RoleStats::Total grads = total("grad");
      CHECK(grads.quantizer == o.grad);
      CHECK(grads.stats.count == 256);
      CHECK(grads.stats.amax() == (sgd ? 3e5f : 3e5f * 0.25f));
      if (s.grad == std::string("e5m2-sat:sr")) CHECK(grads.stats.overflow == 1);
      CHECK(total("weight").quantizer == o.weight);
      CHECK(total("weight").stats.count == 256);
      const auto near_kept =
          [&](optim::Slot
                  slot) {  // the stored numbers are within the counted noise of the exact ones
            CAPTURE(std::string(optim::to_string(slot)));
            const RoleStats::Total t = total(optim::to_string(slot));
            CHECK(t.quantizer == state.format(slot));
            CHECK(t.stats.count == 256);
            CHECK(t.stats.nan == 0);
            return t.stats;
          };
      for (const optim::Slot slot : optim::kSlots)
        CHECK(totals.contains(RandomSite("w").stream(optim::to_string(slot))) ==
              state[slot].defined());
      if (sgd) {
        // d = Qg(g)·s + λp, m = 0.9·m + d: Qg(g) is what the quantizer makes of g.
        QuantiseUse use;
        use.quantizer = o.grad;
        use.axis = 1;
        StepState then = run.state();
        --then.random_step;
        Run at;
        at.set_state(then);
        use.key = {1, RandomSite("w").stream("grad"), 0, at.device_state()};
        if (o.grad.scale.kind == Scale::Kind::Delayed) continue;  // its history went on
        const std::vector<float> q = quantised(stream_of(kCpu), gradient(4), use).to_floats();
        const std::vector<float> m = moments_before.at("moment1").to_floats();
        const std::vector<float> kept = moments_before.at("master").to_floats();
        const std::vector<double> now = counted.read(state, optim::Slot::Moment1).to_doubles();
        double error = 0, square = 0, most = 0;
        int64_t underflow = 0;
        for (size_t i = 0; i < q.size(); ++i) {
          const double d = static_cast<double>(q[i]) * 0.25 + 0.01 * static_cast<double>(kept[i]);
          const double exact = 0.9 * static_cast<double>(m[i]) + d;
          error += (now[i] - exact) * (now[i] - exact);
          square += exact * exact;
          most = std::max(most, std::abs(exact));
          underflow += exact != 0 && now[i] == 0;
        }
        const QuantiseStats moment = near_kept(optim::Slot::Moment1);
        CHECK(static_cast<double>(moment.amax()) == doctest::Approx(most).epsilon(1e-6));
        CHECK(moment.square_error == doctest::Approx(error).epsilon(1e-3));
        CHECK(moment.square == doctest::Approx(square).epsilon(1e-5));
        CHECK(moment.underflow == underflow);
        // The weight is Q of the rounded master.
        const std::vector<double> master = counted.read(state, optim::Slot::Master).to_doubles(),
                                  weight = p.value.to_doubles();
        double noise = 0;
        for (size_t i = 0; i < weight.size(); ++i)
          noise += (weight[i] - master[i]) * (weight[i] - master[i]);
        CHECK(total("weight").stats.square_error == doctest::Approx(noise).epsilon(1e-4));
        CHECK(near_kept(optim::Slot::Master).square_error > 0);
      } else if (*s.compensation != 0) {
        CHECK(near_kept(optim::Slot::Compensation).square > 0);
        CHECK(near_kept(optim::Slot::Moment1).square > 0);
      } else {
        // At most half a spacing, or one: the noise of formats of 1 to 10 significand bits.
        for (const optim::Slot slot : {optim::Slot::Moment1, optim::Slot::Moment2}) {
          const QuantiseStats moment = near_kept(slot);
          CHECK(moment.square_error > 0);
          CHECK(moment.square > moment.square_error);
        }
      }
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
        "--backward e5m2:sr --output bf16 --interior bf16 --weights e4m3 --accumulator bf16:sr "
        "--grads e5m2 --momentum-coef 0.9 --moment1 e4m3:sr --out ";
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
      CHECK(line.contains("shares") ==
            (line.at("role") == "weight_dx" || line.at("role") == "input_dw" ||
             line.at("role") == "grad_output_dw"));
      // The digits and the stored weights are numbers of e4m3: nothing is lost there.
      const bool exact = line.at("format") == "fp32" || line.at("role") == "weight" ||
                         line.at("role") == "weight_dx" ||
                         (line.at("layer") == "fc1" &&
                          (line.at("role") == "input" || line.at("role") == "input_dw"));
      CHECK(line.at("sqnr_db").is_null() == exact);
      if (!exact) CHECK(line.at("sqnr_db").get<double>() > 10);
    }
    CHECK(lines.size() == 2 * seen.size());
    for (const char* role : {"fc1/input",
                             "fc1/weight",
                             "fc1/output",
                             "fc1/grad_output_dx",
                             "fc2/input",
                             "fc2/weight",
                             "fc2/output",
                             "fc2/grad_output_dx",
                             "relu1/input",
                             "relu1/grad_input",
                             "fc1/input_dw",
                             "fc2/weight_dx",
                             "fc2/grad_output_dw",
                             "fc1/grad_weight",
                             "loss/grad_input",
                             "fc1.weight/grads",
                             "fc1.weight/weights",
                             "fc2.bias/grads",
                             "fc2.bias/weights",
                             "fc1.weight/accumulator",
                             "fc2.bias/accumulator",
                             "fc1.weight/moment1"})
      CHECK_MESSAGE(seen[role] == 2, role);
    CHECK(seen["loss/interior"] == 2);
    for (const auto& [name, times] : seen) CHECK_MESSAGE(name[0] != '?', name);
    CHECK(lines[0].at("layer") == "fc1");
    CHECK(lines[0].at("role") == "input");
    CHECK(lines[0].at("format") == "e4m3");
    CHECK(lines[0].at("count") == 2 * 64 * 64);
    for (const auto& line : lines)
      if (line.at("role") == "interior") {  // differences, exps, sums, logarithms of two batches
        CHECK(line.at("format") == "bf16");
        CHECK(line.at("count") == 2 * 64 * (10 + 10 + 1 + 1));
      }
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

  TEST_CASE("gradients that are normalised are counted as the quantizer gets them") {
    const Folder folder;
    for (const char* grads : {"fp32", "fixed8.7-sym"}) {
      const std::string out = folder / grads;
      REQUIRE(ulp_command("train --recipe wage --hidden 12 --epochs 1 --stats --grads " +
                          std::string(grads) + " --out " + out)
                  .status == 0);
      std::istringstream text(slurp(out + "/metrics.jsonl"));
      int seen = 0;
      for (std::string line; std::getline(text, line);) {
        const auto json = nlohmann::json::parse(line);
        if (json.value("role", "") != "grads") continue;
        ++seen;  // within 2^-½ and 2^½, whatever the sum over a batch was
        CHECK(json.at("amax").get<double>() > 0.7071);
        CHECK(json.at("amax").get<double>() < 1.4143);
      }
      CHECK(seen == 4);
    }
  }
}

#endif
