#include "tools/experiment_file.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <map>

#include "core/error.h"
#include "core/format_text.h"
#include "core/pattern.h"
#include "nn/data/located_json.h"
#include "nn/data/read_file.h"

// One JSON object of all files of tools/experiments, by name (CMakeLists.txt).
extern const unsigned char ulp_experiments[];
extern const unsigned long ulp_experiments_size;

namespace ulp::tools {
namespace {

using Json = nn::LocatedJson;

Json embedded() {
  return nn::parse_located({reinterpret_cast<const char*>(ulp_experiments), ulp_experiments_size},
                           "ulp_experiments.json");
}

/// An object of a file. Messages begin with the file, the line and what the object is.
class Reader {
 public:
  /// `part`: ", row 3"; empty for the whole file.
  Reader(const Json& json, std::string name, std::string part,
         std::initializer_list<const char*> keys)
      : json_(json), name_(std::move(name)), part_(std::move(part)) {
    ULP_CHECK(json.kind == Json::Kind::Object, "{}: expected an object, got {}", place(json),
              json.what());
    for (const Json::Member& member : json.members)
      ULP_CHECK(std::find(keys.begin(), keys.end(), member.key) != keys.end(),
                "{}: unknown key '{}'; there are {}", place(member.value), member.key,
                fmt::format("{}", fmt::join(keys, ", ")));
  }

  /// Where the object is, or the value of one of its keys.
  std::string place() const { return place(json_); }
  std::string place(const char* key) const {
    const Json* value = json_.find(key);
    return place(value == nullptr ? json_ : *value);
  }
  const Json* find(const char* key) const { return json_.find(key); }

  std::string text(const char* key) const {
    const Json* value = json_.find(key);
    ULP_CHECK(value != nullptr, "{}: \"{}\" is missing", place(), key);
    ULP_CHECK(value->kind == Json::Kind::Text, "{}: \"{}\" is to be a text, got {}", place(*value),
              key, value->shown());
    return value->text;
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    return json_.find(key) == nullptr ? otherwise : text(key);
  }
  Flags flags(const char* key) const {
    std::vector<std::string> words;
    const std::string where = fmt::format("{}, \"{}\"", place(key), key);
    if (const Json* list = json_.find(key); list != nullptr && list->kind == Json::Kind::List) {
      for (const Json& word : list->items) {
        ULP_CHECK(word.kind == Json::Kind::Text,
                  "{}: \"{}\" is to be a text or a list of words, got {} in it", place(word), key,
                  word.shown());
        words.push_back(word.text);
      }
      return parse_flags(words, where);
    }
    const std::string line = text_or(key, "");
    for (const std::string_view word : text::split(line, ' '))
      if (!word.empty()) words.emplace_back(word);
    return parse_flags(words, where);
  }
  std::optional<double> positive(const char* key) const {
    const Json* value = json_.find(key);
    if (value == nullptr) return {};
    const bool number = value->kind == Json::Kind::Integer || value->kind == Json::Kind::Number;
    ULP_CHECK(number && value->number > 0, "{}: \"{}\" is to be a number above 0, got {}",
              place(*value), key, value->shown());
    return value->number;
  }

 private:
  std::string place(const Json& value) const {
    return fmt::format("{}, line {}{}", name_, value.line, part_);
  }

