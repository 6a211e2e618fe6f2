#include "nn/policy.h"

#include <algorithm>
#include <set>
#include <utility>

#include "autograd/misfit.h"
#include "core/error.h"
#include "core/pattern.h"

namespace ulp::nn {
namespace {

constexpr std::array<const char*, 12> kTypeNames = {
    "container",     "conv",    "linear", "pool",      "pad",       "activation",
    "normalization", "dropout", "loss",   "attention", "recurrent", "embedding"};

constexpr std::array<const char*, 4> kForward = {"input", "weight", "weight_dx", "input_dw"};
constexpr std::array<const char*, 2> kBackward = {"grad_output_dx", "grad_output_dw"};

constexpr size_t kMostNames = 4;  // in a message

size_t index_of(std::string_view role) {
  for (size_t i = 0; i < kRoles.size(); ++i)
    if (role == kRoles[i].name) return i;
  throw_error("policy: there is no role '{}'", role);
}

std::string joined(const std::vector<std::string>& names, const char* between = ", ") {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kMostNames); ++i)
    text += (i == 0 ? "" : between) + names[i];
  return names.size() > kMostNames ? text + " …" : text;
}

std::string name_of(const Layer& layer) { return layer.path.empty() ? "the model" : layer.path; }

std::vector<std::string> names_of(const std::vector<const Layer*>& layers) {
  std::vector<std::string> names;
  for (const Layer* layer : layers) names.push_back(name_of(*layer));
  return names;
}

void add_layers(Module& module, const std::string& path, std::vector<Layer>& all) {
  if (OpFormats* const formats = module.formats())
    all.push_back({path, module.type(), module.roles(), formats, module.description(),
                   dynamic_cast<const RoleLimits*>(&module)});
  for (const Module::Child& child : module.children())
    add_layers(*child.module, join_path(path, child.name), all);
}

std::string origin_of(const Rule& rule, size_t index) {
  return rule.origin.empty() ? "rule " + std::to_string(index + 1) : rule.origin;
}

/// True if "forward" and "backward" of the rule are for this layer.
bool takes_operands(const Rule& rule, const Layer& layer) {
  return !rule.types.empty() || has_product(layer.type);
}

/// True if the layer's op has OpFormats::clamp_mask.
bool takes_mask(const Layer& layer) {
  return layer.type == LayerType::Conv || layer.type == LayerType::Linear;
}

/// A policy's rule among the layers of a model.
class Matching {
 public:
  Matching(const Rule& rule, size_t index, const std::vector<Layer>& layers)
      : rule_(rule), layers_(layers), origin_(origin_of(rule, index)) {
    for (const Layer& layer : layers)
      if (has_product(layer.type)) products_.push_back(&layer);
  }

  /// The layers that it matches. Throws if it has no sense here.
  std::vector<const Layer*> checked() const {
    ULP_CHECK(rule_.from_epoch >= 1 && rule_.from_epoch <= rule_.to_epoch,
              "{}: it is for the epochs from {} to {}; the first epoch is 1", origin_,
              rule_.from_epoch, rule_.to_epoch);
    check_formats();
    std::vector<const Layer*> matched;
    for (const Layer& layer : layers_)
      if (of_path(layer) && of_type(layer) && of_position(layer)) matched.push_back(&layer);
    if (matched.empty() && rule_.optional) return {};
    if (matched.empty()) explain_nothing();
    if (rule_.each_type) check_types();
    check_use(matched);
    return matched;
  }

 private:
  bool of_path(const Layer& l) const { return rule_.path.empty() || matches(rule_.path, l.path); }
  bool of_type(const Layer& l) const {
    return rule_.types.empty() ||
           std::find(rule_.types.begin(), rule_.types.end(), l.type) != rule_.types.end();
  }
  bool of_position(const Layer& l) const {
    if (rule_.position == Position::Any) return true;
    return !products_.empty() &&
           &l == (rule_.position == Position::First ? products_.front() : products_.back());
  }

  void check_formats() const {
    const auto check = [&](const Role& role, const char* key, const std::optional<Quantizer>& q) {
      const std::string problem = q ? misfit(role, *q) : "";
      ULP_CHECK(problem.empty(), "{}: \"{}\" does not fit: {}", origin_, key, problem);
    };
    check(kRoles[0], "forward", rule_.forward);
    check(kRoles[0], "backward", rule_.backward);
    for (size_t i = 0; i < kRoles.size(); ++i) check(kRoles[i], kRoles[i].name, rule_.roles[i]);
    for (const RuleSums& one : kRuleSums) {
      const auto& sums = rule_.*one.sums;
      const std::string problem = sums ? misfit(*sums) : "";
      ULP_CHECK(problem.empty(), "{}: \"{}\" does not fit: {}", origin_, one.product.sums, problem);
    }
  }

