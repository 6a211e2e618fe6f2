#include <doctest/doctest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/tool_output.h"

// ulp bench as a user meets it, on the CPU.
#if defined(ULP_COMMAND)

using namespace ulp;
using namespace ulp::command;

TEST_SUITE("bench") {
  TEST_CASE("bench quantize: rows of every class, checked as they are measured") {
    const auto rows = nlohmann::json::parse(
        output("bench quantize --log2-size 14 --repeats 1 --threads 2 --json"));
    std::map<std::string, std::set<std::string>> roundings;
    std::map<std::string, std::string> classes;
    for (const auto& row : rows) {
      roundings[row.at("format")].insert(row.at("rounding"));
      classes[row.at("format")] = row.at("class");
      for (const char* number : {"ns_per_element", "memcpy_ns_per_element", "ratio"})
        CHECK(row.at(number).get<double>() > 0);
    }
    for (const char* name : {"fp16", "bf16", "e4m3", "e5m2", "e6m9", "fixed8.6", "bfp8",
                             "bfp8-axis0", "mxfp8", "mxfp4", "nvfp4", "posit8.1", "nf4"}) {
      CAPTURE(std::string(name));
      CHECK(roundings[name] == std::set<std::string>{"rne", "sr"});
    }
    CHECK(classes["nvfp4"] == "block");
    CHECK(classes["mxfp8"] == "block");
    CHECK(classes["e4m3"] == "element");
    CHECK(classes["posit8.1"] == "table");
    const std::string odd = output(
        "bench quantize --log2-size 14 --repeats 1 --threads 2 e4m3+scale=current e5m2+scale=row "
        "e4m3-t128x128-scalef32 nf4-g64-scalef32 e2m1-g16-scalee4m3 mxfp4+q34 nvfp4-t16x16 "
        "hbfp8-g48 posit8.1-g16-scalef32");
    CHECK(lines(odd) == 3 + 2 * 9);
    for (const char* no : {"fp32", "e4m3:sr", "mxfp4+rht16", "e4m3+scale=delayed4"})
      check_refused(std::string("bench quantize ") + no, 2, {"bench quantize", no});
    check_refused("bench quantize e9m9", 2, {"e9m9"});
    CHECK(ulp_command("bench quantize e4m3 e9m9 --log2-size 13 --repeats 1").out.empty());
    CHECK(lines(output("bench quantize e4m3:rne --log2-size 13 --repeats 1")) == 3 + 2);
  }

  TEST_CASE("benches begin with the machine, the day and the command") {
    const Folder folder;
    const std::string dir = folder / "";
    for (const std::string& command :
         {std::string("bench quantize e4m3 --log2-size 13 --repeats 1 --threads 1"),
          std::string("bench matmul --m 8 --n 8 --k 8 --repeats 1 --threads 1"),
          std::string("bench optimizer --log2-size 13 --repeats 1 --threads 1 --markdown"),
          "bench checkpoint --mib 1 --repeats 1 --dir " + dir}) {
      const Result r = ulp_command(command);  // where there is no OpenBLAS, matmul says so
      const std::string first = r.out.substr(0, r.out.find('\n'));
      CAPTURE(first);
      CHECK(r.status == 0);
      CHECK(first.ends_with("; `ulp " + command + "`"));
      CHECK(first.find(" thread") != std::string::npos);
      const size_t date = first.find("; 20");
      CHECK((date != std::string::npos && first.find("-", date) == date + 6));
    }
  }

  TEST_CASE("benches of a GPU say why there is none, and do not send anybody to the CPU") {
    if (cuda_device_count() > 0) return;
    for (const char* bench : {"bench ops", "bench step"}) {
      const Result r = ulp_command(bench);
      CAPTURE(r.err);
      CHECK(r.status == 1);
      CHECK(r.err.find(std::string(bench) + ": it measures a GPU") != std::string::npos);
      CHECK(r.err.find(cuda_missing_reason()) != std::string::npos);
      CHECK(r.err.find("use the cpu") == std::string::npos);
      check_refused(std::string(bench) + " --device cpu", 2, {bench, "cuda"});
    }
  }

  TEST_CASE("bench step names the models there are") {
    check_refused("bench step --model preresnet20,alexnet", 2, {"alexnet", "mlp", "vgg16bn"});
    check_refused("bench step --model ''", 2, {"--model", "mlp"});
    check_refused("bench step --model mlp,gtp", 2, {"gtp", "gpt", "vgg16bn"});
    check_refused("bench step --model gpt --setting fp33", 2, {"fp33", "'fp32, tf32 math'"});
  }
}

#endif
