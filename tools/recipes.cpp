#include "nn/recipes.h"

#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <string>

#include "core/error.h"
#include "tools/commands.h"
#include "tools/progress.h"

namespace ulp::tools {
namespace {

void print_table() {
  size_t names = 0, abouts = 0;
  for (const nn::Recipe& r : nn::recipes()) {
    names = std::max(names, r.name.size());
    abouts = std::max(abouts, r.about.size());
  }
  fmt::print("{:<{}}  {:<{}}  {}\n", "recipe", names, "what", abouts, "source");
  for (const nn::Recipe& r : nn::recipes())
    fmt::print("{:<{}}  {:<{}}  {}\n", r.name, names, r.about, abouts, r.source);
  fmt::print(
      "\nulp train --recipe NAME trains with one, other options win; ulp recipes NAME prints its "
      "policy.\n");
}

/// The policy alone goes to the standard output, so that it can be kept as a file.
void print_recipe(const std::string& name) {
  const nn::Recipe& r = [&]() -> const nn::Recipe& {
    try {
      return nn::recipe(name);
    } catch (const Error& error) {
      throw UsageError(std::string("recipes: ") + error.what());
    }
  }();
  fmt::print(stderr, "{}: {}\nsource       {}\ndifferences  {}\noptions      {}\n", r.name, r.about,
             r.source, r.differences, r.flags.empty() ? "none" : r.flags);
  if (!r.adam_flags.empty()) fmt::print(stderr, "with adam    {}\n", r.adam_flags);
  fmt::print(stderr, "policy\n");
  std::fflush(stderr);
  fmt::print("{}\n", r.policy);
}

}  // namespace

void add_recipes(CLI::App& app) {
  auto name = std::make_shared<std::string>();
  CLI::App* cmd =
      app.add_subcommand("recipes", "Published methods of training, each one name for ulp train");
  CLI::Option* given = cmd->add_option(
      "NAME", *name,
      "one recipe: its policy as JSON for --policy; what else it stands for goes to the standard "
      "error");
  cmd->callback([name, given] { given->count() == 0 ? print_table() : print_recipe(*name); });
}

}  // namespace ulp::tools
