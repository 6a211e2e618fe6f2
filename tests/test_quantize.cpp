#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <regex>
#include <vector>

#include "core/quantizer.h"
#include "kernels/quantised.h"
#include "nn/data/npy.h"
#include "nn/data/safetensors.h"
#include "tests/tool_output.h"

// ulp quantize as a user meets it.
#if defined(ULP_COMMAND)

namespace fs = std::filesystem;
using namespace ulp;
using namespace ulp::command;

namespace {

void save(const std::string& file, const std::vector<float>& values, const Shape& shape) {
  nn::save_npy(file, Tensor::from(values, shape));
}

/// Finite values of many magnitudes, the same every time.
std::vector<float> some_values(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const auto w = static_cast<uint32_t>(2654435761u * i + 12345u);
    values[i] = float_of((w & 0x807FFFFFu) | ((116 + ((w >> 23) & 15)) << 23));
  }
  return values;
}

/// A line of quantize's table of statistics, less its label.
std::string stat(const std::string& out, const std::string& label) {
  std::smatch found;
  REQUIRE(std::regex_search(out, found, std::regex("\n  " + label + " +([^\n]*)\n")));
  return found[1];
}

}  // namespace

TEST_SUITE("quantize") {
  TEST_CASE("quantize: the kernel's values, the same for any number of threads") {
    const Folder folder;
    const std::string in = folder / "in.npy", out = folder / "out.npy";
    const Shape shape{3, 170, 150};
    const Tensor x = Tensor::from(some_values(static_cast<size_t>(shape.numel())), shape);
    nn::save_npy(in, x);
    for (const char* format : {"e4m3", "e5m2:sr", "mxfp4:sr", "bfp8-axis1:sr", "bfp8", "fp32",
                               "nvfp4:sr", "e4m3-t128x128-scalef32:sr", "nf4-g64-scalef32",
                               "e4m3+scale=current", "e5m2+scale=row:sr", "mxfp4+rht16+q34:sr",
                               "nvfp4+rht32", "e4m3+rht16", "e2m1-g16-scalee4m3"}) {
      CAPTURE(std::string(format));
      std::string first, said;
      for (const char* threads : {"1", "2", "3"}) {
        const std::string own =
            output("quantize '" + in + "' '" + out + "' --stats --seed 7 --format " + format +
                   " --threads " + threads);
        if (first.empty()) first = slurp(out);
        if (said.empty()) said = own;
        CHECK(slurp(out) == first);
        CHECK(own == said);
      }
      const Tensor y = nn::load_npy(out);
      CHECK(y.shape() == shape);
      CHECK(y.to_floats() == quantised(x, format, 2, 7).to_floats());
    }
    output("quantize '" + in + "' '" + out + "' --format mxfp4 --axis 0");
    CHECK(nn::load_npy(out).to_floats() == quantised(x, "mxfp4", 0, 0).to_floats());
    CHECK(nn::load_npy(out).to_floats() != quantised(x, "mxfp4", 2, 0).to_floats());
    output("quantize '" + in + "' '" + out + "' --format e5m2:sr --seed 8");
    CHECK(nn::load_npy(out).to_floats() != quantised(x, "e5m2:sr", 2, 7).to_floats());
  }

  TEST_CASE("quantize: its one line, raw floats, and OUT that is IN") {
    const Folder folder;
    const std::string file = folder / "x.npy", raw = folder / "x.f32";
    const float inf = INFINITY;
    save(file, {0.1f, 448, 464, -0.0f, 1e6f, std::nanf("5"), inf, -1e-5f}, {2, 4});
    CHECK(output("quantize '" + file + "' '" + file + "' --format e4m3-nan") ==
          file +
              " (2, 4) e4m3-nan: 5 of 8 elements changed, max absolute error 16, 1 became Inf "
              "or NaN\n");
    nn::save_f32(raw, Tensor::from(std::vector<float>{1.25f, -3, 100}, {3}));
    CHECK(output("quantize '" + raw + "' '" + raw + "' --format fixed4.1") ==
          raw + " (3) fixed4.1: 2 of 3 elements changed, max absolute error 96.5\n");
    CHECK(nn::load_f32(raw).to_floats() == std::vector<float>{1, -3, 3.5});
    save(file, {}, {0, 5});
    CHECK(contains(output("quantize '" + file + "' '" + file + "' --format mxfp8"), "0 of 0"));
    save(file, {0.3f}, {});
    output("quantize '" + file + "' '" + file + "' --format e2m1");
    CHECK(nn::load_npy(file).shape() == Shape{});
    CHECK(nn::load_npy(file).item() == 0.5);
  }

  TEST_CASE("quantize: what it refuses leaves OUT as it was") {
    const Folder folder;
    const std::string in = folder / "in.npy", out = folder / "out.npy", bad = folder / "bad.npy";
    save(in, {1, 2, 3, 4, 5, 6}, {2, 3});
    std::ofstream(out, std::ios::binary) << "old";
    const auto refused = [&](const std::string& from, const std::string& to,
                             const std::string& options, int status,
                             std::initializer_list<const char*> words) {
      check_refused("quantize '" + from + "' '" + to + "' " + options, status, words);
      CHECK(slurp(out) == "old");
      CHECK(fs::exists(in));
      for (const auto& entry : fs::directory_iterator(folder.path))
        CHECK(entry.path().extension() != ".tmp");
    };
    refused(in, out, "", 2, {"--format"});
    refused(in, out, "--format e9m9", 2, {"--format", "e9m9"});
    refused(in, out, "--format 3", 2, {"--format"});
    refused(in, out, "--format bfp8-axis2", 1, {"bfp8-axis2", "(2, 3)"});
    refused(in, out, "--format mxfp8 --axis 2", 1, {"--axis 2", "(2, 3)"});
    refused(in, out, "--format mxfp8 --axis -1", 2, {"--axis"});
    refused(in, out, "--format mxfp8 --axis 9", 2, {"--axis"});
    refused(in, out, "--format e4m3 --threads 0", 2, {"--threads"});
    refused(in, out, "--format e4m3+scale=delayed4", 2,
            {"e4m3+scale=delayed4", "one call", "+scale=current"});
    refused(in, out, "--format e4m3 --seed -1", 2, {"--seed"});
    refused(in, out, "--format e4m3 --seed x", 2, {"--seed"});
    refused(in, out, "--format e4m3 extra", 2, {"extra"});
    refused(in, folder / "out.f32", "--format e4m3", 2, {"out.f32", ".npy"});
    CHECK(!fs::exists(folder / "out.f32"));
    refused(folder / "in.txt", out, "--format e4m3", 2, {"in.txt", ".npy or .f32"});
    refused(in, out, "--format e4m3 --packed", 2, {"--packed", ".safetensors", "out.npy"});
    refused(in, folder / "p.safetensors", "--format e4m3", 2, {"p.safetensors", "--packed"});
    CHECK(!fs::exists(folder / "p.safetensors"));
    refused(folder / "none.npy", out, "--format e4m3", 1, {"none.npy"});
    refused(in, folder / "no/where.npy", "--format e4m3", 1, {"where.npy"});
    refused(folder / "odd.f32", folder / "o.f32", "--format e4m3", 1, {"odd.f32"});
    const std::string good = slurp(in);
    const auto spoilt = [&](std::string bytes, std::initializer_list<const char*> words) {
      std::ofstream(bad, std::ios::binary) << bytes;
      refused(bad, out, "--format e4m3", 1, words);
      refused(bad, bad, "--format e4m3", 1, words);
      CHECK(slurp(bad) == bytes);
    };
    const auto changed = [&](const std::string& from, const std::string& to) {
      std::string bytes = good;
      REQUIRE(from.size() == to.size());
      return bytes.replace(bytes.find(from), from.size(), to);
    };
    spoilt(good.substr(0, good.size() - 3), {"bad.npy", "truncated"});
    spoilt(good + "more", {"bad.npy", "too many"});
    spoilt("\x93NUMPX" + good.substr(6), {"bad.npy", "not a .npy"});
    spoilt(changed("<f4", "<f8"), {"bad.npy", "'<f8'"});
    spoilt(changed("False", "True "), {"bad.npy", "Fortran"});
    spoilt(changed("(2, 3), }" + std::string(19, ' '), "(4294967296, 4294967296), } "),
           {"bad.npy", "more elements"});
    std::ofstream(in + ".f32") << "abc";
    refused(in + ".f32", in + ".f32", "--format e4m3", 1, {"3 bytes"});
  }

  TEST_CASE("quantize --stats: the numbers of the same call") {
    const Folder folder;
    const std::string file = folder / "x.npy", out = folder / "y.npy";
    const std::string both = "quantize '" + file + "' '" + out + "' --stats --format ";
    save(file, {0.1f, 448, 1000, -0.0f, 1e-9f, std::nanf("5"), -INFINITY, -1e-5f}, {2, 4});
    // x − y: 0.1 → 0.1015625, 1000 → 448 by the clamp, two small ones → 0; the last two are no numbers.
    CHECK(output(both + "e4m3") ==
          out +
              " (2, 4) e4m3: 5 of 8 elements changed, max absolute error 552\n"
              "  elements           8\n"
              "  overflow           1            12.5 %\n"
              "  underflow to zero  2            25 %\n"
              "  NaN                1            12.5 %\n"
              "  Inf                1            12.5 %\n"
              "  amax               1000\n"
              "  mean signed error  -91.9997  of the 6 elements that are finite before and after\n"
              "  SQNR               5.95558 dB  of the 6 elements that are finite before and "
              "after\n");
    save(file, {1, -2, 0.5f}, {3});
    const std::string exact = output(both + "mxfp4");
    CHECK(stat(exact, "mean signed error") == "0");
    CHECK(stat(exact, "SQNR") == "inf: no error");
    save(file, {NAN, 1}, {2});
    CHECK(stat(output(both + "nvfp4"), "SQNR") == "-");
    save(file, {}, {0, 3});
    CHECK(stat(output(both + "nvfp4"), "overflow") == "0            0 %");

    // Any quantizer: what follows from x and y, rotated ones apart.
    const std::vector<float> x = some_values(5000);
    save(file, x, {5, 1000});
    for (const char* format :
         {"e4m3:sr", "nvfp4:sr", "e4m3-g128-scalef32", "mxfp4+q34", "bfp6-axis0", "posit6.1"}) {
      CAPTURE(std::string(format));
      const std::string said = output(both + format);
      const std::vector<float> y = nn::load_npy(out).to_floats();
      int64_t underflow = 0;
      double error = 0, square_error = 0, square = 0, amax = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double d = double{y[i]} - double{x[i]};
        underflow += x[i] != 0 && y[i] == 0 ? 1 : 0;
        error += d;
        square_error += d * d;
        square += double{x[i]} * double{x[i]};
        amax = std::max(amax, std::abs(double{x[i]}));
      }
      CHECK(stat(said, "elements") == "5000");
      CHECK(std::stoll(stat(said, "underflow to zero")) == underflow);
      CHECK(std::stof(stat(said, "amax")) == static_cast<float>(amax));
      CHECK(std::stod(stat(said, "mean signed error")) ==
            doctest::Approx(error / 5000).epsilon(1e-5));
      CHECK(std::stod(stat(said, "SQNR")) ==
            doctest::Approx(10 * std::log10(square / square_error)).epsilon(1e-5));
    }
    const std::string rotated = output(both + "mxfp4+rht16");
    CHECK(contains(rotated, "\n  of the values rotated by +rht16, which are what is rounded:\n"));
    CHECK(std::stof(stat(rotated, "amax")) != *std::max_element(x.begin(), x.end()));
  }

  TEST_CASE("quantize --packed and back is quantize") {
    const Folder folder;
    const std::string in = folder / "in.npy", whole = folder / "whole.npy",
                      packed = folder / "p.safetensors", back = folder / "back.npy";
    const Shape shape{3, 50, 70};
    std::vector<float> values = some_values(static_cast<size_t>(shape.numel()));
    for (const bool specials : {false, true}) {
      values[5] = -0.0f;
      if (specials) values[1234] = INFINITY, values[7777] = NAN;
      const Tensor x = Tensor::from(values, shape);
      nn::save_npy(in, x);
      std::vector<std::string> formats = {"fp32",
                                          "bf16:sr",
                                          "e4m3",
                                          "e5m2:sr",
                                          "posit8.1",
                                          "posit16.2",
                                          "binary8p3",
                                          "mxfp8",
                                          "mxfp6:sr",
                                          "mxfp4+q34",
                                          "mxint8",
                                          "bfp8-axis1",
                                          "hbfp5-g9",
                                          "nvfp4:sr",
                                          "nvfp4-t16x16",
                                          "tf32",
                                          "e4m3-ieee",
                                          "e4m3-fnuz",
                                          "nf4-g64-scalef32",
                                          "e4m3-t128x128-scalef32",
                                          "e5m2-ieee",
                                          "e3m2-g8",
                                          "e5m10",
                                          "e4m3+scale=row",
                                          "e5m2+scale=current:sr",
                                          "bfp3",
                                          "fixed8.6-g8-scalee4m3"};
      if (!specials)
        for (const char* no_nan : {"e2m1:sr", "e3m2", "fixed12.4", "fixed7.3-u", "nf4", "pow2x5"})
          formats.push_back(no_nan);
      for (const std::string& format : formats) {
        CAPTURE(format);
        CAPTURE(specials);
        output("quantize '" + in + "' '" + whole + "' --seed 5 --axis 1 --format " + format);
        std::string first;
        for (const char* threads : {"1", "2", "3"}) {
          const std::string said =
              output("quantize '" + in + "' '" + packed + "' --packed --seed 5 --axis 1 --format " +
                     format + " --threads " + threads);
          if (first.empty()) first = slurp(packed);
          CHECK(slurp(packed) == first);
          CHECK(said.starts_with(packed + " (3, 50, 70) " + to_string(Quantizer::parse(format)) +
                                 ": "));
          CHECK(lines(said) == 1);
        }
        const std::string said = output("quantize '" + packed + "' '" + back + "' --threads 2");
        CHECK(slurp(back) == slurp(whole));
        // The bytes that are named are those in the file, and nvfp4's factor.
        const nn::SafetensorsFile file = nn::load_safetensors(packed);
        int64_t bytes = format.starts_with("nvfp4") ? 4 : 0;
        for (const auto& [name, tensor] : file.tensors) bytes += tensor.bytes();
        CHECK(contains(said, " unpacked from " + std::to_string(bytes) + " bytes of codes"));
        CHECK(file.metadata.at("shape") == "[3,50,70]");
        CHECK(file.metadata.at("group_axis") == "1");
        CHECK(file.metadata.size() == 4);
      }
    }
    save(in, {6, -1, 0.2f, 3, 1, 1, 1}, {7});
    CHECK(output("quantize '" + in + "' '" + packed + "' --packed --format mxfp4") ==
          packed +
              " (7) mxfp4: 1 of 7 elements changed, max absolute error 0.200000003; 5 bytes of "
              "codes and scales, 5.71429 bits per element, 17.86 % of fp32\n");
    const nn::SafetensorsFile file = nn::load_safetensors(packed);
    CHECK(file.tensors.size() == 2);
    const uint8_t* codes = file.tensors.at("codes").data<uint8_t>();
    CHECK(std::vector<int>(codes, codes + 4) == std::vector<int>{0xA7, 0x50, 0x22, 0x02});
    CHECK(file.tensors.at("scales").data<uint8_t>()[0] == 127);
    // The same format may be named; raw floats; scalars and nothing at all.
    output("quantize '" + packed + "' '" + folder.path.string() +
           "/y.f32' --packed --format mxfp4:sr");
    CHECK(nn::load_f32(folder / "y.f32").to_floats() == std::vector<float>{6, -1, 0, 3, 1, 1, 1});
    for (const Shape& odd : {Shape{}, Shape{0}, Shape{3, 0, 2}}) {
      nn::save_npy(in,
                   Tensor::from(std::vector<float>(static_cast<size_t>(odd.numel()), 0.3f), odd));
      for (const char* format : {"e2m1", "bfp8", "nvfp4-t2x2", "e4m3+scale=current"}) {
        output("quantize '" + in + "' '" + packed + "' --packed --format " + format);
        output("quantize '" + packed + "' '" + back + "'");
        CHECK(nn::load_npy(back).shape() == odd);
      }
    }
    // A table in a file is named by the user, never opened because a packed file says so.
    const std::string table = folder / "t.txt";
    std::ofstream(table) << "-1\n0\n0.25\n1\n";
    save(in, {0.3f, -2, 0.7f}, {3});
    output("quantize '" + in + "' '" + packed + "' --packed --format 'table=" + table + "'");
    check_refused("quantize '" + packed + "' '" + back + "'", 1, {"p.safetensors", "--format"});
    output("quantize '" + packed + "' '" + back + "' --format 'table=" + table + "'");
    CHECK(nn::load_npy(back).to_floats() == std::vector<float>{0.25f, -1, 1});
  }

  TEST_CASE("quantize --packed: what it refuses leaves OUT as it was") {
    const Folder folder;
    const std::string in = folder / "in.npy", out = folder / "out.safetensors",
                      good = folder / "good.safetensors", bad = folder / "bad.safetensors",
                      back = folder / "back.npy";
    for (const std::string& file : {out, back}) std::ofstream(file, std::ios::binary) << "old";
    const auto refused = [&](const std::string& from, const std::string& to,
                             const std::string& options, int status,
                             std::initializer_list<const char*> words) {
      check_refused("quantize '" + from + "' '" + to + "' " + options, status, words);
      CHECK(slurp(out) == "old");
      CHECK(slurp(back) == "old");
    };
    std::vector<float> values = some_values(70);
    save(in, values, {2, 35});
    output("quantize '" + in + "' '" + good + "' --packed --format nvfp4");
    refused(in, out, "--packed", 2, {"--format"});
    refused(in, out, "--packed --format fixed8.4-noclamp", 1, {"in.npy", "-noclamp"});
    refused(in, out, "--packed --format mxfp4+rht16", 1, {"in.npy", "+rht16"});
    refused(in, out, "--packed --format e4m3+scale=delayed4", 2, {"delayed4"});
    refused(in, out, "--packed --format bfp8-axis2", 1, {"bfp8-axis2", "(2, 35)"});
    refused(good, back, "--stats", 2, {"good.safetensors", "--stats"});
    refused(good, back, "--seed 1", 2, {"--seed"});
    refused(good, back, "--axis 1", 2, {"--axis"});
    refused(good, out, "", 2, {"packed already"});
    refused(good, folder / "x.txt", "", 2, {"x.txt", ".npy or .f32"});
    refused(good, back, "--format mxfp4", 1, {"good.safetensors", "nvfp4", "leave --format out"});
    refused(folder / "none.safetensors", back, "", 1, {"none.safetensors"});
    for (const char* format : {"e2m1", "e2m3:sr", "fixed8.4", "nf4", "e4m3-none"}) {
      CAPTURE(std::string(format));
      values[41] = NAN;
      save(in, values, {2, 35});
      refused(in, out, std::string("--packed --format ") + format, 1,
              {"in.npy", "element 41 is NaN", "no code"});
    }
    const nn::SafetensorsFile file = nn::load_safetensors(good);
    using Metadata = std::map<std::string, std::string>;
    const auto spoilt = [&](const auto& change, std::initializer_list<const char*> words) {
      nn::SafetensorsFile own = file;
      change(own);
      nn::save_safetensors(bad, own.tensors, own.metadata);
      refused(bad, back, "", 1, words);
      check_refused("quantize '" + bad + "' '" + back + "'", 1, {"bad.safetensors: "});
    };
    const auto said = [&](const char* key, const std::string& text,
                          std::initializer_list<const char*> words) {
      CAPTURE(text);
      spoilt([&](nn::SafetensorsFile& f) { f.metadata[key] = text; }, words);
    };
    for (const char* key : {"format", "shape", "group_axis", "factor"})
      spoilt([&](nn::SafetensorsFile& f) { f.metadata.erase(key); }, {"no packed tensor", key});
    spoilt([](nn::SafetensorsFile& f) { f.metadata = Metadata{}; }, {"ulp quantize --packed"});
    spoilt([](nn::SafetensorsFile& f) { f.tensors.erase("codes"); }, {"no tensor 'codes'"});
    spoilt([](nn::SafetensorsFile& f) { f.tensors.erase("scales"); }, {"no tensor 'scales'"});
    spoilt([](nn::SafetensorsFile& f) { f.tensors["w"] = f.tensors["scales"]; }, {"'w'"});
    for (const char* name : {"codes", "scales"})
      for (const int64_t change : {-1, 1, 3}) {
        spoilt(
            [&](nn::SafetensorsFile& f) {
              f.tensors[name] = Tensor::zeros({f.tensors[name].numel() + change}, DType::U8, kCpu);
            },
            {name, "nvfp4", "(2, 35)"});
        spoilt(
            [&](nn::SafetensorsFile& f) {
              f.tensors[name] = Tensor::zeros({f.tensors[name].numel()}, DType::F32, kCpu);
            },
            {name, "F32"});
      }
    said("format", "e9m9", {"its format", "e9m9"});
    said("format", "", {"its format"});
    said("format", "mx\nfp4", {"its format", "mx\\nfp4"});
    said("format", "e4m3", {"its factor is", "e4m3 is 1"});
    spoilt(
        [](nn::SafetensorsFile& f) { f.metadata["format"] = "e2m1", f.metadata["factor"] = "1"; },
        {"scales", "e2m1 has none"});
    said("format", "mxfp4+rht16", {"+rht16"});
    said("format", "fixed8.4-noclamp", {"-noclamp"});
    said("format", "mxfp4", {"its factor is", "mxfp4 is 1"});
    said("format", "nvfp4-g7", {"scales"});
    said("format", "table=/dev/zero", {"--format"});
    for (const char* shape : {"", "2, 35", "{}", "[2, -35]", "[2, 35.0]", "[\"2\"]", "[[2, 35]]",
                              "[1,1,1,1,1,1,1,2,35]", "[99999999999999999999]"})
      said("shape", shape, {"its shape is '", "whole numbers"});
    said("shape", "[4294967296, 4294967296]", {"too many elements"});
    said("shape", "[0, 4294967296, 4294967296]", {"too many elements"});
    said("shape", "[9223372036854775807]", {"bytes of codes"});
    said("shape", "[2, 34]", {"bytes of codes"});
    said("shape", "[35, 2]", {"scales"});
    said("shape", "[]", {"axis 1"});
    for (const char* axis : {"", "x", "1.5", "99999999999"})
      said("group_axis", axis, {"its group_axis", "no number"});
    for (const char* axis : {"-1", "8"}) said("group_axis", axis, {"its group_axis", "0 to 7"});
    said("group_axis", "2", {"axis 2", "(2, 35)"});
    for (const char* factor : {"", "one", "1x", "1e99"})
      said("factor", factor, {"its factor", "no number"});
    for (const char* factor : {"0", "-1", "inf", "-inf"})
      said("factor", factor, {"its factor", "above 0"});
    const std::string bytes = slurp(good);
    for (const size_t size : {size_t{0}, size_t{7}, size_t{40}, bytes.size() - 1}) {
      std::ofstream(bad, std::ios::binary) << bytes.substr(0, size);
      refused(bad, back, "", 1, {"bad.safetensors"});
    }
    std::ofstream(bad, std::ios::binary) << bytes << "x";
    refused(bad, back, "", 1, {"bad.safetensors", "trailing"});
  }

  TEST_CASE("quantize and bench quantize on a device: what is refused") {
    const Folder folder;
    std::ofstream(folder / "in.f32", std::ios::binary) << "abcd";
    const std::string quantize =
        "quantize '" + (folder / "in.f32") + "' '" + (folder / "out.f32") + "' --format e4m3";
    check_refused(quantize + " --device gpu", 2, {"--device", "gpu"});
    check_refused("bench quantize --device gpu", 2, {"--device", "gpu"});
    check_refused("bench quantize --device cuda --threads 2", 2, {"--threads", "CPU"});
    check_refused("bench quantize --markdown", 2, {"--markdown", "cuda"});
    if (cuda_device_count() > 0) return;
    check_refused(quantize + " --device cuda", 1, {"cuda:0"});
    check_refused("bench quantize --device cuda:1", 1, {"cuda:1"});
    CHECK(!std::filesystem::exists(folder / "out.f32"));
  }
}

#endif
