// Runs that do not get the memory they need: one clear line, and nothing lost.

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>
#include <regex>
#include <set>
#include <string>
#include <tuple>

#include "command.h"
#include "core/memory_error.h"
#include "core/storage.h"
#include "core/tensor.h"

using namespace ulp;

namespace {

/// The message of what f throws as E.
template <class E, class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing of that type was thrown";
}

}  // namespace

TEST_SUITE("memory") {
  TEST_CASE("what is missing is told with what it was for, and how much was asked for") {
    CHECK(std::string(AllocationFailed(12).what()) == "out of memory, asked for 12 bytes");
    CHECK(message_of<MemoryError>([] {
            with_memory_for("a file", [] { throw AllocationFailed(345); });
          }) == "a file: out of memory, asked for 345 bytes");
    CHECK(message_of<MemoryError>([] {
            with_memory_for(
                "a file", [] { throw std::bad_alloc(); }, [] { return "; buy some"; });
          }) == "a file: out of memory; buy some");
    CHECK(message_of<Error>([] { with_memory_for("a file", [] { throw Error("other"); }); }) ==
          "other");
    CHECK(with_memory_for("a file", [] { return 7; }) == 7);
  }
}

#if defined(ULP_COMMAND)

using namespace ulp::command;
namespace fs = std::filesystem;

namespace {

std::map<std::string, std::string> everything(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files[entry.path().string()] = slurp(entry.path());
  return files;
}

/// What a run leaves, without the seconds.
std::string results(const std::string& out) {
  return slurp(out + "/config.json") + slurp(out + "/model.safetensors") +
         std::regex_replace(slurp(out + "/metrics.jsonl"), std::regex(",\"seconds\":[^}]*"), "");
}

/// ulp with at most so much address space.
Result with_limit(int64_t kib, const std::string& arguments, const Folder& folder) {
  const std::string err = folder / "limit-err";
  const std::string command = "ulimit -v " + std::to_string(kib) + "; GOMP_SPINCOUNT=5000 exec '" +
                              paths::kCommand + "' " + arguments + " >/dev/null 2>'" + err + "'";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, "", slurp(err)};
}

/// Memory in KiB with which the program itself is loaded and can say something.
int64_t least_limit(const Folder& folder) {
  int64_t kib = 4096;
  while (with_limit(kib, "--version", folder).status != 0 && kib < (int64_t{1} << 24)) kib += 256;
  return kib;
}

/// True if a run under a limit can be looked at here; says why not.
bool can_limit() {
#if defined(__SANITIZE_ADDRESS__)
  MESSAGE("SKIPPED: address space cannot be limited under the address sanitizer");
  return false;
#else
  return true;
#endif
}

/// A message of missing memory or threads: one line, what for, how much.
void check_message(const Result& r) {
  static const std::regex wanted(
      "ulp: ([^\n]*: out of memory, asked for [1-9][0-9]* bytes[^\n]*|--threads: [0-9]+ CPU "
      "threads "
      "cannot be started, the system has room for [0-9]+ [^\n]*)\n");
  CAPTURE(r.err);
  CHECK(r.status == 1);
  CHECK(std::regex_match(r.err, wanted));
}

/// What the message says memory was missing for: the words before the first colon.
std::string place_of(const std::string& err) {
  const size_t begin = std::string("ulp: ").size();
  return err.size() <= begin ? "" : err.substr(begin, err.find(':', begin) - begin);
}

/// Runs it with more and more memory until it succeeds; each failure is looked at by `check`. The places that failed.
template <class Check>
std::set<std::string> with_rising_limits(const std::string& arguments, int64_t step_kib,
                                         const Folder& folder, const Check& check) {
  std::set<std::string> places;
  const int64_t least = least_limit(folder);
  for (int64_t kib = least; kib < least + (int64_t{512} << 10); kib += step_kib) {
    CAPTURE(kib);
    const Result r = with_limit(kib, arguments, folder);
    if (r.status == 0) return places;
    check_message(r);
    check(r);
    places.insert(place_of(r.err));
  }
  FAIL("512 MiB are not enough: " << arguments);
  return places;
}

void check_has(const std::set<std::string>& places, std::initializer_list<const char*> wanted) {
  std::string all;
  for (const std::string& place : places) all += place + "; ";
  CAPTURE(all);
  for (const char* place : wanted) CHECK_MESSAGE(places.count(place) == 1, place);
}

}  // namespace

