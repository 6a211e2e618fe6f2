#include "tools/recipe_option.h"

#include <fmt/core.h>

#include "core/error.h"
#include "core/format_text.h"
#include "nn/data/dataset.h"
#include "nn/data/policy_file.h"
#include "nn/recipes.h"
#include "tools/format_options.h"

namespace ulp::tools {
namespace {

const nn::Recipe& recipe_of(const std::string& name) {
  try {
    return nn::recipe(name);
  } catch (const Error& error) {
    throw UsageError(std::string("--recipe: ") + error.what());
  }
}

}  // namespace

void RecipeOption::add_to(CLI::App& app) {
  app_ = &app;
  add_text(app, "--recipe", name_,
           "a published method by its name (ulp recipes lists them): its formats and options, "
           "where none are given");
}

std::optional<RecipeUse> RecipeOption::apply(const OptimizerFlags& optimizer,
                                             const std::string& data) const {
  if (!name_) return {};
  const nn::Recipe& recipe = recipe_of(*name_);
  RecipeUse use{std::string(recipe.name), std::string(recipe.source), "", {}};
  std::vector<std::string_view> words;
  for (const std::string_view flags : {recipe.flags, recipe.adam_flags})
    for (const std::string_view word : text::split(flags, ' '))
      if (!word.empty()) words.push_back(word);
  ULP_ASSERT(words.size() % 2 == 0);
  for (size_t i = 0; i < words.size(); i += 2) {
    const std::string flag(words[i]), value(words[i + 1]);
    CLI::Option* const option = app_->get_option(flag);
    const bool has_use = optimizer.takes(flag) && (flag != "--loss" || !nn::is_text_name(data));
    if (option->count() > 0 || !has_use) {
      use.replaced.push_back(flag + " " + value);
      continue;
    }
    option->add_result(value);
    option->run_callback();
    use.flags += (use.flags.empty() ? "" : " ") + flag + " " + value;
  }
  return use;
}

nn::Policy RecipeOption::policy() const {
  if (!name_) return {};
  const nn::Recipe& recipe = recipe_of(*name_);
  return nn::parse_policy(recipe.policy, fmt::format("recipe {}", recipe.name));
}

}  // namespace ulp::tools
