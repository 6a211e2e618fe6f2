#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include "command.h"
#include "nn/data/safetensors.h"
#include "tests/paths.h"
#include "with_checksum.h"

#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;
namespace fs = std::filesystem;

namespace {

const std::string kTrain =
    "train --hidden 20 --batch-size 64 --lr 0.05 --forward e4m3+scale=delayed4 --backward e5m2:sr "
    "--weights e4m3:sr --accumulator e6m9:sr --momentum-format bf16:sr ";  // 22 steps an epoch

std::string quoted(const std::string& path) { return "'" + path + "'"; }

/// What a run leaves, without the seconds.
std::string results(const std::string& out) {
  return slurp(out + "/config.json") + slurp(out + "/model.safetensors") +
         std::regex_replace(slurp(out + "/metrics.jsonl"), std::regex(",\"seconds\":[^}]*"), "");
}

std::vector<std::string> checkpoints(const std::string& out) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(out))
    if (entry.path().filename().string().starts_with("checkpoint-"))
      names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

std::map<std::string, std::string> everything(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files[entry.path().string()] = slurp(entry.path());
  return files;
}

/// As if the run had been killed right after the checkpoint of that step.
void stop_at(const std::string& out, int64_t step) {
  for (const std::string& name : checkpoints(out))
    if (std::stoll(name.substr(11)) > step) fs::remove(fs::path(out) / name);
  fs::remove(out + "/model.safetensors");
}

/// ulp in a shell, for limits and file systems of its own.
Result shell(const std::string& before, const std::string& arguments, const Folder& folder) {
  const std::string err = folder / "shell-err";
  const std::string command =
      before + " '" + paths::kCommand + "' " + arguments + " >/dev/null 2>" + quoted(err);
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, "", slurp(err)};
}

}  // namespace

