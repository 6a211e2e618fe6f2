#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "core/convert.h"
#include "core/hadamard.h"
#include "core/scalar_math.h"
#include "core/sum.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/strict_sum.h"
#include "kernels/functors.h"
#include "tests/kernel_rows.h"
#include "tests/op_table.h"

namespace ulp::tests {
namespace {

const Stream kStream{};

/// One number of the strict order, written out as core/sum.h says it, in plain loops.
float sum_by_the_book(std::vector<float> v) {
  if (v.empty()) return 0;
  while (true) {
    std::vector<float> chunks;
    for (size_t begin = 0; begin < v.size(); begin += 4096) {
      float lane[64] = {};
      for (size_t i = begin; i < std::min(v.size(), begin + 4096); ++i)
        lane[(i - begin) % 64] += v[i];
      for (size_t width = 32; width > 0; width /= 2)
        for (size_t l = 0; l < width; ++l) lane[l] += lane[l + width];
      chunks.push_back(lane[0]);
    }
    if (chunks.size() == 1) return chunks.front();
    v = chunks;
  }
}

Tensor quantise(const Tensor& x, const char* format, int axis, const RandomKey& key,
                DType dtype = DType::F32, Tensor mask = {}) {
  Tensor out = Tensor::empty(x.shape(), dtype, kCpu);
  kernels::quantise(kStream, {x, out, Quantizer::parse(format), axis, key, mask});
  return out;
}

/// The block that element i of a tensor belongs to, straight from the definition.
int64_t block_of(const Quantizer& q, const Shape& shape, int group_axis, int64_t i) {
  std::vector<int64_t> at(static_cast<size_t>(shape.rank()));
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    at[static_cast<size_t>(axis)] = i % shape[axis];
    i /= shape[axis];
  }
  if (q.block.kind == Block::Kind::Tensor || q.block.kind == Block::Kind::None) return 0;
  if (q.block.kind == Block::Kind::Axis) return at[static_cast<size_t>(q.block.axis)];
  if (q.block.kind == Block::Kind::Tile) {
    const size_t last = at.size() - 1;
    at[last] /= q.block.columns;
    at[last - 1] /= q.block.rows;
    group_axis = -1;
  }
  int64_t block = 0;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const int64_t index = at[static_cast<size_t>(axis)];
    block = block * (shape[axis] + 1) + (axis == group_axis ? index / q.block.columns : index);
  }
  return block;
}

/// What quantise must give element by element when it writes `dtype`: the block's grid from the block's own maximum.
struct Expected {
  std::vector<uint32_t> bits;
  std::vector<uint8_t> clamped;
};
Expected expected_of(const Tensor& x, const Quantizer& q, int group_axis, const RandomKey& key,
                     DType dtype) {
  const std::vector<float> v = x.to_floats();
  std::map<int64_t, uint32_t> amax;
  for (int64_t i = 0; i < x.numel(); ++i) {
    uint32_t& a = amax[block_of(q, x.shape(), group_axis, i)];
    a = std::max(a, bits_of(v[static_cast<size_t>(i)]) & ~kSignBit);
  }
  Expected e;
  const RandomSource random(key);
  for (int64_t i = 0; i < x.numel(); ++i) {
    const float value = v[static_cast<size_t>(i)];
    bool beyond = false;
    uint32_t bits = bits_of(canonical(value));
    if (!q.is_identity()) {
      Grid grid = make_grid(q);
      const uint32_t a = q.is_elementwise() ? 0 : amax[block_of(q, x.shape(), group_axis, i)];
      if (!q.is_elementwise()) set_block(grid, make_block_rule(q, dtype), std::min(a, 0x7F7FFFFFu));
      bits = bits_of(
          quantise_value(value, grid, q.rounding, random.word(static_cast<uint64_t>(i)), &beyond));
      if (a >= kInfinityBits) bits = kNanBits;
      beyond = beyond && a < kInfinityBits;
    }
    e.bits.push_back(bits);
    e.clamped.push_back(beyond ? 1 : 0);
  }
  return e;
}

