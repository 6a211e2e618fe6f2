#include "tools/sweep_results.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "nn/data/read_file.h"

namespace ulp::tools {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const SweepRun& run) {
  Json json{{"formats", run.formats}, {"seed", run.seed}, {"bits", run.bits}};
  if (run.problem.empty()) {
    json["accuracy"] = run.accuracy;
    json["loss"] = run.loss;
  } else {
    json["diverged"] = run.problem;
  }
  json["seconds"] = run.seconds;
  json["curve"] = run.curve;
  if (run.last)
    json["last"] = {
        {"accuracy", run.last->accuracy}, {"loss", run.last->loss}, {"curve", run.last->curve}};
  json["data"] = run.data;
  json["config"] = Json::parse(run.config);
  return json;
}

SweepRun run_of(const Json& json) {
  SweepRun run;
  run.formats = json.at("formats").get<std::string>();
  run.seed = json.at("seed").get<uint64_t>();
  run.bits = json.at("bits").get<double>();
  if (json.contains("diverged")) {
    run.problem = json.at("diverged").get<std::string>();
  } else {
    run.accuracy = json.at("accuracy").get<double>();
    run.loss = json.at("loss").get<double>();
  }
  run.seconds = json.at("seconds").get<double>();
  run.curve = json.value("curve", std::vector<double>{});  // older files have none
  if (json.contains("last")) {
    const Json& last = json.at("last");
    run.last = SweepScore{last.at("accuracy").get<double>(), last.at("loss").get<double>(),
                          last.at("curve").get<std::vector<double>>()};
  }
  run.data = json.at("data").get<std::string>();
  run.config = json.at("config").dump(2) + "\n";
  return run;
}

/// The path of the first key that says something else in b; empty if they are equal.
std::string difference(const Json& a, const Json& b, const std::string& path) {
  const auto below = [&](const std::string& key) { return path.empty() ? key : path + "." + key; };
  if (a.is_object() && b.is_object()) {
    for (const auto& [key, value] : a.items()) {
      const std::string found =
          b.contains(key) ? difference(value, b.at(key), below(key)) : below(key);
      if (!found.empty()) return found;
    }
    for (const auto& [key, value] : b.items())
      if (!a.contains(key)) return below(key);
    return "";
  }
  if (a.is_array() && b.is_array() && a.size() == b.size()) {
    for (size_t i = 0; i < a.size(); ++i)  // objects may have their keys in another order
      if (a[i].is_object() ? !difference(a[i], b[i], "?").empty() : a[i] != b[i]) return path;
    return "";
  }
  return a == b ? "" : path;
}

std::string shown(const Json& json, const std::string& path) {
  const Json* at = &json;
  size_t begin = 0;
  while (begin <= path.size()) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string key = path.substr(begin, end - begin);
    if (!at->is_object() || !at->contains(key)) return "nothing";
    at = &at->at(key);
    begin = end + 1;
  }
  const std::string text = at->dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= 100 ? text : text.substr(0, 100) + "...";
}

std::string spread_text(const std::optional<Spread>& spread, int decimals, bool sign) {
  if (!spread) return "–";
  std::string text = sign ? fmt::format("{:+.{}f}", spread->mean, decimals)
                          : fmt::format("{:.{}f}", spread->mean, decimals);
  if (spread->deviation) text += fmt::format(" ± {:.{}f}", *spread->deviation, decimals);
  return text;
}

using Cells = std::array<std::string, 6>;

Cells heads_of(const TableStyle& style) {
  const std::string to = "to " + style.reference;
  if (style.by_loss) return {style.rows, "bits", "loss", to, "accuracy %", "runs"};
  return {style.rows, "bits", "accuracy %", to, "loss", "runs"};
}

Cells cells_of(const SweepRow& row, const TableStyle& style) {
  const std::string accuracy = spread_text(row.accuracy, 2, false),
                    loss = spread_text(row.loss, 4, false);
  const int64_t good = row.runs - row.diverged;
  const bool all_diverged = good == 0 && row.diverged > 0;
  return {row.formats,
          fmt::format("{:.4g}", row.bits),
          all_diverged    ? "diverged"
          : style.by_loss ? loss
                          : accuracy,
          style.by_loss ? spread_text(row.loss_difference, 4, true)
                        : spread_text(row.difference, 2, true),
          style.by_loss ? accuracy : loss,
          row.diverged == 0 ? std::to_string(row.runs)
                            : fmt::format("{}, {} diverged", good, row.diverged)};
}

/// Columns that a UTF-8 text takes.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

void add_number(Json& json, const std::string& key, const std::optional<Spread>& spread) {
  json[key] = spread ? Json(spread->mean) : Json(nullptr);
  json[key + "_deviation"] = spread && spread->deviation ? Json(*spread->deviation) : Json(nullptr);
}

}  // namespace

