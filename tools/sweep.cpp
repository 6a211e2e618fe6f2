#include <fmt/core.h>

#include <algorithm>
#include <chrono>
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
#include "tools/folder_lock.h"
#include "tools/format_bits.h"
#include "tools/format_options.h"
#include "tools/preflight.h"
#include "tools/progress.h"
#include "tools/sweep_results.h"
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

/// The mean over the operands of all products in the last epoch.
double bits_of(const Experiment& e, const nn::Dataset& data) {
  const auto model = make_model(e, data);
  nn::TrainingLoss loss{e.loss, {}};
  const std::vector<nn::Layer> layers = nn::layers_of(*model, loss);
  nn::apply(e.policy, layers, e.epochs);
  double sum = 0;
  int count = 0;
  for (const nn::Layer& layer : layers) {
    if (!nn::has_product(layer.type)) continue;
    for (const auto role :
         {&OpFormats::input, &OpFormats::weight, &OpFormats::grad_output_dx, &OpFormats::weight_dx,
          &OpFormats::grad_output_dw, &OpFormats::input_dw}) {
      const Quantizer& q = layer.formats->*role;
      sum += bits_per_element(q).value_or(element_bits(q.format));
      ++count;
    }
  }
  return count == 0 ? 32 : sum / count;
}

/// Trains one.
SweepRun trained(SweepRun run, const Experiment& e, const nn::Dataset& data, const fs::path& dir,
                 Checkpointing checkpointing) {
  const auto start = std::chrono::steady_clock::now();
  checkpointing.resume = checkpointing.resume || checkpointing.every > 0;
  make_folder(dir);
  const FolderLock lock(dir);
  try {
    const Quiet quiet;
    const nn::Score score = train(e, data, dir, "sweep", checkpointing);
    run.accuracy = score.accuracy;
    run.loss = score.loss;
  } catch (const Diverged& error) {
    run.problem = error.what();
  }
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return run;
}

std::string line_of(const SweepRun& run) {
  if (!run.problem.empty()) return "diverged: " + run.problem;
  return fmt::format("test loss {:.4f} accuracy {:.4f}", run.loss, run.accuracy);
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
  std::vector<std::pair<SweepRun, Experiment>> wanted;
  for (const Item& item : items) {
    names.push_back(item.name);
    preflight(experiment_of(common, item, seeds[0]), data);
    for (const uint64_t seed : seeds) {
      const Experiment e = experiment_of(common, item, seed);
      SweepRun run;
      run.formats = item.name;
      run.seed = seed;
      run.bits = bits_of(e, data);
      run.config = config_text(e, data);
      run.data = fingerprint(data);
      wanted.emplace_back(run, e);
    }
  }
  const fs::path dir = o.out;
  make_folder(dir);
  const FolderLock lock(dir);
  SweepResults results(dir / "sweep.json");
  for (const auto& [run, e] : wanted) results.find(run);  // what was run otherwise is told first

  std::vector<SweepRun> runs;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto& [run, e] = wanted[i];
    const SweepRun* before = results.find(run);
    if (before != nullptr) {
      runs.push_back(*before);
    } else {
      const std::string folder = fmt::format("{}-seed{}", items[i / seeds.size()].folder, run.seed);
      runs.push_back(trained(run, e, data, dir / folder, checkpointing));
      results.add(runs.back());
    }
    fmt::print(log, "{}/{}  {} seed {}: {}{}\n", i + 1, wanted.size(), run.formats, run.seed,
               line_of(runs.back()), before == nullptr ? "" : " (done before)");
    std::fflush(log);
  }
  const std::vector<SweepRow> rows = rows_of(runs, names);
  const fs::path picture = dir / "sweep.svg";
  nn::write_file_atomically(
      picture, draw_sweep(rows, fmt::format("{} on {}, {} epoch{}", common.model, data.name,
                                            common.epochs, common.epochs == 1 ? "" : "s")));
  if (o.json)
    fmt::print("{}", table_json(rows));
  else if (o.markdown)
    fmt::print("{}", table_markdown(rows));
  else
    fmt::print("\n{}\nresults {}\npicture {}\n", table_text(rows), (dir / "sweep.json").string(),
               picture.string());
}

}  // namespace

void add_sweep(CLI::App& app) {
  auto o = std::make_shared<SweepOptions>();
  CLI::App* cmd = app.add_subcommand(
      "sweep", "Train under a list of formats and seeds: one table, one picture");
  cmd->add_option(
         "--formats", o->list,
         "entries FORWARD/BACKWARD, FORMAT for both passes, or POLICY.json, with commas between: "
         "e4m3/e5m2:sr,bfp8,rules.json; fp32 throughout is always the first")
      ->required();
  cmd->add_option("--seeds", o->seeds, "every entry is trained with each")->capture_default_str();
  cmd->add_option("--out", o->out,
                  "folder for sweep.json, sweep.svg and a folder a run; what is done there is not "
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
