#include "tools/optimizer_options.h"

#include <fmt/core.h>

#include <set>

#include "core/error.h"
#include "core/number_text.h"
#include "core/packed.h"
#include "kernels/state.h"
#include "optim/parameter_format.h"
#include "optim/schedule.h"
#include "tools/format_options.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

using Json = nlohmann::ordered_json;
using optim::Algorithm;
using optim::Decay;
using optim::OptimizerOptions;
using optim::ParameterGroup;
using optim::Update;

/// The format of a state. Weights and biases have axes 0 and 1, or one that stands for both.
Quantizer state_format(const std::string& flag, const std::string& text,
                       const std::string& number_flag = "") {
  const Quantizer q = format_value(flag, text, number_flag);
  const std::string problem = misfit(q);
  if (!problem.empty()) throw UsageError(flag + ": " + problem);
  return q;
}

bool is_adam(const OptimizerOptions& o) {
  return o.algorithm == Algorithm::Adam || o.algorithm == Algorithm::AdamW;
}
bool has_moment1(const OptimizerOptions& o) {
  return o.algorithm != Algorithm::Sgd || o.momentum > 0;
}

double beta_value(const std::string& flag, const std::string& text) {
  const auto beta = text::number_from_to<double>(text, 0, 1);
  if (!beta || *beta == 1)
    throw UsageError(flag + " takes a number >= 0 and below 1, got '" + text + "'");
  return *beta;
}

void refuse(const std::optional<std::string>& text, const char* flag, const std::string& why) {
  if (text) throw UsageError(std::string(flag) + " " + why);
}

/// The same of a state whose numbers have both signs.
Quantizer signed_format(const std::string& flag, const std::string& text,
                        const std::string& number_flag = "") {
  const Quantizer q = state_format(flag, text, number_flag);
  if (!optim::has_negatives(q.format))
    throw UsageError(flag + " " + text +
                     ": the format has no negative numbers, and this state has; unsigned formats "
                     "are for moment2");
  return q;
}

/// "PATTERN:key=value,key=value …".
ParameterGroup parse_group(const std::string& text) {
  const auto fail = [&](const std::string& problem) {
    throw UsageError("--param-group '" + text + "': " + problem);
  };
  const size_t colon = text.find(':');
  if (colon == 0 || colon == std::string::npos)
    fail("wanted PATTERN:key=value,… such as 'fc*.bias:weight-decay=0,moment1=bf16'");
  ParameterGroup group{text.substr(0, colon)};
  std::set<std::string> keys;
  for (size_t begin = colon + 1; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t equals = part.find('=');
    if (equals == std::string::npos) fail("'" + part + "' is no key=value");
    const std::string key = part.substr(0, equals), value = part.substr(equals + 1);
    const std::string flag = "--param-group " + group.pattern + ": " + key;
    if (!keys.insert(key).second) fail("the key '" + key + "' is there twice");
    if (key == "lr")
      group.lr_factor = number_value(flag, value, Zero::Allowed);
    else if (key == "weight-decay")
      group.weight_decay = number_value(flag, value, Zero::Allowed);
    else if (key == "weights")
      group.weight = signed_format(flag, value);
    else if (key == "grads")
      group.grad = signed_format(flag, value);
    else if (key == "moment1")
      group.moment1 = signed_format(flag, value);
    else if (key == "moment2")
      group.moment2 = state_format(flag, value);
    else if (key == "compensation")
      group.compensation = signed_format(flag, value);
    else if (key == "accumulator")
      group.accumulator = value == "none" ? std::optional<Quantizer>() : signed_format(flag, value);
    else
      fail("there is no key '" + key +
           "'; there are lr (a factor), weight-decay, weights, accumulator, grads, moment1, "
           "moment2 and compensation");
  }
  return group;
}