  std::vector<const Layer*> where(bool (Matching::*holds)(const Layer&) const) const {
    std::vector<const Layer*> all;
    for (const Layer& layer : layers_)
      if ((this->*holds)(layer)) all.push_back(&layer);
    return all;
  }

  /// "conv or linear".
  std::string wanted_types() const {
    std::vector<std::string> names;
    for (const LayerType type : rule_.types) names.push_back(to_string(type));
    return joined(names, " or ");
  }

  /// "linear (fc1, fc2), activation (relu1)".
  static std::string types_of(const std::vector<const Layer*>& layers) {
    std::string text;
    std::set<LayerType> seen;
    for (const Layer* first : layers) {
      if (first->type == LayerType::Container || !seen.insert(first->type).second) continue;
      std::vector<const Layer*> alike;
      for (const Layer* layer : layers)
        if (layer->type == first->type) alike.push_back(layer);
      text += (text.empty() ? "" : ", ") + std::string(to_string(first->type)) + " (" +
              joined(names_of(alike)) + ")";
    }
    return text.empty() ? "none with a type" : text;
  }

  /// Throws if a type of the rule is that of no layer on its path.
  void check_types() const {
    const std::vector<const Layer*> on_path = where(&Matching::of_path);
    for (const LayerType type : rule_.types)
      if (std::none_of(on_path.begin(), on_path.end(),
                       [type](const Layer* layer) { return layer->type == type; }))
        lacks_type(to_string(type), on_path);
  }

  [[noreturn]] void lacks_type(const std::string& wanted,
                               const std::vector<const Layer*>& on_path) const {
    throw_error("{}: no layer{} is of type {}; there are {}", origin_,
                rule_.path.empty() ? "" : " on the path '" + shortened(rule_.path) + "'", wanted,
                types_of(on_path));
  }

  [[noreturn]] void explain_nothing() const {
    const std::vector<const Layer*> on_path = where(&Matching::of_path);
    if (on_path.empty()) {
      std::vector<std::string> paths;
      for (const Layer& layer : layers_) paths.push_back(layer.path);
      for (const std::string& path : paths)
        if (path.starts_with(rule_.path + "."))
          throw_error("{}: '{}' matches no layer; those below it are '{}.*'", origin_, rule_.path,
                      rule_.path);
      throw_error("{}: the path '{}' matches no layer; near it are {}", origin_,
                  shortened(rule_.path), joined(similar(rule_.path, paths)));
    }
    std::vector<const Layer*> of_both;
    for (const Layer* layer : on_path)
      if (of_type(*layer)) of_both.push_back(layer);
    if (of_both.empty()) lacks_type(wanted_types(), on_path);
    const char* which = rule_.position == Position::First ? "first" : "last";
    if (products_.empty())
      throw_error("{}: there is no {} layer: no layer of the model has a product", origin_, which);
    const Layer& there = rule_.position == Position::First ? *products_.front() : *products_.back();
    throw_error("{}: the {} layer with a product is {} ({}), which the rest of the rule excludes",
                origin_, which, name_of(there), to_string(there.type));
  }

  void check_use(const std::vector<const Layer*>& matched) const {
    const auto check = [&](const char* key, auto used, const std::string& beside = "") {
      if (std::any_of(matched.begin(), matched.end(), used)) return;
      std::vector<std::string> roles(matched[0]->roles.begin(), matched[0]->roles.end());
      std::string text;
      for (const std::string& role : roles) text += (text.empty() ? "" : ", ") + role;
      throw_error("{}: no layer that it matches uses \"{}\"; {} ({}) has {}", origin_, key,
                  name_of(*matched[0]), to_string(matched[0]->type),
                  (text.empty() ? "no roles" : text) + beside);
    };
    const auto operands = [&](const char* key, const auto& roles) {
      ULP_CHECK(std::any_of(matched.begin(), matched.end(),
                            [&](const Layer* layer) { return takes_operands(rule_, *layer); }),
                "{}: \"{}\" is for layers with a product, and {} is {}; give its \"type\" too, or "
                "single roles",
                origin_, key, name_of(*matched[0]), to_string(matched[0]->type));
      check(key, [&](const Layer* layer) {
        return takes_operands(rule_, *layer) &&
               std::any_of(roles.begin(), roles.end(),
                           [&](const char* role) { return layer->uses(role); });
      });
    };
    if (rule_.forward) operands("forward", kForward);
    if (rule_.backward) operands("backward", kBackward);
    for (size_t i = 0; i < kRoles.size(); ++i)
      if (rule_.roles[i])
        check(kRoles[i].name, [&](const Layer* layer) { return layer->uses(kRoles[i].name); });
    const auto product = [](const Layer* layer) { return layer->has_product(); };
    for (const RuleSums& one : kRuleSums)
      if (rule_.*one.sums)
        check(one.product.sums, product, "; sums are those of layers whose op is a product");
    if (rule_.clamp_mask)
      check("clamp_mask", [](const Layer* layer) { return takes_mask(*layer); });
  }

