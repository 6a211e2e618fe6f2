#pragma once

// Runs the ulp command as a user does. For tests where ULP_COMMAND is its path.

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string>

#include "tests/paths.h"

#if defined(ULP_COMMAND)

namespace ulp::command {

struct Result {
  int status;
  std::string out, err;
};

/// A folder of its own, gone at the end.
struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "ulp-cli-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string operator/(const char* name) const { return (path / name).string(); }
};

inline std::string slurp(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

inline Result ulp_command(const std::string& arguments) {
  static int counter = 0;
  const std::filesystem::path err =
      std::filesystem::temp_directory_path() /
      ("ulp-cli-err-" + std::to_string(getpid()) + "-" + std::to_string(counter++));
  const std::string command =
      std::string("'") + paths::kCommand + "' " + arguments + " 2>'" + err.string() + "'";
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  Result result{0, "", ""};
  char buffer[4096];
  while (size_t n = fread(buffer, 1, sizeof buffer, pipe)) result.out.append(buffer, n);
  result.status = WEXITSTATUS(pclose(pipe));
  result.err = slurp(err);
  std::filesystem::remove(err);
  return result;
}

inline int64_t lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

/// One clear line on stderr with all these words, and the exit status.
inline void check_refused(const std::string& arguments, int status,
                          std::initializer_list<const char*> words) {
  const Result r = ulp_command(arguments);
  CAPTURE(arguments);
  CAPTURE(r.err);
  CHECK(r.status == status);
  CHECK(lines(r.err) == 1);
  for (const char* word : words) CHECK(r.err.find(word) != std::string::npos);
}

/// The command's result; the test ends if it fails.
inline Result succeed(const std::string& arguments) {
  Result r = ulp_command(arguments);
  CAPTURE(arguments);
  CAPTURE(r.err);
  REQUIRE(r.status == 0);
  return r;
}

/// Whether the words are in the text; shown if they are not.
inline bool has(const std::string& text, const std::string& words) {
  const bool there = text.find(words) != std::string::npos;
  if (!there) MESSAGE(text << "  lacks  " << words);
  return there;
}

}  // namespace ulp::command

#endif