std::string storage_text(const std::string& what, const Quantizer& q, bool packs) {
  if (packs && is_packed(q)) {
    const int bits = code_bits(q.format);
    const std::string scales = packed_scale(q) == PackedScale::None     ? ""
                               : packed_scale(q) == PackedScale::Factor ? ", fp32 scales"
                                                                        : ", 8-bit scales";
    return fmt::format("{} {} (codes of {} bit{}{})", what, to_string(q), bits,
                       bits == 1 ? "" : "s", scales);
  }
  const size_t bytes = size_of(storage_type(q));
  return fmt::format("{} {} ({}, {} byte{})", what, to_string(q), to_string(storage_type(q)), bytes,
                     bytes == 1 ? "" : "s");
}

Json optional_json(const std::optional<Quantizer>& q) {
  return q ? Json(to_string(*q)) : Json(nullptr);
}

Json group_json(const ParameterGroup& g) {
  Json json{{"pattern", g.pattern}};
  if (g.lr_factor) json["lr"] = *g.lr_factor;
  if (g.weight_decay) json["weight_decay"] = *g.weight_decay;
  const auto add = [&](const char* key, const std::optional<Quantizer>& q) {
    if (q) json[key] = to_string(*q);
  };
  add("weights", g.weight);
  if (g.accumulator) json["accumulator"] = optional_json(*g.accumulator);
  add("grads", g.grad);
  add("moment1", g.moment1);
  add("moment2", g.moment2);
  add("compensation", g.compensation);
  return json;
}

std::string group_text(const ParameterGroup& g) {
  std::string text = "group " + g.pattern + ":";
  const Json json = group_json(g);
  for (const auto& [key, value] : json.items())
    if (key != "pattern")
      text += fmt::format(" {} {}", key == "lr" ? "lr ×" : key,
                          value.is_string() ? value.get<std::string>()
                          : value.is_null() ? "none"
                                            : fmt::format("{}", value.get<double>()));
  return text;
}

}  // namespace

void OptimizerFlags::add_to(CLI::App& app) {
  const char* group = "Optimizer";
  const auto add = [&](const char* flag, std::optional<std::string>& text, const char* help) {
    add_text(app, flag, text, help)->group(group);
  };
  const auto add_with_default = [&](const char* flag, std::string& text, const char* help) {
    app.add_option(flag, text, help)->capture_default_str()->group(group);
  };
  add_with_default("--optimizer", optimizer_, "sgd, adam, adamw or lion");
  add("--lr", lr_,
      "learning rate, the schedule's base (default: 0.1 for sgd, 0.001 for adam and adamw, "
      "0.0001 for lion)");
  add("--momentum-coef", momentum_coef_,
      "sgd: how much of the last momentum is kept, a number (default: 0.9)");
  app.add_flag("--nesterov", nesterov_, "sgd: look ahead along the momentum")->group(group);
  add("--beta1", beta1_,
      "adam, adamw, lion: how much of the last first moment is kept (default: 0.9)");
  add("--beta2", beta2_,
      "adam, adamw: the same of the second moment (default: 0.999); lion: of its moment "
      "(default: 0.99)");
  add("--eps", eps_, "adam, adamw: added to the root of the second moment (default: 1e-8)");
  add_with_default("--weight-decay", weight_decay_, "how much weights are drawn to zero, a number");
  add("--weight-decay-mode", weight_decay_mode_,
      "coupled: the gradient gets weight decay × weight; decoupled: the weight loses lr × "
      "weight decay × weight beside the step (default: decoupled for adamw and lion)");
  add_with_default(
      "--update", update_,
      "plain, or kahan: what rounding an update loses is kept and added the next time");
  add_with_default("--grad-normalize", grad_normalize_,
                   "shift: each parameter's gradient is divided by 2^round(log2 of its largest "
                   "magnitude) (WAGE), so that rates do not depend on its size; none: it is not");
  app.add_option("--param-group", groups_,
                 "what is different for the parameters whose path matches (* any text, ? any "
                 "character): PATTERN:key=value,… with lr (a factor), weight-decay, weights, "
                 "accumulator (or none), grads, moment1, moment2, compensation; may be repeated, "
                 "later ones win")
      ->expected(1)
      ->take_all()
      ->group(group);
  group = "Formats of what the optimizer keeps (-gN: groups along all elements)";
  add_with_default("--weights", weights_, "the stored weight");
  add("--accumulator", accumulator_,
      "the master copy; fp32 is a full master, none that there is none: the stored weight is the "
      "only copy (default: none)");
  add_with_default("--grads", grads_, "the gradient the optimizer reads");
  add("--moment1", moment1_,
      "the stored momentum, or first moment (default: fp32; 8-bit: dynamic8-g256-scalef32)");
  add("--momentum-format", momentum_format_, "the same, for sgd");
  add("--moment2", moment2_,
      "adam, adamw: the stored second moment (default: fp32; 8-bit: dynamic8u-g256-scalef32)");
  add("--moments-from", moments_from_,
      "parameters of fewer elements keep their moments in fp32, unless a --param-group says "
      "otherwise (default: 0)");
  add("--compensation", compensation_, "kahan: what is still to be added (default: fp32)");
}

