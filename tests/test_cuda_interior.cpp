// The role `interior` in statistics: a GPU counts what the CPU counts, to the bit, whatever kernel makes the intermediates and
// however often, and no result changes.

#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <map>

#include "autograd/activations.h"
#include "autograd/attention.h"
#include "autograd/losses.h"
#include "autograd/norm.h"
#include "autograd/recurrent.h"
#include "autograd/role_stats.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

const RandomSite kHere("here");

struct Case {
  std::string name;
  Shape x;
  std::function<Var(Tape&, const Var& x, const OpFormats&)> op;
};

Tensor labels_of(int64_t n, int64_t classes, Device device) {
  std::vector<int32_t> labels;
  for (int64_t i = 0; i < n; ++i) labels.push_back(static_cast<int32_t>(i * 7 % classes));
  return Tensor::from(labels, {n}).to(device);
}

/// Shapes for every kernel: rows that a warp holds, in quads or not, longer ones, several chunks; channels that end within a quad.
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Shape& shape :
       {Shape{7, 5}, Shape{9, 32}, Shape{9, 64}, Shape{5, 128}, Shape{5, 130}, Shape{3, 512},
        Shape{3, 640}, Shape{3, 1023}, Shape{2, 1028}, Shape{2, 9001}}) {
    const std::string of = " of " + to_string(shape);
    const int64_t n = shape[0], c = shape[1];
    all.push_back({"layer_norm" + of, shape, [](Tape& t, const Var& x, const OpFormats& f) {
                     return ops::layer_norm(t, x, {}, {}, 1e-5, f, kHere);
                   }});
    all.push_back({"rms_norm" + of, shape, [](Tape& t, const Var& x, const OpFormats& f) {
                     return ops::rms_norm(t, x, {}, 1e-5, f, kHere);
                   }});
    all.push_back({"softmax" + of, shape, [](Tape& t, const Var& x, const OpFormats& f) {
                     return ops::softmax(t, x, f, kHere);
                   }});
    all.push_back({"log_softmax" + of, shape, [](Tape& t, const Var& x, const OpFormats& f) {
                     return ops::log_softmax(t, x, f, kHere);
                   }});
    all.push_back({"cross_entropy" + of, shape, [n, c](Tape& t, const Var& x, const OpFormats& f) {
                     return ops::cross_entropy(t, x, labels_of(n, c, x.value.device()), f, kHere);
                   }});
  }
  for (const Shape& shape : {Shape{6, 3}, Shape{300, 20}, Shape{4100, 5}, Shape{9000, 33}}) {
    const std::string of = " of " + to_string(shape);
    for (const bool training : {true, false})
      all.push_back(
          {"batch_norm" + of, shape, [training](Tape& t, const Var& x, const OpFormats& f) {
             const int64_t c = x.shape()[1];
             const Device d = x.value.device();
             return ops::batch_norm(
                 t, x, {}, {},
                 {random_tensor({c}, -1, 1, 3).to(d), random_tensor({c}, 0.1, 9, 4).to(d)},
                 {.training = training}, f, kHere);
           }});
  }
  for (const Shape& shape : {Shape{2, 5, 4}, Shape{3, 7, 7, 24}, Shape{2, 40, 60, 4}})
    all.push_back(
        {"group_norm of " + to_string(shape), shape, [](Tape& t, const Var& x, const OpFormats& f) {
           return ops::group_norm(t, x, 2, {}, {}, 1e-5, f, kHere);
         }});
  for (const int64_t keys : {3, 32, 64, 100, 256, 700, 1040})
    for (const bool masked : {true, false})
      all.push_back(
          {"attention over " + std::to_string(keys),
           {3, keys, 8},
           [masked](Tape& t, const Var& x, const OpFormats& f) {
             const auto n = static_cast<int32_t>(x.shape()[1]);
             ops::AttentionOptions o;
             o.heads = 2;
             o.causal = masked;
             if (masked)
               o.lengths =
                   Tensor::from(std::vector<int32_t>{n, 0, n / 2}, {3}).to(x.value.device());
             ops::AttentionFormats formats;
             formats.softmax = f;
             ops::AttentionSites sites;
             sites.softmax = kHere;
             return ops::attention(t, x, x, x, o, formats, sites);
           }});
  for (const int64_t gates : {4, 3})
    for (const char* cell : {"fp32", "bf16:sr", "e4m3+scale=current"})
      all.push_back(
          {gates == 4 ? "lstm" : "gru", {5, 6, 7}, [=](Tape& t, const Var& x, const OpFormats& f) {
             const Device d = x.value.device();
             const ops::RecurrentWeights w{t.leaf(random_tensor({gates * 37, 7}, -1, 1, 5).to(d)),
                                           t.leaf(random_tensor({gates * 37, 37}, -1, 1, 6).to(d))};
             ops::RecurrentFormats formats;
             formats.gates = f;
             formats.cell_state.output = cell;
             formats.hidden_state.output = cell;
             ops::RecurrentSites sites("rnn");
             sites.gates = kHere;
             return gates == 4 ? ops::lstm(t, x, w, {}, formats, sites).y
                               : ops::gru(t, x, w, {}, formats, sites).y;
           }});
  return all;
}

