#pragma once

#include <array>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "nn/module.h"
#include "nn/role_limits.h"

namespace ulp::nn {

/// "conv linear pool pad activation normalization dropout loss attention recurrent embedding"; "container".
const char* to_string(LayerType type);
/// Throws ulp::Error with the names there are; a container is none of them.
LayerType parse_layer_type(std::string_view text);
/// All but Container, by name.
std::vector<std::string> layer_type_names();
/// True for layers whose work is a product of matrices.
bool has_product(LayerType type);

/// A layer as policies see it. `formats` are what they change.
struct Layer {
  std::string path;
  LayerType type = LayerType::Container;
  std::vector<const char*> roles;
  OpFormats* formats = nullptr;
  std::string description{};  // for people
  const RoleLimits* limits =
      nullptr;  // what its op refuses, if that is more than others of the type

  bool uses(const char* role) const;
  /// Its op is a product, whose sums an accumulator can keep; a part of a layer that has one need not have it.
  bool has_product() const;
};
/// Every module below this one, and itself, that has formats, in order. The model may still be without paths.
std::vector<Layer> layers_of(Module& model);

/// Which of the layers with a product, in the order of the model.
enum class Position : uint8_t { Any, First, Last };

/// Formats for some layers. All conditions must hold; without any the rule is for every layer. A format goes to those
/// matched layers that use its role, and one of them at least must. An optional rule may match nothing.
struct Rule {
  static constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();

  std::vector<LayerType> types{};  // one of these; empty: any
  std::string path{};              // a pattern (core/pattern.h); empty: any
  Position position = Position::Any;
  int64_t from_epoch = 1, to_epoch = kNoEnd;  // the first and the last one; epochs count from 1

  // The operands that OpFormats::make sets, before single roles: of layers with a product, unless `types` names others.
  std::optional<Quantizer> forward{}, backward{};
  std::array<std::optional<Quantizer>, kRoles.size()> roles{};  // in the order of kRoles
  std::optional<Accumulator> forward_acc{}, dx_acc{},
      dw_acc{};                      // sums of layers whose op is a product
  std::optional<bool> clamp_mask{};  // of linear layers, convolutions

  std::string origin{};    // begins messages: "policy.json, line 3"; "" is "rule N"
  bool optional = false;   // for models that may lack such layers: then it does nothing
  bool each_type = false;  // every one of `types` must match a layer, as in files of people

  std::optional<Quantizer>& role(std::string_view name);
  /// Two rules that do the same, wherever they come from.
  bool operator==(const Rule& other) const;
};

/// One of the three products whose sums a rule may set.
struct RuleSums {
  const ProductRole& product;
  std::optional<Accumulator> Rule::*sums;
};
inline constexpr std::array<RuleSums, 3> kRuleSums = {{{kForwardProduct, &Rule::forward_acc},
                                                       {kDxProduct, &Rule::dx_acc},
                                                       {kDwProduct, &Rule::dw_acc}}};

/// Rules in order: of those that match a layer in an epoch the last one wins, for each role.
struct Policy {
  std::vector<Rule> rules;
  bool operator==(const Policy&) const = default;
};

/// Sets the formats of every layer to what the policy says for an epoch (from 1). Roles that no rule sets get fp32: the
/// result depends on nothing else. After a change a recorded step (StepGraph) must be reset.
/// Throws ulp::Error, with the rule's origin and near names, before it changes anything, if a rule that is not optional, or one
/// of its types, matches no layer in whatever epoch, sets what no matched layer uses, or holds what its role cannot take, or if a layer would get in
/// this epoch what its op refuses.
void apply(const Policy& policy, const std::vector<Layer>& layers, int64_t epoch);
void apply(const Policy& policy, Module& model, int64_t epoch = 1);

/// The epochs from 1 to `epochs` in which the formats may change, 1 being the first of them.
std::vector<int64_t> phases(const Policy& policy, int64_t epochs);
/// Throws ulp::Error if a rule begins after the last epoch.
void check_epochs(const Policy& policy, int64_t epochs);
/// The same, and whatever apply would throw in any of the epochs. Changes nothing.
void check(const Policy& policy, const std::vector<Layer>& layers, int64_t epochs);

/// The formats of all layers of some types, on top of those that they have: `forward` for their operands, `backward` for
/// both uses of the gradient, as OpFormats::make; what is left out stays as it is. Before the first forward pass. Throws as
/// apply does.
///   lower(net, {LayerType::Conv, LayerType::Linear}, "e4m3", "e5m2:sr");
void lower(Module& model, std::initializer_list<LayerType> types, std::optional<Quantizer> forward,
           std::optional<Quantizer> backward = {});

/// Why a tensor with axes 0 and 1 cannot have this format; empty if it can. Activations, gradients and weights are such.
std::string misfit(const Quantizer& quantizer);
/// The same for a role.
std::string misfit(const Role& role, const Quantizer& quantizer);
}  // namespace ulp::nn
