#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/embedding.h"
#include "nn/batches.h"
#include "nn/data/text.h"
#include "tests/command.h"
#include "tests/kernel_rows.h"
#include "tests/op_table.h"
#include "tests/paths.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

Tensor counting(int64_t n) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(i));
  return Tensor::from(tokens, {n});
}

std::vector<int32_t> numbers(const Tensor& tensor) {
  const Tensor plain = tensor.to_cpu_contiguous();
  return {plain.data<int32_t>(), plain.data<int32_t>() + plain.numel()};
}

/// Each window of a text that counts, by its first token; −1 where it is no window with its labels.
std::vector<int32_t> starts(const nn::Batch& batch) {
  const std::vector<int32_t> in = numbers(batch.inputs), labels = numbers(batch.labels);
  const int64_t length = batch.inputs.size(1);
  std::vector<int32_t> first;
  for (int64_t n = 0; n < batch.inputs.size(0); ++n) {
    bool good = true;
    for (int64_t t = 0; t < length; ++t) {
      const auto at = static_cast<size_t>(n * length + t);
      good = good && in[at] == in[static_cast<size_t>(n * length)] + t && labels[at] == in[at] + 1;
    }
    first.push_back(good ? in[static_cast<size_t>(n * length)] : -1);
  }
  return first;
}

}  // namespace

namespace ulp::tests {

void check_gather_windows() {
  Run run;
  const Tensor out = Tensor::empty({3, 4}, DType::I32, kCpu),
               labels = Tensor::empty({12}, DType::I32, kCpu);
  GatherWindowsArgs args;
  args.text = counting(20);
  args.out = out;
  args.labels = labels;
  args.begin = 1;
  kernels::gather_windows(run.stream(), args);
  CHECK(starts({out, labels}) == std::vector<int32_t>{4, 8, 12});
  args.begin = 2;  // 2, 3, 4: the last one's label is there no more
  CHECK_THROWS_AS(kernels::gather_windows(run.stream(), args), Error);
  args.random = true;
  args.key = {5, 6, 7, nullptr};
  kernels::gather_windows(run.stream(), args);
  const RandomSource random(args.key);
  std::vector<int32_t> wanted;
  for (uint64_t n = 0; n < 3; ++n)
    wanted.push_back(static_cast<int32_t>((uint64_t{random.word(n + 2)} * 16) >> 32));
  CHECK(starts({out, labels}) == wanted);
}

}  // namespace ulp::tests

