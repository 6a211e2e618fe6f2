#include "tools/format_options.h"

#include <algorithm>

#include "core/error.h"

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

std::string misfit(const Quantizer& q) {
  if (q.block.kind != Block::Kind::Axis || q.block.axis < 2) return "";
  return to_string(q) + " needs axis " + std::to_string(q.block.axis) + "; there are axes 0 and 1";
}

std::string misfit(const Role& role, const Quantizer& q) {
  if (role.quantizer == &OpFormats::interior && !q.is_elementwise())
    return to_string(q) + " has blocks; the softmax takes a format without";
  return misfit(q);
}

void FormatOptions::add_to(CLI::App& app) {
  const bool both = passes_ == Passes::Both;
  const std::string group =
      "Formats (eXmY, fixedW.F, bfpW[-axisK|-gN], fp16, bf16, tf32, fp32; :rounding)";
  const std::string unlisted;
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
}

void FormatOptions::set(OpFormats& formats, const std::string& flag,
                        const std::optional<std::string>& text,
                        std::initializer_list<Quantizer OpFormats::*> roles) const {
  if (!text) return;
  if (passes_ == Passes::Forward && std::none_of(roles.begin(), roles.end(), is_forward))
    throw UsageError(flag + ": evaluation has no backward pass");
  const Quantizer q = format_value(flag, *text);
  for (const Role& role : kRoles) {
    if (std::find(roles.begin(), roles.end(), role.quantizer) == roles.end()) continue;
    const std::string problem = misfit(role, q);
    if (!problem.empty()) throw UsageError(flag + ": " + problem);
    formats.*role.quantizer = q;
  }
}

OpFormats FormatOptions::apply(OpFormats f) const {
  set(f, "--forward", forward_,
      {&OpFormats::input, &OpFormats::weight, &OpFormats::weight_dx, &OpFormats::input_dw});
  set(f, "--backward", backward_, {&OpFormats::grad_output_dx, &OpFormats::grad_output_dw});
  for (const Role& role : kRoles)
    set(f, role_flag(role.name), roles_.at(role.name), {role.quantizer});
  return f;
}

}  // namespace ulp::tools
