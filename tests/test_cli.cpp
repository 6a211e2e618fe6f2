#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <regex>
#include <sstream>
#include <vector>

#include "nn/data/safetensors.h"
#include "tests/command.h"
#include "tests/paths.h"
#include "tests/reference.h"

// The ulp command as a user meets it.
#if defined(ULP_COMMAND)

namespace fs = std::filesystem;
using namespace ulp;
using namespace ulp::command;

namespace {

std::string without_seconds(const std::string& metrics) {
  return std::regex_replace(metrics, std::regex("\"seconds\":[^}]*"), "");
}

double last_accuracy(const std::string& out) {
  const std::string last = out.substr(out.rfind("test accuracy "));
  return std::stod(last.substr(14));
}

void big_endian(std::string& to, uint32_t v) {
  for (int shift = 24; shift >= 0; shift -= 8) to += static_cast<char>(v >> shift & 255);
}

/// Four images of 2 × 2 pixels with labels 0, 1, 2, 1, the same for training and for testing.
struct SmallData {
  std::string images, labels;
  SmallData() {
    big_endian(images, 0x803);
    for (const uint32_t v : {4u, 2u, 2u}) big_endian(images, v);
    images += std::string(16, '\7');
    big_endian(labels, 0x801);
    big_endian(labels, 4);
    labels += std::string("\0\1\2\1", 4);
  }
  void write(const fs::path& folder) const {
    for (const std::string split : {"train", "t10k"}) {
      std::ofstream(folder / (split + "-images-idx3-ubyte"), std::ios::binary) << images;
      std::ofstream(folder / (split + "-labels-idx1-ubyte"), std::ios::binary) << labels;
    }
  }
};

/// Every file below a folder: its path in there → its bytes.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      files[fs::relative(entry.path(), folder).string()] = slurp(entry.path());
  return files;
}

std::vector<std::string> names(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// The value of the first match of what stands between the parentheses.
std::string found(const std::string& text, const char* regex) {
  std::smatch match;
  CAPTURE(text);
  REQUIRE(std::regex_search(text, match, std::regex(regex)));
  return match[1];
}

bool is_metrics(const std::string& text) {
  static const std::regex row(
      R"row((\{"epoch":\d+,"split":"(train|test)","loss":[-+.e\d]+,"accuracy":[.\d]+,"seconds":[-+.e\d]+\}\n)+)row");
  return std::regex_match(text, row);
}

/// Runs the command with these words and kills it after a while.
void run_and_kill(std::vector<std::string> words, int signal, int microseconds) {
  words.insert(words.begin(), paths::kCommand);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error = posix_spawn(&child, paths::kCommand, &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  REQUIRE(error == 0);
  usleep(static_cast<useconds_t>(microseconds));
  kill(child, signal);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));  // it was still at work
}

bool has_unnamed_files(const fs::path& folder) {
  const int descriptor = open(folder.c_str(), O_TMPFILE | O_WRONLY, 0600);
  if (descriptor >= 0) close(descriptor);
  return descriptor >= 0;
}

const std::vector<std::string> kRunFiles = {"config.json", "metrics.jsonl", "model.safetensors"};

}  // namespace

