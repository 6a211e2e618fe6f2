#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "optim/optimizer.h"

namespace ulp::tools {

/// The flags of ulp train that say what the optimizer does and keeps.
class OptimizerFlags {
 public:
  void add_to(CLI::App& app);
  /// False for a flag that the algorithm chosen has no use for. Another name of a flag that was given counts as that flag.
  bool takes(const std::string& flag) const;
  /// grad_scaling apart. Throws UsageError naming the flag.
  optim::OptimizerOptions resolve() const;
  /// Throws UsageError if another momentum was given than the one that the schedule begins with.
  void check_momentum(const std::string& schedule) const;

 private:
  void set_rates(optim::OptimizerOptions& o) const;
  void set_formats(optim::OptimizerOptions& o) const;

  std::string optimizer_ = "sgd", weight_decay_ = "0", weights_ = "fp32", grads_ = "fp32",
              update_ = "plain", grad_normalize_ = "none";
  std::optional<std::string> lr_, momentum_coef_, beta1_, beta2_, eps_, weight_decay_mode_,
      accumulator_, momentum_format_, moment1_, moment2_, compensation_, moments_from_;
  std::vector<std::string> groups_;
  bool nesterov_ = false;
};

/// The options as config.json has them, rates of the schedule and scaling apart.
nlohmann::ordered_json to_json(const optim::OptimizerOptions& options);

/// "adamw, lr 0.001 (cosine), beta1 0.9 …".
std::string describe_rule(const optim::OptimizerOptions& options, const std::string& schedule);
/// A line each: the format and the storage of every state, and what is different for groups.
std::vector<std::string> describe_states(const optim::OptimizerOptions& options);
/// "optimizer states 2.03 bytes a parameter beside the weight's 4 (…)".
std::string describe_bytes(const optim::Optimizer& optimizer);

/// Throws UsageError for what does not fit the parameters, such as a group's pattern.
void check_optimizer(const optim::OptimizerOptions& options,
                     const std::vector<Parameter*>& parameters);

/// The same algorithm with every state in fp32, plain updates, and no scaling of gradients.
optim::OptimizerOptions in_fp32(optim::OptimizerOptions options);

}  // namespace ulp::tools
