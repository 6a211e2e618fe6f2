#include <doctest/doctest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "command.h"
#include "nn/data/policy_file.h"
#include "nn/data/safetensors.h"
#include "nn/models.h"
#include "nn/recipes.h"
#include "nn/training_loss.h"

using namespace ulp;
using Json = nlohmann::json;

namespace {

using Roles = std::map<std::string, std::string>;  // role → format; fp32 where there is none

Roles operands(const std::string& forward, const std::string& backward) {
  return {{"input", forward},    {"weight", forward},          {"weight_dx", forward},
          {"input_dw", forward}, {"grad_output_dx", backward}, {"grad_output_dw", backward}};
}
Roles with(Roles roles, const Roles& more) {
  for (const auto& [role, format] : more) roles[role] = format;
  return roles;
}

/// What a paper says, by hand: the first, a middle and the last linear layer, the loss, and what the optimizer keeps.
struct Paper {
  std::string name;
  Roles first, middle, last, loss;
  std::map<std::string, Json> optimizer;
  Json loss_scale = 1;
};

std::vector<Paper> papers() {
  const Roles none;
  // SWALP: activations and errors of all but the last layer, weights, gradients and momentum in 8-bit blocks by axis 0.
  const std::string block = "bfp8-axis0:sr";
  const Roles swalp{{"output", block}, {"grad_output_dx", block}, {"grad_output_dw", block}};
  // IBM: 1-5-2 for the four operands, 1-6-9 for updates, the image and the last layer.
  const Roles ibm = with(operands("e5m2", "e5m2"), {{"grad_weight", "e5m2"}});
  // HBFP8_16: 8-bit blocks of a sample, weights in tiles of 24 by 24 that are stored with 16 bits.
  Roles hbfp = operands("hbfp8-axis0:sr", "hbfp8-axis0:sr");
  hbfp["weight"] = hbfp["weight_dx"] = "hbfp8-t24x24:sr";
  // bf16 for every tensor there is.
  const Roles bf16 = with(operands("bf16", "bf16"),
                          {{"output", "bf16"}, {"grad_input", "bf16"}, {"grad_weight", "bf16"}});
  const Roles bf16_loss{{"interior", "bf16"}, {"grad_input", "bf16"}};
  const Roles kept = operands("bf16", "bf16");
  const std::string rotated = "mxfp4+rht32+q34:sr";
  const Roles mxfp4{{"input", "bf16"},           {"weight", "bf16"},
                    {"grad_output_dx", rotated}, {"weight_dx", rotated},
                    {"grad_output_dw", rotated}, {"input_dw", rotated}};
  const Roles nvfp4{{"input", "nvfp4"},
                    {"weight", "nvfp4-t16x16"},
                    {"grad_output_dx", "nvfp4:sr"},
                    {"weight_dx", "nvfp4-t16x16"},
                    {"grad_output_dw", "nvfp4+rht16:sr"},
                    {"input_dw", "nvfp4+rht16"}};
  // WAGE 2-8-8-8: weights −½, 0, ½, everything else in steps of 1/128, errors under a power of two of their tensor.
  Roles wage = operands("fixed8.7-sym", "fixed8.7-sym+scale=shift");
  wage["weight"] = wage["weight_dx"] = "fixed2.1-sym";
  const auto all = [](const std::string& name, const Roles& roles,
                      const std::map<std::string, Json>& optimizer) {
    return Paper{name, roles, roles, roles, {}, optimizer};
  };
  std::vector<Paper> list{
      {"swalp",
       swalp,
       swalp,
       {{"output", "fp32"}},
       none,
       {{"name", "sgd"},
        {"weights", block},
        {"accumulator", nullptr},
        {"grads", block},
        {"moment1", block},
        {"lr_schedule", "swalp:0.2@0.67"}}},
      {"ibm-fp8",
       with(ibm, {{"input", "e6m9"}, {"input_dw", "e6m9"}}),
       ibm,
       with(operands("e6m9", "e6m9"), {{"grad_weight", "e6m9"}}),
       none,
       {{"weights", "e6m9:sr"},
        {"accumulator", nullptr},
        {"moment1", "e6m9:sr"},
        {"grads", "fp32"},
        {"dynamic_loss_scale", nullptr}},
       1000},
      all("wage", wage,
          {{"name", "sgd"},
           {"weights", "fixed8.7-sym:sr"},
           {"accumulator", nullptr},
           {"grads", "fp32"},
           {"grad_normalize", "shift"},
           {"momentum_coef", 0.0},
           {"update", "plain"}}),
      all("fp8-hybrid", operands("e4m3", "e5m2"), {{"weights", "fp32"}}),
      all("fp8-delayed", operands("e4m3+scale=delayed1024", "e5m2+scale=delayed1024"),
          {{"weights", "fp32"}, {"dynamic_loss_scale", nullptr}}),
      all("hbfp8", hbfp, {{"weights", "hbfp16-t24x24:sr"}, {"grads", "fp32"}}),
      all("bf16-sr", bf16,
          {{"weights", "bf16:sr"},
           {"accumulator", nullptr},
           {"grads", "bf16"},
           {"moment1", "bf16"},
           {"update", "plain"}}),
      all("bf16-kahan", bf16,
          {{"weights", "bf16"},
           {"accumulator", nullptr},
           {"grads", "bf16"},
           {"moment1", "bf16"},
           {"update", "kahan"},
           {"compensation", "bf16"}}),
      {"mxfp8",
       operands("mxfp8-rceil", "mxfp8-rceil"),
       operands("mxfp8-rceil", "mxfp8-rceil"),
       kept,
       none,
       {{"weights", "fp32"}}},
      all("mxfp6", operands("mxfp6-e3m2", "mxfp6-e3m2"), {{"weights", "fp32"}}),
      all("mxfp4-rht-sr", mxfp4, {{"weights", "fp32"}}),
      {"nvfp4", kept, nvfp4, kept, none, {{"weights", "fp32"}}},
      all("adam8bit", none,
          {{"name", "adam"},
           {"weights", "fp32"},
           {"moment1", "dynamic8-g2048-scalef32"},
           {"moment2", "dynamic8u-g2048-scalef32"},
           {"moments_from", 4096}}),
      all("s2fp8", operands("e5m2+scale=squeeze", "e5m2+scale=squeeze"),
          {{"weights", "fp32"}, {"dynamic_loss_scale", nullptr}}),
      all("posit8", operands("posit8.1", "posit8.2"), {{"weights", "fp32"}}),
      // No loss scale: factors in every layer take its place.
      all("unit-scaling", operands("e4m3", "e5m2"),
          {{"weights", "fp32"}, {"dynamic_loss_scale", nullptr}}),
  };
  for (Paper& paper : list) {
    if (paper.name == "fp8-hybrid") paper.loss_scale = 65536;
    if (paper.name.starts_with("bf16")) paper.loss = bf16_loss;
  }
  return list;
}

const Paper& paper_of(std::string_view name) {
  static const std::vector<Paper> all = papers();
  for (const Paper& paper : all)
    if (paper.name == name) return paper;
  FAIL("no paper for " << std::string(name));
  return all.front();
}

void check_roles(const nn::Layer& layer, const Roles& expected) {
  CAPTURE(layer.path);
  for (const Role& role : kRoles) {
    CAPTURE(std::string(role.name));
    const auto at = expected.find(role.name);
    if (layer.uses(role.name))
      CHECK(to_string(layer.formats->*role.quantizer) ==
            (at == expected.end() ? "fp32" : at->second));
  }
}

}  // namespace

