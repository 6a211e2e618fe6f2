#include "tools/checkpoint_folder.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <exception>
#include <new>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "tools/progress.h"

namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kBegin = "checkpoint-", kEnd = ".safetensors", kAside = ".broken";

/// Of a checkpoint that cannot be read.
constexpr std::string_view kWayOut =
    "it may be whole: mend what is in the way of reading it, or move it away";

std::string name_of(int64_t step) { return fmt::format("{}{}{}", kBegin, step, kEnd); }

bool is_set_aside(const std::string& name) {
  return name.ends_with(kAside) && step_of(name.substr(0, name.size() - kAside.size()));
}

/// visit(path) for what a folder holds, if there is one.
template <class F>
void each_entry(const fs::path& dir, F visit) {
  std::error_code error;
  for (fs::directory_iterator at(dir, error), end; !error && at != end; at.increment(error))
    visit(at->path());
  if (error == std::errc::no_such_file_or_directory) return;
  ULP_CHECK(!error, "--out {}: the folder cannot be listed ({})", dir.string(), error.message());
}

/// Of objects, such as rules.
bool is_list(const Json& value) {
  return value.is_array() &&
         std::ranges::any_of(value, [](const Json& v) { return v.is_structured(); });
}

/// One short piece of a line, whatever a file holds.
std::string shown(const Json& value) {
  constexpr size_t kMost = 100;
  if (value.is_object()) return "an object";
  if (is_list(value)) return fmt::format("a list of {}", value.size());
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kMost ? text : text.substr(0, kMost) + "...";
}

/// Throws at the first key of either that the other lacks or that says something else there.
void compare(const Json& saved, const Json& wanted, const std::string& path,
             const std::string& file, bool may_differ_in_epochs) {
  const auto refuse = [&](const std::string& key, const std::string& there,
                          const std::string& here) {
    throw_error(
        "{}: it was written with {}: {}, and this run has {}; give the same settings, or leave "
        "--resume away to start again",
        file, shown(Json(path + key)), there, here);
  };
  for (const auto& [key, value] : wanted.items()) {
    const auto at = saved.find(key);
    if (at == saved.end()) refuse(key, "nothing", shown(value));
    if (at->is_object() && value.is_object())
      compare(*at, value, path + key + ".", file, false);
    else if (at->is_array() && value.is_array() && at->size() == value.size() && is_list(value))
      for (size_t i = 0; i < value.size(); ++i)
        compare(at->at(i), value[i], fmt::format("{}{} {}.", path, key, i + 1), file, false);
    else if (*at != value && !(may_differ_in_epochs && key == "epochs"))
      refuse(key, shown(*at), shown(value));
  }
  for (const auto& [key, value] : saved.items())
    if (!wanted.contains(key)) refuse(key, shown(value), "nothing");
}

}  // namespace

CheckpointFolder::Files CheckpointFolder::list(const fs::path& dir) {
  Files files;
  each_entry(dir, [&](const fs::path& path) {
    if (const auto step = step_of(path.filename().string())) files.emplace_back(*step, path);
  });
  std::ranges::sort(files);
  return files;
}

void CheckpointFolder::check(const fs::path& dir) {
  each_entry(dir, [&](const fs::path& path) {
    const std::string name = path.filename().string();
    if (step_of(name) || is_set_aside(name)) check_is_file(path);
  });
}

void CheckpointFolder::clear(const fs::path& dir) {
  std::vector<fs::path> files;
  each_entry(dir, [&](const fs::path& path) {
    const std::string name = path.filename().string();
    if (step_of(name) || is_set_aside(name)) files.push_back(path);
  });
  for (const fs::path& file : files) remove_file(file);
}

bool CheckpointFolder::is_whole(const fs::path& file) {
  if (whole_.contains(file)) return true;
  try {
    nn::load_checkpoint(file);
  } catch (const std::exception&) {  // no memory for it, for one
    return false;
  }
  whole_.insert(file);
  return true;
}

std::optional<CheckpointFolder::Found> CheckpointFolder::newest_whole() {
  Files files = list(dir_);
  for (auto at = files.rbegin(); at != files.rend(); ++at) {
    const fs::path& file = at->second;
    try {
      Found found{file, nn::load_checkpoint(file)};
      last_ = file.filename().string();
      whole_.insert(file);
      return found;
    } catch (const nn::OtherVersion& error) {
      // Not broken: going on without it would begin again, and remove it.
      throw_error("{}; resume with that version, or leave --resume away to start again",
                  error.what());
    } catch (const nn::Damaged& error) {
      say(fmt::format("broken     {}\n", error.what()));
      damaged_.push_back(file);
    } catch (const Error& error) {
      throw_error("{}; {}", error.what(), kWayOut);
    } catch (const std::bad_alloc& error) {
      throw_error("{}: cannot be read: {}; {}", file.string(), out_of_memory_text(error), kWayOut);
    }
  }
  return {};
}

void CheckpointFolder::set_aside() {
  for (const fs::path& file : damaged_) {
    const fs::path aside = file.native() + std::string(kAside);
    std::error_code error;
    fs::rename(file, aside, error);
    ULP_CHECK(!error, "{}: the broken checkpoint cannot be renamed to {} ({})", file.string(),
              aside.filename().string(), error.message());
    say(fmt::format("kept aside {}\n", aside.string()));
  }
  damaged_.clear();
}

void CheckpointFolder::write(int64_t step, const nn::Checkpoint& checkpoint) {
  guard([&] { nn::save_checkpoint(dir_ / name_of(step), checkpoint); });
  last_ = name_of(step);
  whole_.insert(dir_ / last_);
  Files files = list(dir_);
  std::erase_if(files, [step](const auto& file) { return file.first > step; });
  int64_t whole = 0;
  for (auto at = files.rbegin(); at != files.rend(); ++at) {
    if (whole == settings_.keep)
      remove_file(at->second);
    else if (is_whole(at->second))
      ++whole;
  }
}

std::string CheckpointFolder::way_on() const {
  if (!last_.empty()) return fmt::format("; {} is whole, --resume goes on from it", last_);
  return writes() ? "; there is no checkpoint yet" : "";
}

std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kBegin) || !name.ends_with(kEnd) ||
      name.size() <= kBegin.size() + kEnd.size())
    return {};
  int64_t step = 0;
  std::from_chars(name.data() + kBegin.size(), name.data() + name.size(), step);
  if (name_of(step) != name) return {};
  return step;
}

void check_is_file(const fs::path& file) {
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  ULP_CHECK(!fs::exists(status) || fs::is_regular_file(status),
            "{}: it has the name of a file of a run and is no file; move it away, or give another "
            "--out",
            file.string());
}

void remove_file(const fs::path& file) {
  std::error_code error;
  fs::remove(file, error);
  ULP_CHECK(!error, "{}: it is of an earlier run and cannot be removed ({})", file.string(),
            error.message());
}

void check_same_config(const std::string& saved, const std::string& wanted,
                       const std::string& file) {
  const Json a = Json::parse(saved, nullptr, /*allow_exceptions=*/false);
  ULP_CHECK(a.is_object(), "{}: its configuration is not a JSON object", file);
  const Json b = Json::parse(wanted);
  const Json optimizer = b.value("optimizer", Json::object());
  const Json average = b.value("average", Json());
  const auto is_share = [&](const char* key) {  // of the run
    return average.is_object() && average.value(key, "").find('.') != std::string::npos;
  };
  const bool constant =
      optimizer.value("lr_schedule", "") == "constant" && !is_share("start") && !is_share("every");
  compare(a, b, "", file, constant);
}

}  // namespace ulp::tools
