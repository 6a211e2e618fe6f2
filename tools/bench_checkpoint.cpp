#include <fmt/core.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "nn/data/checkpoint.h"
#include "nn/data/checksum.h"
#include "tools/bench_cuda.h"
#include "tools/bench_machine.h"
#include "tools/commands.h"
#include "tools/values.h"

namespace ulp::tools {
namespace fs = std::filesystem;
namespace {

struct CheckpointBenchOptions {
  std::string mib = "1024", repeats = "3", folder = ".", device = "cpu";
  bool json = false;
};

/// A folder of its own, gone at the end.
class Folder {
 public:
  explicit Folder(const fs::path& in) : path_((in / "ulp-bench-XXXXXX").string()) {
    ULP_CHECK(::mkdtemp(path_.data()) != nullptr, "--dir {}: nothing can be written there",
              in.string());
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  fs::path operator/(const char* name) const { return fs::path(path_) / name; }

 private:
  std::string path_;
};

/// A state of so many MiB in eight tensors, no two bytes in a row alike.
nn::Checkpoint make_state(int64_t mib, Device device) {
  constexpr int64_t kTensors = 8;
  nn::Checkpoint c;
  for (int64_t i = 0; i < kTensors; ++i) {
    Tensor tensor = Tensor::empty({mib << 17}, DType::U8, kCpu);
    auto* bytes = tensor.mutable_data<uint8_t>();
    for (int64_t k = 0; k < tensor.bytes(); ++k)
      bytes[k] = static_cast<uint8_t>((k * (2 * i + 1) * 2654435761) >> 13);
    c.add({{fmt::format("t{}", i), tensor.to(device)}}, {});
  }
  c.state.random_step = 1;
  return c;
}

void check_equal(const nn::Checkpoint& a, const nn::Checkpoint& b) {
  for (const auto& [name, tensor] : a.tensors)
    ULP_CHECK(std::ranges::equal(nn::bytes_of(tensor.to_cpu_contiguous()),
                                 nn::bytes_of(b.tensors.at(name))),
              "bench checkpoint: {} was read with other bytes than were written", name);
}

void run_bench(const CheckpointBenchOptions& o) {
  const auto mib = integer_value<int64_t>("--mib", o.mib, 1, 1 << 20);
  const auto repeats = integer_value<int64_t>("--repeats", o.repeats, 1, 1000);
  const Device device = parse_device(o.device);
  const Folder folder(o.folder);
  const nn::Checkpoint state = make_state(mib, device);
  std::vector<double> plain, writing, reading;
  const auto seconds = [](auto action) {
    const double start = seconds_now();
    action();
    return seconds_now() - start;
  };
  for (int64_t i = 0; i < repeats; ++i) {
    {
      const nn::Checkpoint host = make_state(mib, kCpu);
      plain.push_back(seconds([&] {
        nn::AtomicFile file(folder / "plain");
        for (const auto& [name, tensor] : host.tensors) file.write(nn::bytes_of(tensor));
        file.commit();
      }));
    }
    writing.push_back(seconds([&] { nn::save_checkpoint(folder / "checkpoint", state); }));
    nn::Checkpoint back;
    reading.push_back(seconds([&] { back = nn::load_checkpoint(folder / "checkpoint"); }));
    check_equal(state, back);
  }
  const double size = static_cast<double>(mib);
  const double disk = size / median(plain), write = size / median(writing),
               read = size / median(reading);
  if (o.json)
    fmt::print("{}\n", nlohmann::ordered_json{{"mib", mib},
                                              {"device", to_string(device)},
                                              {"plain_mib_s", disk},
                                              {"checkpoint_mib_s", write},
                                              {"ratio", write / disk},
                                              {"read_mib_s", read}}
                           .dump(2));
  else {
    print_origin(device == kCpu ? cpu_description(omp_get_max_threads()) : gpu_description(device));
    fmt::print(
        "{} MiB on {}, MiB/s, medians of {} in turn, each until it is on the disk\n"
        "{:<34} {:>8.0f}\n{:<34} {:>8.0f}   {:.2f} of that\n{:<34} {:>8.0f}\n",
        mib, to_string(device), repeats, "the same bytes as a plain file", disk, "a checkpoint",
        write, write / disk, "reading it again (from memory)", read);
  }
}

}  // namespace

void add_bench_checkpoint(CLI::App& bench) {
  auto o = std::make_shared<CheckpointBenchOptions>();
  CLI::App* cmd =
      bench.add_subcommand("checkpoint", "writing a checkpoint beside writing a plain file");
  cmd->add_option("--mib", o->mib, "size of the state")->capture_default_str();
  cmd->add_option("--dir", o->folder, "a folder on the disk")->capture_default_str();
  cmd->add_option("--device", o->device, "where the state lies: cpu, cuda or cuda:N")
      ->capture_default_str();
  cmd->add_option("--repeats", o->repeats, "runs of each; the median counts")
      ->capture_default_str();
  cmd->add_flag("--json", o->json, "print a JSON object");
  cmd->callback([o] { run_bench(*o); });
}

}  // namespace ulp::tools