TEST_SUITE("recipes") {
  TEST_CASE("each recipe gives every role the format that its paper says") {
    CHECK(nn::recipes().size() == papers().size());
    for (const nn::Recipe& recipe : nn::recipes()) {
      CAPTURE(std::string(recipe.name));
      const Paper& paper = paper_of(recipe.name);
      const auto net = nn::mlp(64, std::vector<int64_t>{48, 32}, 10);
      nn::TrainingLoss loss;
      const std::vector<nn::Layer> layers = nn::layers_of(*net, loss);
      nn::apply(nn::parse_policy(recipe.policy, "recipe"), layers, 1);
      std::vector<const nn::Layer*> products;
      for (const nn::Layer& layer : layers)
        if (nn::has_product(layer.type)) products.push_back(&layer);
      REQUIRE(products.size() == 3);
      check_roles(*products[0], paper.first);
      check_roles(*products[1], paper.middle);
      check_roles(*products[2], paper.last);
      check_roles(layers.back(), paper.loss);
      for (const nn::Layer* layer : products)
        CHECK(layer->formats->clamp_mask == (recipe.name == "wage"));
      for (const nn::Layer* layer :
           products)  // IBM alone says how sums are kept: 64 by 64 in 1-6-9
        for (const ProductRole& product : kProductRoles)
          CHECK(to_string(layer->formats->*product.accumulator) ==
                (recipe.name == "ibm-fp8" ? "chunk64/e6m9" : "fp32"));
      for (const std::string_view text :
           {recipe.about, recipe.source, recipe.differences, recipe.policy})
        CHECK(!text.empty());
    }
  }

  TEST_CASE("a recipe that is not there is told with near ones") {
    CHECK(nn::recipe("swalp").name == "swalp");
    CHECK_THROWS_WITH_AS(nn::recipe("swlp"),
                         doctest::Contains("'swlp' is no recipe; near it are swalp"), Error);
  }

  TEST_CASE("an optional rule may match nothing, wholly or by one of its types") {
    const auto net = nn::mlp(64, std::vector<int64_t>{48}, 10);
    const auto apply = [&](const std::string& text) {
      nn::apply(nn::parse_policy(text, "p.json"), *net);
    };
    const std::string types = R"({"rules": [{"type": ["conv", "linear"], )";
    CHECK_THROWS_WITH_AS(apply(types + R"("forward": "e4m3"}]})"),
                         doctest::Contains("no layer is of type conv"), Error);
    apply(types + R"("optional": true, "forward": "e4m3"}]})");
    CHECK(to_string(nn::layers_of(*net)[0].formats->input) == "e4m3");
    apply(R"({"rules": [{"path": "absent", "optional": true, "forward": "e5m2"}]})");
    CHECK(to_string(nn::layers_of(*net)[0].formats->input) == "fp32");
    CHECK_THROWS_WITH_AS(
        apply(R"({"rules": [{"path": "absent", "optional": false, "forward": "e5m2"}]})"),
        doctest::Contains("matches no layer"), Error);
    CHECK_THROWS_WITH_AS(apply(R"({"rules": [{"optional": 1, "forward": "e5m2"}]})"),
                         doctest::Contains("takes true or false"), Error);
    const nn::Policy policy =
        nn::parse_policy(types + R"("optional": true, "forward": "e4m3"}]})", "p");
    const nn::Policy again =
        nn::parse_rules_of("{\"policy\": " + nn::rules_json(policy) + "}", "policy", "c");
    CHECK(again == policy);
    CHECK(again.rules[0].optional);
  }
}

