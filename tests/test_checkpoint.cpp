#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>

#include "checkpoint_case.h"
#include "nn/data/checkpoint.h"

using namespace ulp;
using namespace ulp::tests;
namespace fs = std::filesystem;

namespace {

/// The message of the ulp::Error that `action` throws; it must be one line.
template <class F>
std::string message_of(F action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what();
    CHECK(message.find('\n') == std::string::npos);
    CHECK(message.size() < 400);
    return message;
  }
  return "(nothing was thrown)";
}

bool contains(const std::string& message, const std::string& words) {
  const bool found = message.find(words) != std::string::npos;
  if (!found) MESSAGE(message);
  return found;
}

nn::Checkpoint parse(const std::string& bytes) {
  return nn::parse_checkpoint({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
                              "file");
}

/// Sets another value of the same length in the header, and the checksum that then is right.
std::string with_text(std::string bytes, const std::string& from, const std::string& to) {
  const size_t at = bytes.find(from);
  REQUIRE(at != std::string::npos);
  REQUIRE(from.size() == to.size());
  bytes.replace(at, from.size(), to);
  return with_checksum(bytes);
}

}  // namespace

TEST_SUITE("checkpoint") {
  TEST_CASE("a run restored at any step goes on to the same bits, on any number of threads") {
    const Folder folder;
    const int threads = omp_get_max_threads();
    for (const CheckpointCase& setting : checkpoint_cases()) {
      CAPTURE(setting.forward);
      omp_set_num_threads(threads);
      SmallRun whole(kCpu, setting);
      whole.train_to(30);
      for (const int64_t stop : {0, 1, 7, 11, 12, 30}) {
        CAPTURE(stop);
        const fs::path file = folder / "checkpoint.safetensors";
        omp_set_num_threads(1);
        {
          SmallRun first(kCpu, setting);
          first.train_to(stop);
          nn::save_checkpoint(file, first.checkpoint());
        }
        omp_set_num_threads(3);
        SmallRun second(kCpu, setting);
        second.resume(nn::load_checkpoint(file), file.native());
        second.train_to(30);
        check_same_runs(whole, second);
      }
    }
    omp_set_num_threads(threads);
  }

  TEST_CASE("a checkpoint goes back into a run that has gone on, without moving its memory") {
    const Folder folder;
    for (const CheckpointCase& setting : checkpoint_cases()) {
      SmallRun run(kCpu, setting), whole(kCpu, setting);
      whole.train_to(25);
      run.train_to(13);
      nn::save_checkpoint(folder / "c", run.checkpoint());
      std::map<std::string, const void*> places;
      for (const auto& [name, tensor] : run.checkpoint().tensors) places[name] = tensor.raw();
      run.train_to(25);
      const nn::Checkpoint saved = nn::load_checkpoint(folder / "c");
      for (int time = 0; time < 2; ++time) {
        run.resume(saved, "c");
        for (const auto& [name, tensor] : run.checkpoint().tensors)
          CHECK(places.at(name) == tensor.raw());
        run.train_to(25);
        check_same_runs(whole, run);
      }
    }
  }

  TEST_CASE("a checkpoint says everything, and equal runs write equal bytes") {
    const Folder folder;
    const CheckpointCase setting = checkpoint_cases()[1];
    SmallRun a(kCpu, setting), b(kCpu, setting);
    a.train_to(9);
    b.train_to(9);
    nn::Checkpoint c = a.checkpoint();
    c.notes["where"] = "epoch 0, \"step\" 9\n";
    c.texts["long"] = std::string(100'000, 'x') + "\xff";
    c.texts["none"] = "";
    nn::save_checkpoint(folder / "a", c);
    nn::Checkpoint same = b.checkpoint();
    same.notes = c.notes;
    same.texts = c.texts;
    nn::save_checkpoint(folder / "b", same);
    CHECK(slurp(folder / "a") == slurp(folder / "b"));

    const nn::Checkpoint back = nn::load_checkpoint(folder / "a");
    CHECK(back.seed == c.seed);
    CHECK(back.notes == c.notes);
    CHECK(back.texts == c.texts);
    CHECK(back.formats == c.formats);
    CHECK(back.formats.at("fc1.weight.master.codes") == "e6m9:sr");
    CHECK(std::memcmp(&back.state, &c.state, sizeof c.state) == 0);
    REQUIRE(back.tensors.size() == c.tensors.size());
    for (const auto& [name, tensor] : c.tensors)
      CHECK(same_bits(back.tensors.at(name), tensor.to_cpu_contiguous()));
    REQUIRE(back.scalings.size() == c.scalings.size());

    // Any program can read it: the same file through the plain reader.
    const nn::SafetensorsFile plain = nn::load_safetensors(folder / "a");
    CHECK(plain.has_checksum);
    CHECK(plain.metadata.at("ulp_checkpoint") == "1");
    CHECK(plain.metadata.at("state.optimizer_step") == "7");
    CHECK(plain.metadata.at("format.fc1.weight.master.codes") == "e6m9:sr");
    CHECK(plain.tensors.at("text.long").numel() == 100'001);
  }

  TEST_CASE("StepState: every field comes back, whatever its value") {
    const Folder folder;
    for (const float scale : {1.0f, 65536.0f, 0x1p-149f, 3.4028235e38f, 0.1f}) {
      nn::Checkpoint c;
      c.seed = UINT64_MAX;
      c.state.random_step = UINT32_MAX;
      c.state.optimizer_step = 123456789;
      c.state.loss_scale = scale;
      c.state.grad_factor = 0.1f;
      c.state.batch_offset = int64_t{1} << 40;
      nn::save_checkpoint(folder / "c", c);
      const nn::Checkpoint back = nn::load_checkpoint(folder / "c");
      CHECK(back.seed == c.seed);
      CHECK(std::memcmp(&back.state, &c.state, sizeof c.state) == 0);
    }
  }

  TEST_CASE("what does not fit the run is named, and nothing is changed") {
    const Folder folder;
    const CheckpointCase setting = checkpoint_cases()[1];
    SmallRun run(kCpu, setting), untouched(kCpu, setting);
    run.train_to(5);
    untouched.train_to(5);
    const auto refusal = [&](auto change) {
      nn::save_checkpoint(folder / "c", run.checkpoint());
      nn::Checkpoint saved = nn::load_checkpoint(folder / "c");
      saved.state.random_step += 3;
      for (auto& [name, tensor] : saved.tensors)
        if (tensor.bytes() > 0) static_cast<uint8_t*>(tensor.mutable_raw())[0] ^= 0xff;
      change(saved);
      const std::string message = message_of([&] { run.resume(saved, "the file"); });
      CHECK(message.starts_with("the file: "));
      check_same_runs(run, untouched);
      return message;
    };
    using C = nn::Checkpoint;
    CHECK(contains(refusal([](C& c) { c.seed = 77; }), "its seed is 77"));
    CHECK(contains(refusal([](C& c) { c.tensors.erase("fc2.bias"); }), "no tensor fc2.bias"));
    CHECK(contains(refusal([](C& c) { c.tensors["more"] = c.tensors.at("fc2.bias"); }),
                   "it holds more, which the run has not"));
    CHECK(contains(refusal([](C& c) {
                     Tensor& t = c.tensors.at("fc1.weight");
                     t = t.reshape({t.size(1), t.size(0)});
                   }),
                   "fc1.weight must be F8_E4M3 (12, 64), got F8_E4M3 (64, 12)"));
    CHECK(contains(refusal([](C& c) {
                     Tensor& t = c.tensors.at("fc2.bias.moment1");
                     t = Tensor::empty(t.shape(), DType::F64, kCpu);
                   }),
                   "fc2.bias.moment1 must be"));
    CHECK(contains(refusal([](C& c) { c.formats["fc1.weight.master.codes"] = "e5m10"; }),
                   "the format of fc1.weight.master.codes is e5m10 and the run's e6m9:sr"));
    CHECK(contains(refusal([](C& c) { c.formats.erase("fc1.weight.master.codes"); }),
                   "is none and the run's e6m9:sr"));
    // What a file says stays on the line.
    const std::string lines(1000, '\n');
    CHECK(contains(refusal([&](C& c) { c.formats["fc1.weight.master.codes"] = "a" + lines; }),
                   "a???"));
    CHECK(contains(refusal([&](C& c) { c.tensors["a" + lines] = c.tensors.at("fc2.bias"); }),
                   "it holds a???"));
    // A run that knows a delayed scale cannot forget it.
    const CheckpointCase delayed = checkpoint_cases()[3];
    SmallRun scaled(kCpu, delayed);
    scaled.train_to(3);
    REQUIRE(!scaled.checkpoint().scalings.empty());
    nn::Checkpoint without = scaled.checkpoint();
    without.scalings.clear();
    CHECK(contains(message_of([&] { scaled.resume(without, "f"); }), "restore into a new run"));
  }

  TEST_CASE("counts, scales and codes that no run can hold are refused") {
    const Quantizer table = Quantizer::parse("pow2x8-g256-scalef32");
    nn::Checkpoint live;
    live.seed = 1;
    live.state.random_step = 1;
    const auto bytes = [](std::vector<uint8_t> values) {
      return Tensor::from(values, {static_cast<int64_t>(values.size())});
    };
    const Tensor nf4 = bytes({0xff, 0x0f}), pow2 = bytes({0xe0}),
                 steps = Tensor::zeros({1}, DType::I32, kCpu);
    live.add({{"optimizer.steps", steps},
              {"a.moment1.scales", Tensor::from(std::vector<float>{1, 2}, {2})},
              {"a.moment1.codes", bytes({0, 254})},
              {"b.moment1.codes", nf4},
              {"c.moment1.codes", pow2}},
             {{"optimizer.steps", "i32"},
              {"a.moment1.scales", to_string(table)},
              {"a.moment1.codes", to_string(table)},
              {"b.moment1.codes", "nf4"},
              {"c.moment1.codes", "pow2x4"}});
    Run run(kCpu, 1);
    CHECK_NOTHROW(nn::restore(live, "f", run, live));
    const auto message = [&](const char* name, const Tensor& tensor) {
      nn::Checkpoint saved = live;
      saved.tensors[name] = tensor;
      return message_of([&] { nn::restore(saved, "f", run, live); });
    };
    const auto floats = [](float x, float y) {
      return Tensor::from(std::vector<float>{x, y}, {2});
    };
    CHECK(message("optimizer.steps", Tensor::from(std::vector<int32_t>{-5}, {1})) ==
          "f: optimizer.steps is -5; wanted a number from 0 on");
    CHECK(message("a.moment1.scales", floats(1, -2)) ==
          "f: a.moment1.scales holds -2; wanted numbers from 0 on");
    CHECK(contains(message("a.moment1.scales", floats(std::nanf(""), 1)), "holds nan"));
    CHECK(message("a.moment1.codes", bytes({1, 255})) ==
          "f: a.moment1.codes holds the code 255, and pow2x8-g256-scalef32 has 255 numbers");
    CHECK(contains(message("c.moment1.codes", bytes({0xf0})), "code 15, and pow2x4 has 15"));
  }

  TEST_CASE("names that mean something else cannot be saved") {
    const Tensor one = Tensor::from(std::vector<float>{1}, {1});
    nn::Checkpoint c;
    CHECK(contains(message_of([&] { c.add({{"text.a", one}}, {}); }), "no tensor can be named"));
    CHECK(contains(message_of([&] {
                     c.add({{"delayed_scaling.a", one}}, {});
                   }),
                   "delayed_scaling"));
    CHECK(contains(message_of([&] { c.add({{"w", Tensor()}}, {}); }), "w holds no tensor"));
    CHECK(contains(message_of([&] { c.add({}, {{"w", "e4m3"}}); }), "there is no tensor"));
    c.add({{"w", one}}, {{"w", "e4m3"}});
    CHECK(contains(message_of([&] { c.add({{"w", one}}, {}); }), "two tensors are named w"));
    CHECK(contains(message_of([&] { c.add({}, {{"w", "e4m3"}}); }), "two formats"));
  }

  TEST_CASE("a damaged checkpoint is refused, whatever bit it is") {
    const Folder folder;
    SmallRun run(kCpu, checkpoint_cases()[0]);
    run.train_to(2);
    nn::Checkpoint c = run.checkpoint();
    c.tensors = {{"fc2.bias", c.tensors.at("fc2.bias")}};
    c.formats.clear();
    c.notes["n"] = "1";
    nn::save_checkpoint(folder / "c", c);
    const std::string good = slurp(folder / "c");
    CHECK_NOTHROW(parse(good));
    for (size_t at = 0; at < good.size(); ++at)
      for (const int flip : {0x01, 0x20, 0x80}) {
        std::string bad = good;
        bad[at] = static_cast<char>(bad[at] ^ flip);
        CAPTURE(at);
        CAPTURE(flip);
        CHECK(message_of([&] { parse(bad); }).starts_with("file: "));
      }
    for (size_t length = 0; length < good.size(); ++length)
      CHECK(message_of([&] { parse(good.substr(0, length)); }).starts_with("file: "));
    CHECK(contains(message_of([&] { parse(good + "x"); }), "trailing bytes"));
    CHECK_THROWS_AS(parse(good + "x"), nn::Damaged);
    CHECK_THROWS_AS(parse("{}"), nn::Damaged);
    // What cannot be read may be whole.
    try {
      nn::load_checkpoint(folder / "none");
      FAIL("nothing was thrown");
    } catch (const nn::Damaged&) {
      FAIL("it is not known to be damaged");
    } catch (const Error& error) {
      CHECK(contains(error.what(), "none: cannot be read"));
    }
    std::string zeros = good;
    zeros.replace(zeros.size() - 8, 8, 8, '\0');
    CHECK(contains(message_of([&] { parse(zeros); }), "damaged: its checksum is"));
  }

  TEST_CASE("metadata that is no checkpoint's, under a right checksum") {
    const Folder folder;
    nn::Checkpoint c;
    c.seed = 1;
    c.state.random_step = 1;
    c.formats["w"] = "e4m3";
    c.notes["n"] = "1";
    c.tensors["w"] = Tensor::from(std::vector<float>{1}, {1});
    c.scalings[0xbeef] = Tensor::from(std::vector<float>{1, 2, 3}, {3});
    c.texts["t"] = "abcd";
    nn::save_checkpoint(folder / "c", c);
    const std::string good = slurp(folder / "c");
    CHECK_NOTHROW(parse(with_checksum(good)));
    const auto message = [&](const std::string& from, const std::string& to) {
      return message_of([&] { parse(with_text(good, from, to)); });
    };
    CHECK(contains(message(R"("ulp_checkpoint")", R"("ulp_checkpoinT")"), "no checkpoint"));
    CHECK(contains(message(R"("ulp_checkpoint":"1")", R"("ulp_checkpoint":"2")"),
                   "another version of ulp wrote it: its layout is '2', and this program reads 1"));
    CHECK(contains(message(R"("seed":"1")", R"("seed":"x")"), "its seed is 'x'"));
    CHECK(contains(message(R"("seed":"1")", R"("seee":"1")"), "its metadata has seee"));
    CHECK(contains(message(R"("note.n")", R"("nota.n")"), "its metadata has nota.n"));
    CHECK(contains(message(R"("format.w")", R"("format.v")"), "has a format for v"));
    CHECK(contains(message("state.found_inf", "state.found_ing"),
                   "another version of ulp wrote it: its metadata has no state.found_inf"));
    CHECK(contains(message(R"("note.n":"1")", R"("state.":"1")"), "state., which this program"));
    CHECK_THROWS_AS(parse(with_text(good, "state.found_inf", "state.found_ing")), nn::OtherVersion);
    CHECK(contains(message(R"("state.found_inf":"0")", R"("state.found_inf":"-")"),
                   "its state.found_inf is '-'"));
    CHECK(contains(message(R"("state.random_step":"1")", R"("state.random_step":"0")"),
                   "before the first step"));
    CHECK(contains(message(R"("state.loss_scale":"1")", R"("state.loss_scale":"0")"),
                   "state.loss_scale is 0"));
    CHECK(contains(message(R"("state.found_inf":"0")", R"("state.found_inf":"1")"),
                   "its state.found_inf is 1; between two steps it is 0"));
    nn::Checkpoint minus_factor = c;
    minus_factor.state.grad_factor = -1;
    nn::save_checkpoint(folder / "m", minus_factor);
    CHECK(contains(message_of([&] { parse(slurp(folder / "m")); }), "state.grad_factor is -1"));
    CHECK(contains(message(R"("delayed_scaling.0000beef")", R"("delayed_scaling.0000beeg")"),
                   "nothing"));  // a tensor of that name, which no run has
    // 2.0f of the scaling → −2.0f
    std::string bad = good;
    const float two = 2, minus = -2;
    const std::string from(reinterpret_cast<const char*>(&two), 4),
        to(reinterpret_cast<const char*>(&minus), 4);
    CHECK(contains(message_of([&] { parse(with_text(good, from, to)); }), "holds -2"));
    // A plain safetensors file, and one without a checksum.
    nn::save_safetensors(folder / "p", c.tensors, {{"a", "b"}});
    CHECK(contains(message_of([&] { parse(slurp(folder / "p")); }), "no checkpoint"));
    nn::save_safetensors(folder / "p", c.tensors, {{"ulp_checkpoint", "1"}});
    CHECK(contains(message_of([&] { parse(slurp(folder / "p")); }), "it has no checksum"));
  }
}
