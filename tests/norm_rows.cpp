#include "autograd/dropout.h"
#include "autograd/norm.h"
#include "autograd/pool.h"
#include "tests/op_table.h"

namespace ulp::tests {
namespace {

using Inputs = std::span<const Var>;

/// x with its weight and bias.
std::vector<std::vector<Shape>> with_parameters(const std::vector<Shape>& shapes) {
  std::vector<std::vector<Shape>> all;
  for (const Shape& x : shapes) {
    const Shape channels{x[x.rank() - 1]};
    all.push_back({x, channels, channels});
  }
  return all;
}
std::vector<std::vector<Shape>> alone(const std::vector<Shape>& shapes) {
  std::vector<std::vector<Shape>> all;
  for (const Shape& x : shapes) all.push_back({x});
  return all;
}

/// Where an op is given formats at all, its intermediates are rounded too.
OpFormats with_interior(const OpFormats& formats) {
  OpFormats f = formats;
  if (!f.is_identity()) f.interior = "e6m9:sr";
  return f;
}

/// Some running statistics, made anew for each pass.
ops::RunningStatistics running(const Var& x) {
  const Shape channels{x.shape()[x.shape().rank() - 1]};
  const Device device = x.value.device();
  return {random_tensor(channels, -0.5, 0.5, 71, DType::F32, device),
          random_tensor(channels, 0.5, 2, 72, DType::F32, device)};
}

ops::BatchNormOptions evaluation() {
  ops::BatchNormOptions o;
  o.training = false;
  return o;
}

/// A row whose op has four roles and a law of its own (test_norm.cpp).
OpRow row(const char* name, std::vector<const char*> kernels,
          std::vector<std::vector<Shape>> shapes,
          std::function<Var(Tape&, Inputs, const OpFormats&)> build) {
  OpRow r;
  r.name = name;
  r.kernels = std::move(kernels);
  r.shapes = std::move(shapes);
  r.build = std::move(build);
  r.roles = {"input", "output", "grad_output_dx", "grad_input"};
  r.common_law = false;
  return r;
}

}  // namespace

std::vector<OpRow> norm_op_rows() {
  static const RandomSite site(kSite);
  const std::vector<Shape> batches = {{5, 1},    {7, 3},        {2, 3, 5, 4}, {17, 33},
                                      {70, 131}, {4, 5, 5, 16}, {4099, 5}};
  const std::vector<Shape> rows = {{3, 1},      {0, 4},    {1, 7},   {5, 33},
                                   {2, 3, 100}, {3, 1030}, {2, 4100}};
  const std::vector<std::vector<Shape>> images =
      alone({{1, 4, 4, 1}, {0, 5, 5, 2}, {2, 5, 7, 3}, {2, 6, 6, 8}, {1, 9, 4, 5}});
  return {
      row("batch_norm", {"batch_statistics", "norm_apply", "norm_sums", "batch_norm_backward"},
          with_parameters(batches),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::batch_norm(t, in[0], in[1], in[2], running(in[0]), {}, f, site);
          }),
      row("batch_norm without parameters", {"batch_statistics"}, alone(batches),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::batch_norm(t, in[0], {}, {}, {}, {}, with_interior(f), site);
          }),
      row("batch_norm in evaluation", {"batch_statistics"},
          with_parameters({{1, 1}, {0, 3}, {1, 5}, {2, 3, 5, 4}, {17, 33}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::batch_norm(t, in[0], in[1], in[2], running(in[0]), evaluation(),
                                   with_interior(f), site);
          }),
      row("layer_norm", {"group_norm", "group_norm_backward", "norm_sums"}, with_parameters(rows),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::layer_norm(t, in[0], in[1], in[2], 1e-5, f, site);
          }),
      row("layer_norm without parameters", {"group_norm"}, alone(rows),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::layer_norm(t, in[0], {}, {}, 1e-3, with_interior(f), site);
          }),
      row("rms_norm", {"group_norm", "group_norm_backward", "norm_sums"},
          {{{3, 2}, {2}},
           {{0, 4}, {4}},
           {{5, 33}, {33}},
           {{2, 3, 100}, {100}},
           {{3, 1030}, {1030}}},
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::rms_norm(t, in[0], in[1], 1e-2, with_interior(f), site);
          }),
      row("group_norm", {"group_norm", "group_norm_backward", "norm_sums"},
          with_parameters({{3, 2}, {0, 3, 3, 4}, {2, 3, 5, 4}, {3, 5, 6}, {2, 40, 60, 4}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::group_norm(t, in[0], 2, in[1], in[2], 1e-3, with_interior(f), site);
          }),
      row("max_pool2d", {"max_pool", "max_pool_backward"}, images,
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::max_pool2d(t, in[0], {.kernel = {2, 2}}, f, site);
          }),
      row("max_pool2d with overlaps", {"max_pool", "max_pool_backward"}, images,
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::max_pool2d(
                t, in[0], {.kernel = {3, 2}, .stride = {2, 1}, .padding = {1, 1}, .ceil = true}, f,
                site);
          }),
      row("max_pool2d of a large window", {"max_pool", "max_pool_backward"},
          alone({{1, 20, 20, 1}, {2, 21, 19, 4}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::max_pool2d(
                t, in[0], {.kernel = {18, 17}, .stride = {3, 3}, .padding = {9, 8}}, f, site);
          }),
      row("avg_pool2d", {"average_pool", "average_pool_backward"}, images,
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::avg_pool2d(t, in[0], {.kernel = {2, 2}}, f, site);
          }),
      row("avg_pool2d with overlaps", {"average_pool", "average_pool_backward"}, images,
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::avg_pool2d(
                t, in[0], {.kernel = {3, 3}, .stride = {2, 1}, .padding = {1, 1}, .ceil = true}, f,
                site);
          }),
      row("avg_pool2d without padding in the divisor", {"average_pool", "average_pool_backward"},
          images,
          [](Tape& t, Inputs in, const OpFormats& f) {
            ops::PoolOptions o{.kernel = {3, 3}, .stride = {2, 2}, .padding = {1, 1}};
            o.count_padding = false;
            return ops::avg_pool2d(t, in[0], o, f, site);
          }),
      row("max_pool1d", {"max_pool"}, alone({{1, 5, 1}, {2, 7, 3}, {3, 8, 4}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::max_pool1d(
                t, in[0], {.kernel = {3, 1}, .stride = {2, 1}, .padding = {1, 0}}, f, site);
          }),
      row("avg_pool1d", {"average_pool"}, alone({{1, 5, 1}, {2, 7, 3}, {3, 8, 4}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::avg_pool1d(
                t, in[0], {.kernel = {3, 1}, .stride = {2, 1}, .padding = {1, 0}}, f, site);
          }),
      row("global_avg_pool", {"sum", "spread"},
          alone({{1, 1, 1, 1}, {0, 3, 3, 2}, {2, 5, 7, 3}, {3, 4, 8}, {1, 70, 70, 2}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::global_avg_pool(t, in[0], f, site);
          }),
      row("dropout", {"dropout"}, alone({{1}, {0}, {3, 5}, {2, 3, 7}, {17, 33}, {1, 4099}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::dropout(t, in[0], 0.4, true, f, site);
          }),
      row("dropout in evaluation", {}, alone({{1}, {0}, {3, 5}}),
          [](Tape& t, Inputs in, const OpFormats& f) {
            return ops::dropout(t, in[0], 0.4, false, f, site);
          }),
  };
}

}  // namespace ulp::tests
