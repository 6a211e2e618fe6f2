#pragma once

// A small training that can be left and entered again, for the tests of checkpoints on the CPU and on a GPU.

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "autograd/step_graph.h"
#include "nn/data/checkpoint.h"
#include "nn/data/dataset.h"
#include "nn/models.h"
#include "nn/train_batch.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "tests/op_table.h"
#include "tests/with_checksum.h"

namespace ulp::tests {

/// A folder of its own, gone at the end.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "ulp-checkpoint-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct CheckpointCase {
  const char *forward, *backward, *results, *weights, *accumulator, *moment1;
  optim::Algorithm algorithm = optim::Algorithm::Sgd;
  const char* moment2 = "fp32";
  optim::Update update = optim::Update::Plain;
};

inline std::vector<CheckpointCase> checkpoint_cases() {
  return {
      {"fp32", "fp32", "fp32", "fp32", nullptr, "fp32"},
      {"e4m3:sr", "e5m2:sr", "fp32", "e4m3", "e6m9:sr", "bf16:sr"},
      {"bfp8-axis0:sr", "bfp8-axis0:sr", "bfp8-axis0:sr", "bfp8-axis0:sr", nullptr,
       "bfp8-axis0:sr"},
      {"e4m3+scale=delayed4", "e5m2+scale=delayed3:sr", "fp32", "e4m3+scale=delayed5", "fp32",
       "fp32"},
      {"e4m3", "e5m2:sr", "fp32", "bf16:sr", nullptr, "e4m3-g256-scalef32", optim::Algorithm::Adam,
       "e5m2-g256-scalef32:sr"},
      {"bf16", "bf16", "fp32", "bf16", nullptr, "mxfp8:sr", optim::Algorithm::AdamW, "bf16:sr",
       optim::Update::Kahan},
      {"bf16", "bf16", "fp32", "e4m3", "fp32", "mxfp4:sr", optim::Algorithm::Lion},
  };
}

/// Quantised training on the digits in batches of 117 (12 steps an epoch), with a schedule, skipped steps, and a test after
/// every epoch that draws random words too.
class SmallRun {
 public:
  static constexpr int64_t kTotal = 36;

  SmallRun(Device device, const CheckpointCase& c, Math math = Math::Strict,
           StepGraph::Use use = StepGraph::Use::Auto)
      : data_(nn::load_dataset("digits")),
        run_(device, 3, math),
        net_(nn::mlp(64, std::vector<int64_t>{12}, 10, formats(c))),
        batches_(run_, data_, data_.train, 117),
        test_(run_, data_, data_.test, 100),
        tally_(run_),
        graph_(run_, use) {
    net_->initialise(run_);
    optim::OptimizerOptions o = optim::OptimizerOptions::of(c.algorithm);
    if (c.algorithm == optim::Algorithm::Sgd) {
      o.lr = 0.05;
      o.momentum = 0.9;
      o.nesterov = true;
    }
    lr_ = o.lr;
    o.update = c.update;
    o.moment2 = c.moment2;
    o.weight = c.weights;
    if (c.accumulator != nullptr) o.accumulator = Quantizer(c.accumulator);
    o.moment1 = c.moment1;
    optimizer_ = std::make_unique<optim::Optimizer>(run_, net_->parameters(), o);
  }

  void train_to(int64_t end) {
    for (; at_ < end; ++at_) {
      if (at_ % batches_.steps() == 0) begin(at_);
      if (at_ % 5 == 3) {  // a skipped step
        StepState skipped = run_.state();
        skipped.found_inf = 1;
        run_.set_state(skipped);
      }
      graph_.run([this] { step(); });
      if ((at_ + 1) % batches_.steps() == 0) {
        nn::evaluate(run_, *net_, test_);
        tally_.reset();
      }
    }
  }

  nn::Checkpoint checkpoint() const {
    nn::Checkpoint c = nn::checkpoint_of(run_, net_->parameters());
    c.add(optimizer_->tensors(), optimizer_->formats());
    c.add(tally_.tensors(), {});
    c.notes["at"] = std::to_string(at_);
    return c;
  }

  void resume(const nn::Checkpoint& saved, const std::string& name) {
    const int64_t at = std::stoll(saved.notes.at("at"));
    nn::restore(saved, name, run_, checkpoint());
    if (at % batches_.steps() != 0) begin(at, run_.state().batch_offset);
    at_ = at;
  }

  bool recorded() const { return graph_.nodes() > 0; }

 private:
  static OpFormats formats(const CheckpointCase& c) {
    OpFormats f = OpFormats::make(c.forward, c.backward);
    f.output = f.grad_input = f.grad_weight = c.results;
    return f;
  }

  /// The order of the epoch that step `at` lies in, and the rates from there on.
  void begin(int64_t at, int64_t batch_offset = 0) {
    batches_.shuffle(at / batches_.steps(), batch_offset);
    const optim::Schedule schedule(optim::Schedule::parse("cosine"), lr_, kTotal);
    optimizer_->set_rates(schedule.rates(at, batches_.steps() - at % batches_.steps()));
  }

  void step() {
    nn::train_batch(run_, *net_, batches_.next(), tally_);
    optimizer_->step();
  }

  nn::Dataset data_;
  Run run_;
  std::unique_ptr<nn::Sequential> net_;
  nn::Batches batches_, test_;
  nn::Tally tally_;
  StepGraph graph_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  double lr_ = 0;
  int64_t at_ = 0;
};

/// All that a checkpoint holds is equal, the running score included.
inline void check_same_runs(const SmallRun& a, const SmallRun& b) {
  const nn::Checkpoint x = a.checkpoint(), y = b.checkpoint();
  CHECK(std::memcmp(&x.state, &y.state, sizeof x.state) == 0);
  CHECK(x.notes == y.notes);
  REQUIRE(x.tensors.size() == y.tensors.size());
  for (const auto& named : x.tensors) {
    const std::string& name = named.first;
    CAPTURE(name);
    const Tensor p = named.second.to_cpu_contiguous(), q = y.tensors.at(name).to_cpu_contiguous();
    REQUIRE(p.bytes() == q.bytes());
    CHECK(std::memcmp(p.raw(), q.raw(), static_cast<size_t>(p.bytes())) == 0);
  }
  REQUIRE(x.scalings.size() == y.scalings.size());
  for (const auto& [stream, state] : x.scalings)
    CHECK(state.to_floats() == y.scalings.at(stream).to_floats());
}

}  // namespace ulp::tests