  const Rule& rule_;
  const std::vector<Layer>& layers_;
  std::vector<const Layer*> products_;
  std::string origin_;
};

/// The formats of one layer while rules are applied to it, and where each role has its own from.
class Assigned {
 public:
  Assigned(const Layer& layer, OpFormats formats) : layer_(layer), formats_(std::move(formats)) {}

  void set(const Rule& rule, const std::string& origin) {
    if (takes_operands(rule, layer_)) {
      for (const char* role : kForward) set_role(role, rule.forward, origin);
      for (const char* role : kBackward) set_role(role, rule.backward, origin);
    }
    for (size_t i = 0; i < kRoles.size(); ++i) set_role(kRoles[i].name, rule.roles[i], origin);
    if (rule.clamp_mask && takes_mask(layer_)) {
      formats_.clamp_mask = *rule.clamp_mask;
      mask_origin_ = origin;
    }
    if (!layer_.has_product()) return;
    for (const RuleSums& one : kRuleSums)
      if (rule.*one.sums) formats_.*one.product.accumulator = *(rule.*one.sums);
  }

  /// Throws if the layer's op refuses what a rule gave it.
  void check() const {
    for (size_t i = 0; i < kRoles.size(); ++i) {
      if (origins_[i].empty() || layer_.limits == nullptr) continue;
      const Quantizer& q = formats_.*kRoles[i].quantizer;
      const std::string problem = layer_.limits->misfit(kRoles[i], q);
      ULP_CHECK(problem.empty(), "{}: {} ({}): {} cannot be {}: {}", origins_[i], name_of(layer_),
                layer_.description, kRoles[i].name, q, problem);
    }
    if (!takes_mask(layer_)) return;
    check_mask();
    check_rotations("input", "weight");
    check_rotations("grad_output_dx", "weight_dx");
    check_rotations("grad_output_dw", "input_dw");
  }

  const OpFormats& formats() const { return formats_; }

 private:
  void check_mask() const {
    if (!formats_.clamp_mask || mask_origin_.empty()) return;
    const std::string problem = ops::mask_misfit(formats_.input);
    const std::string& input_origin = origins_[index_of("input")];
    ULP_CHECK(problem.empty(), "{}: {} ({}): clamp_mask: input {}",
              input_origin.empty() ? mask_origin_ : input_origin, name_of(layer_),
              layer_.description, problem);
  }

  /// The same for the two operands of a product.
  void check_rotations(const char* a, const char* b) const {
    const size_t i = index_of(a), k = index_of(b);
    const Quantizer &p = formats_.*kRoles[i].quantizer, &q = formats_.*kRoles[k].quantizer;
    const std::string problem = ops::rotations_misfit(p.transform.hadamard, q.transform.hadamard);
    ULP_CHECK(problem.empty(), "{}: {} ({}): {} and {} {}",
              origins_[i].empty() ? origins_[k] : origins_[i], name_of(layer_), layer_.description,
              a, b, problem);
  }

  void set_role(const char* name, const std::optional<Quantizer>& q, const std::string& origin) {
    if (!q || !layer_.uses(name)) return;
    const size_t i = index_of(name);
    formats_.*kRoles[i].quantizer = *q;
    origins_[i] = origin;
  }

  const Layer& layer_;
  OpFormats formats_;
  std::array<std::string, kRoles.size()> origins_;
  std::string mask_origin_;
};

/// What each rule matches.
std::vector<std::vector<const Layer*>> checked(const Policy& policy,
                                               const std::vector<Layer>& layers) {
  std::vector<std::vector<const Layer*>> all;
  for (size_t i = 0; i < policy.rules.size(); ++i)
    all.push_back(Matching(policy.rules[i], i, layers).checked());
  return all;
}

/// The formats of all layers in an epoch, checked. `matched`: by each rule.
std::vector<OpFormats> made(const Policy& policy, const std::vector<Layer>& layers,
                            const std::vector<std::vector<const Layer*>>& matched, int64_t epoch) {
  std::vector<Assigned> all;
  for (const Layer& layer : layers) all.emplace_back(layer, OpFormats{});
  for (size_t i = 0; i < policy.rules.size(); ++i) {
    const Rule& rule = policy.rules[i];
    if (epoch < rule.from_epoch || epoch > rule.to_epoch) continue;
    for (const Layer* layer : matched[i])
      all[static_cast<size_t>(layer - layers.data())].set(rule, origin_of(rule, i));
  }
  std::vector<OpFormats> formats;
  for (const Assigned& one : all) {
    one.check();
    formats.push_back(one.formats());
  }
  return formats;
}

}  // namespace

