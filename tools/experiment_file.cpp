#include "tools/experiment_file.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/format_text.h"
#include "core/pattern.h"
#include "nn/data/read_file.h"

// One JSON object of all files of tools/experiments, by name (CMakeLists.txt).
extern const unsigned char ulp_experiments[];
extern const unsigned long ulp_experiments_size;

namespace ulp::tools {
namespace {

using Json = nlohmann::ordered_json;

Json embedded() {
  const auto* text = reinterpret_cast<const char*>(ulp_experiments);
  return Json::parse(text, text + ulp_experiments_size);
}

class Reader {
 public:
  Reader(const Json& json, std::string where, std::initializer_list<const char*> keys)
      : json_(json), where_(std::move(where)) {
    ULP_CHECK(json.is_object(), "{}: expected an object, got {}", where_, json.type_name());
    for (const auto& [key, value] : json.items())
      ULP_CHECK(std::find(keys.begin(), keys.end(), key) != keys.end(),
                "{}: unknown key '{}'; there are {}", where_, key, fmt::join(keys, ", "));
  }

  std::string text(const char* key) const {
    ULP_CHECK(json_.contains(key), "{}: \"{}\" is missing", where_, key);
    ULP_CHECK(json_[key].is_string(), "{}: \"{}\" is to be a text, got {}", where_, key,
              json_[key].dump());
    return json_[key];
  }
  std::string text_or(const char* key, const char* otherwise) const {
    return json_.contains(key) ? text(key) : otherwise;
  }
  Flags flags(const char* key) const {
    std::vector<std::string> words;
    if (json_.contains(key) && json_[key].is_array()) {
      for (const Json& word : json_[key]) {
        ULP_CHECK(word.is_string(), "{}: \"{}\" is to be a text or a list of words, got {}", where_,
                  key, json_[key].dump());
        words.push_back(word);
      }
      return parse_flags(words, fmt::format("{}, \"{}\"", where_, key));
    }
    const std::string line = text_or(key, "");
    for (const std::string_view word : text::split(line, ' '))
      if (!word.empty()) words.emplace_back(word);
    return parse_flags(words, fmt::format("{}, \"{}\"", where_, key));
  }

 private:
  const Json& json_;
  std::string where_;
};

/// What all rows share: the data, which is read once, the threads, and what is kept of a run to go on from.
constexpr std::string_view kShared[] = {"--data", "--tokens", "--validation", "--checkpoint-every",
                                        "--keep", "--resume", "--threads"};

ExperimentFile::Row read_row(const Json& json, const std::string& where) {
  const Reader in(json, where, {"name", "options", "x", "series", "last_of"});
  ExperimentFile::Row row{in.text("name"),
                          in.flags("options"),
                          {},
                          in.text_or("series", ""),
                          in.text_or("last_of", "")};
  ULP_CHECK(!json.contains("last_of") || !row.last_of.empty(),
            "{}: \"last_of\" is to name a row that is trained, got ''", where);
  ULP_CHECK(row.last_of.empty() || !json.contains("options"),
            "{}: \"last_of\" is of a row that is trained; it has no \"options\" of its own", where);
  ULP_CHECK(!row.folder().empty() && std::none_of(row.name.begin(), row.name.end(),
                                                  [](unsigned char c) { return std::iscntrl(c); }),
            "{}: \"name\" is to be one line with a letter (a to z) or a digit, got {}", where,
            json["name"].dump());
  for (const auto& [flag, value] : row.options)
    ULP_CHECK(std::find(std::begin(kShared), std::end(kShared), flag) == std::end(kShared),
              "{}: {} is for all rows; move it to the file's \"options\"", where, flag);
  if (json.contains("x")) {
    ULP_CHECK(json["x"].is_number() && json["x"] > 0, "{}: \"x\" is to be a number above 0, got {}",
              where, json["x"].dump());
    row.x = json["x"];
  }
  return row;
}

}  // namespace

std::string ExperimentFile::Row::folder() const {
  std::string folder;
  for (const char c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) != 0)
      folder += c;
    else if (!folder.empty() && folder.back() != '-')
      folder += '-';
  return folder;
}

