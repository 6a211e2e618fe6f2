#include "tools/role_metrics.h"

#include <fmt/core.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "autograd/quantised.h"
#include "core/op_formats.h"
#include "nn/training_loss.h"

namespace ulp::tools {
namespace {

/// What an optimizer rounds of a parameter: the role's random stream, and the flag that sets its format.
constexpr const char* kOfParameter[][2] = {
    {"grad", "grads"},      {"weight", "weights"},  {"master", "accumulator"},
    {"moment1", "moment1"}, {"moment2", "moment2"}, {"compensation", "compensation"}};

/// A role by the names of its layer and its own.
struct Named {
  std::string layer, role;
  RandomSite site{};
  const char* shares = nullptr;  // the role whose numbers it has, if it has none itself
};

/// The role whose rounding this one's tensor has too, if formats are equal.
const char* shared_with(const std::string& role, const OpFormats& f) {
  if (role == "weight_dx" && ops::shares(f.weight, f.weight_dx)) return "weight";
  if (role == "input_dw" && ops::shares(f.input, f.input_dw)) return "input";
  if (role == "grad_output_dw" && ops::shares(f.grad_output_dx, f.grad_output_dw))
    return "grad_output_dx";
  return nullptr;
}

/// All random streams of roles, in the order of the model.
std::vector<std::pair<uint32_t, Named>> role_names(nn::Module& model) {
  std::vector<std::pair<uint32_t, Named>> names;
  const auto add = [&](const std::string& layer, RandomSite site, const char* role,
                       const char* shares = nullptr) {
    names.push_back({site.stream(role), {layer, role, site, shares}});
  };
  for (nn::Module* module : model.modules()) {
    for (const char* role : module->roles())
      add(module->path(), module->site(), role,
          module->formats() == nullptr ? nullptr : shared_with(role, *module->formats()));
    if (module->formats() != nullptr) add(module->path(), module->site(), "grad_input2");
  }
  for (const Role& role : kRoles) add(nn::kLossPath, RandomSite(nn::kLossPath), role.name);
  for (const Parameter* p : model.parameters())
    for (const auto& [role, name] : kOfParameter)
      names.push_back({p->site().stream(role), {p->path, name, p->site()}});
  return names;
}

std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{:.9g}", value) : "null";
}

}  // namespace

std::string role_lines(nn::Module& model, const RoleStats& stats, int64_t epoch, int64_t step) {
  const std::map<uint32_t, RoleStats::Total> totals = stats.totals();
  std::map<uint32_t, RoleStats::Total> others = totals;
  std::string text;
  const auto line = [&](const Named& named, const RoleStats::Total& total) {
    const QuantiseStats& s = total.stats;
    text +=
        fmt::format("{{\"epoch\":{},\"step\":{},\"split\":\"stats\",\"layer\":{},\"role\":\"{}\"",
                    epoch, step, nlohmann::json(named.layer).dump(), named.role);
    if (named.shares != nullptr) text += fmt::format(",\"shares\":\"{}\"", named.shares);
    text += fmt::format(
        ",\"format\":\"{}\",\"count\":{},\"overflow\":{},\"underflow\":{},\"nan\":{},\"infinite\":{"
        "},"
        "\"amax\":{},\"sqnr_db\":{}}}\n",
        to_string(total.quantizer), s.count, s.overflow, s.underflow, s.nan, s.infinite,
        number(static_cast<double>(s.amax())), number(s.sqnr_db()));
  };
  for (const auto& [stream, named] : role_names(model)) {
    auto found = totals.find(stream);
    Named own = named;
    if (found != totals.end())
      own.shares = nullptr;
    else if (named.shares != nullptr)
      found = totals.find(named.site.stream(named.shares));
    if (found == totals.end()) continue;
    line(own, found->second);
    others.erase(stream);
  }
  // Ops that stand in no layer, such as the rotation of positions within an attention, have no format that could be given.
  for (const Role& role : kRoles) others.erase(RandomSite().stream(role.name));
  for (const auto& [stream, total] : others) line({"?", fmt::format("{:08x}", stream)}, total);
  return text;
}

}  // namespace ulp::tools
