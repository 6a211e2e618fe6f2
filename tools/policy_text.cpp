#include "tools/policy_text.h"

#include <fmt/core.h>

#include <algorithm>

#include "nn/model_tree.h"
#include "nn/training_loss.h"
#include "tools/optimizer_options.h"
#include "tools/preflight.h"

namespace ulp::tools {
namespace {

constexpr size_t kPathWidth = 11, kDescriptionWidth = 22;

std::vector<OpFormats> formats_of(const std::vector<nn::Layer>& layers) {
  std::vector<OpFormats> all;
  for (const nn::Layer& layer : layers) all.push_back(*layer.formats);
  return all;
}

/// Puts the formats back.
class Restore {
 public:
  explicit Restore(const std::vector<nn::Layer>& layers)
      : layers_(layers), before_(formats_of(layers)) {}
  ~Restore() {
    for (size_t i = 0; i < layers_.size(); ++i) *layers_[i].formats = before_[i];
  }
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;

 private:
  const std::vector<nn::Layer>& layers_;
  std::vector<OpFormats> before_;
};

/// A later phase of a policy, where the formats of some layers change. The layers have them now.
struct Phase {
  int64_t epoch;
  std::vector<nn::Layer> changed;
};
/// Calls `show` for each such phase.
template <class F>
void for_each_later_phase(const nn::Policy& policy, int64_t epochs,
                          const std::vector<nn::Layer>& layers, F show) {
  std::vector<OpFormats> before = formats_of(layers);
  for (const int64_t epoch : nn::phases(policy, epochs)) {
    if (epoch == 1) continue;
    nn::apply(policy, layers, epoch);
    Phase phase{epoch, {}};
    for (size_t i = 0; i < layers.size(); ++i)
      if (!(*layers[i].formats == before[i])) phase.changed.push_back(layers[i]);
    before = formats_of(layers);
    if (!phase.changed.empty()) show(phase);
  }
}

std::string lines_of(const std::vector<nn::Layer>& layers) {
  size_t paths = kPathWidth - 1;
  for (const nn::Layer& layer : layers) paths = std::max(paths, layer.path.size());
  ++paths;
  std::string text;
  for (const nn::Layer& layer : layers) {
    text += fmt::format("{:<{}}{:<{}}", layer.path, paths, layer.description, kDescriptionWidth);
    bool first = true;
    for (const std::string& roles : nn::role_lines(layer)) {
      text +=
          fmt::format("{}  {}\n", first ? "" : std::string(paths + kDescriptionWidth, ' '), roles);
      first = false;
    }
  }
  return text;
}

}  // namespace

std::string formats_text(const nn::Policy& policy, int64_t epochs,
                         const std::vector<nn::Layer>& layers) {
  const Restore restore(layers);
  nn::apply(policy, layers, 1);
  std::string text = lines_of(layers);
  for_each_later_phase(policy, epochs, layers, [&](const Phase& phase) {
    text += fmt::format("from epoch {} on\n{}", phase.epoch, lines_of(phase.changed));
  });
  return text;
}

std::string forward_formats_text(const std::vector<nn::Layer>& layers) {
  constexpr size_t kMostPaths = 3;                                       // of a line
  std::vector<std::pair<std::string, std::vector<std::string>>> groups;  // roles, paths
  int64_t plain = 0;
  for (const nn::Layer& layer : layers) {
    std::string roles;
    bool any = false;
    for (const char* name : {"input", "weight", "output", "interior"})
      for (const Role& role : kRoles) {
        if (std::string_view(role.name) != name || !layer.uses(name)) continue;
        const Quantizer& q = layer.formats->*role.quantizer;
        roles += fmt::format("  {} {}", name, to_string(q));
        any = any || !q.is_identity();
      }
    if (const Accumulator& sums = layer.formats->forward_acc; sums.is_simulated()) {
      roles += fmt::format("  {} {}", kForwardProduct.sums, to_string(sums));
      any = true;
    }
    if (!any) {
      plain += roles.empty() ? 0 : 1;
      continue;
    }
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& one) { return one.first == roles; });
    if (group == groups.end()) group = groups.insert(group, {roles, {}});
    group->second.push_back(layer.path);
  }
  std::string text;
  const auto line = [&text](const std::string& one) {
    text += fmt::format("{:<11}{}\n", text.empty() ? "formats" : "", one);
  };
  for (const auto& [roles, paths] : groups) {
    std::string names;
    for (size_t i = 0; i < std::min(paths.size(), kMostPaths); ++i)
      names += (i == 0 ? "" : ", ") + paths[i];
    if (paths.size() > kMostPaths) names += fmt::format(" … ({} layers)", paths.size());
    line(names + roles);
  }
  if (plain > 0)
    line(fmt::format("{}{} layer{} in fp32", groups.empty() ? "all " : "the other ", plain,
                     plain == 1 ? "" : "s"));
  return text;
}

std::string explain_training(const Experiment& e, const nn::Dataset& data) {
  preflight(e, data);
  Run run(kCpu, e.seed);
  const auto model = make_model(e, data);
  model->initialise(run);
  check_optimizer(e.optimizer, model->parameters());
  const optim::Optimizer optimizer(run, model->parameters(), e.optimizer);
  nn::TrainingLoss loss{e.loss, {}, e.init};
  const std::vector<nn::Layer> layers = nn::layers_of(*model, loss);
  nn::apply(e.policy, layers, 1);

  const nn::ModelTree tree(run, *model, e.model, Shape{data.sample_shape.numel()},
                           data.is_text() ? DType::I32 : DType::F32);
  std::string text = describe(e, data, *model);
  text += fmt::format("\nshapes of one sample; products m × n × k of a batch of {}\n{}",
                      e.batch_size, nn::tree_text(tree, layers, e.batch_size, e.math));
  for_each_later_phase(e.policy, e.epochs, layers, [&](const Phase& phase) {
    text += fmt::format("from epoch {} on\n", phase.epoch);
    for (const nn::Layer& layer : phase.changed) {
      text += fmt::format("  {}  {}\n", layer.path, layer.description);
      for (const std::string& roles : nn::role_lines(layer)) text += "    " + roles + "\n";
      for (const nn::TreeNode& node : tree.nodes())
        if (node.module->formats() == layer.formats)
          for (const nn::PlannedProduct& product : tree.products(node, e.batch_size, e.math))
            text += fmt::format("    {:<8} {}\n", product.name, nn::to_string(product));
    }
  });
  text += fmt::format("\ntotal      {} parameters in {} bytes", tree.parameters(),
                      tree.parameter_bytes());
  if (tree.buffer_bytes() > 0) text += fmt::format(", buffers in {} bytes", tree.buffer_bytes());
  return text + fmt::format("\n{:<11}{}\n", "", describe_bytes(optimizer));
}

}  // namespace ulp::tools
