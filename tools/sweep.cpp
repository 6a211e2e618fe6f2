#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <set>

#include "core/error.h"
#include "core/format_text.h"
#include "nn/data/atomic_file.h"
#include "nn/data/policy_file.h"
#include "nn/training_loss.h"
#include "tools/commands.h"
#include "tools/format_options.h"
#include "tools/preflight.h"
#include "tools/progress.h"
#include "tools/sweep_results.h"
#include "tools/sweep_runs.h"
#include "tools/train_options.h"
#include "tools/training.h"

namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

constexpr const char* kReference = "fp32";

struct SweepOptions {
  std::shared_ptr<TrainOptions> training;
  FormatOptions formats{FormatOptions::Passes::Both};
  std::string list, seeds = "1,2,3", out = "runs/sweep";
  bool json = false, markdown = false;
};

/// An entry of the list.
struct Item {
  std::string name, folder;
  nn::Policy policy;
  bool reference = false;  // fp32 throughout
};

bool is_format(std::string_view text) {
  try {
    Quantizer::parse(text);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// FORWARD/BACKWARD, or one format for both. The names of formats may have a / themselves.
nn::Rule read_pair(const std::string& text) {
  size_t slash = std::string::npos;
  if (!is_format(text))
    for (slash = text.find('/'); slash != std::string::npos; slash = text.find('/', slash + 1))
      if (is_format(text.substr(0, slash)) && is_format(text.substr(slash + 1))) break;
  if (slash == std::string::npos && text.find('/') != std::string::npos && !is_format(text))
    slash = text.find('/');
  nn::Rule rule;
  rule.types = {nn::LayerType::Conv, nn::LayerType::Linear, nn::LayerType::Attention,
                nn::LayerType::Recurrent};
  rule.origin = "--formats " + text;
  rule.forward = format_value("--formats", text.substr(0, slash));
  rule.backward =
      slash == std::string::npos ? rule.forward : format_value("--formats", text.substr(slash + 1));
  for (const auto& q : {rule.forward, rule.backward})
    if (q && !misfit(*q).empty()) throw UsageError("--formats: " + misfit(*q));
  return rule;
}

/// The part of a folder's name that says the formats.
std::string folder_of(const std::string& name) {
  std::string folder = name;
  for (char& c : folder) {
    const auto code = static_cast<unsigned char>(c);
    if (!(std::isalnum(code) != 0 || c == '.' || c == '-' || c == '+')) c = '_';
  }
  return folder;
}

Item read_item(const std::string& text) {
  Item item;
  if (text.ends_with(".json")) {
    item.name = fs::path(text).filename().string();
    item.policy = nn::load_policy(text);
  } else {
    const nn::Rule rule = read_pair(text);
    item.name = text;
    item.reference = text == kReference;
    item.policy.rules.push_back(rule);
  }
  item.folder = folder_of(item.name);
  return item;
}

/// The same; errors say which entry it is.
Item read_entry(const std::string& text, size_t number) {
  const auto named = [&](const Error& error) {
    const std::string message = error.what(), flag = "--formats: ";
    return fmt::format("--formats, entry {} ('{}'): {}", number, text,
                       message.substr(message.starts_with(flag) ? flag.size() : 0));
  };
  try {
    return read_item(text);
  } catch (const UsageError& error) {
    throw UsageError(named(error));
  } catch (const Error& error) {
    throw Error(named(error));
  }
}

/// The roles that a rule sets, by name.
std::set<std::string> roles_of(const nn::Rule& rule) {
  std::set<std::string> roles;
  if (rule.forward) roles.insert({"input", "weight", "weight_dx", "input_dw"});
  if (rule.backward) roles.insert({"grad_output_dx", "grad_output_dw"});
  for (size_t i = 0; i < kRoles.size(); ++i)
    if (rule.roles[i]) roles.insert(kRoles[i].name);
  for (const nn::RuleSums& one : nn::kRuleSums)
    if (rule.*one.sums) roles.insert(one.product.sums);
  return roles;
}

/// Throws if a format flag would replace what an entry sets: its row would name formats that it was not trained with.
void check_flags(const Item& item, const nn::Policy& flags) {
  std::set<std::string> own;
  for (const nn::Rule& rule : item.policy.rules) own.merge(roles_of(rule));
  const auto any_of = [&](std::initializer_list<const char*> roles) {
    return std::any_of(roles.begin(), roles.end(),
                       [&](const char* role) { return own.count(role) != 0; });
  };
  const auto refuse = [&](const std::string& flag) {
    throw UsageError(flag + ": the entry '" + item.name +
                     "' of --formats sets that itself; leave one of them out");
  };
  for (const nn::Rule& rule : flags.rules) {
    if (rule.each_type || rule.optional) continue;  // of the file of --policy
    if (rule.forward && any_of({"input", "weight", "weight_dx", "input_dw"})) refuse("--forward");
    if (rule.backward && any_of({"grad_output_dx", "grad_output_dw"})) refuse("--backward");
    for (size_t i = 0; i < kRoles.size(); ++i)
      if (rule.roles[i] && own.count(kRoles[i].name) != 0) refuse(role_flag(kRoles[i].name));
    for (const nn::RuleSums& one : nn::kRuleSums)
      if (rule.*one.sums && own.count(one.product.sums) != 0) refuse(role_flag(one.product.sums));
  }
}

/// The list, with the reference in front. Policies of the same file name are told apart by their paths.
std::vector<Item> read_items(const SweepOptions& o) {
  const nn::Policy all = o.formats.policy();
  const nn::Policy first = o.formats.has_file() ? nn::Policy{} : recipe_policy(*o.training);
  std::vector<Item> items{{kReference, kReference, {}, true}};
  std::set<std::string> names, folders, files;
  std::map<std::string, int> same_name;
  for (const std::string_view part : text::split(o.list, ','))
    if (part.ends_with(".json") && files.insert(std::string(part)).second)
      ++same_name[fs::path(part).filename().string()];
  for (const std::string_view part : text::split(o.list, ',')) {
    Item item = read_entry(std::string(part), names.size() + 1);
    if (part.ends_with(".json") && same_name[item.name] > 1) {
      item.name = part;
      item.folder = folder_of(item.name);
    }
    if (!names.insert(item.name).second) throw UsageError("--formats has " + item.name + " twice");
    if (item.reference) continue;
    if (!folders.insert(item.folder).second)
      throw UsageError("--formats: two entries would have the folder " + item.folder);
    check_flags(item, all);
    item.policy.rules.insert(item.policy.rules.begin(), first.rules.begin(), first.rules.end());
    item.policy.rules.insert(item.policy.rules.end(), all.rules.begin(), all.rules.end());
    items.push_back(item);
  }
  if (items.size() == 1 && !all.rules.empty())
    throw UsageError(
        "--formats has the reference only, which is fp32 throughout, and --policy or the format "
        "flags are for the other "
        "entries; add one, such as e4m3");
  return items;
}

std::vector<uint64_t> read_seeds(const std::string& list) {
  std::vector<uint64_t> seeds;
  for (const std::string_view part : text::split(list, ',')) {
    const auto seed = integer_value<uint64_t>("--seeds", std::string(part), 0, UINT64_MAX);
    if (std::find(seeds.begin(), seeds.end(), seed) != seeds.end())
      throw UsageError("--seeds has " + std::string(part) + " twice");
    seeds.push_back(seed);
  }
  return seeds;
}

Experiment experiment_of(const Experiment& common, const Item& item, uint64_t seed) {
  Experiment e = item.reference ? common.baseline() : common;
  if (!item.reference) e.policy = item.policy;
  e.seed = seed;
  return e;
}

void run_sweep(SweepOptions& o) {
  Experiment common = resolve(*o.training);
  if (o.out.empty()) throw UsageError("--out takes a folder, got nothing");
  if (o.json && o.markdown) throw UsageError("--json and --markdown: give one of them");
  const std::vector<uint64_t> seeds = read_seeds(o.seeds);
  const std::vector<Item> items = read_items(o);
  const Checkpointing checkpointing = checkpointing_of(*o.training);
  FILE* const log = o.json || o.markdown ? stderr : stdout;
  const nn::Dataset data = [&] {
    const auto quiet = log == stderr ? std::make_unique<Quiet>() : nullptr;
    return prepare(*o.training, common);
  }();
  stream_of(common.device);  // throws if there is no such device

  std::vector<std::string> names;
  std::vector<PlannedRun> planned;
  for (const Item& item : items) {
    names.push_back(item.name);
    const Experiment first = experiment_of(common, item, seeds[0]);
    preflight(first, data);
    check_training(first, data);
    for (const uint64_t seed : seeds)
      planned.push_back(plan(item.name, item.folder, experiment_of(common, item, seed), data));
  }
  const fs::path dir = o.out;
  const std::vector<SweepRun> runs = train_all(planned, dir, checkpointing, log);
  const std::vector<SweepRow> rows = rows_of(runs, names);
  const fs::path picture = dir / "sweep.svg", curves = dir / "curves.svg";
  const std::string title =
      fmt::format("{} on {}, {} epoch{}{}", common.model, data.name, common.epochs,
                  common.epochs == 1 ? "" : "s",
                  common.epoch_steps == 0 ? "" : fmt::format(" of {} steps", common.epoch_steps));
  nn::write_file_atomically(picture, draw_sweep(rows, title, kAccuracyOverBits));
  nn::write_file_atomically(curves, draw_curves(runs, names, title));
  if (o.json)
    fmt::print("{}", table_json(rows));
  else if (o.markdown)
    fmt::print("{}", table_markdown(rows, {}));
  else
    fmt::print("\n{}\nresults {}\npictures {}, {}\n", table_text(rows, {}),
               (dir / "sweep.json").string(), picture.string(), curves.string());
}

}  // namespace

void add_sweep(CLI::App& app) {
  auto o = std::make_shared<SweepOptions>();
  CLI::App* cmd = app.add_subcommand(
      "sweep", "Train under a list of formats and seeds: one table, two pictures");
  cmd->add_option(
         "--formats", o->list,
         "entries FORWARD/BACKWARD, FORMAT for both passes, or POLICY.json, with commas between: "
         "e4m3/e5m2:sr,bfp8,rules.json; fp32 throughout is always the first")
      ->required();
  cmd->add_option("--seeds", o->seeds, "every entry is trained with each")->capture_default_str();
  cmd->add_option("--out", o->out,
                  "folder for sweep.json, sweep.svg, curves.svg and a folder a run; what is done "
                  "there is not "
                  "repeated")
      ->capture_default_str();
  cmd->add_flag("--json", o->json, "print the table as a JSON array of rows");
  cmd->add_flag("--markdown", o->markdown, "print the table for a README");
  o->training = add_training_options(*cmd);
  cmd->remove_option(cmd->get_option("--seed"));
  o->formats.add_to(*cmd);
  cmd->callback([o] { run_sweep(*o); });
}

}  // namespace ulp::tools