void check_quantise() {
  StepState state;
  state.random_step = 9;
  const RandomKey key{0x123456789ABCDEFull, 77, 3, &state};
  const char* formats[] = {"fp32",
                           "e4m3",
                           "e5m2:sr",
                           "e6m9:ru",
                           "bf16:odd",
                           "fixed8.4:rnu",
                           "fixed12.3-wrap:sr4",
                           "binary8p3-sat:rtz",
                           "posit8.1:sr",
                           "posit16.2",
                           "nf4:sr4f",
                           "pow2x5:rnu",
                           "bfp8",
                           "bfp8:sr",
                           "bfp8-axis0:sr",
                           "bfp8-axis1:rna",
                           "bfp5-axis2",
                           "bfp8-g4:sr",
                           "bfp4-g3:rtz",
                           "bfp16-g100:sr",
                           "bfp8-g5:sr4c",
                           "bfp8-t2x3:sr",
                           "hbfp8:sr",
                           "hbfp4-g8",
                           "hbfp12-t16x16",
                           "mxfp8",
                           "mxfp8:sr",
                           "mxfp8-e5m2-rceil",
                           "mxfp6-ceil:sr",
                           "mxfp6-e3m2-even",
                           "mxfp4:sr4",
                           "mxint8",
                           "e4m3-g16-rceil",
                           "e2m1-t4x4:sr",
                           "e4m3-axis1",
                           "fixed8.6-u-g7:rd",
                           "e3m4-ftz-g8:odd"};
  const Shape shapes[] = {{3, 5, 7}, {1, 1, 1}, {2, 40, 33}, {0, 3, 2}, {5, 1, 1030}};
  for (const char* format : formats)
    for (const Shape& shape : shapes)
      for (const int group_axis : {0, 1, 2})
        for (const bool hard : {false, true}) {
          CAPTURE(std::string(format));
          CAPTURE(to_string(shape));
          CAPTURE(group_axis);
          const Quantizer q = Quantizer::parse(format);
          const Tensor x = hard ? hard_tensor(shape, 4) : random_tensor(shape, -6, 6, 4);
          for (const DType dtype : {DType::F32, storage_type(q), gemm_type(q)})
            CHECK(bits_of_tensor(quantise(x, format, group_axis, key, dtype)) ==
                  expected_of(x, q, group_axis, key, dtype).bits);
          const Expected e = expected_of(x, q, group_axis, key, DType::F32);
          Tensor mask = Tensor::empty(shape, DType::U8, kCpu);
          CHECK(bits_of_tensor(quantise(x, format, group_axis, key, DType::F32, mask)) == e.bits);
          const uint8_t* m = mask.data<uint8_t>();
          CHECK(std::vector<uint8_t>(m, m + mask.numel()) == e.clamped);
        }
}

void check_tally() {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  const Tensor logits =
      Tensor::from(std::vector<float>{1, 3, 2, 5, 5, 0, nan, 9, 1, 0, 0, 7}, {4, 3});
  const Tensor labels = Tensor::from(std::vector<int32_t>{1, 0, 1, 0}, {4});
  Tensor totals = Tensor::empty({sizeof(ScoreTotals)}, DType::U8, kCpu);
  auto& sum = *static_cast<ScoreTotals*>(totals.mutable_raw());
  sum = {};
  for (const float loss : {0.1f, inf, nan, 0.25f})
    kernels::tally(kStream, {Tensor::from(std::vector<float>{loss}, {}), logits, labels, totals});
  CHECK(sum.samples == 16);
  CHECK(sum.correct == 8);  // the first of equals; a NaN is never right
  CHECK(sum.batches == 4);
  CHECK(sum.bad_batch == 1);
  CHECK(sum.bad_loss == inf);
  CHECK(sum.last_loss == 0.25f);
  sum = {};
  for (const float loss : {0.1f, 0.7f})
    kernels::tally(kStream, {Tensor::from(std::vector<float>{loss}, {}), logits, labels, totals});
  CHECK(sum.loss == 4.0 * static_cast<double>(0.1f) + 4.0 * static_cast<double>(0.7f));
  CHECK(sum.bad_batch == -1);
}

void check_advance_step() {
  StepState state{7, 5, 2, 0, 12};
  Tensor updates = Tensor::from(std::vector<int32_t>{3}, {1});
  kernels::advance_step(kStream, {&state, updates});
  CHECK((state.random_step == 8 && state.optimizer_step == 6 && state.batch_offset == 12));
  state.found_inf = 1;
  kernels::advance_step(kStream, {&state, updates});
  CHECK((state.random_step == 9 && state.optimizer_step == 6 && state.found_inf == 0));
  CHECK(state.skipped_steps == 1);
  CHECK(updates.data<int32_t>()[0] == 5);
  Tensor steps = Tensor::from(std::vector<int32_t>{3}, {1});
  for (const uint32_t found_inf : {0u, 1u, 0u}) {  // a skipped step does not count
    state.found_inf = found_inf;
    kernels::advance_step(kStream, {&state, updates, steps});
  }
  CHECK(updates.data<int32_t>()[0] == 8);
  CHECK(steps.data<int32_t>()[0] == 5);
}

