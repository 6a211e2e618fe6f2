#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <numeric>
#include <system_error>

#include "core/memory_error.h"
#include "tools/commands.h"
#include "tools/memory.h"

namespace {

/// Text for one line: control characters as a C literal has them.
std::string one_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '\n')
      line += "\\n";
    else if (c == '\r')
      line += "\\r";
    else if (c == '\t')
      line += "\\t";
    else if (code < 0x20 || code == 0x7f)
      line += fmt::format("\\x{:02x}", code);
    else
      line += c;
  }
  return line;
}

/// The message of memory that is missing, for which it takes none.
int fail_without_memory(const std::bad_alloc& error) {
  std::fflush(stdout);
  ulp::tools::print_out_of_memory(error);
  return 1;
}

int fail(int status, const std::string& message) {
  std::fflush(stdout);
  try {
    std::fputs(("ulp: " + one_line(message) + "\n").c_str(), stderr);
  } catch (const std::bad_alloc&) {  // as it is
    for (const char* part : {"ulp: ", message.c_str(), "\n"}) std::fputs(part, stderr);
  }
  return status;
}

/// The status of a program that is done, unless what it printed was lost.
int finish(int status) {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
  const std::string reason = errno == 0 ? "" : ": " + std::generic_category().message(errno);
  return fail(1, "the standard output cannot be written" + reason);
}

/// A file that is opened later must not get the number of a closed standard stream, and what is printed there.
/// Returns false if the standard output was closed.
bool open_closed_streams() {
  bool has_output = true;
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) != -1 || errno != EBADF) continue;
    has_output = has_output && stream != STDOUT_FILENO;
    if (open("/dev/null", O_RDWR) < 0) return false;  // gets the lowest free number
  }
  return has_output;
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

/// The known words that go on where this one stops, else the one that is nearest in spelling, if any is near: an edit for
/// every three letters.
std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  for (const std::string& name : known)
    if (name.starts_with(word + "-")) best += (best.empty() ? "" : " or ") + name;
  if (!best.empty()) return best;
  const size_t letters = word.size() - std::min(word.size(), size_t{2});  // without --
  for (const std::string& name : known)
    if (distance(word, name) <= std::max(size_t{1}, letters / 3) &&
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
  std::vector<std::string> options, listed;
  for (const CLI::App* command = &app; command != nullptr;) {
    for (const CLI::Option* option : command->get_options())
      for (const std::string& name : option->get_lnames()) {
        options.push_back("--" + name);
        if (!option->get_group().empty()) listed.push_back("--" + name);
      }
    const auto below = command->get_subcommands();
    command = below.empty() ? nullptr : below.front();
  }
  for (const std::string& word : words) {
    if (word == "--") break;  // no options from here on
    const std::string flag = word.substr(0, word.find('='));
    if (!flag.starts_with("--") || std::find(options.begin(), options.end(), flag) != options.end())
      continue;
    const std::string meant = nearest(flag, listed);
    return "unknown option " + flag + (meant.empty() ? "" : "; did you mean " + meant + "?");
  }
  return "";
}

int run(int argc, char** argv) {
  CLI::App app{"ulp: train neural networks in low precision, exactly and fast"};
  app.name("ulp");
  app.set_version_flag("--version", std::string("ulp ") + ULP_VERSION);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default(false);
  ulp::tools::add_train(app);
  ulp::tools::add_eval(app);
  ulp::tools::add_sample(app);
  ulp::tools::add_sweep(app);
  ulp::tools::add_recipes(app);
  ulp::tools::add_experiment(app);
  ulp::tools::add_bench(app);
  ulp::tools::add_formats(app);
  ulp::tools::add_explain(app);
  ulp::tools::add_quantize(app);
  ulp::tools::add_plot(app);
  ulp::tools::add_compare(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return finish(app.exit(help));
  } catch (const CLI::ParseError& error) {
    const std::string unknown = unknown_word(app, std::vector<std::string>(argv + 1, argv + argc));
    return fail(2, (unknown.empty() ? std::string(error.what()) : unknown) +
                       " (see ulp --help, ulp COMMAND --help)");
  } catch (const ulp::UsageError& error) {
    return fail(2, error.what());
  } catch (const ulp::Error& error) {
    return fail(1, error.what());
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    return std::ferror(stdout) != 0 ? finish(1) : fail(1, error.what());
  }
  return finish(0);
}

}  // namespace

int main(int argc, char** argv) {
  if (!open_closed_streams())
    return fail(1, "the standard output is closed; >/dev/null makes it silent");
  restart_with_short_spin(argv);
  std::signal(SIGXFSZ, SIG_IGN);  // a file beyond the user's limit is an error with a name
  ulp::tools::begin_memory();
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc& error) {
    return fail_without_memory(error);
  }
}