void OptimizerFlags::set_rates(OptimizerOptions& o) const {
  const bool sgd = o.algorithm == Algorithm::Sgd;
  const std::string name = to_string(o.algorithm);
  if (lr_) o.lr = number_value("--lr", *lr_, Zero::Refused);
  if (sgd) {
    refuse(beta1_, "--beta1", "is for adam, adamw and lion; sgd has --momentum-coef");
    refuse(beta2_, "--beta2", "is for adam, adamw and lion; sgd has --momentum-coef");
    o.momentum =
        number_value("--momentum-coef", momentum_coef_.value_or("0.9"), Zero::Allowed, "--moment1");
    if (o.momentum >= 1)
      throw UsageError("--momentum-coef takes a number >= 0 and below 1, got '" + *momentum_coef_ +
                       "'");
    o.nesterov = nesterov_;
    if (o.nesterov && o.momentum == 0)
      throw UsageError("--nesterov needs a --momentum-coef above 0");
  } else {
    refuse(momentum_coef_, "--momentum-coef", "is for sgd; " + name + " has --beta1 and --beta2");
    if (nesterov_) throw UsageError("--nesterov is for sgd, not for " + name);
    if (beta1_) o.beta1 = beta_value("--beta1", *beta1_);
    if (beta2_) o.beta2 = beta_value("--beta2", *beta2_);
  }
  if (!is_adam(o)) refuse(eps_, "--eps", "is for adam and adamw, not for " + name);
  if (eps_) o.eps = number_value("--eps", *eps_, Zero::Refused);
  o.weight_decay = number_value("--weight-decay", weight_decay_, Zero::Allowed, "--weights");
  if (weight_decay_mode_) {
    if (*weight_decay_mode_ != "coupled" && *weight_decay_mode_ != "decoupled")
      throw UsageError("--weight-decay-mode takes coupled or decoupled, got '" +
                       *weight_decay_mode_ + "'");
    o.decay = *weight_decay_mode_ == "coupled" ? Decay::Coupled : Decay::Decoupled;
  }
  if (update_ != "plain" && update_ != "kahan")
    throw UsageError("--update takes plain or kahan, got '" + update_ + "'");
  o.update = update_ == "kahan" ? Update::Kahan : Update::Plain;
  if (grad_normalize_ != "none" && grad_normalize_ != "shift")
    throw UsageError("--grad-normalize takes none or shift, got '" + grad_normalize_ + "'");
  o.grad_normalisation =
      grad_normalize_ == "shift" ? GradNormalisation::Shift : GradNormalisation::None;
}