TEST_SUITE("cli") {
  TEST_CASE(
      "train prints its whole configuration, writes what it promises and ends with the "
      "accuracies") {
    const Folder folder;
    const std::string out = folder / "run";
    const Result r = ulp_command(
        "train --data digits --hidden 24,16 --epochs 4 --batch-size 32 --forward e4m3 --backward "
        "e5m2:sr --grad-input e5m2 "
        "--weights e4m3 --accumulator e6m9:sr --grads e5m2 --momentum-format bf16 --loss-scale 8 "
        "--lr 0.1 --lr-schedule cosine "
        "--seed 5 --baseline --out '" +
        out + "'");
    CAPTURE(r.out);
    CHECK(r.status == 0);
    CHECK(r.err.empty());
    for (const char* word :
         {"fc1", "fc2", "fc3", "relu1", "input e4m3", "weight_dx e4m3", "grad_output_dw e5m2:sr",
          "grad_input e5m2", "output fp32", "interior fp32", "accumulator e6m9:sr", "momentum bf16",
          "gradients × 0.125", "cosine", "seed 5", "difference to fp32"})
      CHECK(r.out.find(word) != std::string::npos);
    CHECK(std::regex_search(r.out,
                            std::regex("\ntest accuracy 0\\.\\d{4}  \\(fp32 0\\.\\d{4}\\)\n$")));
    CHECK(r.out.find('\r') == std::string::npos);  // plain lines when piped
    CHECK(last_accuracy(r.out) > 0.8);

    const std::string metrics = slurp(out + "/metrics.jsonl");
    CHECK(lines(metrics) == 8);
    const std::regex row(
        R"row(\{"epoch":\d+,"split":"(train|test)","loss":[-+.e\d]+,"accuracy":[.\d]+,"seconds":[-+.e\d]+\})row");
    std::istringstream stream(metrics);
    for (std::string line; std::getline(stream, line);) CHECK(std::regex_match(line, row));

    const nn::SafetensorsFile model = nn::load_safetensors(out + "/model.safetensors");
    CHECK(model.tensors.size() == 6);
    const std::vector<double> values = reference::Reference("e4m3").values();
    for (const auto& [name, tensor] : model.tensors) {
      CAPTURE(name);
      CHECK(tensor.dtype() == DType::F8E4M3);
      for (const double v : tensor.to_doubles())
        if (v != 0) CHECK(std::find(values.begin(), values.end(), v) != values.end());
    }
    CHECK(model.tensors.at("fc2.weight").shape() == Shape{16, 24});
    for (const char* file : {"/baseline/config.json", "/baseline/metrics.jsonl",
                             "/baseline/model.safetensors", "/config.json"})
      CHECK(fs::exists(out + file));
    for (const auto& entry : fs::recursive_directory_iterator(out))
      CHECK((entry.is_directory() || entry.path().extension() == ".json" ||
             entry.path().extension() == ".jsonl" || entry.path().extension() == ".safetensors"));

    SUBCASE("eval gives the same accuracy, and others under other formats") {
      const Result same = ulp_command("eval '" + out + "'");
      CHECK(same.status == 0);
      CHECK(last_accuracy(same.out) == last_accuracy(r.out));
      const Result coarse = ulp_command("eval '" + out + "' --forward e2m1");
      CHECK(coarse.status == 0);
      CHECK(coarse.out.find("input e2m1") != std::string::npos);
      CHECK(last_accuracy(coarse.out) < last_accuracy(r.out));
    }
    SUBCASE("eval refuses a spoilt model") {
      auto broken = model;
      Tensor nan = Tensor::from(std::vector<float>(16, std::nanf("")), {16});
      broken.tensors["fc2.bias"] = nan;
      nn::save_safetensors(out + "/model.safetensors", broken.tensors, {});
      check_refused("eval '" + out + "'", 1, {"fc2.bias", "nan", "element 0"});
      broken.tensors.erase("fc2.bias");
      nn::save_safetensors(out + "/model.safetensors", broken.tensors, {});
      check_refused("eval '" + out + "'", 1, {"fc2.bias"});
      std::ofstream(out + "/config.json") << "{\"data\": 3}";
      check_refused("eval '" + out + "'", 1, {"config.json", "\"data\""});
      std::ofstream(out + "/config.json") << "{";
      check_refused("eval '" + out + "'", 1, {"config.json", "JSON"});
      check_refused("eval '" + (folder / "nowhere") + "'", 1, {"nowhere"});
    }
  }

  TEST_CASE("every optimizer trains in few bytes, says so, and can be evaluated") {
    struct Setting {
      const char *flags, *out;
    };
    const Setting settings[] = {
        {"--optimizer sgd --moment1 e4m3", "momentum e4m3 (F8_E4M3, 1 byte)"},
        {"--optimizer adam --weight-decay 0.01", "weight decay 0.01 (coupled)"},
        {"--optimizer adamw --moment1 dynamic8-g256-scalef32 --moment2 dynamic8u-g256-scalef32",
         "moment2 dynamic8u-g256-scalef32 (codes of 8 bits, fp32 scales)"},
        {"--optimizer adamw --weights bf16 --update kahan --compensation bf16 --moment1 bf16:sr "
         "--moment2 bf16:sr",
         "states 6 bytes a parameter beside the weight's 2,"},
        {"--optimizer lion --moment1 e2m1-g32-scalef32:sr --beta2 0.98", "beta2 0.98"},
        {"--optimizer adam --param-group '*.bias:weights=bf16,accumulator=none,lr=2'",
         "group *.bias: lr × 2 weights bf16 accumulator none"},
    };
    for (const Setting& s : settings) {
      CAPTURE(std::string(s.flags));
      const Folder folder;
      const std::string out = folder / "run";
      const Result r = ulp_command("train --hidden 32 --epochs 8 --batch-size 32 --lr 0.01 " +
                                   std::string(s.flags) + " --out '" + out + "'");
      CAPTURE(r.err);
      CAPTURE(r.out);
      REQUIRE(r.status == 0);
      CHECK(r.out.find(s.out) != std::string::npos);
      CHECK(r.out.find(" bytes a parameter beside the weight's ") != std::string::npos);
      const size_t at = r.out.rfind("test accuracy ");
      REQUIRE(at != std::string::npos);
      CHECK(std::stod(r.out.substr(at + 14)) > 0.8);
      const std::string config = slurp(out + "/config.json");
      for (const char* key : {"\"moment1\"", "\"moment2\"", "\"update\"", "\"compensation\"",
                              "\"weight_decay_mode\"", "\"groups\"", "\"eps\""})
        CHECK(config.find(key) != std::string::npos);
      const Result again = ulp_command("eval '" + out + "'");
      CHECK(again.status == 0);
      CHECK(again.out.find(r.out.substr(at + 14, 6)) != std::string::npos);
    }
  }

  TEST_CASE("one seed gives the same bytes for any number of threads") {
    const Folder folder;
    std::string model, metrics;
    for (const char* formats :
         {"--forward e4m3:sr --backward e5m2:sr --weights e4m3 --accumulator e6m9:sr",
          "--forward bfp8-axis0:sr --backward bfp8-axis0:sr --output bfp8-axis0:sr --grad-input "
          "bfp8-axis0:sr --grad-weight bfp8-axis0:sr --weights bfp8-axis0:sr --grads bfp8-axis0:sr "
          "--momentum-format bfp8-axis0:sr"}) {
      model.clear();
      for (const char* threads : {"1", "2", "3", "1"}) {
        const std::string out = folder / "run";
        const Result r =
            ulp_command("train --hidden 48,32 --epochs 2 --batch-size 64 --lr 0.05 --threads " +
                        std::string(threads) + " " + formats + " --out '" + out + "'");
        CAPTURE(r.err);
        REQUIRE(r.status == 0);
        if (model.empty()) {
          model = slurp(out + "/model.safetensors");
          metrics = without_seconds(slurp(out + "/metrics.jsonl"));
        }
        CHECK(slurp(out + "/model.safetensors") == model);
        CHECK(without_seconds(slurp(out + "/metrics.jsonl")) == metrics);
      }
    }
  }

  TEST_CASE("wrong command lines end with 2 and one line that says what is allowed") {
    check_refused("", 2, {"subcommand"});
    check_refused("trian", 2, {"trian", "train", "eval"});
    check_refused("train --fowrard e4m3", 2, {"--fowrard", "--forward"});
    check_refused("train --momentum 0.9", 2, {"--momentum", "--momentum-coef"});
    check_refused("train --model lenet", 2, {"lenet", "mlp"});
    check_refused("train --optimizer adagrad", 2,
                  {"--optimizer", "adagrad", "sgd, adam, adamw and lion"});
    check_refused("train --optimizer adam --momentum-coef 0.9", 2, {"--momentum-coef", "--beta1"});
    check_refused("train --optimizer adam --nesterov", 2, {"--nesterov", "sgd"});
    check_refused("train --beta2 0.9", 2, {"--beta2", "--momentum-coef"});
    for (const char* beta : {"1", "-0.1", "nan", "1e-400x", "2"})
      check_refused(std::string("train --optimizer adam --beta1 ") + beta, 2,
                    {"--beta1", "a number >= 0 and below 1", beta});
    check_refused("train --optimizer lion --eps 1e-6", 2, {"--eps", "lion"});
    check_refused("train --optimizer lion --moment2 bf16", 2, {"--moment2", "lion"});
    check_refused("train --moment1 bf16 --momentum-format bf16", 2, {"--moment1"});
    check_refused("train --update later", 2, {"--update", "kahan"});
    check_refused("train --update kahan --weights bfp8", 2, {"--weights", "bfp8"});
    check_refused("train --compensation bf16", 2, {"--compensation", "--update kahan"});
    check_refused("train --weight-decay-mode none", 2, {"--weight-decay-mode", "decoupled"});
    check_refused("train --param-group fc1", 2, {"--param-group", "PATTERN:key=value"});
    check_refused("train --param-group fc1:lr=2,lr=3", 2, {"--param-group", "'lr' is there twice"});
    check_refused("train --param-group fc1:rate=2", 2, {"--param-group", "'rate'", "moment1"});
    check_refused("train --param-group fc1:moment1=e9m9", 2, {"--param-group", "moment1", "e9m9"});
    const Folder group;
    check_refused("train --param-group 'fc9*:lr=2' --out '" + (group / "run") + "'", 2,
                  {"--param-group", "'fc9*' matches no parameter", "fc1.weight"});
    check_refused("train --param-group 'fc*.bias:moment2=bf16' --out '" + (group / "run") + "'", 2,
                  {"--param-group", "fc1.bias of group 'fc*.bias'", "no second moment"});
    check_refused("train --explain --param-group 'fc1*:compensation=bf16'", 2,
                  {"--param-group", "of group 'fc1*'", "needs kahan"});
    check_refused("train --forward e9m30", 2, {"--forward", "e9m30", "1 to 8 exponent bits"});
    check_refused("train --forward fixed8.-400", 2, {"fixed8.-400", "2^400"});
    check_refused("train --forward float8", 2, {"float8", "eXmY"});
    check_refused("train --backward e5m2:rsn", 2, {"rsn", "rne"});
    check_refused("train --momentum-coef e4m3", 2, {"--momentum-coef", "--moment1 e4m3"});
    check_refused("train --momentum-format 0.9", 2, {"--momentum-format", "--momentum-coef 0.9"});
    check_refused("train --weights 0.0005", 2, {"--weights", "--weight-decay 0.0005"});
    check_refused("train --grads 1000", 2, {"--grads", "--grad-scaling 1000"});
    check_refused("train --grad-input 3", 2, {"--grad-input", "number format"});
    check_refused("train --hidden 12,x", 2, {"--hidden", "12,x"});
    check_refused("train --hidden 0", 2, {"--hidden"});
    check_refused("train --epochs 0", 2, {"--epochs"});
    check_refused("train --batch-size many", 2, {"--batch-size"});
    check_refused("train --threads 0", 2, {"--threads"});
    check_refused("train --lr fast", 2, {"--lr", "fast"});
    check_refused("train --lr nan", 2, {"--lr"});
    check_refused("train --lr -1", 2, {"--lr"});
    check_refused("train --loss-scale 0", 2, {"--loss-scale"});
    check_refused("train --lr-schedule cosin", 2, {"cosin", "cosine"});
    check_refused("train --momentum-coef 0 --nesterov", 2, {"--nesterov"});
    check_refused("train --device gpu", 2, {"gpu", "cuda"});
    check_refused("train --interior bfp8", 2, {"--interior"});
    check_refused("bench", 2, {"subcommand"});
  }

  TEST_CASE("wrong data ends with 1 and names the file") {
    const Folder folder;
    check_refused("train --data nonsense --out '" + (folder / "o") + "'", 1,
                  {"nonsense", "digits", "fashion-mnist"});
    const SmallData data;
    const std::string &images = data.images, &labels = data.labels;
    const auto write = [&](const char* name, const std::string& bytes) {
      std::ofstream(folder / name, std::ios::binary) << bytes;
    };
    const auto reset = [&] { data.write(folder.path); };
    const std::string train = "train --data '" + folder.path.string() +
                              "' --hidden 4 --epochs 1 --batch-size 2 --out '" + (folder / "o") +
                              "'";
    reset();
    CHECK(ulp_command(train).status == 0);
    write("train-images-idx3-ubyte", images.substr(0, 20));
    check_refused(train, 1, {"train-images-idx3-ubyte"});
    reset();
    write("t10k-labels-idx1-ubyte", labels.substr(0, 11) + "\x9");
    check_refused(train, 1, {"t10k-labels-idx1-ubyte", "9"});
    reset();
    write("t10k-images-idx3-ubyte", "\1\2\3\4" + images.substr(4));
    check_refused(train, 1, {"t10k-images-idx3-ubyte"});
  }

  TEST_CASE(
      "a loss that is no number stops the run at its epoch and step, and the folder holds whole "
      "files only") {
    const Folder folder;
    const std::string out = folder / "run";
    const Result r =
        ulp_command("train --hidden 16 --epochs 9 --batch-size 32 --lr 1e18 --out '" + out + "'");
    CHECK(r.status == 1);
    CHECK(lines(r.err) == 1);
    CHECK(std::regex_search(r.err,
                            std::regex("the loss is (-?nan|inf) at epoch 1, step \\d+ of 44")));
    CHECK(!fs::exists(out + "/model.safetensors"));
    CHECK(fs::exists(out + "/config.json"));
    for (const auto& entry : fs::directory_iterator(out)) CHECK(entry.path().extension() != ".tmp");
    std::ofstream(folder / "file") << "x";
    check_refused("train --epochs 1 --out '" + (folder / "file") + "'", 1, {"--out"});
    check_refused("train --epochs 1 --out /proc/nowhere", 1, {"/proc/nowhere"});
  }

  TEST_CASE("a test loss or a weight that is no number ends the run before it is written") {
    const Folder folder;
    const std::string out = folder / "run";
    check_refused("train --epochs 1 --hidden 8 --batch-size 1437 --lr 1e30 --out '" + out + "'", 1,
                  {"test loss", "epoch 1"});
    CHECK(names(out) == std::vector<std::string>{"config.json"});
    // The passes saturate, so that the loss stays finite when stored weights overflow to Inf.
    check_refused(
        "train --epochs 1 --hidden 8 --batch-size 32 --lr 1e6 --forward e4m3-sat --output "
        "e4m3-sat --weights e5m2-inf --out '" +
            out + "'",
        1, {"fc1.", "holds", "inf", "epoch 1"});
    CHECK(!fs::exists(out + "/model.safetensors"));

    REQUIRE(ulp_command("train --epochs 1 --hidden 8 --out '" + out + "'").status == 0);
    auto model = nn::load_safetensors(out + "/model.safetensors");
    model.tensors["fc2.weight"] =
        Tensor::from(std::vector<float>(80, std::numeric_limits<float>::max()), {10, 8});
    model.tensors["fc1.bias"] = Tensor::from(std::vector<float>(8, 1e30f), {8});
    nn::save_safetensors(out + "/model.safetensors", model.tensors, model.metadata);
    check_refused("eval '" + out + "'", 1, {"test loss", "digits"});
  }

  TEST_CASE("a killed run leaves whole files only, and the next run clears what it left") {
    const Folder folder;
    const std::string out = folder / "run";
    fs::create_directory(out);
    int leftovers = 0;
    for (int i = 0; i < 15; ++i) {
      run_and_kill(
          {"train", "--hidden", "16", "--epochs", "100000", "--threads", "1", "--out", out},
          i % 5 == 0 ? SIGINT : (i % 5 == 1 ? SIGTERM : SIGKILL), 40'000 + 11'000 * i);
      for (const std::string& name : names(out)) {
        CAPTURE(name);
        const std::string text = slurp(out + "/" + name);
        if (name == "config.json") {
          CHECK(text.starts_with("{\n"));
          CHECK(text.ends_with("}\n"));
        } else if (name == "metrics.jsonl") {
          CHECK(is_metrics(text));
        } else if (name == ".ulp-lock") {
          CHECK(text.empty());  // of the dead: nobody has it
        } else {
          CHECK(std::regex_match(name, std::regex(R"(\.ulp-\d+-\d+\.tmp)")));
          ++leftovers;
        }
      }
      // One file may have a temporary name, and there is the lock; what the run before left is gone.
      CHECK(names(out).size() <= 4);
    }
    // Where files can be without a name, one has a temporary name only for an instant before it is renamed.
    if (has_unnamed_files(out)) CHECK(leftovers <= 1);
    REQUIRE(ulp_command("train --hidden 16 --epochs 1 --out '" + out + "'").status == 0);
    CHECK(names(out) == kRunFiles);
  }

  TEST_CASE("a run clears its folder of what earlier runs left, and of nothing else") {
    const Folder folder;
    const std::string out = folder / "run";
    const std::string train = "train --hidden 8 --epochs 1 --out '" + out + "'";
    REQUIRE(ulp_command(train + " --baseline").status == 0);
    CHECK(names(out + "/baseline") == kRunFiles);
    for (const char* name : {"/.ulp-123-0.tmp", "/baseline/.ulp-4-56.tmp"})
      std::ofstream(out + name) << "half of";
    REQUIRE(ulp_command(train).status == 0);
    CHECK(names(out) == kRunFiles);

    for (const char* name : {"/.ulp-12.tmp", "/.ulp-1-2.tmp~", "/.ulp-a-1.tmp", "/notes"})
      std::ofstream(out + name) << "mine";
    fs::create_directories(out + "/.ulp-1-2.tmp");
    fs::create_directories(out + "/baseline");
    std::ofstream(out + "/baseline/notes") << "mine";
    REQUIRE(ulp_command(train).status == 0);
    CHECK(names(out).size() == kRunFiles.size() + 6);
    CHECK(slurp(out + "/baseline/notes") == "mine");

    SUBCASE("what cannot be a folder is refused before anything is trained or printed") {
      fs::remove_all(out + "/baseline");
      std::ofstream(out + "/baseline") << "mine";
      const auto before = contents(out);
      check_refused(train + " --baseline", 1, {"--out", "baseline"});
      CHECK(ulp_command(train + " --baseline").out.empty());
      CHECK(contents(out) == before);
      CHECK(ulp_command("train --out '" + out + "/notes'").out.empty());
      check_refused("train --epochs 1 --out ''", 2, {"--out"});
    }
  }

  TEST_CASE("a format that the data cannot have is refused before the folder is touched") {
    const Folder folder;
    const std::string out = folder / "run";
    const std::string train = "train --hidden 8 --epochs 1 --batch-size 64 --out '" + out + "' ";
    REQUIRE(ulp_command(train).status == 0);
    const auto before = contents(out);
    for (const char* flag :
         {"--forward", "--backward", "--input", "--weight", "--output", "--grad-output-dx",
          "--weight-dx", "--grad-input", "--grad-output-dw", "--input-dw", "--grad-weight",
          "--weights", "--accumulator", "--grads", "--momentum-format"}) {
      check_refused(train + flag + " bfp8-axis2", 2, {flag, "bfp8-axis2", "axes 0 and 1"});
      check_refused(train + flag + " e4m3-axis7", 2, {flag, "e4m3-axis7", "axes 0 and 1"});
    }
    check_refused(train + "--interior bfp8", 2, {"--interior", "bfp8"});
    check_refused(train + "--interior bfp8-axis0", 2, {"--interior", "bfp8-axis0"});
    CHECK(contents(out) == before);
    check_refused("eval '" + out + "' --input bfp8-axis2", 2, {"--input", "bfp8-axis2"});
    check_refused("eval '" + out + "' --interior bfp8", 2, {"--interior", "bfp8"});
    for (const std::string axis : {"bfp8-axis0", "bfp8-axis1"}) {
      std::string all;
      for (const char* flag :
           {" --forward ", " --backward ", " --output ", " --grad-input ", " --grad-weight ",
            " --weights ", " --accumulator ", " --grads ", " --momentum-format "})
        all += flag + axis;
      const Result r = ulp_command(train + all);
      CAPTURE(r.err);
      CHECK(r.status == 0);
    }
  }

  TEST_CASE("numbers, whole numbers and empty values are judged as they are used") {
    for (const char* flag : {"--forward",   "--backward",    "--input",        "--interior",
                             "--weights",   "--accumulator", "--grads",        "--momentum-format",
                             "--seed",      "--epochs",      "--batch-size",   "--threads",
                             "--lr",        "--loss-scale",  "--grad-scaling", "--weight-decay",
                             "--hidden",    "--out",         "--device",       "--model",
                             "--optimizer", "--lr-schedule", "--data"})
      check_refused("train " + std::string(flag) + " ''", 2, {flag});
    check_refused("eval /nowhere --forward ''", 2, {"--forward"});
    check_refused("eval /nowhere --data ''", 2, {"--data"});
    check_refused("eval ''", 2, {"DIR"});

    for (const char* value : {"1e-300", "1e-320", "1e-400", "1e39", "1e400", "inf", "0", "-1"}) {
      for (const std::string flag : {"--lr", "--loss-scale", "--grad-scaling"})
        check_refused("train " + flag + " " + value, 2, {flag.c_str(), value, "to 3.4e+38"});
      if (value[0] != '0')
        for (const std::string flag : {"--weight-decay", "--momentum-coef"})
          check_refused("train " + flag + " " + value, 2, {flag.c_str(), value, "to 3.4e+38"});
    }
    check_refused("train --loss-scale 1e-39", 2, {"--loss-scale", "1e-39", "--grad-scaling"});

    for (const char* value : {"-1", "18446744073709551616", "1.5", "0x10", "+3", "1 "})
      check_refused("train --seed '" + std::string(value) + "'", 2,
                    {"--seed", value, "0 to 18446744073709551615"});
    for (const std::string flag : {"--epochs", "--batch-size"})
      for (const char* value : {"0", "1000001", "0x10", "1e3", "-4", "99999999999999999999"})
        check_refused("train " + flag + " " + value, 2, {flag.c_str(), value, "1 to 1000000"});
    check_refused("train --threads 1025", 2, {"--threads", "1 to 1024"});
    check_refused("eval /nowhere --threads 0x1", 2, {"--threads", "1 to 1024"});

    const Folder folder;
    const Result ten =
        ulp_command("train --epochs 010 --seed 18446744073709551615 --hidden 4 --out '" +
                    (folder / "run") + "'");
    CHECK(ten.status == 0);
    CHECK(ten.out.find("10 epochs") != std::string::npos);
    CHECK(slurp(folder / "run/config.json").find("18446744073709551615") != std::string::npos);
  }

  TEST_CASE("output that is lost is no success") {
    const Folder folder;
    const std::string train = "train --hidden 8 --epochs 1 --out '" + (folder / "run") + "' ";
    for (const std::string& arguments :
         {train, std::string("--version "), std::string("--help ")}) {
      check_refused(arguments + ">/dev/full", 1, {"standard output cannot be written"});
      check_refused(arguments + ">&-", 1, {"output", "closed"});
      CHECK(ulp_command(arguments + ">/dev/null <&-").status == 0);
    }
  }

  TEST_CASE("a batch is never larger than the data, and the run says so") {
    const Folder folder;
    const std::string out = folder / "run";
    const Result r =
        ulp_command("train --hidden 8 --epochs 1 --batch-size 5000 --out '" + out + "'");
    CHECK(r.status == 0);
    CHECK(r.out.find("batches of 1437") != std::string::npos);
    CHECK(r.out.find("5000") != std::string::npos);
    CHECK(slurp(out + "/config.json").find("\"batch_size\": 1437,") != std::string::npos);
  }

  TEST_CASE("eval names the file and the key that is wrong") {
    const Folder folder;
    const std::string out = folder / "run";
    REQUIRE(
        ulp_command("train --hidden 8 --epochs 1 --input fp16 --interior fp16 --out '" + out + "'")
            .status == 0);
    const std::string config = slurp(out + "/config.json"), file = out + "/config.json";
    const auto refused = [&](const char* regex, const char* instead,
                             std::initializer_list<const char*> words) {
      const std::string spoilt = std::regex_replace(config, std::regex(regex), instead,
                                                    std::regex_constants::format_first_only);
      REQUIRE(spoilt != config);
      std::ofstream(file) << spoilt;
      CAPTURE(instead);
      check_refused("eval '" + out + "'", 1, words);
      const std::string err = ulp_command("eval '" + out + "'").err;
      CHECK(err.find(file) != std::string::npos);
      CHECK(err.find(file) == err.rfind(file));
      CHECK(err.find("exception") == std::string::npos);
      CHECK(err.find("--") == std::string::npos);
    };
    refused("\"inputs\": 64", "\"inputs\": \"64\"", {"\"inputs\""});
    refused("\"inputs\": 64,", "", {"\"inputs\"", "missing"});
    refused("\"inputs\": 64", "\"inputs\": 65", {"65", "64"});
    refused("\"classes\": 10", "\"classes\": null", {"\"classes\""});
    refused("\"classes\": 10", "\"classes\": 11", {"11", "10"});
    refused("\"mlp\"", "\"lenet\"", {"\"model\"", "lenet", "mlp"});
    refused("\"interior\": \"fp16\"", "\"interior\": \"bfp8\"", {"line ", "\"interior\"", "bfp8"});
    refused("\"input\": \"fp16\"", "\"input\": \"bfp8-axis2\"",
            {"line ", "\"input\"", "axes 0 and 1"});
    refused("\"input\": \"fp16\"", "\"input\": \"e99m1\"", {"line ", "\"input\"", "e99m1"});
    refused("\"input\": \"fp16\"", "\"input\": \"\"", {"\"input\""});
    refused("\"input\": \"fp16\"", "\"inptu\": \"fp16\"", {"\"inptu\"", "\"input\""});
    refused("\"policy\"", "\"formats\"", {"\"policy\"", "missing"});
    refused("\"epochs\": 1", "\"epochs\": 0", {"\"epochs\""});
    refused("\"weights\": \"fp32\"", "\"weights\": 3", {"\"optimizer.weights\""});
    refused("\"optimizer\"", "\"optimiser\"", {"\"optimizer\"", "missing"});
    for (const char* hidden : {"8.7", "0", "-8", "1000001", "1e300", "18446744073709551615",
                               "\"8\"", "true", "[8]", ""}) {
      const std::string instead = "\"hidden\": [" + std::string(hidden) + "]";
      refused("\"hidden\": \\[[^\\]]*\\]", instead.c_str(), {"\"hidden\""});
    }
    refused("\"hidden\": \\[[^\\]]*\\]", "\"hidden\": 8", {"\"hidden\""});
    refused("\"seed\": 1", "\"seed\": -1", {"\"seed\""});
    refused("\"seed\": 1", "\"seed\": 1.5", {"\"seed\""});
    refused("\"seed\": 1", "\"seed\": \"1\"", {"\"seed\""});
    fs::remove(file);
    check_refused("eval '" + out + "'", 1, {file.c_str()});
    fs::create_directory(file);
    check_refused("eval '" + out + "'", 1, {file.c_str()});
    fs::remove(file);
    std::ofstream(file) << config;
    CHECK(ulp_command("eval '" + out + "'").status == 0);

    nn::SafetensorsFile model = nn::load_safetensors(out + "/model.safetensors");
    for (const char* step : {"", "x", "-1", "0", "4294967296", "1.0"}) {
      CAPTURE(step);
      model.metadata["random_step"] = step;
      nn::save_safetensors(out + "/model.safetensors", model.tensors, model.metadata);
      check_refused("eval '" + out + "'", 1, {"model.safetensors", "random_step"});
    }
  }

  TEST_CASE("eval takes the formats of a forward pass, and no others") {
    const Folder folder;
    const std::string out = folder / "run";
    REQUIRE(ulp_command("train --hidden 8 --epochs 1 --out '" + out + "'").status == 0);
    for (const char* flag : {"--forward", "--input", "--weight", "--output", "--interior"})
      CHECK(ulp_command("eval '" + out + "' " + flag + " e5m2").status == 0);
    for (const char* flag : {"--backward", "--grad-output-dx", "--weight-dx", "--grad-input",
                             "--grad-output-dw", "--input-dw", "--grad-weight"})
      check_refused("eval '" + out + "' " + flag + " e5m2", 2, {flag, "no backward pass"});
    const Result help = ulp_command("eval --help");
    CHECK(help.out.find("--weight ") != std::string::npos);
    CHECK(help.out.find("--grad-weight") == std::string::npos);
  }

  TEST_CASE("eval repeats the last test of the training exactly, stochastic formats included") {
    const Folder folder;
    const std::string out = folder / "run";
    for (const char* formats : {"--forward e4m3:sr --weights e4m3 --accumulator e6m9:sr",
                                "--forward e2m1:sr --output e4m3:sr --interior bf16:sr"}) {
      const Result r = ulp_command("train --hidden 24 --epochs 3 --lr 0.05 --seed 7 " +
                                   std::string(formats) + " --out '" + out + "'");
      REQUIRE(r.status == 0);
      const std::string metrics = slurp(out + "/metrics.jsonl");
      const std::string last = metrics.substr(metrics.rfind("{"));
      REQUIRE(last.find("\"test\"") != std::string::npos);
      for (const char* threads : {"1", "2"}) {
        const Result again = ulp_command("eval '" + out + "' --threads " + threads);
        CHECK(again.status == 0);
        CHECK(found(again.out, "test loss ([^\n]+)\n") == found(last, "\"loss\":([^,]+),"));
        CHECK(last_accuracy(again.out) == last_accuracy(r.out));
      }
    }
  }

  TEST_CASE("a relative data folder is found from anywhere") {
    const Folder folder;
    fs::create_directory(folder / "data");
    SmallData().write(folder / "data");
    const fs::path here = fs::current_path();
    fs::current_path(folder.path);
    const Result r =
        ulp_command("train --data ./data/../data --hidden 4 --epochs 1 --batch-size 2 --out run");
    fs::current_path(here);
    CAPTURE(r.err);
    CHECK(r.status == 0);
    const std::string stored = found(slurp(folder / "run/config.json"), "\"data\": \"([^\"]*)\"");
    CHECK(stored.starts_with("/"));
    CHECK(fs::equivalent(stored, folder / "data"));
    CHECK(ulp_command("eval '" + (folder / "run") + "'").status == 0);
  }

  TEST_CASE("an error is one line, whatever it quotes") {
    check_refused("train --forward 'e4m3\nsr'", 2, {"e4m3\\nsr"});
    check_refused("train --lr '1\r\x1b[2J'", 2, {"1\\r\\x1b[2J"});
    check_refused("train --data 'no\n\tsuch\x7f'", 1, {"no\\n\\tsuch\\x7f"});
    check_refused("'tr\nain'", 2, {"tr\\nain"});
    check_refused("train --data 'größe'", 1, {"größe"});
  }

  TEST_CASE("only a name that is near is suggested") {
    for (const char* arguments : {"eval x --seed 3", "eval x --epochs 3", "train --abc 1"}) {
      check_refused(arguments, 2, {"unknown option"});
      CHECK(ulp_command(arguments).err.find("did you mean") == std::string::npos);
    }
    check_refused("train --sed 3", 2, {"--sed", "did you mean --seed?"});
    check_refused("train --batchsize 3", 2, {"did you mean --batch-size?"});
    check_refused("train --backwrad e4m3", 2, {"did you mean --backward?"});
    const std::string hidden = ulp_command("eval x --backwrad e4m3").err;
    CHECK(hidden.find("did you mean --backward") == std::string::npos);
  }

  TEST_CASE(
      "a model trained with a clamp mask is scored under any formats, and trained with fp32") {
    const Folder folder;
    const std::string out = folder / "masked", policy = folder / "mask.json";
    std::ofstream(policy)
        << R"({"rules": [{"type": "linear", "forward": "fixed8.6", "clamp_mask": true}]})";
    const std::string train = "train --hidden 8 --epochs 1 --policy '" + policy + "' --out '";
    succeed(train + out + "'");
    for (const char* format : {"fp32", "fixed8.6-wrap", "fixed8.6-noclamp", "e4m3"})
      succeed("eval '" + out + "' --forward " + format);
    succeed(train + out + "' --forward fp32");
    CHECK(ulp_command(train + out + "' --forward fixed8.6-wrap").status != 0);
  }

  TEST_CASE("help says what there is") {
    for (const char* arguments :
         {"--help", "train --help", "eval --help", "bench --help", "--version"}) {
      const Result r = ulp_command(arguments);
      CHECK(r.status == 0);
      CHECK(!r.out.empty());
    }
    CHECK(ulp_command("train --help").out.find("--accumulator") != std::string::npos);
  }
}

#endif