TEST_SUITE("memory") {
  TEST_CASE("a run without enough memory: one line that says what for, and no file") {
    if (!can_limit()) return;
    const Folder folder;
    const std::string out = folder / "out";
    const auto places = with_rising_limits(
        "train --hidden 700 --batch-size 1400 --epochs 1 --threads 2 --out '" + out + "'", 256,
        folder, [&](const Result&) {
          for (const auto& [file, bytes] :
               fs::exists(out) ? everything(out) : std::map<std::string, std::string>{})
            CHECK_MESSAGE(file.ends_with(".ulp-lock"), file);
        });
    check_has(places,
              {"--threads", "--data digits", "a step of --model mlp", "--model mlp", "training"});
    CHECK(fs::exists(out + "/model.safetensors"));
  }

  TEST_CASE("a run without enough memory leaves the earlier run of its folder") {
    if (!can_limit()) return;
    const Folder folder;
    const std::string out = folder / "out";
    succeed("train --hidden 20 --epochs 1 --checkpoint-every 9 --out '" + out + "'");
    const auto before = everything(out);
    with_rising_limits(
        "train --hidden 700 --batch-size 1400 --epochs 1 --threads 1 --out '" + out + "'", 1024,
        folder, [&](const Result&) { CHECK(everything(out) == before); });
  }

  TEST_CASE(
      "--resume without enough memory touches nothing; with enough it ends with the same bits") {
    if (!can_limit()) return;
    const Folder folder;
    // Many states, so that to read them takes most; large batches, whose steps do.
    for (const auto& [options, checkpoint, step] :
         {std::tuple("--hidden 400,400 --batch-size 64 --epochs 1 --optimizer adam --average swa "
                     "--checkpoint-every 20",
                     20, 512),
          {"--hidden 700 --batch-size 1400 --epochs 3 --checkpoint-every 2 --keep 9", 2, 256}}) {
      CAPTURE(std::string(options));
      const std::string whole = folder / "whole", out = folder / "out";
      const std::string train =
          std::string("train --threads 2 --forward e4m3+scale=delayed4 --accumulator e6m9:sr ") +
          options + " --out '";
      succeed(train + whole + "'");
      fs::remove_all(out);
      fs::copy(whole, out, fs::copy_options::recursive);
      for (const auto& entry : fs::directory_iterator(whole)) {
        const std::string name = entry.path().filename().string();
        if (name.starts_with("checkpoint-") && std::stoll(name.substr(11)) > checkpoint)
          fs::remove(fs::path(out) / name);
      }
      const std::string file = "checkpoint-" + std::to_string(checkpoint) + ".safetensors";
      REQUIRE(fs::exists(fs::path(out) / file));
      const auto before = everything(out);
      const auto places =
          with_rising_limits(train + out + "' --resume", step, folder, [&](const Result& r) {
            CHECK(everything(out) == before);
            if (place_of(r.err) == "training") CHECK(has(r.err, file + " is whole"));
          });
      check_has(places, {"--threads", "a step of --model mlp", "--model mlp",
                         checkpoint == 2 ? "training" : (out + "/" + file).c_str()});
      CHECK(results(out) == results(whole));
      fs::remove_all(whole);
    }
  }

  TEST_CASE("a trained model without enough memory: one line that says what for, and no result") {
    if (!can_limit()) return;
    const Folder folder;
    std::string words;
    for (int i = 0; i < 2000; ++i) words += "number " + std::to_string(i * i) + "; ";
    const std::string text = folder / "text", images = folder / "images", texts = folder / "texts";
    std::ofstream(text) << words;
    succeed("train --hidden 3000 --batch-size 700 --epochs 1 --out '" + images + "'");
    succeed("train --data 'text:" + text +
            "' --model gpt --layers 1 --width 192 --heads 2 --context 384 --batch-size 1 "
            "--steps 1 --validation 0.02 --out '" +
            texts + "'");
    const auto nothing = [](const Result&) {};
    check_has(with_rising_limits("eval '" + images + "' --threads 2", 256, folder, nothing),
              {"--threads", "--data digits", "--model mlp", "evaluation"});
    check_has(with_rising_limits("eval '" + texts + "' --threads 1", 512, folder, nothing),
              {"--data text", "--model gpt", "evaluation"});
    const std::string sample = "sample '" + texts + "' --prompt 'number' --length 20 --threads ";
    check_has(with_rising_limits(sample + "2", 256, folder, nothing),
              {"--threads", "--model gpt", "sampling"});
    check_has(with_rising_limits(sample + "1 --cache off", 256, folder, nothing),
              {"--model gpt", "sampling"});
  }
}

#endif
