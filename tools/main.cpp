#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <numeric>

#include "core/error.h"
#include "tools/commands.h"

namespace {

int fail(int status, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "ulp: {}\n", message);
  return status;
}

/// Threads that wait for others spin first, in libgomp by default for about a millisecond: on a machine that has other work
/// to do this makes training tens of times slower. libgomp reads its settings when it is loaded, so the program starts
/// itself again once with a short spin, unless the user chose one.
void restart_with_short_spin(char** argv) {
  if (getenv("GOMP_SPINCOUNT") != nullptr || getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("GOMP_SPINCOUNT", "5000", 1);
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error)
    execv(self.c_str(), argv);  // returns only if it fails: everything works, perhaps slower
}

/// Single-character edits from a to b.
size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
    }
  }
  return row.back();
}

/// The known words that go on where this one stops, else the one that is nearest in spelling, if any is near.
std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  for (const std::string& name : known)
    if (name.starts_with(word + "-")) best += (best.empty() ? "" : " or ") + name;
  if (!best.empty()) return best;
  for (const std::string& name : known)
    if (distance(word, name) <= 2 + word.size() / 4 &&
        (best.empty() || distance(word, name) < distance(word, best)))
      best = name;
  return best;
}

/// What is wrong with a command or option that does not exist, and what was probably meant.
std::string unknown_word(CLI::App& app, const std::vector<std::string>& words) {
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands({})) commands.push_back(command->get_name());
  if (!words.empty() && !words[0].starts_with('-') &&
      std::find(commands.begin(), commands.end(), words[0]) == commands.end())
    return fmt::format("unknown command '{}'; there are {}", words[0], fmt::join(commands, ", "));
  std::vector<std::string> options;
  for (const CLI::App* command = &app; command != nullptr;) {
    for (const CLI::Option* option : command->get_options())
      for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
    const auto below = command->get_subcommands();
    command = below.empty() ? nullptr : below.front();
  }
  for (const std::string& word : words) {
    const std::string flag = word.substr(0, word.find('='));
    if (!flag.starts_with("--") || std::find(options.begin(), options.end(), flag) != options.end())
      continue;
    const std::string meant = nearest(flag, options);
    return "unknown option " + flag + (meant.empty() ? "" : "; did you mean " + meant + "?");
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_short_spin(argv);
  CLI::App app{"ulp: train neural networks in low precision, exactly and fast"};
  app.name("ulp");
  app.set_version_flag("--version", std::string("ulp ") + ULP_VERSION);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default(false);
  ulp::tools::add_train(app);
  ulp::tools::add_eval(app);
  ulp::tools::add_bench(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    const std::string unknown = unknown_word(app, std::vector<std::string>(argv + 1, argv + argc));
    return fail(2, (unknown.empty() ? std::string(error.what()) : unknown) +
                       " (see ulp --help, ulp COMMAND --help)");
  } catch (const ulp::UsageError& error) {
    return fail(2, error.what());
  } catch (const ulp::Error& error) {
    return fail(1, error.what());
  } catch (const std::bad_alloc&) {
    return fail(1, "out of memory");
  } catch (const std::exception& error) {
    return fail(1, error.what());
  }
  return 0;
}
