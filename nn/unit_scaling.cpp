#include "nn/unit_scaling.h"

#include <fmt/core.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "autograd/scaling.h"
#include "nn/shape_layers.h"

namespace ulp::nn {
namespace {

constexpr double kReach = 8;  // beyond it the normal density is below 1e-14

/// Midpoints of n equal parts of [−kReach, kReach], and the normal probability of each part.
struct Grid {
  std::vector<double> at, weight;

  explicit Grid(int n) {
    const double step = 2 * kReach / n;
    for (int i = 0; i < n; ++i) {
      at.push_back((i + 0.5) * step - kReach);
      weight.push_back(step * std::exp(-0.5 * at.back() * at.back()) /
                       std::sqrt(2 * std::numbers::pi));
    }
  }
};

double weighted_squares(const std::vector<double>& values, const std::vector<double>& weights) {
  double sum = 0;
  const size_t each = values.size() / weights.size();
  for (size_t i = 0; i < values.size(); ++i) sum += weights[i / each] * values[i] * values[i];
  return sum / static_cast<double>(each);
}

void visit(Module& module, const std::string& path, Edge edge, int& residuals) {
  UnitPlace place{edge};
  const bool residual = dynamic_cast<Residual*>(&module) != nullptr;
  if (residual) place.tau = 1.0 / (++residuals + 1);
  ULP_CHECK(module.unit_scale(place),
            "{}: {} has no rule of unit scaling; take a model without such layers, or leave unit "
            "scaling away",
            path.empty() ? "model" : path, module.describe());
  for (const Module::Child& child : module.children())
    visit(*child.module, join_path(path, child.name), residual ? Edge::Inner : edge, residuals);
}

}  // namespace

Gains settled(const Gains& gains, Edge edge) {
  if (edge == Edge::Cut) return gains;
  const double both = std::sqrt(gains.forward * gains.backward);
  return {both, both};
}

Var scaled(Tape& tape, const Var& y, const Gains& gains) {
  return ops::scaling(tape, y, gains.forward, gains.backward);
}

Initialiser unit_weights() { return Initialiser::uniform(std::sqrt(3.0)); }

double unit_rows(int64_t rows) {
  return rows <= 0 ? 1.0 : 1 / std::sqrt(static_cast<double>(rows));
}

ProductFactors unit_factors(double terms, double back_terms, int64_t rows, Edge edge) {
  const Gains gains = settled({1 / std::sqrt(terms), 1 / std::sqrt(back_terms)}, edge);
  const double of_rows = unit_rows(rows);
  return {gains.forward, gains.backward, of_rows, of_rows};
}

Gains unit_gains(int inputs, const std::function<Var(Tape&, const Var&)>& op) {
  ULP_ASSERT(inputs == 1 || inputs == 2);
  const Grid grid(inputs == 1 ? 4096 : 256);
  std::vector<double> x, weights;
  for (size_t i = 0; i < grid.at.size(); ++i) {
    if (inputs == 1) {
      x.push_back(grid.at[i]);
      weights.push_back(grid.weight[i]);
      continue;
    }
    for (size_t j = 0; j < grid.at.size(); ++j) {
      x.insert(x.end(), {grid.at[i], grid.at[j]});
      weights.push_back(grid.weight[i] * grid.weight[j]);
    }
  }
  const auto rows = static_cast<int64_t>(weights.size());
  Run run;
  Tape tape(run);
  const Var in = tape.leaf(Tensor::from(x, {rows, inputs}));
  const Var y = op(tape, in);
  tape.backward(y, Tensor::from(std::vector<double>(weights.size(), 1.0), y.shape()));
  return {1 / std::sqrt(weighted_squares(y.value.to_doubles(), weights)),
          1 / std::sqrt(weighted_squares(tape.grad(in).to_doubles(), weights))};
}

double largest_size(int64_t n) {
  const Grid grid(4096);
  double sum = 0;
  for (size_t i = 0; i < grid.at.size(); ++i) {
    const double x = grid.at[i], below = 0.5 * std::erfc(-x / std::numbers::sqrt2);
    sum += x * x * static_cast<double>(n) * std::pow(below, static_cast<double>(n - 1)) *
           grid.weight[i];
  }
  return std::sqrt(sum);
}

double unit_loss_factor(int64_t samples, int64_t classes) {
  if (classes < 2) return 1;
  const auto c = static_cast<double>(classes);
  return static_cast<double>(samples) * c / std::sqrt(c - 1);
}

std::string unit_text(const Gains& gains) {
  return fmt::format("y × {:.4g}, dx × {:.4g}", gains.forward, gains.backward);
}

std::string unit_text(const ProductFactors& factors) {
  return unit_text(Gains{factors.forward, factors.dx}) + ", dw × rows^−½";
}

void unit_scale(Module& model) {
  int residuals = 0;
  visit(model, "", Edge::Cut, residuals);
}

}  // namespace ulp::nn