void check_check_gradients() {
  // Two tensors, the second of more than one chunk, against the order of core/sum.h written out in fp64.
  const Tensor a = random_tensor({3, 5}, -1, 1, 1), b = random_tensor({9001}, -1e3, 1e3, 2);
  const auto sum_of = [](const std::vector<double>& v) {  // at most one chunk of chunks
    std::vector<double> chunks;
    for (size_t begin = 0; begin < v.size(); begin += 4096) {
      double lane[64] = {};
      for (size_t i = begin; i < std::min(v.size(), begin + 4096); ++i)
        lane[(i - begin) % 64] += v[i];
      for (size_t width = 32; width > 0; width /= 2)
        for (size_t l = 0; l < width; ++l) lane[l] += lane[l + width];
      chunks.push_back(lane[0]);
    }
    double lane[64] = {};
    for (size_t i = 0; i < chunks.size(); ++i) lane[i] += chunks[i];
    for (size_t width = 32; width > 0; width /= 2)
      for (size_t l = 0; l < width; ++l) lane[l] += lane[l + width];
    return lane[0];
  };
  const auto squares_of = [&](const Tensor& t) {
    std::vector<double> squares;
    for (const double x : t.to_doubles()) squares.push_back(x * x);
    return sum_of(squares);
  };
  const double norm = std::sqrt(sum_of({squares_of(a), squares_of(b)}));
  StepState state;
  CheckGradientsArgs args{{a, b}, {}, &state};
  kernels::check_gradients(kStream, args);
  CHECK(state.grad_norm == static_cast<float>(norm));
  CHECK((state.grad_factor == 1 && state.found_inf == 0 && state.good_steps == 0));
  state.loss_scale = 8;
  args.policy.undo_loss_scale = true;
  args.policy.grad_scaling = 0.25f;
  args.policy.clip_norm = 1;
  kernels::check_gradients(kStream, args);
  CHECK(state.grad_norm == static_cast<float>(norm / 32));
  CHECK(state.grad_factor == static_cast<float>(0.125 * (1 / (norm / 32))));
  args.policy.clip_norm = 1e6f;
  kernels::check_gradients(kStream, args);
  CHECK(state.grad_factor == 0.125f);
  // Squares that fp32 has not.
  args.gradients = {Tensor::from(std::vector<float>{3e38f, 0}, {2}),
                    Tensor::from(std::vector<float>{1e-38f, 3e-30f}, {2})};
  args.policy = {};
  kernels::check_gradients(kStream, args);
  CHECK((state.grad_norm == 3e38f && state.found_inf == 0));
  args.gradients = {Tensor::from(std::vector<float>{3e-30f, 4e-30f}, {2})};
  kernels::check_gradients(kStream, args);
  CHECK(state.grad_norm == static_cast<float>(std::hypot(double{3e-30f}, double{4e-30f})));
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> values(9000, 1.0f);
    values[8191] = bad;
    args.gradients = {a, Tensor::from(values, {9000})};
    state = {};
    state.grad_norm = 5;
    kernels::check_gradients(kStream, args);
    CHECK((state.found_inf == 1 && state.grad_norm == 5 && state.grad_factor == 1));
  }
  args.gradients = {};
  state = {};
  kernels::check_gradients(kStream, args);
  CHECK((state.grad_norm == 0 && state.found_inf == 0));
  args.gradients = {Tensor::zeros({2}, DType::I32, kCpu)};
  CHECK_THROWS_WITH_AS(kernels::check_gradients(kStream, args), doctest::Contains("floats"), Error);
}

void check_settle_scalings() {
  const auto of = [](float a, float b) { return Tensor::from(std::vector<float>{a, b}, {2}); };
  const Tensor now = of(1, 2), kept = of(3, 4);
  StepState state;
  state.found_inf = 1;
  kernels::settle_scalings(kStream, {{{now, kept}}, &state});
  CHECK(now.to_floats() == std::vector<float>{3, 4});
  CHECK(kept.to_floats() == std::vector<float>{3, 4});
  const Tensor next = of(5, 6);
  state.found_inf = 0;
  kernels::settle_scalings(kStream, {{{next, kept}}, &state});
  CHECK(next.to_floats() == std::vector<float>{5, 6});
  CHECK(kept.to_floats() == std::vector<float>{5, 6});
}

void check_begin_average() {
  // Weights of steps 3, 5, 7 … but of none that is skipped: then of the next.
  StepState step;
  AverageState average;
  const AverageRule rule{true, 0.25f, 3, 2};
  std::vector<uint32_t> taken;
  for (uint32_t i = 1; i <= 9; ++i) {
    if (i != 5) ++step.optimizer_step;
    kernels::begin_average(kStream, {&average, &step, rule});
    if (average.gate.found_inf == 0) {
      taken.push_back(i);
      CHECK(average.factor == (taken.size() == 1 ? 1.0f : 0.25f));
    }
    CHECK(average.steps == i);
    CHECK(average.count == taken.size());
  }
  CHECK(taken == std::vector<uint32_t>{3, 6, 7, 9});
  average = {};
  step.optimizer_step = 0;
  for (uint32_t i = 1; i <= 4; ++i) {
    ++step.optimizer_step;
    kernels::begin_average(kStream, {&average, &step, {}});
    CHECK(average.factor == 1.0f / static_cast<float>(i));
  }
}

void check_average() {
  const int64_t n = 2051;
  StepState step;
  step.random_step = 6;
  AverageState state;
  state.factor = 0.3f;
  for (const char* format : {"fp32", "e5m2:sr", "bf16"}) {
    const Quantizer q = Quantizer::parse(format);
    const Tensor weight = random_tensor({n}, -2, 2, 1);
    const Tensor average = quantise(random_tensor({n}, -2, 2, 2), format, 0, {}, storage_type(q));
    const auto before = average.to_floats(), w = weight.to_floats();
    const RandomKey key{1, 10, 0, &step}, other{1, 11, 0, &step};
    const Tensor second = Tensor::zeros({3}, storage_type(q), kCpu);
    const AverageArgs args{
        {{Tensor::zeros({3}, DType::F32, kCpu), second, other}, {weight, average, key}}, q, &state};
    state.gate.found_inf = 1;
    kernels::average(kStream, args);
    CHECK(average.to_floats() == before);
    state.gate.found_inf = 0;
    kernels::average(kStream, args);
    const auto after = average.to_floats();
    bool right = true;
    for (size_t i = 0; i < w.size(); ++i) {
      const float exact = std::fma(w[i] - before[i], 0.3f, before[i]);
      const float wanted =
          q.is_identity() ? exact : quantise_value(exact, make_grid(q), RandomSource(key).word(i));
      right = right && after[i] == wanted;
      if (!right) break;
    }
    CHECK(right);
  }
}

