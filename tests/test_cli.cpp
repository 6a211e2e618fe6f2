#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "nn/data/safetensors.h"
#include "tests/reference.h"

// The ulp command as a user meets it.
#if defined(ULP_COMMAND)

namespace fs = std::filesystem;
using namespace ulp;

namespace {

struct Result {
  int status;
  std::string out, err;
};

struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "ulp-cli-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const char* name) const { return (path / name).string(); }
};

std::string slurp(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

Result ulp_command(const std::string& arguments) {
  static int counter = 0;
  const fs::path err = fs::temp_directory_path() / ("ulp-cli-err-" + std::to_string(getpid()) +
                                                    "-" + std::to_string(counter++));
  const std::string command =
      std::string("'") + ULP_COMMAND + "' " + arguments + " 2>'" + err.string() + "'";
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  Result result{0, "", ""};
  char buffer[4096];
  while (size_t n = fread(buffer, 1, sizeof buffer, pipe)) result.out.append(buffer, n);
  result.status = WEXITSTATUS(pclose(pipe));
  result.err = slurp(err);
  fs::remove(err);
  return result;
}

std::string without_seconds(const std::string& metrics) {
  return std::regex_replace(metrics, std::regex("\"seconds\":[^}]*"), "");
}

int64_t lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

double last_accuracy(const std::string& out) {
  const std::string last = out.substr(out.rfind("test accuracy "));
  return std::stod(last.substr(14));
}

/// One clear line on stderr with all these words, and the exit status.
void check_refused(const std::string& arguments, int status,
                   std::initializer_list<const char*> words) {
  const Result r = ulp_command(arguments);
  CAPTURE(arguments);
  CAPTURE(r.err);
  CHECK(r.status == status);
  CHECK(lines(r.err) == 1);
  for (const char* word : words) CHECK(r.err.find(word) != std::string::npos);
}

void big_endian(std::string& to, uint32_t v) {
  for (int shift = 24; shift >= 0; shift -= 8) to += static_cast<char>(v >> shift & 255);
}

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
    check_refused("train --optimizer adam", 2, {"adam", "sgd"});
    check_refused("train --forward e9m30", 2, {"--forward", "e9m30", "1 to 8 exponent bits"});
    check_refused("train --forward fixed8.-400", 2, {"fixed8.-400", "2^400"});
    check_refused("train --forward float8", 2, {"float8", "eXmY"});
    check_refused("train --backward e5m2:rsn", 2, {"rsn", "rne"});
    check_refused("train --momentum-coef e4m3", 2, {"--momentum-coef", "--momentum-format e4m3"});
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
    std::string images, labels;
    big_endian(images, 0x803);
    for (const uint32_t v : {4u, 2u, 2u}) big_endian(images, v);
    images += std::string(16, '\7');
    big_endian(labels, 0x801);
    big_endian(labels, 4);
    labels += std::string("\0\1\2\1", 4);
    const auto write = [&](const char* name, const std::string& bytes) {
      std::ofstream(folder / name, std::ios::binary) << bytes;
    };
    const auto reset = [&] {
      for (const char* split : {"train", "t10k"}) {
        write((std::string(split) + "-images-idx3-ubyte").c_str(), images);
        write((std::string(split) + "-labels-idx1-ubyte").c_str(), labels);
      }
    };
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