const char* to_string(LayerType type) { return kTypeNames[static_cast<size_t>(type)]; }

std::vector<std::string> layer_type_names() { return {kTypeNames.begin() + 1, kTypeNames.end()}; }

LayerType parse_layer_type(std::string_view text) {
  for (size_t i = 1; i < kTypeNames.size(); ++i)
    if (text == kTypeNames[i]) return static_cast<LayerType>(i);
  std::string names;
  for (const std::string& name : layer_type_names()) names += (names.empty() ? "" : " ") + name;
  throw_error("'{}' is no layer type; there are {}", text, names);
}

bool has_product(LayerType type) {
  return type == LayerType::Conv || type == LayerType::Linear || type == LayerType::Attention ||
         type == LayerType::Recurrent;
}

bool Layer::uses(const char* role) const {
  return std::any_of(roles.begin(), roles.end(),
                     [&](const char* own) { return std::string_view(own) == role; });
}

bool Layer::has_product() const { return nn::has_product(type) && uses("weight"); }

std::vector<Layer> layers_of(Module& model) {
  std::vector<Layer> all;
  add_layers(model, model.path(), all);
  return all;
}

std::optional<Quantizer>& Rule::role(std::string_view name) { return roles[index_of(name)]; }

bool Rule::operator==(const Rule& o) const {
  return types == o.types && path == o.path && position == o.position &&
         from_epoch == o.from_epoch && to_epoch == o.to_epoch && forward == o.forward &&
         backward == o.backward && roles == o.roles && forward_acc == o.forward_acc &&
         dx_acc == o.dx_acc && dw_acc == o.dw_acc && clamp_mask == o.clamp_mask &&
         optional == o.optional;
}

void apply(const Policy& policy, const std::vector<Layer>& layers, int64_t epoch) {
  const std::vector<OpFormats> formats = made(policy, layers, checked(policy, layers), epoch);
  for (size_t i = 0; i < layers.size(); ++i) *layers[i].formats = formats[i];
}

void apply(const Policy& policy, Module& model, int64_t epoch) {
  apply(policy, layers_of(model), epoch);
}

std::vector<int64_t> phases(const Policy& policy, int64_t epochs) {
  std::set<int64_t> begins{1};
  for (const Rule& rule : policy.rules) {
    if (rule.from_epoch <= epochs) begins.insert(rule.from_epoch);
    if (rule.to_epoch < epochs) begins.insert(rule.to_epoch + 1);
  }
  return {begins.begin(), begins.end()};
}

void check_epochs(const Policy& policy, int64_t epochs) {
  for (size_t i = 0; i < policy.rules.size(); ++i) {
    const Rule& rule = policy.rules[i];
    ULP_CHECK(rule.from_epoch <= epochs, "{}: it begins with epoch {}, and the run has {}",
              origin_of(rule, i), rule.from_epoch, epochs);
  }
}

void check(const Policy& policy, const std::vector<Layer>& layers, int64_t epochs) {
  check_epochs(policy, epochs);
  const auto matched = checked(policy, layers);
  for (const int64_t epoch : phases(policy, epochs)) made(policy, layers, matched, epoch);
}

void lower(Module& model, std::initializer_list<LayerType> types, std::optional<Quantizer> forward,
           std::optional<Quantizer> backward) {
  Rule rule;
  rule.types = types;
  rule.forward = std::move(forward);
  rule.backward = std::move(backward);
  rule.origin = "lower";
  const std::vector<Layer> layers = layers_of(model);
  std::vector<Assigned> all;
  for (const Layer& layer : layers) all.emplace_back(layer, *layer.formats);
  for (const Layer* layer : Matching(rule, 0, layers).checked())
    all[static_cast<size_t>(layer - layers.data())].set(rule, rule.origin);
  for (const Assigned& one : all) one.check();
  for (size_t i = 0; i < layers.size(); ++i) *layers[i].formats = all[i].formats();
}

std::string misfit(const Quantizer& q) {
  if (q.block.kind != Block::Kind::Axis || q.block.axis < 2) return "";
  return to_string(q) + " needs axis " + std::to_string(q.block.axis) + "; there are axes 0 and 1";
}

std::string misfit(const Role& role, const Quantizer& q) {
  return role.quantizer == &OpFormats::interior ? ops::interior_misfit(q) : misfit(q);
}

}  // namespace ulp::nn