  const Json& json_;
  std::string name_, part_;
};

/// What all rows share: the data, which is read once, the threads, and what is kept of a run to go on from.
constexpr std::string_view kShared[] = {"--data", "--tokens", "--validation", "--checkpoint-every",
                                        "--keep", "--resume", "--threads"};

ExperimentFile::Row read_row(const Reader& in) {
  ExperimentFile::Row row{in.text("name"), in.flags("options"), in.positive("x"),
                          in.text_or("series", ""), in.text_or("last_of", "")};
  ULP_CHECK(in.find("last_of") == nullptr || !row.last_of.empty(),
            "{}: \"last_of\" is to name a row that is trained, got ''", in.place("last_of"));
  ULP_CHECK(row.last_of.empty() || in.find("options") == nullptr,
            "{}: \"last_of\" is of a row that is trained; it has no \"options\" of its own",
            in.place("options"));
  ULP_CHECK(!row.folder().empty() && std::none_of(row.name.begin(), row.name.end(),
                                                  [](unsigned char c) { return std::iscntrl(c); }),
            "{}: \"name\" is to be one line with a letter (a to z) or a digit, got \"{}\"",
            in.place("name"), row.name);
  for (const auto& [flag, value] : row.options)
    ULP_CHECK(std::find(std::begin(kShared), std::end(kShared), flag) == std::end(kShared),
              "{}: {} is for all rows; move it to the file's \"options\"", in.place("options"),
              flag);
  return row;
}

/// A list of rows, with what they need of each other.
void read_rows(const Json& rows, ExperimentFile& file) {
  std::map<std::string, std::string> names;  // by folder
  for (const Json& json : rows.items) {
    const Reader in(json, file.name, fmt::format(", row {}", file.rows.size() + 1),
                    {"name", "options", "x", "series", "last_of"});
    file.rows.push_back(read_row(in));
    const ExperimentFile::Row& added = file.rows.back();
    const auto [before, is_new] = names.emplace(added.folder(), added.name);
    ULP_CHECK(is_new || before->second != added.name, "{}: there is a row '{}' before",
              in.place("name"), added.name);
    ULP_CHECK(is_new, "{}: '{}' and '{}' would be trained in one folder, {}-seed1; rename one",
              in.place("name"), before->second, added.name, before->first);
    ULP_CHECK(file.x.empty() || file.x == "bits" || added.x,
              "{}: \"x\" is missing, which the picture is drawn over", in.place());
  }
  for (const ExperimentFile::Row& row : file.rows) {
    const auto found = std::find_if(file.rows.begin(), file.rows.end(),
                                    [&](const auto& other) { return other.name == row.last_of; });
    ULP_CHECK(row.last_of.empty() || (found != file.rows.end() && found->last_of.empty()),
              "{}, row '{}': \"last_of\" is to name a row that is trained, got '{}'", file.name,
              row.name, row.last_of);
  }
}

ExperimentFile read_experiment(const Json& json, const std::string& name) {
  const Reader in(json, name, "",
                  {"title", "source", "differences", "options", "quick", "quick_title", "measure",
                   "x", "rows"});
  ExperimentFile file;
  file.name = name;
  file.title = in.text("title");
  file.source = in.text("source");
  file.differences = in.text("differences");
  file.options = in.flags("options");
  file.quick = in.flags("quick");
  for (const auto& [flag, value] : file.quick)
    ULP_CHECK(flag != "--data" || in.find("quick_title") != nullptr,
              "{}: \"quick\" trains on --data {}, which \"title\" says nothing of; add "
              "\"quick_title\": \"...\", the title of that form",
              in.place("quick"), value.value_or(""));
  file.quick_title = in.text_or("quick_title", file.title + ", short form");
  const std::string measure = in.text_or("measure", "accuracy");
  ULP_CHECK(measure == "accuracy" || measure == "loss",
            "{}: \"measure\" is accuracy or loss, got '{}'", in.place("measure"), measure);
  file.by_loss = measure == "loss";
  file.x = in.text_or("x", "");
  const Json* rows = in.find("rows");
  ULP_CHECK(rows != nullptr && rows->kind == Json::Kind::List && !rows->items.empty(),
            "{}: \"rows\" is to be a list of at least one row", in.place("rows"));
  read_rows(*rows, file);
  return file;
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
  return read_experiment(nn::parse_located(text, name), name);
}

std::vector<std::string> experiment_names() {
  std::vector<std::string> names;
  const Json all = embedded();
  for (const Json::Member& file : all.members) names.push_back(file.key);
  return names;
}

ExperimentFile load_experiment(const std::string& name) {
  if (name.ends_with(".json")) {
    const std::vector<uint8_t> bytes = nn::read_file(name);
    return parse_experiment({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name);
  }
  const Json all = embedded();
  if (const Json* file = all.find(name)) return read_experiment(*file, name);
  const std::vector<std::string> near = similar(name, experiment_names());
  throw UsageError(fmt::format("experiment: there is no '{}'{}; ulp experiment lists them", name,
                               near.empty() ? "" : fmt::format(", but {}", fmt::join(near, ", "))));
}

}  // namespace ulp::tools