void check_copy() {
  for (const DType dtype : {DType::F32, DType::F64, DType::I32, DType::U8, DType::BF16}) {
    Tensor t = Tensor::zeros({3, 4, 5}, dtype, kCpu);
    auto* bytes = static_cast<uint8_t*>(t.mutable_raw());
    for (int64_t i = 0; i < t.bytes(); ++i) bytes[i] = static_cast<uint8_t>(i * 37 % 100);
    const Tensor view = t.transpose(0, 2).slice(1, 1, 3);
    Tensor out = Tensor::empty(view.shape(), dtype, kCpu);
    kernels::copy(kStream, {view, out});
    CHECK(out.to_doubles() == view.to_doubles());
  }
  const Tensor narrow = quantise(random_tensor({3, 4}, -2, 2, 6), "e4m3", 0, {}, DType::F8E4M3);
  Tensor wide = Tensor::empty({4, 3}, DType::F32, kCpu);
  kernels::copy(kStream, {narrow.transpose(0, 1), wide});
  CHECK(wide.to_floats() == narrow.transpose(0, 1).to_floats());
  Tensor back = Tensor::empty({4, 3}, DType::BF16, kCpu);
  CHECK_THROWS_WITH_AS(kernels::copy(kStream, {wide, back}), doctest::Contains("quantise it"),
                       Error);
}

void check_fill() {
  Tensor f = Tensor::empty({3, 3}, DType::F32, kCpu), d = Tensor::empty({2}, DType::F64, kCpu);
  kernels::fill(kStream, {f, 0.1});
  kernels::fill(kStream, {d, 0.1});
  CHECK(f.to_floats() == std::vector<float>(9, 0.1f));
  CHECK(d.to_doubles() == std::vector<double>(2, 0.1));
  StepState state;
  state.loss_scale = 3;
  state.grad_factor = 0.3f;
  kernels::fill(kStream, {f, 0.1, &state});
  CHECK(f.to_floats() == std::vector<float>(9, 0.1f * 3.0f));
  kernels::fill(kStream, {f, 0.1, nullptr, &state});
  CHECK(f.to_floats() == std::vector<float>(9, 0.1f * 0.3f));
}

void check_uniform() {
  Tensor t = Tensor::empty({1001}, DType::F32, kCpu);
  const RandomKey key{5, 6, 1, nullptr};
  kernels::uniform(kStream, {t, -0.5f, 0.25f, key});
  double mean = 0;
  for (int64_t i = 0; i < 1001; ++i) {
    const float v = t.to_floats()[static_cast<size_t>(i)];
    CHECK(v == fma_of(0.75f, uniform01(RandomSource(key).word(static_cast<uint64_t>(i))), -0.5f));
    CHECK((v >= -0.5f && v < 0.25f));
    mean += static_cast<double>(v) / 1001;
  }
  CHECK(std::abs(mean + 0.125) < 4 * 0.75 / std::sqrt(12.0 * 1001));  // four standard deviations
}

void check_gather_rows() {
  const Tensor rows = Tensor::from(std::vector<uint8_t>{1, 2, 3, 4, 5, 255}, {3, 2});
  const Tensor indices = Tensor::from(std::vector<int32_t>{2, 0, 2}, {3});
  const Tensor labels = Tensor::from(std::vector<int32_t>{7, 8, 9}, {3});
  Tensor out = Tensor::empty({3, 2}, DType::F32, kCpu);
  kernels::gather_rows(kStream, {rows, indices, out, 0.5f});
  CHECK(out.to_floats() == std::vector<float>{2.5f, 127.5f, 0.5f, 1, 2.5f, 127.5f});
  const Tensor floats = Tensor::from(std::vector<float>{1.5f, 2, 3, -4, 5, 6}, {3, 2});
  kernels::gather_rows(kStream, {floats, indices, out, 2});
  CHECK(out.to_floats() == std::vector<float>{10, 12, 3, 4, 10, 12});
  // One row at the state's offset, with its label; then the next.
  StepState state;
  state.batch_offset = 1;
  Tensor one = Tensor::empty({1, 2}, DType::F32, kCpu);
  Tensor label = Tensor::empty({1}, DType::I32, kCpu);
  kernels::gather_rows(kStream, {floats, indices, one, 1, labels, label, 0, &state});
  CHECK(one.to_floats() == std::vector<float>{1.5f, 2});
  CHECK(label.data<int32_t>()[0] == 7);
  CHECK(state.batch_offset == 2);
  kernels::gather_rows(kStream, {floats, indices, one, 1, labels, label, 0, &state});
  CHECK(label.data<int32_t>()[0] == 9);
  // Without indices: rows as they stand.
  kernels::gather_rows(kStream, {floats, {}, one, 1, labels, label, 1});
  CHECK(one.to_floats() == std::vector<float>{3, -4});
  CHECK(label.data<int32_t>()[0] == 8);
}

