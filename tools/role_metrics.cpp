#include "tools/role_metrics.h"

#include <fmt/core.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "core/op_formats.h"

namespace ulp::tools {
namespace {

/// A role by the names of its layer and its own.
struct Named {
  std::string layer, role;
};

/// All random streams of roles, in the order of the model.
std::vector<std::pair<uint32_t, Named>> role_names(nn::Module& model) {
  std::vector<std::pair<uint32_t, Named>> names;
  const auto add = [&](const std::string& layer, const char* role) {
    names.push_back({RandomSite(layer).stream(role), {layer, role}});
  };
  for (nn::Module* module : model.modules()) {
    for (const char* role : module->roles()) add(module->path(), role);
    if (module->formats() != nullptr) add(module->path(), "grad_input2");
  }
  for (const Role& role : kRoles) add("loss", role.name);
  return names;
}

std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{:.9g}", value) : "null";
}

}  // namespace

std::string role_lines(nn::Module& model, const RoleStats& stats, int64_t epoch, int64_t step) {
  std::map<uint32_t, RoleStats::Total> totals = stats.totals();
  std::string text;
  const auto line = [&](const Named& named, const RoleStats::Total& total) {
    const QuantiseStats& s = total.stats;
    text += fmt::format(
        "{{\"epoch\":{},\"step\":{},\"split\":\"stats\",\"layer\":{},\"role\":\"{}\",\"format\":"
        "\"{}\",\"count\":{},\"overflow\":{},\"underflow\":{},\"nan\":{},\"infinite\":{},\"amax\":"
        "{},\"sqnr_db\":{}}}\n",
        epoch, step, nlohmann::json(named.layer).dump(), named.role, to_string(total.quantizer),
        s.count, s.overflow, s.underflow, s.nan, s.infinite, number(static_cast<double>(s.amax())),
        number(s.sqnr_db()));
  };
  for (const auto& [stream, named] : role_names(model)) {
    const auto found = totals.find(stream);
    if (found == totals.end()) continue;
    line(named, found->second);
    totals.erase(found);
  }
  for (const auto& [stream, total] : totals) line({"?", fmt::format("{:08x}", stream)}, total);
  return text;
}

}  // namespace ulp::tools
