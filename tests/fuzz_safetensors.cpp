// libFuzzer target for what reads safetensors files and checkpoints: built with clang and -DULP_FUZZ=ON, see the README.
//   build-fuzz/tests/fuzz_safetensors --seeds DIR          writes small files to begin with
//   build-fuzz/tests/fuzz_safetensors -runs=1000000 DIR    fuzzes from them
// Whatever the bytes, reading them ends with a result or with one ulp::Error of one short line; a sanitizer reports anything
// else.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.h"
#include "nn/data/atomic_file.h"
#include "nn/data/checkpoint.h"
#include "with_checksum.h"

using namespace ulp;

namespace {

/// Not assert: it must hold in every build.
void require(bool condition, const char* what, const std::string& shown = "") {
  if (condition) return;
  std::fprintf(stderr, "fuzz_safetensors: %s: %s\n", what, shown.c_str());
  std::abort();
}

template <class F>
bool reads(F action) {
  try {
    action();
    return true;
  } catch (const Error& error) {
    const std::string message = error.what();
    require(message.starts_with("input: "), "a message without the file's name", message);
    require(message.find('\n') == std::string::npos && message.size() < 1000, "no short line",
            message);
    return false;
  }
}

int64_t bytes_of(const std::map<std::string, Tensor>& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += tensor.bytes();
  return bytes;
}

/// A run with two tensors, of which one has a format.
struct Live {
  Run run{kCpu, 5};
  Tensor weight = Tensor::zeros({2, 2}, DType::F32, kCpu),
         moment = Tensor::zeros({4}, DType::U8, kCpu);
  nn::Checkpoint states() {
    nn::Checkpoint c;
    c.seed = run.seed();
    c.state = run.state();
    c.add({{"w", weight}, {"w.moment", moment}}, {{"w.moment", "e4m3-g4"}});
    return c;
  }
};

void try_bytes(std::span<const uint8_t> bytes) {
  nn::SafetensorsFile file;
  if (reads([&] { file = nn::parse_safetensors(bytes, "input"); }))
    require(bytes_of(file.tensors) <= static_cast<int64_t>(bytes.size()),
            "more bytes than the file has");
  nn::Checkpoint checkpoint;
  if (!reads([&] { checkpoint = nn::parse_checkpoint(bytes, "input"); })) return;
  require(file.has_checksum, "a checkpoint that is no safetensors file");
  Live live;
  const nn::Checkpoint states = live.states();
  const bool fits = reads([&] { nn::restore(checkpoint, "input", live.run, states); });
  require(fits || std::memcmp(live.weight.raw(), std::vector<float>(4).data(), 16) == 0,
          "a refused checkpoint that changed the run");
}

nn::Checkpoint seed_checkpoint() {
  Live live;
  nn::Checkpoint c = live.states();
  c.scalings[0xbeef] = Tensor::from(std::vector<float>{1, 2, 3}, {3});
  c.notes["config"] = "{\"epochs\": 3}\n";
  c.texts["metrics"] = "{}\n";
  return c;
}

void write_seeds(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  nn::save_checkpoint(folder / "checkpoint", seed_checkpoint());
  std::map<std::string, Tensor> tensors;
  for (const DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16, DType::F8E4M3,
                            DType::F8E5M2, DType::I32, DType::I8, DType::U8})
    tensors[std::string("t.") + std::string(to_string(dtype))] = Tensor::zeros({1, 2}, dtype, kCpu);
  tensors["empty"] = Tensor::zeros({0, 3}, DType::F32, kCpu);
  tensors["one"] = Tensor::zeros({}, DType::F32, kCpu);
  nn::save_safetensors(folder / "types", tensors, {{"a", "ü\n\""}});
  nn::save_safetensors(folder / "checked", {{"w", Tensor::zeros({3}, DType::F32, kCpu)}}, {},
                       nn::Checksum::Yes);
  nn::save_safetensors(folder / "nothing", {}, {});
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc == 3 && std::strcmp((*argv)[1], "--seeds") == 0) {
    write_seeds((*argv)[2]);
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try_bytes({data, size});
  // A checksum is never met by chance: the same bytes once more with the right one, if they have a place for it.
  const std::string given(reinterpret_cast<const char*>(data), size);
  const std::string fixed = tests::with_checksum(given);
  if (fixed != given) try_bytes({reinterpret_cast<const uint8_t*>(fixed.data()), fixed.size()});
  return 0;
}