void check_optimizer_step() {
  // Every combination of stored states, against the order of OptimizerArgs written out element by element.
  StepState state;
  state.random_step = 4;
  state.grad_factor = 0.5f;  // times grad_scaling: 0.125
  // The rate of update 1; the last one stays.
  const Tensor rates = Tensor::from(std::vector<float>{0.5f, 0.3f}, {2});
  const int64_t n = 2051;
  for (const bool master : {false, true})
    for (const bool momentum : {false, true})
      for (const bool nesterov : {false, true})
        for (const char* format : {"fp32", "e4m3", "e5m2:sr", "bf16:sr"}) {
          if (nesterov && !momentum) continue;
          CAPTURE(std::string(format));
          OptimizerParameter a, other;
          const Quantizer q = Quantizer::parse(format);
          const auto stored = [&](uint64_t seed) {
            return quantise(random_tensor({n}, -2, 2, seed), format, 0, {}, storage_type(q));
          };
          a.weight = stored(1);
          if (master) a.master = {stored(2)};
          if (momentum) a.moment1 = {stored(3)}, other.moment1 = {stored(7)};
          a.grad = random_tensor({n}, -8, 8, 4);
          a.weight_key = {1, 10, 0, &state};
          a.master_key = {1, 11, 0, &state};
          a.grad_key = {1, 12, 0, &state};
          a.moment1_key = {1, 13, 0, &state};
          a.moment2_key = a.compensation_key = a.moment1_key;
          // A second parameter with its own streams: each is as if it were alone.
          other.weight = stored(5);
          other.grad = random_tensor({n}, -8, 8, 6);
          other.weight_key = {1, 20, 0, &state};
          other.master_key = {1, 21, 0, &state};
          other.grad_key = {1, 22, 0, &state};
          other.moment1_key = {1, 23, 0, &state};
          other.moment2_key = other.compensation_key = other.moment1_key;
          OptimizerArgs args;
          args.parameters = {other, a};
          args.weight_format = args.master_format = args.grad_format = args.moment1_format = q;
          args.settings.rule = momentum ? UpdateRule::Momentum : UpdateRule::Sgd;
          args.settings.grad_scaling = 0.25f;
          args.settings.beta1 = 0.9f;
          args.settings.weight_decay = 0.01f;
          args.settings.nesterov = nesterov;
          args.steps = Tensor::from(std::vector<int32_t>{0}, {1});
          args.rates = rates;
          args.updates = Tensor::from(std::vector<int32_t>{momentum ? 1 : 6}, {1});
          args.state = &state;
          const auto w0 = a.weight.to_floats(), g0 = a.grad.to_floats();
          const auto p0 = master ? a.master.data.to_floats() : w0;
          const auto m0 = momentum ? a.moment1.data.to_floats() : std::vector<float>(n, 0.0f);
          state.found_inf = 1;
          kernels::optimizer_step(kStream, args);
          CHECK(a.weight.to_floats() == w0);  // a skipped step writes nothing
          state.found_inf = 0;
          kernels::optimizer_step(kStream, args);
          const Grid grid = make_grid(q);
          const auto round = [&](float v, const RandomKey& key, size_t i) {
            return q.is_identity() ? v : quantise_value(v, grid, RandomSource(key).word(i));
          };
          bool right = true;
          for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            const float g = round(g0[i] * 0.125f, a.grad_key, i);
            const float d = std::fma(0.01f, p0[i], g);
            const float m = momentum ? std::fma(0.9f, m0[i], d) : d;
            const float step = nesterov ? std::fma(0.9f, m, d) : m;
            float p = std::fma(-0.3f, step, p0[i]);
            if (master) p = round(p, a.master_key, i);
            const float w = round(p, a.weight_key, i);
            right = right &&
                    load_as_float(a.weight.raw(), a.weight.dtype(), static_cast<int64_t>(i)) == w;
            if (master)
              right = right && load_as_float(a.master.data.raw(), a.master.data.dtype(),
                                             static_cast<int64_t>(i)) == p;
            if (momentum)
              right = right && load_as_float(a.moment1.data.raw(), a.moment1.data.dtype(),
                                             static_cast<int64_t>(i)) == round(m, a.moment1_key, i);
          }
          CHECK(right);
        }
}

}  // namespace

/// Numbers from −4 to 4.
Tensor modest(const Shape& shape, uint64_t seed) {
  Tensor t = Tensor::empty(shape, DType::F32, kCpu);
  kernels::uniform(kStream, {t, -4, 4, {seed, 1, 0, nullptr}});
  return t;
}

