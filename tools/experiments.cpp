#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "tools/commands.h"
#include "tools/experiment_file.h"
#include "tools/format_options.h"
#include "tools/preflight.h"
#include "tools/progress.h"
#include "tools/sweep_results.h"
#include "tools/sweep_runs.h"
#include "tools/train_options.h"
#include "tools/training.h"

// ulp experiment: the rows of a file of tools/experiments, each with several seeds.
namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

struct ExperimentCommand {
  std::string name, seeds = "3";
  std::optional<std::string> out;
  bool quick = false, json = false, markdown = false, explain = false;
  CLI::App* app = nullptr;
};

std::string text_of(const Flags& flags) {
  std::string text;
  for (const auto& [flag, value] : flags)
    text += (text.empty() ? "" : " ") + flag + (value ? " " + *value : "");
  return text;
}

/// f(); errors say which row they are of.
template <class F>
auto for_row(const std::string& where, F f) {
  try {
    return f();
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("{}: {}", where, error.what()));
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}", where, error.what()));
  }
}

/// The runs of a row that is the last weights of another one's.
std::vector<SweepRun> last_runs(const ExperimentFile::Row& row, const std::vector<SweepRun>& runs) {
  std::vector<SweepRun> last;
  for (const SweepRun& run : runs) {
    if (run.formats != row.last_of) continue;
    last.push_back(run);
    last.back().formats = row.name;
    if (!run.problem.empty()) continue;
    ULP_CHECK(run.last, "{} with seed {} made no average: every step of it was skipped",
              run.formats, run.seed);
    last.back().accuracy = run.last->accuracy;
    last.back().loss = run.last->loss;
    last.back().curve = run.last->curve;
  }
  return last;
}

/// What a row's options say, read as ulp train reads them.
struct RowOptions {
  std::shared_ptr<TrainOptions> training;
  Experiment experiment;
};

RowOptions read_row(const std::string& where, const Flags& flags) {
  CLI::App app;
  app.set_help_flag();
  FormatOptions formats{FormatOptions::Passes::Both};
  RowOptions row{add_training_options(app), {}};
  app.remove_option(app.get_option("--seed"));
  formats.add_to(app);
  std::vector<std::string> words;
  for (const auto& [flag, value] : flags) words.push_back(flag + (value ? "=" + *value : ""));
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  for_row(where, [&] {
    try {
      app.parse(words);
    } catch (const CLI::ParseError& error) {
      throw UsageError(error.what());
    }
    row.experiment = resolve(*row.training);
    row.experiment.policy = formats.policy(recipe_policy(*row.training));
  });
  return row;
}

/// The options that were given and that only the rows may have.
void check_given(const ExperimentFile& file, const Flags& given) {
  for (const auto& [flag, value] : given) {
    if (flag == "--seed")
      throw UsageError("--seed: an experiment has seeds 1 to N; give their number as --seeds N");
    for (const ExperimentFile::Row& row : file.rows)
      for (const auto& own : row.options)
        if (own.first == flag)
          throw UsageError(
              fmt::format("{}: that is what the rows of {} differ in; to change it, "
                          "copy the file and give its path",
                          flag, file.name));
  }
}

void list() {
  const std::vector<std::string> names = experiment_names();
  size_t width = 0;
  for (const std::string& name : names) width = std::max(width, name.size());
  for (const std::string& name : names)
    fmt::print("{:<{}}  {}\n", name, width, load_experiment(name).title);
  fmt::print("\nulp experiment NAME [--quick] [--seeds N] runs one; --explain prints its rows.\n");
}

/// Options as a file has them: a text, or words where it would not be read so again.
Json json_of(const Flags& flags) {
  Json words = Json::array();
  bool plain = true;
  for (const auto& [flag, value] : flags) {
    words.push_back(value && value->starts_with("--") ? flag + "=" + *value : flag);
    if (value && !value->starts_with("--")) words.push_back(*value);
    plain = plain && !(value && (value->empty() || value->starts_with("--") ||
                                 value->find(' ') != std::string::npos));
  }
  return plain ? Json(text_of(flags)) : words;
}

/// The experiment as a file that gives the same without --quick and options.
std::string explain_json(const ExperimentFile& file, const std::string& title,
                         const Flags& common) {
  Json json{{"title", title},
            {"source", file.source},
            {"differences", file.differences},
            {"options", json_of(common)},
            {"measure", file.by_loss ? "loss" : "accuracy"}};
  if (!file.x.empty()) json["x"] = file.x;
  Json& rows = json["rows"] = Json::array();
  for (const ExperimentFile::Row& row : file.rows) {
    Json one{{"name", row.name}};
    if (row.last_of.empty())
      one["options"] = json_of(row.options);
    else
      one["last_of"] = row.last_of;
    if (row.x) one["x"] = *row.x;
    if (!row.series.empty()) one["series"] = row.series;
    rows.push_back(one);
  }
  return json.dump(2) + "\n";
}

void print_head(std::FILE* to, const ExperimentFile& file, const std::string& title,
                const Flags& common) {
  fmt::print(to, "{}\nsource       {}\ndifferences  {}\noptions      {}\n", title, file.source,
             file.differences, text_of(common));
  for (const ExperimentFile::Row& row : file.rows)
    fmt::print(to, "  {}: {}\n", row.name,
               !row.last_of.empty()  ? fmt::format("the last weights of '{}'", row.last_of)
               : row.options.empty() ? "nothing more"
                                     : text_of(row.options));
}