#if defined(ULP_COMMAND)

using namespace ulp::command;

namespace {

const std::string kDigits = "train --hidden 72,48 --epochs 2 --batch-size 32 --seed 3 ";

double accuracy_of(const std::string& out) {
  const size_t at = out.rfind("test accuracy ");
  CAPTURE(out);
  REQUIRE(at != std::string::npos);
  return std::stod(out.substr(at + 14));
}

/// The part of the report of `ulp recipes NAME` after a word.
std::string told(const std::string& report, const std::string& word) {
  const size_t at = report.find("\n" + word);
  REQUIRE(at != std::string::npos);
  const size_t begin = report.find_first_not_of(' ', at + 1 + word.size());
  return report.substr(begin, report.find('\n', begin) - begin);
}

}  // namespace

TEST_SUITE("recipes") {
  TEST_CASE(
      "two epochs of each on the digits learn, and are what its printed policy and options say") {
    const Folder folder;
    const std::string out = folder / "run", other = folder / "other", file = folder / "rules.json";
    for (const nn::Recipe& recipe : nn::recipes()) {
      const std::string name(recipe.name);
      CAPTURE(name);
      const Paper& paper = paper_of(name);
      const Result run = ulp_command(kDigits + "--out " + out + " --recipe " + name);
      CAPTURE(run.err);
      REQUIRE(run.status == 0);
      CHECK(accuracy_of(run.out) > 0.5);  // chance: 0.1
      CHECK(run.out.find("\nrecipe     " + name + ": ") != std::string::npos);

      const Json config = Json::parse(slurp(out + "/config.json"));
      const Json& optimizer = config.at("optimizer");
      for (const auto& [key, value] : paper.optimizer) {
        CAPTURE(key);
        CHECK(optimizer.at(key) == value);
      }
      CHECK(optimizer.at("loss_scale") == paper.loss_scale);
      CHECK(config.at("init") == (name == "unit-scaling" ? "unit"
                                  : name == "wage"       ? "wage"
                                                         : "standard"));
      CHECK(optimizer.at("dynamic_loss_scale").is_null() == (name != "fp8-hybrid"));
      CHECK(config.at("loss") == (name == "wage" ? "sum-of-squares" : "cross-entropy"));
      CHECK(config.at("average").is_null() == (name != "swalp"));
      if (name == "swalp") CHECK(config.at("average").at("format") == "fp32");

      const Result printed = ulp_command("recipes " + name);
      REQUIRE(printed.status == 0);
      std::ofstream(file) << printed.out;
      const std::string options = told(printed.err, "options");
      const Result same = ulp_command(kDigits + "--out " + other + " --policy " + file + " " +
                                      (options == "none" ? "" : options));
      CAPTURE(same.err);
      REQUIRE(same.status == 0);
      CHECK(slurp(other + "/model.safetensors") == slurp(out + "/model.safetensors"));
      CHECK(slurp(other + "/config.json") == slurp(out + "/config.json"));
    }
  }

  TEST_CASE("options that are given win, and the run says what they replace") {
    const Folder folder;
    const std::string out = folder / "run";
    const auto train = [&](const std::string& options) {
      const Result r = ulp_command("train --hidden 20 --epochs 1 --out " + out + " " + options);
      CAPTURE(r.err);
      REQUIRE(r.status == 0);
      return std::pair(r.out, Json::parse(slurp(out + "/config.json")));
    };
    const auto [text, config] =
        train("--weights bf16:sr --recipe swalp --average none --forward e4m3");
    CHECK(text.find("not taken from it: --weights bfp8-axis0:sr\n") != std::string::npos);
    CHECK(text.find("not taken from it: --average swa\n") != std::string::npos);
    CHECK(config.at("optimizer").at("weights") == "bf16:sr");
    CHECK(config.at("optimizer").at("moment1") == "bfp8-axis0:sr");
    CHECK(config.at("average").is_null());
    CHECK(config.at("policy").size() == 3);
    CHECK(config.at("policy").at(2).at("forward") == "e4m3");
    // What an optimizer has no use for is left out, not refused.
    const auto sgd = train("--recipe adam8bit --optimizer sgd");
    CHECK(sgd.first.find("not taken from it: --moment2 ") != std::string::npos);
    CHECK(sgd.second.at("optimizer").at("name") == "sgd");
    const auto adam = train("--recipe bf16-sr --optimizer adam --lr 0.001");
    CHECK(adam.second.at("optimizer").at("moment2") == "bf16");
    const auto plain = train("--recipe bf16-kahan --update plain");
    CHECK(plain.second.at("optimizer").at("update") == "plain");
    train("--recipe swalp --momentum-coef 0");
    const auto momentum = train("--recipe swalp --momentum-format bf16");
    CHECK(momentum.second.at("optimizer").at("moment1") == "bf16");
    // A file of rules replaces the recipe's.
    std::ofstream(folder / "own.json") << R"({"rules": [{"forward": "e3m2"}]})";
    const auto own = train("--recipe nvfp4 --policy " + (folder / "own.json"));
    CHECK(own.second.at("policy") == Json::parse(R"([{"forward": "e3m2"}])"));
  }

  TEST_CASE("recipes are listed, explained, resumed and swept") {
    const Folder folder;
    const Result list = ulp_command("recipes");
    CHECK(list.status == 0);
    for (const nn::Recipe& recipe : nn::recipes())
      CHECK(list.out.find("\n" + std::string(recipe.name) + " ") != std::string::npos);
    const Result explained = ulp_command("train --recipe nvfp4 --hidden 32,32 --explain");
    CHECK(explained.status == 0);
    CHECK(explained.out.find("nvfp4-t16x16") != std::string::npos);
    const std::string out = folder / "run";
    const std::string train =
        "train --hidden 20 --recipe swalp --checkpoint-every 5 --keep 10 --epochs 3 --out " + out;
    REQUIRE(ulp_command(train).status == 0);
    const std::string whole = slurp(out + "/model.safetensors");
    for (const int step : {20, 25, 30, 33})
      std::filesystem::remove(out + "/checkpoint-" + std::to_string(step) + ".safetensors");
    const Result resumed = ulp_command(train + " --resume");
    CHECK(resumed.out.find("resumed    checkpoint-15.safetensors") != std::string::npos);
    CHECK(slurp(out + "/model.safetensors") == whole);
    const Result sweep = ulp_command(
        "sweep --hidden 20 --epochs 1 --seeds 1 --recipe ibm-fp8 --formats e4m3 --out " +
        (folder / "sweep"));
    CAPTURE(sweep.err);
    CHECK(sweep.status == 0);
    const Json swept = Json::parse(slurp(folder / "sweep/e4m3-seed1/config.json"));
    CHECK(swept.at("optimizer").at("weights") == "e6m9:sr");
    CHECK(swept.at("policy").size() == 4);
    CHECK(swept.at("policy").at(3).at("forward") == "e4m3");
    const Json reference = Json::parse(slurp(folder / "sweep/fp32-seed1/config.json"));
    CHECK(reference.at("optimizer").at("weights") == "fp32");
  }

  TEST_CASE("what cannot be is told in a line") {
    check_refused("train --recipe swlp", 2, {"--recipe: 'swlp' is no recipe; near it are swalp"});
    check_refused("recipes nvfp", 2, {"recipes: 'nvfp' is no recipe; near it are nvfp4"});
    check_refused("train --recipe nvfp4 --forward e4m3", 1, {"rht16"});
    check_refused("train --recipe hbfp8 --moments-from few", 2, {"--moments-from takes a whole"});
  }
}

#endif