/// H·(s ∘ x) by the matrix, whose element (i, j) is −1 where i and j share an odd number of bits.
void check_rotate() {
  for (const int n : {16, 32})
    for (const int axis : {0, 1, 2}) {
      const Shape shape{35, 67, 3};
      const Tensor x = modest(shape, 41);
      Tensor y = Tensor::empty(shape, DType::F32, kCpu),
             back = Tensor::empty(shape, DType::F32, kCpu);
      const int left = rotation_exponent(n, Side::Left), right = rotation_exponent(n, Side::Right);
      CHECK(std::ldexp(1.0, left + right) == 1.0 / n);
      kernels::rotate(kStream, {x, y, axis, n, left, 77, false});
      kernels::rotate(kStream, {y, back, axis, n, right, 77, true});
      const RandomSource signs = rotation_source(77);
      const std::vector<float> in = x.to_floats(), out = y.to_floats(), again = back.to_floats();
      int64_t inner = 1;
      for (int i = axis + 1; i < 3; ++i) inner *= shape[i];
      double worst = 0, turned = 0;
      for (int64_t i = 0; i < x.numel(); ++i) {
        const int64_t at = i / inner % shape[axis], group = at / n * n, row = at - group;
        const auto e = static_cast<size_t>(i);
        turned =
            std::max(turned, std::abs(static_cast<double>(again[e]) - static_cast<double>(in[e])));
        if (group + n > shape[axis]) {
          CHECK(out[e] == in[e]);
          continue;
        }
        double sum = 0;
        for (int64_t k = 0; k < n; ++k) {
          const bool odd = __builtin_popcountll(static_cast<uint64_t>(row & k)) % 2 != 0;
          const bool flipped = is_flipped(signs.word(static_cast<uint64_t>(group + k)));
          const double value = static_cast<double>(in[static_cast<size_t>(i + (k - row) * inner)]);
          sum += odd != flipped ? -value : value;
        }
        worst = std::max(worst, std::abs(std::ldexp(sum, left) - static_cast<double>(out[e])));
      }
      const double most = 0x1p-24 * 32 * 32;  // of sums below 32, 32 additions
      CHECK(worst < most);
      CHECK(turned < 8 * most);
    }
  const Tensor x = modest({4}, 1);
  CHECK_THROWS_AS(kernels::rotate(kStream, {x, x, 1, 16, -2, 0, false}), Error);
  CHECK_THROWS_AS(kernels::rotate(kStream, {x, x, 0, 8, -2, 0, false}), Error);
}

void check_scaled_add() {
  const int64_t m = 5, n = 7, depth = 12;
  const Tensor sums = modest({m, n}, 42), before = modest({m, n}, 43), bias = modest({n}, 44);
  const Factors a{modest({3 * 3}, 45), 2, 4}, b{modest({7}, 46), 1, 12};
  const Grid grid = make_grid(Quantizer("e4m3"));
  for (const bool first : {false, true})
    for (const bool last : {false, true}) {
      Tensor out = Tensor::from(before.to_floats(), {m, n});
      ScaledAddArgs args;
      args.sums = sums;
      args.out = out;
      args.a_factors = a;
      args.b_factors = b;
      args.k = 8;
      args.depth = depth;
      args.first = first;
      args.last = last;
      args.bias = bias;
      args.output = "e4m3";
      kernels::scaled_add(kStream, args);
      for (int64_t i = 0; i < m * n; ++i) {
        const float fa = a.values.to_floats()[static_cast<size_t>(i / n / 2 * 3 + 2)];
        const float fb = b.values.to_floats()[static_cast<size_t>(i % n)];
        const auto e = static_cast<size_t>(i);
        float y = fma_of(sums.to_floats()[e], fa * fb, first ? 0.0f : before.to_floats()[e]);
        if (last) y = quantise_value(y + bias.to_floats()[static_cast<size_t>(i % n)], grid, 0);
        CHECK(out.to_floats()[e] == y);
      }
    }
}

/// By hand: 12 and −1 in a block whose scale is 2, as codes 7 and 9 of e2m1. test_packed.cpp has everything else.
void check_pack() {
  const auto x = Tensor::from<float>({12, -1}, {2});
  const Tensor scales = Tensor::empty({1}, DType::U8, kCpu),
               factor = Tensor::empty({1}, DType::F32, kCpu);
  const Tensor codes = Tensor::empty({1}, DType::U8, kCpu),
               no_code = Tensor::empty({8}, DType::U8, kCpu);
  const Tensor back = Tensor::empty({2}, DType::F32, kCpu);
  kernels::pack_scales(kStream, {x, scales, factor, "mxfp4"});
  kernels::pack_codes(kStream, {x, scales, codes, no_code, "mxfp4"});
  kernels::unpack_codes(kStream, {codes, scales, back, "mxfp4"});
  CHECK(scales.data<uint8_t>()[0] == 0x80);
  CHECK(factor.to_floats() == std::vector<float>{1});
  CHECK(codes.data<uint8_t>()[0] == 0x97);
  CHECK(*static_cast<const int64_t*>(no_code.raw()) == 2);
  CHECK(back.to_floats() == x.to_floats());
}