struct Made {
  Tensor y, dx;
  std::map<uint32_t, RoleStats::Total> totals;
};

Made make(const Case& c, const char* format, Device device, bool counted) {
  Run run(device, 11);
  RoleStats stats(device);
  OpFormats f;
  f.interior = Quantizer::parse(format);
  // Large, small and bad numbers among ordinary ones.
  Tensor x = random_tensor(c.x, -4, 4, 21);
  float* const values = x.mutable_data<float>();
  for (int64_t i = 0; i < x.numel(); i += 17) values[i] *= i % 2 == 0 ? 40.0f : 1e-4f;
  values[x.numel() - 1] = NAN;
  values[x.numel() / 2] = INFINITY;
  if (counted) run.set_role_stats(&stats);
  Tape tape(run);
  const Var in = tape.leaf(x.to(device));
  const Var y = c.op(tape, in, f);
  tape.backward(ops::sum(tape, y));
  run.set_role_stats(nullptr);
  return {y.value.to(kCpu), tape.grad(in).to(kCpu), stats.totals()};
}

}  // namespace

TEST_SUITE("cuda_interior") {
  TEST_CASE("what interiors meet is counted alike on both devices, and leaves all results") {
    const Device cuda = cuda_device();
    for (const Case& c : cases())
      for (const char* format :
           {"e4m3", "e5m2-sat:sr", "bf16:sr", "fixed8.4", "posit8.1", "fp32"}) {
        CAPTURE(c.name);
        CAPTURE(std::string(format));
        const Made cpu = make(c, format, kCpu, true), gpu = make(c, format, cuda, true),
                   plain = make(c, format, cuda, false);
        CHECK(same_bits(cpu.y, gpu.y));
        CHECK(same_bits(cpu.dx, gpu.dx));
        CHECK(same_bits(plain.y, gpu.y));
        CHECK(same_bits(plain.dx, gpu.dx));
        const uint32_t role = kHere.stream("interior");
        REQUIRE(cpu.totals.contains(role) == (std::string(format) != "fp32"));
        REQUIRE(gpu.totals.contains(role) == cpu.totals.contains(role));
        if (!cpu.totals.contains(role)) continue;
        const QuantiseStats a = cpu.totals.at(role).stats, b = gpu.totals.at(role).stats;
        CHECK(a.count > 0);
        CHECK(a.count == b.count);
        CHECK(a.overflow == b.overflow);
        CHECK(a.underflow == b.underflow);
        CHECK(a.nan == b.nan);
        CHECK(a.infinite == b.infinite);
        CHECK(a.finite == b.finite);
        CHECK(a.amax_bits == b.amax_bits);
        CHECK(a.error == b.error);
        CHECK(a.square_error == b.square_error);
        CHECK(a.square == b.square);
      }
  }
}