SweepResults::SweepResults(std::filesystem::path file) : file_(std::move(file)) {
  if (!std::filesystem::exists(file_)) return;
  const std::vector<uint8_t> bytes = nn::read_file(file_);
  try {
    const Json json = Json::parse(bytes);
    for (const Json& run : json.at("runs")) runs_.push_back(run_of(run));
  } catch (const Json::exception&) {
    throw_error("{}: these are no results of ulp sweep; remove the file or give another --out",
                file_.string());
  }
}

const SweepRun* SweepResults::find(const SweepRun& wanted) const {
  for (const SweepRun& run : runs_) {
    if (run.formats != wanted.formats || run.seed != wanted.seed) continue;
    const Json done = Json::parse(run.config), now = Json::parse(wanted.config);
    const std::string key = difference(done, now, "");
    ULP_CHECK(key.empty(),
              "{}: {} with seed {} was run with \"{}\": {}, and now it is {}; give the same "
              "settings, or another --out",
              file_.string(), run.formats, run.seed, key, shown(done, key), shown(now, key));
    ULP_CHECK(run.data == wanted.data,
              "{}: {} with seed {} was run with other samples; give another --out", file_.string(),
              run.formats, run.seed);
    return &run;
  }
  return nullptr;
}

void SweepResults::add(const SweepRun& run) {
  runs_.push_back(run);
  Json runs = Json::array();
  for (const SweepRun& one : runs_) runs.push_back(to_json(one));
  nn::write_file_atomically(file_, Json{{"runs", runs}}.dump(2) + "\n");
}

std::optional<Spread> spread_of(const std::vector<double>& values) {
  if (values.empty()) return {};
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (const double v : values) sum += v;
  Spread spread{sum / n};
  for (const double v : values) squares += (v - spread.mean) * (v - spread.mean);
  if (values.size() > 1) spread.deviation = std::sqrt(squares / (n - 1));
  return spread;
}

std::vector<SweepRow> rows_of(const std::vector<SweepRun>& runs,
                              const std::vector<std::string>& formats) {
  std::map<uint64_t, const SweepRun*> reference;
  for (const SweepRun& run : runs)
    if (run.formats == formats[0] && run.problem.empty()) reference[run.seed] = &run;
  std::vector<SweepRow> rows;
  for (const std::string& name : formats) {
    SweepRow row;
    row.formats = name;
    std::vector<double> differences, loss_differences;
    for (const SweepRun& run : runs) {
      if (run.formats != name) continue;
      row.x = row.bits = run.bits;
      ++row.runs;
      if (!run.problem.empty()) {
        ++row.diverged;
        continue;
      }
      row.accuracies.push_back(100 * run.accuracy);
      row.losses.push_back(run.loss);
      if (name == formats[0] || !reference.contains(run.seed)) continue;
      differences.push_back(100 * (run.accuracy - reference.at(run.seed)->accuracy));
      loss_differences.push_back(run.loss - reference.at(run.seed)->loss);
    }
    row.accuracy = spread_of(row.accuracies);
    row.loss = spread_of(row.losses);
    row.difference = spread_of(differences);
    row.loss_difference = spread_of(loss_differences);
    rows.push_back(row);
  }
  return rows;
}

std::string table_text(const std::vector<SweepRow>& rows, const TableStyle& style) {
  std::vector<Cells> lines{heads_of(style)};
  for (const SweepRow& row : rows) lines.push_back(cells_of(row, style));
  std::array<size_t, std::tuple_size_v<Cells>> widths{};
  for (const Cells& cells : lines)
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], width_of(cells[i]));
  std::string text;
  for (const Cells& cells : lines) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i)
      line += cells[i] + std::string(widths[i] - width_of(cells[i]) + 2, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string table_markdown(const std::vector<SweepRow>& rows, const TableStyle& style) {
  const auto line_of = [](const Cells& cells) {
    std::string line = "|";
    for (const std::string& cell : cells) line += fmt::format(" {} |", cell);
    return line + "\n";
  };
  std::string text = line_of(heads_of(style)) + "|";
  for (size_t i = 0; i < std::tuple_size_v<Cells>; ++i) text += "---|";
  text += "\n";
  for (const SweepRow& row : rows) text += line_of(cells_of(row, style));
  return text;
}

std::string table_json(const std::vector<SweepRow>& rows) {
  Json all = Json::array();
  for (const SweepRow& row : rows) {
    Json json{{"formats", row.formats},
              {"bits", row.bits},
              {"runs", row.runs},
              {"diverged", row.diverged}};
    add_number(json, "accuracy", row.accuracy);
    add_number(json, "difference", row.difference);
    add_number(json, "loss", row.loss);
    add_number(json, "loss_difference", row.loss_difference);
    all.push_back(json);
  }
  return all.dump(2) + "\n";
}

}  // namespace ulp::tools