const std::vector<KernelRow>& kernel_rows() {
  static const std::vector<KernelRow> rows = {
      {"quantise", check_quantise},
      {"tally", check_tally},
      {"copy", check_copy},
      {"fill", check_fill},
      {"uniform", check_uniform},
      {"gather_rows", check_gather_rows},
      {"optimizer_step", check_optimizer_step},
      {"advance_step", check_advance_step},
      {"rotate", check_rotate},
      {"scaled_add", check_scaled_add},
      {"pack_scales", check_pack},
      {"pack_codes", check_pack},
      {"unpack_codes", check_pack},
      {"check_gradients", check_check_gradients},
      {"settle_scalings", check_settle_scalings},
      {"begin_average", check_begin_average},
      {"average", check_average},
      {"augment_rows", check_augment_rows},
      {"gather_windows", check_gather_windows},
      {"squeeze_logs", check_squeeze_rows},
      {"squeeze", check_squeeze_rows},
  };
  return rows;
}

}  // namespace ulp::tests

using namespace ulp;
using namespace ulp::tests;

TEST_SUITE("kernels") {
  TEST_CASE("every row") {
    for (const KernelRow& row : kernel_rows()) {
      CAPTURE(std::string(row.name));
      row.check();
    }
  }

  TEST_CASE("whole-tensor and axis blocks reproduce the golden hashes") {
    // The generator and hashes of correctly rounded results that the number core's own test uses, through the kernel.
    std::vector<float> values;
    for (uint32_t i = 0; i < 1u << 20; ++i) {
      const uint32_t w = 2654435761u * i + 12345u, row = i / 16384, column = i % 16384;
      values.push_back(float_of((w & 0x807FFFFFu) |
                                (100 + ((w >> 23) & 7) + 2 * (row % 8) + 2 * (column % 8)) << 23));
    }
    const Tensor x = Tensor::from(values, {64, 16384});
    const std::pair<const char*, uint64_t> golden[] = {{"bfp8:rnu", 0xb027334ca73d4fd9},
                                                       {"bfp8-axis0:rnu", 0x808479cddf6d7b8d},
                                                       {"bfp8-axis1:rnu", 0x0a5caa7191df1caf}};
    for (const auto& [format, hash] : golden) {
      uint64_t h = 14695981039346656037ull;
      for (const uint32_t bits : bits_of_tensor(quantise(x, format, 0, {})))
        for (int byte = 0; byte < 4; ++byte)
          h = (h ^ (bits >> (8 * byte) & 255)) * 1099511628211ull;
      CHECK(h == hash);
    }
  }

  TEST_CASE("sums and largest values of short rows are the same on every instruction set") {
    const cpu::Isa before = cpu::current_isa();
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    for (const cpu::Isa isa : {cpu::Isa::Portable, cpu::Isa::Avx2, cpu::Isa::Avx512}) {
      if (!cpu::has_isa(isa)) continue;
      cpu::set_isa(isa);
      for (int64_t n = 1; n < 300; ++n) {
        CAPTURE(n);
        std::vector<float> v = random_tensor({n}, -1, 1, 19).to_floats();
        CHECK(cpu::strict_sum(v.data(), n) == sum_by_the_book(v));
        CHECK(cpu::largest_of(v.data(), n) == *std::max_element(v.begin(), v.end()));
        // Of zeros the first; a NaN anywhere.
        const auto zero = static_cast<size_t>(n) / 3, nan = static_cast<size_t>(n) * 2 / 3;
        for (const float first : {0.0f, -0.0f}) {
          for (float& x : v) x = -std::abs(x) - 1;
          for (size_t i = zero; i < v.size(); i += 5) v[i] = i == zero ? first : -first;
          CHECK(bits_of(cpu::largest_of(v.data(), n)) == bits_of(first));
        }
        v[nan] = kNan;
        CHECK(std::isnan(cpu::largest_of(v.data(), n)));
        CHECK(std::isnan(cpu::strict_sum(v.data(), n)));
      }
    }
    cpu::set_isa(before);
  }

  TEST_CASE("sums follow the stated order, along any axis") {
    const std::array<int64_t, 3> views[] = {
        {1, 0, 3},     {1, 1, 1},     {1, 63, 1},   {3, 65, 1},   {1, 4097, 1}, {2, 5000, 1},
        {1, 70000, 1}, {1, 128, 100}, {2, 130, 65}, {1, 4100, 3}, {3, 9000, 2}, {0, 4, 4}};
    for (const auto& [outer, axis, inner] : views) {
      CAPTURE(outer);
      CAPTURE(axis);
      CAPTURE(inner);
      const Tensor x = random_tensor({outer, axis, inner}, -1, 1, 17);
      const std::vector<float> v = x.to_floats();
      Tensor out = Tensor::empty({outer, inner}, DType::F32, kCpu);
      kernels::sum(kStream, {x, out, outer, axis, inner});
      for (int64_t o = 0; o < outer; ++o)
        for (int64_t i = 0; i < inner; ++i) {
          std::vector<float> column;
          for (int64_t a = 0; a < axis; ++a)
            column.push_back(v[static_cast<size_t>((o * axis + a) * inner + i)]);
          CHECK(out.to_floats()[static_cast<size_t>(o * inner + i)] == sum_by_the_book(column));
        }
    }
    const Tensor narrow = quantise(random_tensor({5000}, -1, 1, 18), "e5m2", 0, {}, DType::F8E5M2);
    Tensor out = Tensor::empty({}, DType::F32, kCpu);
    kernels::sum(kStream, {narrow, out, 1, 5000, 1});
    CHECK(out.to_floats()[0] == sum_by_the_book(narrow.to_floats()));
  }

  TEST_CASE(
      "element-wise kernels round in the same pass, read any type and serve one element to all") {
    const Tensor x = random_tensor({37, 41}, -4, 4, 1);
    const Tensor y = quantise(random_tensor({37, 41}, -4, 4, 2), "e4m3", 0, {}, DType::F8E4M3);
    const RandomKey key{3, 4, 0, nullptr};
    for (const char* format : {"fp32", "e5m2", "e4m3:sr", "fixed8.4:rd"}) {
      const Quantizer q = Quantizer::parse(format);
      for (const DType dtype : {DType::F32, storage_type(q)}) {
        Tensor out = Tensor::empty({37, 41}, dtype, kCpu);
        kernels::multiply(kStream, {{x, y, {}}, out, 0, q, key});
        bool right = true;
        for (size_t i = 0; i < 37 * 41; ++i) {
          const float product = x.to_floats()[i] * y.to_floats()[i];
          const float expected =
              q.is_identity() ? product
                              : quantise_value(product, make_grid(q), RandomSource(key).word(i));
          right = right && out.to_floats()[i] == expected;
          if (i > 200) break;
        }
        CHECK(right);
      }
    }
    Tensor out = Tensor::empty({37, 41}, DType::F32, kCpu);
    kernels::add(kStream, {{x, Tensor::from(std::vector<float>{2}, {1}), {}}, out, 0, {}, {}});
    CHECK(out.to_floats()[100] == x.to_floats()[100] + 2);
    Tensor small = Tensor::empty({37, 41}, DType::F8E4M3, kCpu);
    CHECK_THROWS_WITH_AS(kernels::add(kStream, {{x, y, {}}, small, 0, {}, {}}),
                         doctest::Contains("do not fit"), Error);
  }

  TEST_CASE("GELU reaches its limits without NaN") {
    const float inf = std::numeric_limits<float>::infinity();
    const Tensor x = Tensor::from(std::vector<float>{100, -100, inf, 3e38f, -3e38f, -inf}, {6});
    const Tensor g = Tensor::from(std::vector<float>{1, 1, 1, 1, 1, 1}, {6});
    for (const auto* forward : {&kernels::gelu, &kernels::gelu_tanh}) {
      Tensor y = Tensor::empty({6}, DType::F32, kCpu);
      (*forward)(kStream, {{x, {}, {}}, y, 0, {}, {}});
      CHECK(y.to_floats() == std::vector<float>{100, 0, inf, 3e38f, 0, 0});
    }
    for (const auto* backward : {&kernels::gelu_backward, &kernels::gelu_tanh_backward}) {
      Tensor y = Tensor::empty({6}, DType::F32, kCpu);
      (*backward)(kStream, {{x, g, {}}, y, 0, {}, {}});
      CHECK(y.to_floats() == std::vector<float>{1, 0, 1, 1, 0, 0});
    }
  }

  TEST_CASE("a kernel without a side for the device says so by name") {
    constexpr Kernel<FillArgs> cpu_only{"fancy", cpu::fill, nullptr};
    CHECK_THROWS_WITH_AS(cpu_only(Stream{cuda_device(0), nullptr}, {}),
                         doctest::Contains("fancy: no CUDA kernel in this build"), Error);
  }

  TEST_CASE("wrong arguments are named") {
    const Tensor x = random_tensor({3, 4}, -1, 1, 1);
    Tensor out = Tensor::empty({3, 4}, DType::F32, kCpu),
           other = Tensor::empty({4, 3}, DType::F32, kCpu);
    CHECK_THROWS_WITH_AS(kernels::relu(kStream, {{x.transpose(0, 1), {}, {}}, other, 0, {}, {}}),
                         doctest::Contains("relu: wanted a contiguous tensor"), Error);
    CHECK_THROWS_WITH_AS(kernels::relu(kStream, {{x, {}, {}}, other, 0, {}, {}}),
                         doctest::Contains("wanted a tensor of shape (4, 3), got (3, 4)"), Error);
    CHECK_THROWS_WITH_AS(quantise(x, "bfp8-axis2", 0, {}), doctest::Contains("needs axis 2"),
                         Error);
    CHECK_THROWS_WITH_AS(
        kernels::quantise(kStream, {x, other, Quantizer::parse("e4m3"), 0, {}, {}}),
        doctest::Contains("shape"), Error);
    CHECK_THROWS_WITH_AS(
        kernels::relu(kStream, {{x, {}, {}}, out, 0, Quantizer::parse("bfp8"), {}}),
        doctest::Contains("block formats"), Error);
  }
}