Flags parse_flags(const std::vector<std::string>& words, const std::string& where) {
  Flags flags;
  for (size_t i = 0; i < words.size(); ++i) {
    if (!words[i].starts_with("--"))
      throw UsageError(fmt::format("{}: '{}' belongs to no option", where, words[i]));
    const size_t equals = words[i].find('=');
    if (equals != std::string::npos)
      flags.emplace_back(words[i].substr(0, equals), words[i].substr(equals + 1));
    else if (i + 1 < words.size() && !words[i + 1].starts_with("--")) {
      flags.emplace_back(words[i], words[i + 1]);
      ++i;
    } else {
      flags.emplace_back(words[i], std::nullopt);
    }
  }
  return flags;
}

Flags over(const Flags& base, const Flags& top) {
  Flags all;
  for (const auto& flag : base)
    if (std::none_of(top.begin(), top.end(), [&](const auto& t) { return t.first == flag.first; }))
      all.push_back(flag);
  all.insert(all.end(), top.begin(), top.end());
  return all;
}

ExperimentFile parse_experiment(std::string_view text, const std::string& name) {
  const Json json = Json::parse(text, nullptr, false);
  ULP_CHECK(!json.is_discarded(), "{}: this is no JSON", name);
  const Reader in(json, name,
                  {"title", "source", "differences", "options", "quick", "quick_title", "measure",
                   "x", "rows"});
  ExperimentFile file;
  file.name = name;
  file.title = in.text("title");
  file.source = in.text("source");
  file.differences = in.text("differences");
  file.options = in.flags("options");
  file.quick = in.flags("quick");
  const bool other_data = std::any_of(file.quick.begin(), file.quick.end(),
                                      [](const auto& flag) { return flag.first == "--data"; });
  ULP_CHECK(!other_data || json.contains("quick_title"),
            "{}: \"quick\" has other --data, so it needs a \"quick_title\"", name);
  file.quick_title = in.text_or("quick_title", (file.title + ", short form").c_str());
  const std::string measure = in.text_or("measure", "accuracy");
  ULP_CHECK(measure == "accuracy" || measure == "loss",
            "{}: \"measure\" is accuracy or loss, got '{}'", name, measure);
  file.by_loss = measure == "loss";
  file.x = in.text_or("x", "");
  ULP_CHECK(json.contains("rows") && json["rows"].is_array() && !json["rows"].empty(),
            "{}: \"rows\" is to be a list of at least one row", name);
  std::map<std::string, std::string> names;  // by folder
  for (const Json& row : json["rows"]) {
    const std::string where = fmt::format("{}, row {}", name, file.rows.size() + 1);
    file.rows.push_back(read_row(row, where));
    const ExperimentFile::Row& added = file.rows.back();
    const auto [before, is_new] = names.emplace(added.folder(), added.name);
    ULP_CHECK(is_new || before->second != added.name, "{}: there is a row '{}' before", where,
              added.name);
    ULP_CHECK(is_new, "{}: '{}' and '{}' would be trained in one folder, {}-seed1; rename one",
              where, before->second, added.name, before->first);
    ULP_CHECK(file.x.empty() || file.x == "bits" || added.x,
              "{}: \"x\" is missing, which the picture is drawn over", where);
  }
  for (const ExperimentFile::Row& row : file.rows) {
    const auto found = std::find_if(file.rows.begin(), file.rows.end(),
                                    [&](const auto& other) { return other.name == row.last_of; });
    ULP_CHECK(row.last_of.empty() || (found != file.rows.end() && found->last_of.empty()),
              "{}, row '{}': \"last_of\" is to name a row that is trained, got '{}'", name,
              row.name, row.last_of);
  }
  return file;
}

std::vector<std::string> experiment_names() {
  std::vector<std::string> names;
  const Json all = embedded();
  for (const auto& [name, file] : all.items()) names.push_back(name);
  return names;
}

ExperimentFile load_experiment(const std::string& name) {
  if (name.ends_with(".json")) {
    const std::vector<uint8_t> bytes = nn::read_file(name);
    return parse_experiment({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name);
  }
  const Json all = embedded();
  if (all.contains(name)) return parse_experiment(all[name].dump(), name);
  const std::vector<std::string> near = similar(name, experiment_names());
  throw UsageError(fmt::format("experiment: there is no '{}'{}; ulp experiment lists them", name,
                               near.empty() ? "" : fmt::format(", but {}", fmt::join(near, ", "))));
}

}  // namespace ulp::tools