void OptimizerFlags::set_formats(OptimizerOptions& o) const {
  const std::string name = to_string(o.algorithm);
  o.weight = signed_format("--weights", weights_, "--weight-decay");
  if (accumulator_ && *accumulator_ != "none")
    o.accumulator = signed_format("--accumulator", *accumulator_);
  o.grad = signed_format("--grads", grads_, "--grad-scaling");
  if (momentum_format_ && moment1_)
    throw UsageError("--momentum-format is another name of --moment1; give one of them");
  if (o.algorithm != Algorithm::Sgd)
    refuse(momentum_format_, "--momentum-format", "is for sgd; " + name + " has --moment1");
  const char* flag = momentum_format_ ? "--momentum-format" : "--moment1";
  if (const auto& text = momentum_format_ ? momentum_format_ : moment1_)
    o.moment1 = signed_format(flag, *text, "--momentum-coef");
  if (!has_moment1(o) && !o.moment1.is_identity())
    throw UsageError(std::string(flag) + " needs a --momentum-coef above 0");
  if (!is_adam(o)) refuse(moment2_, "--moment2", "is for adam and adamw, not for " + name);
  if (moment2_) o.moment2 = state_format("--moment2", *moment2_);
  if (moments_from_)
    o.moments_from = integer_value<int64_t>("--moments-from", *moments_from_, 0, INT64_MAX);
  if (o.update == Update::Plain) refuse(compensation_, "--compensation", "needs --update kahan");
  if (compensation_) o.compensation = signed_format("--compensation", *compensation_);
  const Quantizer& kept = o.accumulator ? *o.accumulator : o.weight;
  if (o.update == Update::Kahan && !kept.is_elementwise())
    throw UsageError("--update kahan needs " +
                     std::string(o.accumulator ? "an --accumulator" : "--weights") +
                     " without blocks, got " + to_string(kept));
}

bool OptimizerFlags::takes(const std::string& flag) const {
  const bool sgd = optimizer_ == "sgd", adam = optimizer_.starts_with("adam");
  if (flag == "--moment1")
    return !momentum_format_ &&
           (!sgd || text::number_from_to<double>(momentum_coef_.value_or("0.9"), 0, 1) != 0.0);
  if (flag == "--moment2" || flag == "--eps") return adam;
  if (flag == "--momentum-coef") return sgd;
  if (flag == "--compensation") return update_ == "kahan";
  return true;
}

OptimizerOptions OptimizerFlags::resolve() const {
  Algorithm algorithm{};
  try {
    algorithm = optim::parse_algorithm(optimizer_);
  } catch (const Error& error) {
    throw UsageError(std::string("--optimizer: ") + error.what());
  }
  OptimizerOptions o = OptimizerOptions::of(algorithm);
  set_rates(o);
  set_formats(o);
  for (const std::string& text : groups_) o.groups.push_back(parse_group(text));
  return o;
}

void OptimizerFlags::check_momentum(const std::string& schedule) const {
  const optim::ScheduleSpec spec = optim::ScheduleSpec::parse(schedule);
  if (!spec.momentum) return;
  for (const auto& [flag, given] :
       {std::pair("--momentum-coef", &momentum_coef_), {"--beta1", &beta1_}})
    if (*given && text::number_from_to<double>(**given, 0, 1) != spec.momentum->high)
      throw UsageError(
          std::string(flag) + " " + **given + ": --lr-schedule " + schedule +
          fmt::format(" sets it, from {} on; leave {} away", spec.momentum->high, flag));
}

void check_optimizer(const OptimizerOptions& options, const std::vector<Parameter*>& parameters) {
  try {
    optim::check(options, parameters);
  } catch (const Error& error) {
    throw UsageError((options.groups.empty() ? "" : "--param-group: ") + std::string(error.what()));
  }
}