TEST_SUITE("resume") {
  TEST_CASE("a run resumed from any checkpoint ends as one that was never stopped") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    succeed(kTrain + "--epochs 3 --lr-schedule cosine --threads 2 --out " + quoted(whole));
    const std::string train = kTrain + "--epochs 3 --lr-schedule cosine --out " + quoted(out);
    succeed(train + " --checkpoint-every 7 --keep 100 --threads 1");
    CHECK(results(out) == results(whole));
    CHECK(checkpoints(out).size() == 10);  // 7, 14 … 63 and 66, the end
    int threads = 0;
    for (const int64_t step : {66, 63, 49, 42, 21, 7}) {
      CAPTURE(step);
      stop_at(out, step);
      const Result r = succeed(train + " --resume --threads " + std::to_string(1 + threads++ % 3));
      CHECK(has(r.out, "resumed    checkpoint-" + std::to_string(step) + ".safetensors"));
      CHECK(results(out) == results(whole));
    }
    // Written again while it goes on, with another distance, at the end of an epoch too.
    stop_at(out, 7);
    succeed(train + " --resume --checkpoint-every 11 --keep 100");
    CHECK(checkpoints(out) ==
          std::vector<std::string>{"checkpoint-11.safetensors", "checkpoint-22.safetensors",
                                   "checkpoint-33.safetensors", "checkpoint-44.safetensors",
                                   "checkpoint-55.safetensors", "checkpoint-66.safetensors",
                                   "checkpoint-7.safetensors"});
    for (const int64_t step : {44, 22}) {
      stop_at(out, step);
      succeed(train + " --resume");
      CHECK(results(out) == results(whole));
    }
  }

  TEST_CASE("--keep, and what a new run removes") {
    const Folder folder;
    const std::string out = folder / "out", train = kTrain + "--epochs 2 --out " + quoted(out);
    succeed(train + " --checkpoint-every 10");
    CHECK(checkpoints(out) ==
          std::vector<std::string>{"checkpoint-40.safetensors", "checkpoint-44.safetensors"});
    succeed(train + " --checkpoint-every 4 --keep 1");
    CHECK(checkpoints(out) == std::vector<std::string>{"checkpoint-44.safetensors"});
    // Files of other names stay.
    std::ofstream(out + "/checkpoint-07.safetensors") << "mine";
    std::ofstream(out + "/checkpoint-.safetensors") << "mine";
    succeed(train);
    CHECK(checkpoints(out) ==
          std::vector<std::string>{"checkpoint-.safetensors", "checkpoint-07.safetensors"});
    const Result r = succeed(train + " --resume");
    CHECK(has(r.out, "no whole checkpoint in " + out + ": from the beginning"));
    CHECK(has(succeed(kTrain + "--epochs 1 --resume --out " + quoted(folder / "new")).out,
              "from the beginning"));
  }

  TEST_CASE("a broken checkpoint is named, and the one before is used") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    const std::string train = kTrain + "--epochs 2 --out " + quoted(out) + " --resume";
    succeed(kTrain + "--epochs 2 --out " + quoted(whole));
    succeed(train + " --checkpoint-every 10 --keep 100");
    fs::remove(out + "/checkpoint-44.safetensors");
    fs::remove(out + "/model.safetensors");
    const auto broken = [&](const char* name, auto damage) {
      std::string bytes = slurp(fs::path(out) / name);
      damage(bytes);
      std::ofstream(fs::path(out) / name, std::ios::binary) << bytes;
    };
    broken("checkpoint-40.safetensors", [](std::string& b) { b.resize(b.size() / 2); });
    broken("checkpoint-30.safetensors", [](std::string& b) { b[b.size() - 3] ^= 4; });
    Result r = succeed(train);
    CHECK(has(r.out, "broken     " + out + "/checkpoint-40.safetensors: "));
    CHECK(has(r.out, "broken     " + out + "/checkpoint-30.safetensors: damaged"));
    CHECK(has(r.out, "resumed    checkpoint-20.safetensors"));
    CHECK(results(out) == results(whole));
    broken("checkpoint-20.safetensors", [](std::string& b) { b.clear(); });
    broken("checkpoint-10.safetensors", [](std::string& b) { b.assign(b.size(), '\0'); });
    r = succeed(train);
    CHECK(has(r.out, "broken     " + out + "/checkpoint-10.safetensors"));
    CHECK(has(r.out, "from the beginning"));
    CHECK(results(out) == results(whole));
    // Nothing was lost: whoever wants can look at them.
    CHECK(has(r.out, "kept aside " + out + "/checkpoint-10.safetensors.broken"));
    for (const char* step : {"10", "20", "30", "40"})
      CHECK(fs::exists(out + "/checkpoint-" + step + ".safetensors.broken"));
    succeed(kTrain + "--epochs 1 --out " + quoted(out));  // not --resume: all goes
    CHECK(checkpoints(out).empty());
  }

  TEST_CASE("a checkpoint that cannot be read may be whole: one line, and nothing is touched") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string train = kTrain + "--epochs 2 --resume --out " + quoted(out);
    succeed(train + " --checkpoint-every 20");
    const auto before = everything(out);
    fs::create_symlink("/nowhere/at/all", out + "/checkpoint-50.safetensors");
    check_refused(train, 1, {"checkpoint-50.safetensors: cannot be read: No such file", "move it"});
    CHECK(fs::is_symlink(out + "/checkpoint-50.safetensors"));
    CHECK(everything(out) == before);
    fs::remove(out + "/checkpoint-50.safetensors");
    if (geteuid() == 0) return;  // who may read all
    fs::permissions(out + "/checkpoint-44.safetensors", fs::perms::none);
    check_refused(train, 1, {"checkpoint-44.safetensors: cannot be read: Permission denied"});
    fs::permissions(out + "/checkpoint-44.safetensors", fs::perms::owner_read);
    CHECK(everything(out) == before);
  }

  TEST_CASE("what is no file and has a file's name is found before anything is done") {
    const Folder folder;
    const std::string out = folder / "out", base = out + "/baseline";
    const std::string train = kTrain + "--epochs 1 --baseline --out " + quoted(out);
    succeed(train + " --checkpoint-every 20");
    const auto before = everything(out);
    const auto refused = [&](const std::string& path) {
      for (const char* resume : {"", " --resume"})
        check_refused(train + resume, 1, {path.c_str(), "is no file; move it away"});
      CHECK(everything(out) == before);
      fs::remove_all(path);
    };
    for (const std::string& path :
         {out + "/checkpoint-7.safetensors", base + "/checkpoint-8.safetensors",
          out + "/checkpoint-5.safetensors.broken"}) {
      fs::create_directory(path);
      refused(path);
      fs::create_directories(path + "/full");
      refused(path);
      REQUIRE(mkfifo(path.c_str(), 0600) == 0);
      refused(path);
    }
    const std::string metrics = base + "/metrics.jsonl", kept = folder / "kept";
    fs::rename(metrics, kept);
    fs::create_directory(metrics);
    check_refused(train + " --resume", 1, {metrics.c_str(), "is no file"});
  }

  TEST_CASE("--keep counts whole checkpoints") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string train = kTrain + "--epochs 2 --out " + quoted(out);
    succeed(train + " --checkpoint-every 10 --keep 9");
    stop_at(out, 30);
    fs::resize_file(out + "/checkpoint-20.safetensors", 100);
    succeed(train + " --checkpoint-every 10 --keep 3 --resume");  // 40 and 44 are added
    CHECK(checkpoints(out) == std::vector<std::string>{"checkpoint-30.safetensors",
                                                       "checkpoint-40.safetensors",
                                                       "checkpoint-44.safetensors"});
    stop_at(out, 40);
    fs::resize_file(out + "/checkpoint-30.safetensors", 100);
    fs::copy_file(out + "/checkpoint-40.safetensors", out + "/checkpoint-9.safetensors");
    succeed(train + " --checkpoint-every 10 --keep 3 --resume");
    CHECK(checkpoints(out) ==
          std::vector<std::string>{"checkpoint-30.safetensors", "checkpoint-40.safetensors",
                                   "checkpoint-44.safetensors", "checkpoint-9.safetensors"});
  }

  TEST_CASE("a checkpoint with another step's name, and a state that does not fit") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string train = kTrain + "--epochs 2 --resume --out " + quoted(out);
    succeed(train + " --checkpoint-every 20 --keep 9");
    stop_at(out, 20);
    const std::string file = out + "/checkpoint-20.safetensors", good = slurp(file);
    fs::rename(file, out + "/checkpoint-21.safetensors");
    check_refused(train, 1, {"checkpoint-21.safetensors: it is the checkpoint of step 20"});
    fs::remove(out + "/checkpoint-21.safetensors");
    const auto changed = [&](const std::string& from, const std::string& to) {
      std::string bytes = good;
      REQUIRE(bytes.find(from) != std::string::npos);
      bytes.replace(bytes.find(from), from.size(), to);
      std::ofstream(file, std::ios::binary) << tests::with_checksum(bytes);
    };
    changed("\"state.batch_offset\":\"1280\"", "\"state.batch_offset\":\"9999\"");
    check_refused(train, 1, {"checkpoint-20.safetensors: its state.batch_offset is 9999"});
    changed("\"state.grad_factor\":\"1\"", "\"state.grad_factor\":\"0\"");
    check_refused(train, 1, {"checkpoint-20.safetensors: its state.grad_factor is 0"});
  }

  TEST_CASE("weights that are no numbers are not written over the last good ones") {
    const Folder folder;
    const std::string out = folder / "out";
    check_refused(
        "train --epochs 30 --checkpoint-every 1 --keep 1 --optimizer adam --moment1 "
        "e4m3-g256-scalef32 --moment2 e4m3-g256-scalef32 --out " +
            quoted(out),
        1, {"after step", "holds nan", "is whole, --resume goes on from it"});
    const std::vector<std::string> left = checkpoints(out);
    REQUIRE(left.size() == 1);
    const nn::SafetensorsFile file = nn::load_safetensors(fs::path(out) / left[0]);
    for (const auto& [name, tensor] : file.tensors)
      if (name.ends_with(".weight"))
        for (const float x : tensor.to_floats()) REQUIRE(std::isfinite(x));
  }

  TEST_CASE("one run at a time in a folder") {
    const Folder folder;
    const std::string out = folder / "out", base = out + "/baseline", lock = out + "/.ulp-lock";
    const std::string train = kTrain + "--epochs 1 --out " + quoted(out);
    succeed(train + " --baseline");
    CHECK(!fs::exists(lock));
    CHECK(!fs::exists(base + "/.ulp-lock"));
    std::ofstream(lock).close();  // of a run that was killed
    succeed(train + " --baseline");
    CHECK(!fs::exists(lock));
    const auto held = [&](const std::string& at, const std::string& arguments) {
      const std::string name = at + "/.ulp-lock";
      const int file = ::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
      REQUIRE(::flock(file, LOCK_EX | LOCK_NB) == 0);
      const auto before = everything(out);
      check_refused(arguments, 1, {("--out " + at).c_str(), "another run of ulp"});
      CHECK(everything(out) == before);
      ::close(file);
      fs::remove(name);
    };
    held(out, train);
    held(out, train + " --resume");
    held(base, train);
    held(base, train + " --baseline");
    held(out, "sweep --formats e4m3 --seeds 1 --hidden 8 --epochs 1 --out " + quoted(out));
  }

  TEST_CASE("the numbers of a table from a file must be the same") {
    const Folder folder;
    const std::string out = folder / "out", table = folder / "table.txt";
    const auto write = [&](const char* numbers) { std::ofstream(table) << numbers; };
    write("-1\n-0.5\n0\n0.25\n1\n");
    const std::string plain =
        "train --hidden 8 --epochs 1 --checkpoint-every 5 --forward 'table=" + table + "' --out " +
        quoted(out);
    succeed(plain);
    succeed(plain + " --resume");
    write("-1\n-0.5\n0\n0.5\n1\n");
    check_refused(plain + " --resume", 1, {"\"tables\"", "table.txt"});
    write("-1\n-0.5\n0\n0.250 # the same\n1\n");
    succeed(plain + " --resume");
    check_refused("train --moment1 'table=/a\nb' --out " + quoted(out), 2, {"control character"});
  }

  TEST_CASE("settings that differ from the checkpoint's are refused by name; nothing is touched") {
    const Folder folder;
    const std::string out = folder / "out", train = kTrain + "--epochs 2 --out " + quoted(out);
    succeed(train + " --checkpoint-every 15");
    const auto before = everything(out);
    const auto refused = [&](const std::string& from, const std::string& to,
                             std::initializer_list<const char*> words) {
      std::string changed = train + " --resume";
      const size_t at = changed.find(from);
      REQUIRE(at != std::string::npos);
      changed.replace(at, from.size(), to);
      check_refused(changed, 1, words);
      CHECK(everything(out) == before);
    };
    refused("--hidden 20", "--hidden 21",
            {"checkpoint-44.safetensors", "\"hidden\": [20]", "[21]"});
    refused("--lr 0.05", "--lr 0.06", {"\"optimizer.lr\": 0.05", "0.06", "--resume"});
    refused("--lr 0.05", "--lr 0.05 --seed 2", {"\"seed\": 1", "this run has 2"});
    refused("--batch-size 64", "--batch-size 32", {"\"batch_size\""});
    refused("--weights e4m3:sr", "--weights e4m3", {"\"optimizer.weights\": \"e4m3:sr\""});
    refused("--backward e5m2:sr", "--backward e5m2", {"\"policy 1.backward\""});
    refused("--lr 0.05", "--lr 0.05 --lr-schedule cosine", {"\"optimizer.lr_schedule\""});
    refused("--epochs 2", "--epochs 1", {"2 epochs and 0 steps behind it", "--epochs 1"});
    check_refused("train --keep 3", 2, {"--keep", "--checkpoint-every"});
    check_refused("train --checkpoint-every 0", 2, {"--checkpoint-every", "1 to 1000000000"});
    check_refused("train --checkpoint-every x", 2, {"--checkpoint-every"});
    check_refused("train --checkpoint-every 5 --keep 0", 2, {"--keep"});
    check_refused("train --checkpoint-every ''", 2, {"--checkpoint-every"});
  }

  TEST_CASE("a run with a constant rate can be made longer, another cannot") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    succeed(kTrain + "--epochs 3 --out " + quoted(whole));
    succeed(kTrain + "--epochs 1 --checkpoint-every 1000 --out " + quoted(out));
    CHECK(checkpoints(out) == std::vector<std::string>{"checkpoint-22.safetensors"});
    succeed(kTrain + "--epochs 3 --resume --out " + quoted(out));
    CHECK(results(out) == results(whole));
    for (const char* schedule : {"cosine", "step"}) {
      const std::string train =
          kTrain + "--lr-schedule " + schedule + " --out " + quoted(out) + " --checkpoint-every 9";
      succeed(train + " --epochs 1");
      check_refused(train + " --epochs 2 --resume", 1, {"\"epochs\": 1", "this run has 2"});
    }
  }

  TEST_CASE("the data must be the same") {
    const Folder folder;
    const auto idx = [&](const std::string& name, const std::string& header,
                         const std::string& bytes) {
      std::ofstream(folder / name.c_str(), std::ios::binary) << header << bytes;
    };
    const auto data = [&](const std::string& pixels) {
      using namespace std::string_literals;
      for (const std::string split : {"train", "t10k"}) {
        idx(split + "-images-idx3-ubyte", "\0\0\x08\x03\0\0\0\x04\0\0\0\x02\0\0\0\x02"s, pixels);
        idx(split + "-labels-idx1-ubyte", "\0\0\x08\x01\0\0\0\x04"s, "\0\1\2\1"s);
      }
    };
    data("0123456789abcdef");
    const std::string train = "train --data " + quoted(folder.path.string()) +
                              " --hidden 4 --batch-size 2 --epochs 2 --checkpoint-every 1 --out " +
                              quoted(folder / "out");
    succeed(train);
    data("0123456789abcdeF");
    check_refused(train + " --resume", 1, {"other samples"});
    data("0123456789abcdef");
    succeed(train + " --resume");
  }

  TEST_CASE("adaptive optimizers with packed states are resumed too") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    const std::vector<std::string> settings = {
        "--optimizer adam --moment1 e4m3-g256-scalef32 --moment2 e5m2-g256-scalef32:sr ",
        "--optimizer adamw --weights bf16 --update kahan --compensation bf16 ",
        "--optimizer lion --weights bf16:sr --moment1 mxfp8:sr ",
    };
    for (const std::string& setting : settings) {
      CAPTURE(setting);
      const std::string train =
          "train --hidden 20 --batch-size 64 --forward e4m3 --backward e5m2:sr --epochs 2 " +
          setting;
      succeed(train + "--out " + quoted(whole));
      succeed(train + "--checkpoint-every 9 --keep 9 --threads 1 --out " + quoted(out));
      for (const int64_t step : {36, 9}) {
        stop_at(out, step);
        succeed(train + "--resume --threads 3 --out " + quoted(out));
        CHECK(results(out) == results(whole));
      }
    }
    check_refused(
        "train --hidden 20 --batch-size 64 --forward e4m3 --backward e5m2:sr --epochs 2 "
        "--optimizer lion --weights bf16:sr --moment1 mxfp6:sr --resume --out " +
            quoted(out),
        1, {"\"optimizer.moment1\": \"mxfp8:sr\"", "\"mxfp6:sr\""});
  }

  TEST_CASE("a checkpoint of another version is not read, and not removed as a broken one is") {
    const Folder folder;
    const std::string out = folder / "out";
    const std::string train = kTrain + "--epochs 1 --checkpoint-every 10 --keep 9 --out ";
    succeed(train + quoted(out));
    stop_at(out, 10);
    const std::string file = out + "/checkpoint-10.safetensors", good = slurp(file);
    std::string old = good;
    const std::string field = "\"state.grad_factor\":";
    REQUIRE(old.find(field) != std::string::npos);
    old.replace(old.find(field), field.size(), "\"note.grad_factor_\":");
    old = tests::with_checksum(old);
    std::ofstream(file, std::ios::binary) << old;
    const auto before = everything(out);
    check_refused(train + quoted(out) + " --resume", 1,
                  {"checkpoint-10.safetensors: another version of ulp wrote it",
                   "no state.grad_factor", "resume with that version, or leave --resume away"});
    CHECK(everything(out) == before);
    // One that is broken is passed over.
    std::ofstream(file, std::ios::binary) << good.substr(0, good.size() - 1);
    const Result r = succeed(train + quoted(out) + " --resume");
    CHECK(has(r.out, "broken     "));
    CHECK(has(r.out, "from the beginning"));
  }

  TEST_CASE("a baseline is resumed too") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    const std::string train = kTrain + "--epochs 2 --baseline --out ";
    succeed(train + quoted(whole));
    const std::string last_lines = "difference to fp32";
    succeed(train + quoted(out) + " --checkpoint-every 12 --keep 9");
    const auto same = [&] {
      CHECK(results(out) == results(whole));
      CHECK(results(out + "/baseline") == results(whole + "/baseline"));
    };
    same();
    stop_at(out + "/baseline", 24);  // killed while the baseline was trained
    Result r = succeed(train + quoted(out) + " --resume");
    CHECK(has(r.out, "checkpoint-44.safetensors: epoch 2, step 22 of 22"));
    CHECK(has(r.out, "checkpoint-24.safetensors: epoch 2, step 2 of 22"));
    CHECK(has(r.out, last_lines));
    same();
    stop_at(out, 36);  // killed before the baseline began
    fs::remove_all(out + "/baseline");
    r = succeed(train + quoted(out) + " --resume --checkpoint-every 30");
    CHECK(has(r.out, "no whole checkpoint in " + out + "/baseline: from the beginning"));
    same();
    succeed(kTrain + "--epochs 1 --out " + quoted(out));
    CHECK(!fs::exists(out + "/baseline"));
    CHECK(checkpoints(out).empty());
    // Nothing is there yet.
    r = succeed(train + quoted(folder / "new") + " --resume --checkpoint-every 30");
    CHECK(has(r.out, last_lines));
    CHECK(results(folder / "new") == results(whole));
  }

  TEST_CASE("where the disk has no room the last whole checkpoint stays, and one line says so") {
    const Folder folder;
    const std::string whole = folder / "whole", out = folder / "out";
    const auto train = [&](int epochs) {
      return kTrain + "--epochs " + std::to_string(epochs) +
             " --checkpoint-every 10 --keep 1 --out ";
    };
    succeed(train(3) + quoted(whole));

    SUBCASE("a limit on the size of files") {
      succeed(train(1) + quoted(out));
      const auto before = everything(out);
      for (const char* limit : {"ulimit -f 6;", "trap '' XFSZ; ulimit -f 8;"}) {
        const Result r = shell(limit, train(3) + quoted(out) + " --resume", folder);
        CAPTURE(r.err);
        CHECK(r.status == 1);
        CHECK(lines(r.err) == 1);
        CHECK(has(r.err,
                  "checkpoint-30.safetensors: cannot be written: File too large; "
                  "checkpoint-22.safetensors is whole, --resume goes on from it"));
        CHECK(everything(out).at(out + "/checkpoint-22.safetensors") ==
              before.at(out + "/checkpoint-22.safetensors"));
        CHECK(checkpoints(out) == std::vector<std::string>{"checkpoint-22.safetensors"});
      }
      succeed(train(3) + quoted(out) + " --resume");
      CHECK(results(out) == results(whole));
      // From the beginning.
      const Result r = shell("ulimit -f 6;", train(3) + quoted(folder / "none"), folder);
      CHECK(r.status == 1);
      CHECK(has(r.err, "cannot be written: File too large; there is no checkpoint yet"));
    }

    SUBCASE("a full file system") {
      // A tmpfs in a name space of its own, where this user may have one.
      Folder place;
      const std::string script = folder / "script";
      std::ofstream(script) << "ulp='" << paths::kCommand << "'\n"
                            << "one='" << train(1) << "out'\n"
                            << "three='" << train(3) << "out'\n"
                            << R"sh(
mount -t tmpfs -o size=64k ulp-test "$1" && cd "$1" || exit
echo mounted
eval "$ulp $one" >/dev/null || exit
before=$(cksum out/checkpoint-22.safetensors)
head -c 1000000 /dev/zero >fill 2>/dev/null
truncate -s -4096 fill # room for the small files, not for a checkpoint
eval "$ulp $three --resume" 2>&1 >/dev/null
echo "status $?"
[ "$before" = "$(cksum out/checkpoint-22.safetensors)" ] && echo kept
ls -A out
rm fill
eval "$ulp $three --resume" >/dev/null || exit
cp out/config.json out/metrics.jsonl out/model.safetensors "$2" && echo done
)sh";
      fs::create_directory(out);
      FILE* pipe = popen(("unshare -rm sh " + quoted(script) + " " + quoted(place.path.string()) +
                          " " + quoted(out) + " 2>&1")
                             .c_str(),
                         "r");
      REQUIRE(pipe != nullptr);
      std::string text;
      char buffer[4096];
      while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) text.append(buffer, n);
      pclose(pipe);
      if (!text.starts_with("mounted")) {
        MESSAGE("SKIPPED: full disk: this user cannot mount a tmpfs: " << text);
        return;
      }
      CHECK(has(text,
                "\nulp: out/checkpoint-30.safetensors: cannot be written: No space left on device; "
                "checkpoint-22.safetensors is whole, --resume goes on from it\nstatus 1\nkept\n"
                "checkpoint-22.safetensors\nconfig.json\nmetrics.jsonl\ndone\n"));
      CHECK(results(out) == results(whole));
    }
  }

  TEST_CASE("bench checkpoint reads what it wrote and leaves nothing behind") {
    const Folder folder;
    const Result r = succeed("bench checkpoint --mib 2 --repeats 1 --json --dir " +
                             quoted(folder.path.string()));
    CHECK(has(r.out, "\"ratio\""));
    CHECK(fs::is_empty(folder.path));
    check_refused("bench checkpoint --mib 0", 2, {"--mib"});
    check_refused("bench checkpoint --dir /proc/nowhere", 1, {"--dir /proc/nowhere"});
  }
}

#endif