void run(const ExperimentCommand& o) {
  const Flags given = parse_flags(o.app->remaining(), "experiment");
  if (o.name.empty()) {
    if (!given.empty())
      throw UsageError("experiment: " + given[0].first + " goes behind the name of an experiment");
    return list();
  }
  const ExperimentFile file = load_experiment(o.name);
  if (o.json && o.markdown) throw UsageError("--json and --markdown: give one of them");
  if (o.explain && o.markdown)
    throw UsageError("--markdown is for the table of results; --explain takes --json");
  const auto seeds = integer_value<uint64_t>("--seeds", o.seeds, 1, 1000);
  check_given(file, given);
  const Flags common = over(o.quick ? over(file.options, file.quick) : file.options, given);

  const std::string& title = o.quick ? file.quick_title : file.title;

  const auto place = [&file](const ExperimentFile::Row& row) {
    return fmt::format("{}, row '{}'", file.name, row.name);
  };
  std::vector<const ExperimentFile::Row*> trained;
  std::vector<RowOptions> rows;  // of these
  for (const ExperimentFile::Row& row : file.rows) {
    if (!row.last_of.empty()) continue;
    trained.push_back(&row);
    rows.push_back(read_row(place(row), over(common, row.options)));
  }
  for (const ExperimentFile::Row& row : file.rows)
    for (size_t i = 0; i < trained.size(); ++i)
      ULP_CHECK(row.last_of != trained[i]->name || rows[i].experiment.average,
                "{}: it is the last weights of '{}', which averages none; give that --average",
                place(row), row.last_of);
  if (o.explain && o.json) return fmt::print("{}", explain_json(file, title, common));
  std::FILE* const log = o.json || o.markdown ? stderr : stdout;
  print_head(log, file, title, common);
  if (o.explain) return;

  const nn::Dataset data = [&] {
    const auto quiet = log == stderr ? std::make_unique<Quiet>() : nullptr;
    return prepare(*rows[0].training, rows[0].experiment);
  }();
  stream_of(rows[0].experiment.device);  // throws if there is no such device

  std::vector<PlannedRun> planned;
  for (size_t i = 0; i < rows.size(); ++i) {
    Experiment& e = rows[i].experiment;
    const ExperimentFile::Row& row = *trained[i];
    for_row(place(row), [&] {
      const nn::Dataset own = data.is_text() ? nn::with_context(data, e.sequence.context) : data;
      if (i > 0) {
        const Quiet quiet;
        fit(*rows[i].training, e, own);
      }
      preflight(e, own);
      check_training(e, own);
      for (uint64_t seed = 1; seed <= seeds; ++seed) {
        e.seed = seed;
        planned.push_back(plan(row.name, row.folder(), e, own));
        planned.back().wants_last =
            std::any_of(file.rows.begin(), file.rows.end(),
                        [&](const auto& other) { return other.last_of == row.name; });
      }
    });
  }
  const fs::path dir =
      o.out.value_or("runs/" + fs::path(file.name).stem().string() + (o.quick ? "-quick" : ""));
  if (dir.empty()) throw UsageError("--out takes a folder, got nothing");
  std::vector<SweepRun> runs = train_all(planned, dir, checkpointing_of(*rows[0].training), log);

  std::vector<std::string> names;
  for (const ExperimentFile::Row& row : file.rows) {
    names.push_back(row.name);
    if (row.last_of.empty()) continue;
    const std::vector<SweepRun> last = last_runs(row, runs);
    runs.insert(runs.end(), last.begin(), last.end());
  }
  std::vector<SweepRow> results = rows_of(runs, names);
  for (size_t i = 0; i < results.size(); ++i) {
    if (file.rows[i].x) results[i].x = *file.rows[i].x;
    results[i].series = file.rows[i].series;
  }
  const Experiment& e = rows[0].experiment;
  const std::string head = fmt::format("{} ({} on {})", title, e.model, data.name);
  std::string pictures = (dir / "curves.svg").string();
  nn::write_file_atomically(dir / "curves.svg", draw_curves(runs, names, head));
  if (!file.x.empty()) {
    const std::string x = file.x == "bits" ? kAccuracyOverBits.x_title : file.x;
    nn::write_file_atomically(dir / "results.svg",
                              draw_sweep(results, head, {x.c_str(), file.by_loss}));
    pictures += ", " + (dir / "results.svg").string();
  }
  const TableStyle style{"setting", names[0], file.by_loss};
  if (o.json)
    fmt::print("{}", table_json(results));
  else if (o.markdown)
    fmt::print("{}", table_markdown(results, style));
  else
    fmt::print("\n{}\nresults {}\npictures {}\n", table_text(results, style),
               (dir / "sweep.json").string(), pictures);
}

}  // namespace

void add_experiment(CLI::App& app) {
  auto o = std::make_shared<ExperimentCommand>();
  CLI::App* cmd = app.add_subcommand(
      "experiment", "Comparisons of trainings from the literature, each one command");
  o->app = cmd;
  cmd->add_option("NAME", o->name,
                  "one of those that ulp experiment lists, or FILE.json like those of "
                  "tools/experiments; options of ulp train behind it win over the file's");
  cmd->add_option("--seeds", o->seeds, "how many: every row is trained with 1 to N")
      ->capture_default_str();
  cmd->add_flag("--quick", o->quick, "the short form, for a CPU");
  add_text(*cmd, "--out", o->out,
           "folder for sweep.json, the pictures and a folder a run; what is done there is not "
           "repeated (default: runs/NAME)");
  cmd->add_flag("--explain", o->explain,
                "train nothing: print the options of every row; with --json as a file that "
                "gives the same");
  cmd->add_flag("--json", o->json, "print the table as a JSON array of rows");
  cmd->add_flag("--markdown", o->markdown, "print the table for a README");
  cmd->allow_extras();
  cmd->callback([o] { run(*o); });
}

}  // namespace ulp::tools