nlohmann::ordered_json to_json(const OptimizerOptions& o) {
  Json groups = Json::array();
  for (const ParameterGroup& group : o.groups) groups.push_back(group_json(group));
  return {{"name", to_string(o.algorithm)},
          {"lr", o.lr},
          {"momentum_coef", o.momentum},
          {"nesterov", o.nesterov},
          {"beta1", o.beta1},
          {"beta2", o.beta2},
          {"eps", o.eps},
          {"weight_decay", o.weight_decay},
          {"weight_decay_mode", o.resolved_decay() == Decay::Coupled ? "coupled" : "decoupled"},
          {"update", o.update == Update::Kahan ? "kahan" : "plain"},
          {"grad_scaling", o.grad_scaling},
          {"grad_normalize", o.grad_normalisation == GradNormalisation::Shift ? "shift" : "none"},
          {"weights", to_string(o.weight)},
          {"accumulator", optional_json(o.accumulator)},
          {"grads", to_string(o.grad)},
          {"moment1", to_string(o.moment1)},
          {"moment2", to_string(o.moment2)},
          {"moments_from", o.moments_from},
          {"compensation", to_string(o.compensation)},
          {"groups", groups}};
}

std::string describe_rule(const OptimizerOptions& o, const std::string& schedule) {
  std::string text = fmt::format("{}, lr {} ({})", to_string(o.algorithm), o.lr, schedule);
  if (o.algorithm == Algorithm::Sgd)
    text += fmt::format(", momentum {}", o.momentum);
  else
    text += fmt::format(", beta1 {}, beta2 {}", o.beta1, o.beta2);
  if (is_adam(o)) text += fmt::format(", eps {}", o.eps);
  text += fmt::format(", weight decay {}", o.weight_decay);
  if (o.weight_decay > 0)
    text += o.resolved_decay() == Decay::Coupled ? " (coupled)" : " (decoupled)";
  if (o.algorithm == Algorithm::Sgd)
    text += fmt::format(", nesterov {}", o.nesterov ? "on" : "off");
  if (o.grad_normalisation == GradNormalisation::Shift)
    text += ", gradients / 2^round(log2 of their largest)";
  return text + (o.update == Update::Kahan ? ", kahan updates" : "");
}

std::vector<std::string> describe_states(const OptimizerOptions& o) {
  std::vector<std::string> lines = {storage_text("weights", o.weight, false)};
  lines.push_back(o.accumulator ? storage_text("accumulator", *o.accumulator, true)
                                : "accumulator none (the stored weight is the only copy)");
  lines.push_back(fmt::format("gradients {}", to_string(o.grad)));
  if (has_moment1(o))
    lines.push_back(
        storage_text(o.algorithm == Algorithm::Sgd ? "momentum" : "moment1", o.moment1, true));
  if (is_adam(o)) lines.push_back(storage_text("moment2", o.moment2, true));
  if (o.moments_from > 0)
    lines.push_back(
        fmt::format("moments of parameters with fewer than {} elements fp32", o.moments_from));
  if (o.update == Update::Kahan)
    lines.push_back(storage_text("compensation", o.compensation, true));
  for (const ParameterGroup& group : o.groups) lines.push_back(group_text(group));
  return lines;
}

std::string describe_bytes(const optim::Optimizer& optimizer) {
  int64_t count = 0, weights = 0;
  for (const auto& state : optimizer.states()) {
    count += state.parameter->value.numel();
    weights += state.parameter->value.bytes();
  }
  const auto each = [&](int64_t bytes) {
    return count == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(count);
  };
  return fmt::format(
      "optimizer states {:.4g} bytes a parameter beside the weight's {:.4g}, {} bytes",
      each(optimizer.bytes()), each(weights), optimizer.bytes());
}

OptimizerOptions in_fp32(OptimizerOptions o) {
  o.grad_scaling = 1;
  o.update = Update::Plain;
  o.weight = o.grad = o.moment1 = o.moment2 = o.compensation = Quantizer{};
  o.accumulator.reset();
  for (ParameterGroup& g : o.groups) {
    g.weight = g.grad = g.moment1 = g.moment2 = g.compensation = {};
    g.accumulator = {};
  }
  return o;
}

}  // namespace ulp::tools
