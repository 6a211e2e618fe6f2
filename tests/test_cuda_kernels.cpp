// Every kernel on the CPU and on CUDA, on the same inputs: the same bits, and the same refusals.

#include <doctest/doctest.h>
#include <omp.h>

#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/storage.h"
#include "kernels/pack.h"
#include "tests/command.h"
#include "tools/cases/comparison.h"
#include "tools/cases/core_cases.h"

#if defined(ULP_HAS_CUDA)
#include "core/cuda_check.h"
#include "tests/paths.h"
#endif

using namespace ulp;

namespace {

constexpr Device kGpu = cuda_device(0);

Tensor on_gpu(const Shape& shape, DType dtype = DType::F32) {
  return Tensor::zeros(shape, dtype, kGpu);
}

}  // namespace

TEST_SUITE("cuda_kernels") {
  TEST_CASE("every kernel gives the CPU's bits") {
    const int threads = omp_get_max_threads();
    cases::Comparison comparison(
        {{kCpu, cpu::current_isa(), threads}, {kGpu, cpu::current_isa(), threads}});
    for (const cases::Outcome& outcome : cases::compare_kernels(comparison)) {
      CAPTURE(outcome.name);
      CHECK(outcome.problem == "");
    }
  }

  TEST_CASE("no result depends on the number of blocks") {
    const int threads = omp_get_max_threads();
    cuda::set_most_blocks(3);  // small tensors go round more than once, too
    cases::Comparison comparison({{kCpu, cpu::current_isa(), threads},
                                  {kGpu, cpu::current_isa(), threads},
                                  cases::Extent::Quick});
    for (const cases::Outcome& outcome : cases::compare_kernels(comparison)) {
      CAPTURE(outcome.name);
      CHECK(outcome.problem == "");
    }
    cuda::set_most_blocks(0);
  }

  TEST_CASE("updates in tiles give the CPU's bits, however small") {
    const int threads = omp_get_max_threads();
    cuda::set_most_for_quads(0);
    cases::Comparison comparison(
        {{kCpu, cpu::current_isa(), threads}, {kGpu, cpu::current_isa(), threads}});
    const cases::Outcome outcome =
        comparison.outcome_of("optimizer_step", cases::check_optimizer_step);
    CHECK(outcome.problem == "");
    CHECK(outcome.runs > 1000);
    cuda::set_most_for_quads(-1);
  }

  TEST_CASE("no kernel writes outside its tensors") { CHECK(guard_violations() == 0); }

  TEST_CASE("what a kernel refuses on the CPU it refuses on the GPU") {
    const Tensor matrix = on_gpu({3, 4}), out = on_gpu({3, 4});
    const auto quantise = [&](const char* format, int axis) {
      kernels::quantise(stream_of(kGpu), {matrix, out, Quantizer::parse(format), axis, {}, {}});
    };
    CHECK_THROWS_WITH_AS(quantise("bfp8-axis2", 0), doctest::Contains("axis 2"), Error);
    CHECK_THROWS_WITH_AS(quantise("bfp8-g32", 5), doctest::Contains("(3, 4)"), Error);

    const Tensor doubles = on_gpu({3}, DType::F64), six = on_gpu({6}), five = on_gpu({5}),
                 host = Tensor::zeros({6}, DType::F32, kCpu);
    const auto refuses = [&](const Tensor& in, const Tensor& result, const char* words) {
#define ULP_REFUSES(name, ...)                                                      \
  CHECK_THROWS_WITH_AS(                                                             \
      kernels::name(stream_of(kGpu), ElementwiseArgs{{in, in}, result, 0, {}, {}}), \
      doctest::Contains(words), Error);
      ULP_ELEMENTWISE_KERNELS(ULP_REFUSES)
#undef ULP_REFUSES
    };
    refuses(doubles, doubles, "F64 is for the CPU's gradient checks");
    refuses(six, five, "(5)");
    refuses(host, six, "cuda:0");
  }

  TEST_CASE("pack and unpack work on the GPU, and name the element without a code") {
    const Tensor x = cases::values({64, 128}, DType::F32, cases::Domain::Modest, 32);
    const Tensor y = Tensor::empty(x.shape(), DType::F32, kCpu);
    kernels::quantise(stream_of(kCpu), {x, y, "mxfp4", 1, {}, {}});
    const PackedTensor packed = pack({y.to(kGpu), x.to(kGpu), "mxfp4", 1});
    CHECK(packed.codes.device() == kGpu);
    CHECK(unpack(packed).to_floats() == y.to_floats());
    CHECK_THROWS_WITH_AS(pack({x.to(kGpu), x.to(kGpu), "mxfp4", 1, 1, "weights"}),
                         doctest::Contains("weights: element "), Error);
  }

#if defined(ULP_COMMAND)
  TEST_CASE("ulp quantize: the same bytes on the GPU, packed and with statistics too") {
    const command::Folder folder;
    std::ofstream(folder / "in.f32", std::ios::binary)
        << command::slurp(paths::kCommand).substr(0, 4 * 65537);  // floats of every kind
    for (const char* format : {"e4m3", "e5m2:sr", "mxfp4:sr", "nvfp4", "bfp8", "posit16.1:sr",
                               "mxfp8+rht16", "e4m3-g32-scalef32:sr"}) {
      CAPTURE(std::string(format));
      std::string said[2], bytes[2];
      for (const int i : {0, 1}) {
        const std::string out = folder / "out.f32";
        const auto result = command::ulp_command("quantize '" + (folder / "in.f32") + "' '" + out +
                                                 "' --seed 3 --stats --format " + format +
                                                 (i == 1 ? " --device cuda" : ""));
        CAPTURE(result.err);
        CHECK(result.status == 0);
        said[i] = result.out;
        bytes[i] = command::slurp(out);
      }
      CHECK(said[0] == said[1]);
      CHECK(bytes[0] == bytes[1]);
    }
    for (const char* format : {"e4m3", "nvfp4", "mxfp6:sr"}) {
      std::string bytes[2];
      for (const int i : {0, 1}) {
        const std::string out = folder / "out.safetensors";
        const std::string few = folder / "few.f32";
        std::ofstream(few, std::ios::binary) << std::string(4 * 64, 'A');
        const auto result =
            command::ulp_command("quantize '" + few + "' '" + out + "' --packed --format " +
                                 format + (i == 1 ? " --device cuda" : ""));
        CHECK(result.status == 0);
        bytes[i] = command::slurp(out);
      }
      CHECK(bytes[0] == bytes[1]);
    }
  }

  TEST_CASE("ulp bench quantize: rows beside a copy, into every type") {
    const auto result =
        command::ulp_command("bench quantize --device cuda --log2-size 16 --repeats 1 --json");
    CAPTURE(result.err);
    REQUIRE(result.status == 0);
    std::set<std::string> into;
    for (const auto& row : nlohmann::json::parse(result.out)) {
      into.insert(row.at("out"));
      for (const char* number : {"gb_per_second", "copy_gb_per_second", "ratio"})
        CHECK(row.at(number).get<double>() > 0);
    }
    CHECK(into.contains("F32"));
    CHECK(into.contains("BF16"));
    CHECK(into.contains("F8_E4M3"));
    const auto table = command::ulp_command(
        "bench quantize e4m3 --device cuda --log2-size 13 --repeats 1 --markdown");
    CHECK(table.status == 0);
    CHECK(table.out.find("| `e4m3` | rne | F8_E4M3 | 5 |") != std::string::npos);
    CHECK(table.out.find("; `ulp bench quantize e4m3 --device cuda --log2-size 13") !=
          std::string::npos);
  }
#endif

#if defined(ULP_HAS_CUDA)
  TEST_CASE("a CUDA error names the expression, the file and the line") {
    std::string message;
    const int line = __LINE__ + 2;
    try {
      ULP_CUDA_CHECK(cudaSetDevice(9999));
    } catch (const Error& error) {
      message = error.what();
    }
    CAPTURE(message);
    cudaGetLastError();
    CHECK(message.find("cudaSetDevice(9999)") != std::string::npos);
    CHECK(message.find("cudaErrorInvalidDevice") != std::string::npos);
    CHECK(message.find("test_cuda_kernels.cpp:" + std::to_string(line)) != std::string::npos);
  }
#endif

  TEST_CASE("out of memory says what was asked for and what was free, and the run goes on") {
    constexpr int64_t kPebibyte = int64_t{1} << 50;
    std::string message;
    try {
      Tensor::empty({kPebibyte}, DType::U8, kGpu);
    } catch (const Error& error) {
      message = error.what();
    }
    CAPTURE(message);
    for (const std::string& words : {std::string("cuda:0: out of memory"),
                                     std::to_string(kPebibyte), std::string("bytes are free")})
      CHECK(message.find(words) != std::string::npos);
    CHECK(on_gpu({5}).to_floats() == std::vector<float>(5));
  }
}
