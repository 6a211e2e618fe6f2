#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "conformance.h"
#include "core/codebook.h"
#include "core/grid.h"
#include "core/random.h"
#include "core/step_buckets.h"
#include "kernels/kernels.h"

using namespace ulp;
using conformance::posit_number;

namespace {

float quantise(const char* format, float x, uint32_t random = 0) {
  return quantise_value(x, make_grid(Quantizer::parse(format)), random);
}

std::string name_of(int n, int es, const char* rounding = "") {
  return "posit" + std::to_string(n) + "." + std::to_string(es) + rounding;
}

}  // namespace

TEST_SUITE("posit_tables") {
  TEST_CASE("every code's number, its neighbours' boundary and both sides of it, for all sizes") {
    // The boundary between codes c and c + 1 of n bits is the number of code 2c + 1 of n + 1 bits: rounding cuts the bit string.
    int64_t wrong = 0;
    for (int n = 3; n <= 16; ++n)
      for (int es = 0; es <= 3; ++es) {
        const Grid nearest = make_grid(Quantizer::parse(name_of(n, es).c_str()));
        const Grid down = make_grid(Quantizer::parse(name_of(n, es, ":rtz").c_str()));
        const Grid odd = make_grid(Quantizer::parse(name_of(n, es, ":odd").c_str()));
        const Grid up = make_grid(Quantizer::parse(name_of(n, es, ":ru").c_str()));
        const uint32_t top = (1u << (n - 1)) - 1;
        for (uint32_t c = 1; c <= top; ++c) {
          const auto value = static_cast<float>(posit_number(c, n, es));
          for (const float s : {1.0f, -1.0f})
            wrong += quantise_value(s * value, nearest, 0) != s * value;
          wrong += posit_value(c, n, es) != value;
          if (c == top) continue;
          const auto next = static_cast<float>(posit_number(c + 1, n, es)),
                     middle = static_cast<float>(posit_number(2 * c + 1, n + 1, es));
          const float inf = std::numeric_limits<float>::infinity();
          for (const float s : {1.0f, -1.0f}) {
            wrong += quantise_value(s * middle, nearest, 0) != s * (c % 2 == 0 ? value : next);
            wrong += quantise_value(s * std::nextafter(middle, 0.0f), nearest, 0) != s * value;
            wrong += quantise_value(s * std::nextafter(middle, inf), nearest, 0) != s * next;
            wrong += quantise_value(s * middle, down, 0) != s * value;
            wrong += quantise_value(s * middle, odd, 0) != s * (c % 2 == 1 ? value : next);
            wrong += quantise_value(s * middle, up, 0) != (s > 0 ? next : -value);
          }
        }
      }
    CHECK(wrong == 0);
  }

  TEST_CASE(
      "every rounding: numbers, boundaries and their neighbours, and all of fp32 at a stride") {
    conformance::Tally tally;
    for (const char* format : {"posit3.0", "posit6.3", "posit8.0", "posit8.1", "posit8.2",
                               "posit16.1", "posit16.2", "nf4", "pow2x4", "pow2x8"})
      for (const char* mode : conformance::kRoundings) {
        const std::string name = std::string(format) + ":" + mode;
        conformance::sweep_hard(name, tally);
        conformance::sweep(name, reference::stride(131071), tally);
      }
    INFO(tally.bad.first());
    CHECK(tally.bad.count() == 0);
  }

  TEST_CASE("posits never become zero or NaR, and zero has one sign") {
    CHECK(quantise("posit8.2", 0x1p-149f) == 0x1p-24f);
    CHECK(quantise("posit8.2:sr", -0x1p-100f, 0xFFFFFFFFu) == -0x1p-24f);
    CHECK(quantise("posit8.2:rtz", 1e-30f) == 0x1p-24f);
    CHECK(quantise("posit8.2", 3e38f) == 0x1p24f);
    CHECK(quantise("posit8.2", 144179.2f) ==
          262144.0f);  // the bit string rounds up where the value's nearest is 65536
    CHECK(bits_of(quantise("posit8.2", -0.0f)) == 0);
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()})
      CHECK(bits_of(quantise("posit8.2", -bad)) == kNanBits);
  }

  TEST_CASE("stochastic rounding is linear in value between neighbours, for posits and tables") {
    for (const char* format : {"posit8.1:sr", "posit8.2:sr", "posit16.1:sr", "nf4:sr", "pow2x5:sr"})
      for (const float x : {0.3f, 0.7001f, -0.013f, 0.9f}) {
        CAPTURE(std::string(format));
        CAPTURE(x);
        const float low = quantise(format, x, 0xFFFFFFFFu), high = quantise(format, x, 0);
        REQUIRE(low != high);
        const double part = (static_cast<double>(x) - static_cast<double>(low)) /
                            (static_cast<double>(high) - static_cast<double>(low));
        const auto t = static_cast<uint32_t>(part * 4294967296.0);
        CHECK(quantise(format, x, t - 2) == high);
        CHECK(quantise(format, x, t + 2) == low);
        for (const uint32_t word : {0u, 1u << 31, 0xFFFFFFFFu})
          CHECK(quantise(format, high, word) == high);
      }
  }

  TEST_CASE("tables: nearest by distance, ties to the even index, ends, directions") {
    const Codebook& nf4 = codebook(find_codebook("nf4"));
    REQUIRE(nf4.values.size() == 16);
    for (size_t i = 0; i < 16; ++i) CHECK(quantise("nf4", nf4.values[i]) == nf4.values[i]);
    for (float x = -1.2f; x < 1.2f; x += 0.00137f) {
      float best = nf4.values[0];
      for (const float v : nf4.values)
        if (std::abs(static_cast<double>(v) - static_cast<double>(x)) <
            std::abs(static_cast<double>(best) - static_cast<double>(x)))
          best = v;
      CHECK(quantise("nf4", x) == best);
    }
    // 0, ±2^−j, j ≤ 14: 0.75 lies between 0.5 (index 29) and 1 (index 30).
    CHECK(quantise("pow2x5", 0.75f) == 1.0f);
    CHECK(quantise("pow2x5:rtz", 0.75f) == 0.5f);
    CHECK(quantise("pow2x5:ru", -0.75f) == -0.5f);
    CHECK(quantise("pow2x5:rd", -0.75f) == -1.0f);
    CHECK(quantise("pow2x5", 7.0f) == 1.0f);
    CHECK(quantise("pow2x5", 0x1p-16f) == 0.0f);
    CHECK(std::isnan(quantise("nf4", std::numeric_limits<float>::infinity())));
  }

  TEST_CASE(
      "buckets find the last step that is not beyond a number, for all tables and roundings") {
    for (const std::string& name : codebook_names())
      for (const char* rounding : {"rne", "rna", "rtz", "ru", "rd", "odd", "sr"}) {
        CAPTURE(name);
        CAPTURE(std::string(rounding));
        const Quantizer q = Quantizer::parse(name + ":" + rounding);
        std::vector<float> steps = codebook(q.format.table).values;
        if (q.rounding == Rounding::Stochastic)
          steps.pop_back();
        else
          steps = staircase(make_grid(q));
        const StepTable table = make_step_table(steps);
        const StepBuckets& buckets = table.buckets;
        REQUIRE(table.steps.size() == StepBuckets::kSteps);
        REQUIRE(table.starts.size() == StepBuckets::kBuckets);
        REQUIRE(buckets.width <= 32);
        if (name == "dynamic8" && q.rounding == Rounding::NearestEven) CHECK(buckets.width == 4);
        int64_t wrong = 0;
        const auto check = [&](uint32_t bits) {
          const float x[] = {float_of(bits)};
          if (!std::isfinite(x[0])) return;
          int32_t found[1], last = 0;
          buckets.find(table.steps.data(), table.starts.data(), x, found);
          for (size_t i = 1; i < steps.size() && steps[i] <= x[0]; ++i) ++last;
          wrong += found[0] == last ? 0 : 1;
        };
        // The answer changes at steps, and what find does at edges of buckets: between these it is the same.
        for (const float step : steps)
          for (const uint32_t sign : {0u, kSignBit})
            for (const uint32_t by : {~0u, 0u, 1u}) check((bits_of(step) ^ sign) + by);
        for (uint32_t edge = 0; edge < kInfinityBits; edge += 1u << buckets.shift)
          for (const uint32_t sign : {0u, kSignBit})
            for (const uint32_t by : {~0u, 0u, 1u}) check((edge ^ sign) + by);
        CHECK(wrong == 0);
      }
  }

  TEST_CASE("tables from files, and files that are none") {
    const auto path = std::filesystem::temp_directory_path() / "ulp-test-table-a.txt";
    const auto write = [&](const char* text) { std::ofstream(path) << text; };
    write("# three\n-1\n 0.25 # a comment\n\n8\n");
    const std::string name = "table=" + path.string();
    const Quantizer q = Quantizer::parse((name + ":ru").c_str());
    CHECK(to_string(q) == name + ":ru");
    CHECK(quantise_value(-0.5f, make_grid(q), 0) == 0.25f);
    CHECK(storage_type(q) == DType::F8E4M3);
    // What follows the last ':' is the rounding: a path with one is printed with its rounding.
    const auto odd_path = std::filesystem::temp_directory_path() / "ulp-test-table-a:sr";
    std::filesystem::copy_file(path, odd_path, std::filesystem::copy_options::overwrite_existing);
    for (const char* rounding : {":rne", ":sr", ":rtz"}) {
      const std::string text = "table=" + odd_path.string() + rounding;
      CHECK(to_string(Quantizer::parse(text)) == text);
      CHECK(Quantizer::parse(text).format != q.format);
    }
    std::filesystem::remove(odd_path);
    CHECK_THROWS_WITH_AS(Quantizer::parse("table=/none:x.txt"),
                         doctest::Contains("table=/none:x.txt:rne"), Error);
    const auto refused = [&](const char* file, const char* text, const char* word) {
      const auto other = std::filesystem::temp_directory_path() / file;
      std::ofstream(other) << text;
      const std::string bad = "table=" + other.string();
      CHECK_THROWS_WITH_AS(Quantizer::parse(bad.c_str()), doctest::Contains(word), Error);
      std::filesystem::remove(other);
    };
    refused("ulp-test-table-b.txt", "1\nx\n", "line 2");
    refused("ulp-test-table-c.txt", "1\n1\n", "does not ascend");
    refused("ulp-test-table-d.txt", "1\n", "2 to 256 numbers");
    refused("ulp-test-table-e.txt", "1\ninf\n", "finite");
    CHECK_THROWS_WITH_AS(Quantizer::parse("table=/nonexistent"),
                         doctest::Contains("cannot be read"), Error);
    std::filesystem::remove(path);
  }

  TEST_CASE("storage: every number survives the type that is chosen for it") {
    for (const char* format :
         {"posit6.0", "posit8.0", "posit8.1", "posit8.2", "posit8.3", "posit10.1", "posit16.1",
          "posit16.3", "nf4", "pow2x4", "pow2x5", "pow2x8"}) {
      CAPTURE(std::string(format));
      const Quantizer q = Quantizer::parse(format);
      std::vector<float> numbers;
      if (q.format.kind == FormatKind::Codebook)
        numbers = codebook(q.format.table).values;
      else
        for (uint32_t c = 1; c < 1u << (q.format.word_bits - 1); ++c)
          numbers.push_back(posit_value(c, q.format.word_bits, q.format.exponent_bits));
      const auto n = static_cast<int64_t>(numbers.size());
      for (const DType dtype : {storage_type(q), gemm_type(q)}) {
        Tensor out = Tensor::empty({n}, dtype, kCpu);
        kernels::quantise(Stream{}, {Tensor::from(numbers, {n}), out, q, 0, {}, {}});
        CHECK(out.to_floats() == numbers);
      }
    }
    CHECK(gemm_type("posit8.1") == DType::BF16);
    CHECK(gemm_type("posit16.1") == DType::F32);
  }

  TEST_CASE("names") {
    for (const char* name :
         {"posit8.1", "posit16.2:sr", "posit3.0", "nf4", "nf4:sr4", "pow2x8:rtz"})
      CHECK(to_string(Quantizer::parse(name)) == name);
    for (const char* name : {"posit8", "posit17.1", "posit8.4", "posit2.0", "posit8.1-sat",
                             "nf4-g16", "nf5", "pow2x9"}) {
      CAPTURE(std::string(name));
      CHECK_THROWS_AS(Quantizer::parse(name), Error);
    }
  }
}