TEST_SUITE("text") {
  TEST_CASE("UTF-8: every character comes back, whatever is not UTF-8 is refused with its place") {
    std::string all;
    std::vector<char32_t> wanted;
    for (char32_t c = 0; c <= 0x10FFFF; c += c < 0x900 ? 1 : 0x1F7) {
      if (c >= 0xD800 && c < 0xE000) continue;
      wanted.push_back(c);
      all += nn::utf8_of(c);
    }
    for (const char32_t c : {U'\uD7FF', U'\uE000', U'\uFFFF', U'\U00010000', U'\U0010FFFF'}) {
      wanted.push_back(c);
      all += nn::utf8_of(c);
    }
    CHECK(nn::code_points(all, "all") == wanted);
    CHECK(nn::utf8_of(U'é') == "é");
    CHECK(nn::utf8_of(U'€') == "€");
    CHECK(nn::utf8_of(U'𝄞') == "𝄞");
    for (const char* bad :
         {"ab\x80", "ab\xC0\x80", "ab\xC1\xBF", "ab\xE2\x82", "ab\xE0\x80\x80", "ab\xED\xA0\x80",
          "ab\xF4\x90\x80\x80", "ab\xF8\x88\x80\x80\x80", "ab\xFF", "ab\xC3(", "ab\xC3"}) {
      CAPTURE(std::string(bad));
      CHECK_THROWS_WITH_AS(nn::code_points(bad, "x.txt"),
                           "x.txt: byte 2 is not UTF-8; take bytes as tokens, or convert the text",
                           Error);
    }
  }

  TEST_CASE("vocabularies: characters in order, bytes, and what is unknown") {
    const nn::Vocabulary v = nn::Vocabulary::characters_of("banané\n", "x");
    CHECK(v.size() == 5);
    CHECK(v.characters() == "\nabné");
    CHECK(v == nn::Vocabulary::characters_of(v.characters(), "again"));
    CHECK(v.encode("né\n", "x") == std::vector<int32_t>{3, 4, 0});
    CHECK(v.decode(4) == "é");
    CHECK_THROWS_WITH_AS(
        v.encode("ban€", "--prompt"),
        "--prompt: character 4, '€' (U+20AC), is none of the 5 that the model knows", Error);
    CHECK_THROWS_AS(v.decode(5), Error);
    CHECK_THROWS_AS(v.decode(-1), Error);
    const nn::Vocabulary bytes = nn::Vocabulary::bytes();
    CHECK(bytes.size() == 256);
    CHECK(bytes.encode("é", "x") == std::vector<int32_t>{0xC3, 0xA9});
    CHECK(bytes.decode(0xC3) == "\xC3");
    CHECK(nn::Vocabulary().empty());
    CHECK(nn::parse_token_kind("bytes") == nn::TokenKind::Bytes);
    CHECK_THROWS_AS(nn::parse_token_kind("words"), Error);
  }

  TEST_CASE("a text is cut by position; one that is too short is refused") {
    std::string text;
    for (int i = 0; i < 100; ++i) text += static_cast<char>('a' + i % 20);
    const nn::Text t = nn::split_text(text, "x", {nn::TokenKind::Characters, 0.25, 10});
    CHECK(t.vocabulary.size() == 20);
    CHECK(t.train.shape() == Shape{75});
    CHECK(t.validation.shape() == Shape{25});
    CHECK(t.train.dtype() == DType::U8);
    CHECK(t.validation.data<uint8_t>()[0] == 75 % 20);
    CHECK_THROWS_WITH_AS(nn::split_text(text, "x.txt", {nn::TokenKind::Characters, 0.25, 25}),
                         "x.txt: its validation part has 25 characters, and a context of 25 needs "
                         "at least 26; take a longer text or a shorter context",
                         Error);
    CHECK_THROWS_WITH_AS(nn::split_text(text, "x.txt", {nn::TokenKind::Bytes, 0.5, 75}),
                         "x.txt: its training part has 50 bytes, and a context of 75 needs at "
                         "least 76; take a longer text or a shorter context",
                         Error);
    CHECK_THROWS_WITH_AS(nn::split_text("ab", "x.txt", {nn::TokenKind::Characters, 0.5, 1}),
                         doctest::Contains("has 1 character, and a context of 1"), Error);
    CHECK_THROWS_AS(nn::split_text("", "x", {}), Error);
    CHECK_THROWS_AS(nn::split_text(std::string(100, 'a'), "x", {nn::TokenKind::Characters, 0.5, 1}),
                    Error);
    CHECK_THROWS_AS(nn::split_text(text, "x", {nn::TokenKind::Characters, 0, 1}), Error);
    CHECK_THROWS_AS(nn::load_text("/nowhere/x.txt", {}), Error);
    // More than 256 characters do not fit bytes.
    std::string wide;
    for (char32_t c = 0x100; c < 0x300; ++c) wide += nn::utf8_of(c);
    const nn::Text w = nn::split_text(wide, "x", {nn::TokenKind::Characters, 0.5, 10});
    CHECK(w.train.dtype() == DType::I32);
    CHECK(w.validation.data<int32_t>()[0] == 256);
  }

  TEST_CASE("windows follow from seed and index; in order they stand end to end") {
    const Tensor text = counting(1000);
    Run run(kCpu, 7);
    nn::TextBatches a(run, text, 16, 5);
    CHECK(a.samples() == 62);
    CHECK(a.steps() == 12);
    std::vector<int32_t> first, all;
    for (const nn::Batch& batch : a.shuffled(3)) {
      CHECK(batch.inputs.shape() == Shape{5, 16});
      CHECK(batch.labels.shape() == Shape{80});
      for (const int32_t s : starts(batch)) first.push_back(s);
    }
    CHECK(first.size() == 60);
    CHECK(*std::min_element(first.begin(), first.end()) >= 0);
    CHECK(*std::max_element(first.begin(), first.end()) < 984);
    // The same from the middle on, in another run of that seed, whatever the size of its batches.
    Run other(kCpu, 7);
    nn::TextBatches b(other, text, 16, 10);
    b.shuffle(3, 20);
    const std::vector<int32_t> middle = starts(b.next());
    CHECK(middle == std::vector<int32_t>(first.begin() + 20, first.begin() + 30));
    b.shuffle(4);
    CHECK(starts(b.next()) != std::vector<int32_t>(first.begin(), first.begin() + 10));
    for (const nn::Batch& batch : a.in_order())
      for (const int32_t s : starts(batch)) all.push_back(s);
    CHECK(all.size() == 62);
    for (size_t i = 0; i < all.size(); ++i) CHECK(all[i] == static_cast<int32_t>(16 * i));
    // How long epochs are changes nothing.
    nn::TextBatches one(run, text, 16, 4, 24), three(other, text, 16, 4, 8);
    std::vector<int32_t> at_once, in_three;
    for (const nn::Batch& batch : one.shuffled(0))
      for (const int32_t s : starts(batch)) at_once.push_back(s);
    for (int epoch = 0; epoch < 3; ++epoch)
      for (const nn::Batch& batch : three.shuffled(epoch))
        for (const int32_t s : starts(batch)) in_three.push_back(s);
    CHECK(at_once.size() == 24);
    CHECK(at_once == in_three);
    // An epoch may be longer than the text.
    nn::TextBatches longer(run, text, 16, 50, 500);
    CHECK(longer.steps() == 10);
    longer.shuffle(0, 450);
    CHECK(starts(longer.next()).size() == 50);
    CHECK_THROWS_AS(longer.next(), Error);
    CHECK_THROWS_AS(longer.shuffle(0, 501), Error);
    CHECK_THROWS_AS(nn::TextBatches(run, text, 1000, 1), Error);
    CHECK_THROWS_AS(nn::TextBatches(run, text, 16, 0), Error);
    nn::TextBatches fresh(run, text, 999, 3);
    CHECK(fresh.samples() == 1);
    CHECK(fresh.size() == 1);
    CHECK_THROWS_AS(fresh.next(), Error);
  }

#if defined(ULP_COMMAND)
  /// The last validation loss that a command printed.
  double loss(const std::string& text) {
    const std::string before = "validation loss ";
    const size_t at = text.rfind(before);
    REQUIRE(at != std::string::npos);
    return std::stod(text.substr(at + before.size()));
  }

  using namespace ulp::command;

  /// A text that a small model learns quickly.
  static std::string rhyme(int times) {
    std::string text;
    for (int i = 0; i < times; ++i)
      text += i % 3 == 0 ? "the cat sat on the mat.\n" : "a dog ran after the cat.\n";
    return text;
  }
  static const char* const kSmall =
      "--model gpt --layers 2 --width 32 --heads 4 --context 16 --batch-size 8 --lr 0.003 "
      "--optimizer adamw ";

  TEST_CASE("ulp train and ulp sample on a text") {
    const Folder folder;
    const std::string file = folder / "rhyme.txt", out = folder / "run", again = folder / "again";
    std::ofstream(file) << rhyme(60);
    const std::string common = "train --data 'text:" + file + "' " + kSmall +
                               "--steps 60 --validate-every 20 --forward e4m3 --backward e5m2:sr ";
    const Result r = ulp_command(common + "--out '" + out + "'");
    CAPTURE(r.err);
    CAPTURE(r.out);
    REQUIRE(r.status == 0);
    for (const char* word : {"perplexity", "validation loss", "nats", "windows of 16 characters",
                             "2 layers of width 32 with 4 heads"})
      CHECK(r.out.find(word) != std::string::npos);
    const std::string metrics = slurp(out + "/metrics.jsonl");
    CHECK(lines(metrics) == 6);
    CHECK(metrics.find("\"split\":\"validation\"") != std::string::npos);
    CHECK(metrics.find("\"perplexity\":") != std::string::npos);

    SUBCASE("a run that is stopped and resumed gives the same model") {
      const Result first =
          ulp_command(common + "--checkpoint-every 25 --keep 9 --out '" + again + "'");
      REQUIRE(first.status == 0);
      CHECK(slurp(again + "/model.safetensors") == slurp(out + "/model.safetensors"));
      for (const auto& entry : std::filesystem::directory_iterator(again))
        if (entry.path().filename().string().find("checkpoint-") == 0 &&
            entry.path().filename().string().find("25") == std::string::npos)
          std::filesystem::remove(entry.path());
      std::filesystem::remove(again + "/model.safetensors");
      const Result resumed = ulp_command(common + "--resume --out '" + again + "'");
      CAPTURE(resumed.out);
      CAPTURE(resumed.err);
      REQUIRE(resumed.status == 0);
      CHECK(resumed.out.find("resumed") != std::string::npos);
      CHECK(slurp(again + "/model.safetensors") == slurp(out + "/model.safetensors"));
    }
    SUBCASE("eval gives the loss of the training") {
      const Result e = ulp_command("eval '" + out + "'");
      CAPTURE(e.err);
      REQUIRE(e.status == 0);
      CHECK(std::abs(loss(e.out) - loss(r.out)) <= 0.5001e-4);  // of four digits after the point
    }
    SUBCASE("eval of another text: with the numbers that the model has for its characters") {
      const std::string other = folder / "other.txt";
      std::ofstream(other) << std::string(200, 't') << std::string(200, 'e');
      const Result e = ulp_command("eval '" + out + "' --data 'text:" + other + "'");
      CAPTURE(e.err);
      REQUIRE(e.status == 0);
      // The validation part is of e alone: numbered by its own characters it would be that of another one.
      const std::string all = folder / "all.txt", letters = "\n .acdefhmnort";
      std::ofstream(all) << letters << std::string(200 - letters.size(), 't')
                         << std::string(200, 'e');
      const Result f = ulp_command("eval '" + out + "' --data 'text:" + all + "'");
      CHECK(f.status == 0);
      const size_t from = e.out.find("validation loss");
      REQUIRE(from != std::string::npos);
      CHECK(f.out.find(e.out.substr(from)) != std::string::npos);
      std::ofstream(other) << std::string(200, 't') << std::string(200, 'Z');
      check_refused("eval '" + out + "' --data 'text:" + other + "'", 1,
                    {"other.txt", "character 201", "'Z'", "the model knows"});
    }
    SUBCASE("eval of a text that was changed says so; named again it is scored") {
      std::string changed = rhyme(60);
      std::swap(changed[4], changed[8]);  // the same characters, of the training part
      std::ofstream(file) << changed;
      check_refused("eval '" + out + "'", 1,
                    {"rhyme.txt", "another text", "fingerprint", "--data text:", "all the same"});
      const Result named = succeed("eval '" + out + "' --data 'text:" + file + "'");
      CHECK(std::abs(loss(named.out) - loss(r.out)) <= 0.5001e-4);  // the same validation part
      // A folder of before fingerprints were kept has nothing to compare.
      std::string config = slurp(out + "/config.json");
      const size_t key = config.find("\"fingerprint\"");
      REQUIRE(key != std::string::npos);
      config.erase(key, config.find('\n', key) - key);
      std::ofstream(out + "/config.json") << config;
      succeed("eval '" + out + "'");
    }
    SUBCASE("sample: the same with and without a cache, for any number of threads") {
      const std::string sample = "sample '" + out + "' --prompt 'the' --length 13 ";
      for (const char* how : {"--temperature 0", "--temperature 0.7 --seed 3"}) {
        const Result on = ulp_command(sample + how),
                     off = ulp_command(sample + how + " --cache off");
        CAPTURE(on.err);
        CHECK(on.status == 0);
        CHECK(on.out == off.out);
        CHECK(on.out.size() == 3 + 13 + 1);
        CHECK(on.out.substr(0, 3) == "the");
        CHECK(ulp_command(sample + how + " --threads 1").out == on.out);
      }
      CHECK(ulp_command(sample + "--seed 3 --temperature 2").out !=
            ulp_command(sample + "--seed 4 --temperature 2").out);
      CHECK(ulp_command("sample '" + out + "' --prompt the --length 0").out == "the\n");
      // Without --length: what the context leaves.
      const Result rest = ulp_command("sample '" + out + "' --prompt the");
      CHECK(rest.status == 0);
      CHECK(rest.out.size() == 16 + 1);
    }
    SUBCASE("what cannot be sampled is one line") {
      const std::string sample = "sample '" + out + "' ";
      check_refused(sample + "--prompt 'THE'", 1, {"--prompt", "character 1", "'T'", "U+0054"});
      check_refused(sample + "--prompt the --length 14", 1, {"--length 14", "17", "context", "16"});
      check_refused(sample + "--prompt 'the cat the cat t'", 1, {"17 characters", "context", "16"});
      check_refused(sample + "--prompt t --length 16", 1, {"of 1 character and --length 16"});
      check_refused(sample + "--prompt ''", 2, {"--prompt"});
      check_refused(sample + "--prompt a --temperature -1", 2, {"--temperature"});
      check_refused(sample + "--prompt a --cache maybe", 2, {"--cache"});
      check_refused("sample '" + (folder / "nowhere") + "' --prompt a", 1, {"nowhere"});
    }
  }

  TEST_CASE("every kind of gpt trains on bytes and can be sampled") {
    const Folder folder;
    const std::string file = folder / "rhyme.txt", out = folder / "run";
    std::ofstream(file) << rhyme(40);
    for (const char* options : {"--positions rotary --mlp swiglu --norm rms --tie",
                                "--tokens bytes --positions learned --tie", "--norm rms"}) {
      CAPTURE(std::string(options));
      const Result r = ulp_command("train --data 'text:" + file + "' " + kSmall +
                                   "--steps 2 --stats " + options + " --out '" + out + "'");
      CAPTURE(r.err);
      REQUIRE(r.status == 0);
      const std::string metrics = slurp(out + "/metrics.jsonl");
      CHECK(metrics.find("\"split\":\"stats\"") != std::string::npos);
      CHECK(metrics.find("\"layer\":\"?\"") == std::string::npos);  // every role has a name
      const Result on = ulp_command("sample '" + out + "' --prompt a --length 15 --temperature 1");
      const Result off =
          ulp_command("sample '" + out + "' --prompt a --length 15 --temperature 1 --cache off");
      CAPTURE(on.err);
      CHECK(on.status == 0);
      CHECK(on.out == off.out);
    }
  }

  TEST_CASE("a model whose formats need whole sequences says so and samples without a cache") {
    const Folder folder;
    const std::string file = folder / "rhyme.txt", out = folder / "run";
    std::ofstream(file) << rhyme(40);
    const Result r = ulp_command("train --data 'text:" + file + "' " + kSmall +
                                 "--steps 2 --forward e4m3+scale=current --out '" + out + "'");
    CAPTURE(r.err);
    REQUIRE(r.status == 0);
    const Result sampled = ulp_command("sample '" + out + "' --prompt a --length 5");
    CHECK(sampled.status == 0);
    CHECK(lines(sampled.err) == 1);
    CHECK(sampled.err.find("without a cache") != std::string::npos);
    CHECK(sampled.err.find("input e4m3") != std::string::npos);
  }

  TEST_CASE("recurrent models: flags of gpt are refused, and what is printed is theirs") {
    const Folder folder;
    const std::string file = folder / "rhyme.txt", out = folder / "run";
    std::ofstream(file) << rhyme(40);
    const std::string data = "train --data 'text:" + file + "' ",
                      common = data +
                               "--layers 1 --width 16 --context 16 --batch-size 4 --steps 6 "
                               "--validate-every 3 --out '" +
                               out + "' ";
    for (const char* flag :
         {"--heads 2", "--positions rotary", "--mlp swiglu", "--norm rms", "--tie"}) {
      const std::string name = std::string(flag).substr(0, std::string(flag).find(' '));
      check_refused(common + "--model lstm " + flag, 2, {name.c_str(), "lstm", "gpt"});
      check_refused(common + "--model gru " + flag, 2, {name.c_str(), "gru", "gpt"});
    }
    check_refused(common + "--model gpt --heads 2 --hidden 3", 2, {"--hidden", "mlp", "gpt"});
    const Result r = succeed(common + "--model lstm --stats --lr 1e30");
    CHECK(r.out.find("1 layer of width 16, context 16\n") != std::string::npos);
    CHECK(r.out.find("heads") == std::string::npos);
    CHECK(r.out.find("6 steps") != std::string::npos);
    // An epoch of 55 windows from end to end makes one batch.
    const Result whole =
        succeed(data + "--model gru --layers 1 --width 8 --context 16 --epochs 1 --out '" +
                (folder / "whole") + "' --batch-size 1000");
    CHECK(has(whole.out, "--batch-size 1000: there are 55 training samples"));
    CHECK(has(whole.out, "1 epochs, batches of 55"));
    // A perplexity that no number holds is none in JSON either.
    const std::string metrics = slurp(out + "/metrics.jsonl");
    CHECK(metrics.find("\"perplexity\":null") != std::string::npos);
    CHECK(metrics.find(":inf") == std::string::npos);
    CHECK(metrics.find("\"layer\":\"?\"") == std::string::npos);
  }

  TEST_CASE("a sweep's bits are those of products, not of what stands between them") {
    const Folder folder;
    const std::string file = folder / "rhyme.txt";
    std::ofstream(file) << rhyme(40);
    for (const char* model : {"gpt --heads 2", "lstm", "gru"}) {
      CAPTURE(std::string(model));
      const Result r =
          succeed("sweep --data 'text:" + file + "' --layers 1 --width 16 --context 16 " +
                  "--batch-size 4 --steps 2 --formats e4m3/e5m2:sr --seeds 1 --json " + "--model " +
                  model + " --out '" + (folder / "sweep") + "'");
      CHECK(has(r.err, "2/2  e4m3/e5m2:sr seed 1: validation loss "));
      const auto rows = nlohmann::json::parse(r.out);
      REQUIRE(rows.size() == 2);
      CHECK(rows[0].at("bits") == 32);
      CHECK(rows[1].at("bits") == 8);
      std::filesystem::remove_all(folder / "sweep");
    }
  }

  TEST_CASE("texts and flags that do not fit are refused in one line") {
    const Folder folder;
    const std::string file = folder / "short.txt", data = "--data 'text:" + file + "' ";
    std::ofstream(file) << "too short for that";
    check_refused("train " + data + kSmall, 1, {"short.txt", "validation part", "context of 16"});
    check_refused("train --model gpt --data 'text:" + (folder / "none.txt") + "'", 1, {"none.txt"});
    check_refused("train --model gpt", 1, {"--model gpt", "texts", "digits"});
    check_refused("train " + data, 1, {"--model mlp", "images"});
    check_refused("train --data digits --layers 3", 2, {"--layers"});
    check_refused("train --model gpt --data text:x --layers 1000000", 2,
                  {"--layers", "1000", "'1000000'"});
    check_refused("train --model gpt " + data + "--positions absolute", 2, {"learned", "rotary"});
    check_refused("train --model gpt " + data + "--steps 10 --validate-every 3", 2,
                  {"--validate-every 3", "--steps 10"});
    check_refused("train --model gpt " + data + "--validate-every 3", 2, {"--steps"});
    check_refused("train --model gpt " + data + "--steps 3 --epochs 2", 2, {"--steps", "--epochs"});
    check_refused("train --model gpt " + data + "--validation 1.5", 2, {"--validation"});
    std::ofstream(file) << rhyme(40);
    std::string five(kSmall);
    five.replace(five.find("--heads 4"), 9, "--heads 5");
    check_refused("train " + data + five, 1, {"heads", "width"});
    check_refused("train " + data + kSmall + "--augment flip", 1, {"--augment", "text"});
    std::ofstream(file, std::ios::binary) << rhyme(40) << "\xFF";
    check_refused("train " + data + kSmall, 1, {"short.txt", "not UTF-8"});
  }

  TEST_CASE("the script that makes the text of fortunes") {
    const Folder folder;
    const std::string source = folder / "source";
    std::filesystem::create_directories(source);
    std::ofstream(source + "/b") << "second\n";
    std::ofstream(source + "/a") << "first\n";
    std::ofstream(source + "/a.dat") << "no";
    std::ofstream(source + "/b.u8") << "no";
    const std::string script = std::string(paths::kTestData) + "/../../tools/fortunes-text";
    const std::string text = folder / "text";
    REQUIRE(
        std::system(("ULP_FORTUNES='" + source + "' '" + script + "' '" + text + "' > /dev/null")
                        .c_str()) == 0);
    CHECK(slurp(text) == "first\nsecond\n");
  }
#endif
}
