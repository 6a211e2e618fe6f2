#include "tools/format_options.h"

#include <algorithm>

#include "core/error.h"
#include "nn/data/policy_file.h"

namespace ulp::tools {
namespace {

bool is_forward(Quantizer OpFormats::*role) {
  return role == &OpFormats::input || role == &OpFormats::weight || role == &OpFormats::output ||
         role == &OpFormats::interior;
}

}  // namespace

CLI::Option* add_text(CLI::App& app, const std::string& flag, std::optional<std::string>& text,
                      const std::string& meaning) {
  const auto keep = [&text](const std::string& given) { text = given; };
  return app.add_option_function<std::string>(flag, keep, meaning);
}

std::string role_flag(const std::string& role) {
  std::string flag = "--" + role;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

void FormatOptions::add_to(CLI::App& app) {
  const bool both = passes_ == Passes::Both;
  const std::string group =
      "Formats (eXmY, fixedW.F, bfpW[-axisK|-gN], fp16, bf16, tf32, fp32; :rounding)";
  const std::string unlisted;
  add_text(app, "--policy", policy_,
           "FILE.json with rules: which layers get which formats, in which epochs; the flags below "
           "win over it; in place of the --recipe's rules where both are given")
      ->group(group);
  add_text(app, "--forward", forward_,
           both ? "sets input, weight, weight_dx and input_dw of every layer with a product"
                : "sets input and weight of every layer with a product")
      ->group(group);
  add_text(app, "--backward", backward_,
           "sets grad_output_dx and grad_output_dw of every layer with a product")
      ->group(both ? group : unlisted);
  for (const Role& role : kRoles)
    add_text(app, role_flag(role.name), roles_[role.name], role.meaning)
        ->group(both || is_forward(role.quantizer) ? group : unlisted);
  for (const nn::RuleSums& one : nn::kRuleSums)
    add_text(
        app, role_flag(one.product.sums), roles_[one.product.sums],
        std::string("how the sums of ") + one.product.result +
            " are kept: fp32, F (one rounding a term), F/G (products, sums), chunkN/F[/G], kahan/F")
        ->group(both || is_forward(one.product.rounding) ? group : unlisted);
}

std::optional<Accumulator> FormatOptions::read_sums(const nn::RuleSums& one) const {
  const auto& text = roles_.at(one.product.sums);
  if (!text) return {};
  const std::string flag = role_flag(one.product.sums);
  if (passes_ == Passes::Forward && !is_forward(one.product.rounding))
    throw UsageError(flag + ": evaluation has no backward pass");
  try {
    return Accumulator::parse(*text);
  } catch (const Error& error) {
    throw UsageError(flag + ": " + error.what());
  }
}

std::optional<Quantizer> FormatOptions::read(
    const std::string& flag, const std::optional<std::string>& text,
    std::initializer_list<Quantizer OpFormats::*> roles) const {
  if (!text) return {};
  if (passes_ == Passes::Forward && std::none_of(roles.begin(), roles.end(), is_forward))
    throw UsageError(flag + ": evaluation has no backward pass");
  const Quantizer q = format_value(flag, *text);
  for (const Role& role : kRoles) {
    if (std::find(roles.begin(), roles.end(), role.quantizer) == roles.end()) continue;
    const std::string problem = misfit(role, q);
    if (!problem.empty()) throw UsageError(flag + ": " + problem);
  }
  return q;
}

nn::Policy FormatOptions::policy(nn::Policy policy) const {
  nn::Rule products, interior;
  products.types = {nn::LayerType::Conv, nn::LayerType::Linear, nn::LayerType::Attention,
                    nn::LayerType::Recurrent};
  products.origin = interior.origin = "the format flags";
  products.forward =
      read("--forward", forward_,
           {&OpFormats::input, &OpFormats::weight, &OpFormats::weight_dx, &OpFormats::input_dw});
  products.backward =
      read("--backward", backward_, {&OpFormats::grad_output_dx, &OpFormats::grad_output_dw});
  bool of_products = products.forward || products.backward;
  for (const Role& role : kRoles) {
    const auto q = read(role_flag(role.name), roles_.at(role.name), {role.quantizer});
    const bool is_interior = role.quantizer == &OpFormats::interior;
    (is_interior ? interior : products).role(role.name) = q;
    of_products = of_products || (q && !is_interior);
  }
  for (const nn::RuleSums& one : nn::kRuleSums) {
    products.*one.sums = read_sums(one);
    of_products = of_products || products.*one.sums;
  }
  if (policy_ && policy_->empty()) throw UsageError("--policy takes a file, got nothing");
  if (policy_) policy = nn::load_policy(*policy_);
  if (of_products) policy.rules.push_back(products);
  if (interior.role("interior")) policy.rules.push_back(interior);
  return policy;
}

}  // namespace ulp::tools
