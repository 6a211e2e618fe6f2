#include "nn/data/policy_file.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/pattern.h"
#include "nn/data/located_json.h"
#include "nn/data/read_file.h"

namespace ulp::nn {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<const char*, 3> kPositions = {"", "first", "last"};

std::vector<std::string> rule_keys() {
  std::vector<std::string> keys = {"type",     "path",     "position", "from_epoch",
                                   "to_epoch", "optional", "forward",  "backward"};
  for (const Role& role : kRoles) keys.push_back(role.name);
  for (const RuleSums& one : kRuleSums) keys.push_back(one.product.sums);
  keys.push_back("clamp_mask");
  return keys;
}

std::string listed(const std::vector<std::string>& names, const char* quote = "\"") {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + (quote + name) + quote;
  return text;
}

/// The keys that somebody may have meant.
std::vector<std::string> near(const std::string& key) {
  if (key.find("acc") == std::string::npos) return similar(key, rule_keys());
  std::vector<std::string> sums;
  for (const RuleSums& one : kRuleSums) sums.push_back(one.product.sums);
  return sums;
}

/// One rule of a file.
class RuleReader {
 public:
  RuleReader(const LocatedJson& json, const std::string& name) : json_(json), name_(name) {}

  Rule read() {
    ULP_CHECK(json_.kind == LocatedJson::Kind::Object, "{}, line {}: a rule is an object, got {}",
              name_, json_.line, json_.what());
    rule_.origin = name_ + ", line " + std::to_string(json_.line);
    for (const LocatedJson::Member& member : json_.members) {
      member_ = &member;
      read_key();
    }
    ULP_CHECK(formats_ > 0, "{}: the rule sets no format", rule_.origin);
    return rule_;
  }

 private:
  [[noreturn]] void fail(int64_t line, const std::string& problem) const {
    throw_error("{}, line {}: \"{}\" {}", name_, line, member_->key, problem);
  }
  void expect(LocatedJson::Kind kind, const char* wanted) const {
    const LocatedJson& value = member_->value;
    if (value.kind == kind) return;
    fail(member_->line, std::string("takes ") + wanted + ", got " + value.shown());
  }

  void read_key() {
    const std::string& key = member_->key;
    if (key == "type") return read_types();
    if (key == "path") return read_path();
    if (key == "position") return read_position();
    if (key == "from_epoch") return read_epoch(rule_.from_epoch);
    if (key == "to_epoch") return read_epoch(rule_.to_epoch);
    if (key == "optional") {
      rule_.optional = boolean();
      return;
    }
    ++formats_;
    if (key == "clamp_mask") {
      rule_.clamp_mask = boolean();
      return;
    }
    if (key == "forward") return read_format(rule_.forward, nullptr);
    if (key == "backward") return read_format(rule_.backward, nullptr);
    for (const Role& role : kRoles)
      if (key == role.name) return read_format(rule_.role(key), &role);
    for (const RuleSums& one : kRuleSums)
      if (key == one.product.sums) return read_sums(rule_.*one.sums);
    fail(member_->line, "is no key of a rule; near it are " + listed(near(key)) +
                            " (all: " + listed(rule_keys(), "") + ")");
  }

  void add_type(const LocatedJson& value) {
    if (value.kind != LocatedJson::Kind::Text)
      fail(value.line, std::string("takes layer types, got ") + value.what());
    try {
      rule_.types.push_back(parse_layer_type(value.text));
    } catch (const Error& error) {
      fail(value.line, std::string("takes layer types: ") + error.what() + "; near it is " +
                           similar(value.text, layer_type_names())[0]);
    }
  }
  void read_types() {
    if (member_->value.kind != LocatedJson::Kind::List) return add_type(member_->value);
    if (member_->value.items.empty()) fail(member_->line, "is an empty list");
    for (const LocatedJson& item : member_->value.items) add_type(item);
  }
  void read_path() {
    expect(LocatedJson::Kind::Text, "the pattern of a path");
    if (member_->value.text.empty()) fail(member_->line, "is empty; * is every path");
    rule_.path = member_->value.text;
  }
  void read_position() {
    expect(LocatedJson::Kind::Text, "first or last");
    if (member_->value.text == kPositions[1])
      rule_.position = Position::First;
    else if (member_->value.text == kPositions[2])
      rule_.position = Position::Last;
    else
      fail(member_->line, "takes first or last, got '" + member_->value.text + "'");
  }
  bool boolean() const {
    if (member_->value.kind != LocatedJson::Kind::Boolean)
      fail(member_->line, std::string("takes true or false, got ") + member_->value.what());
    return member_->value.text == "true";
  }
  void read_epoch(int64_t& epoch) {
    expect(LocatedJson::Kind::Integer, "an epoch, a whole number from 1 on");
    epoch = member_->value.integer;
    if (epoch < 1) fail(member_->line, "takes an epoch from 1 on, got " + std::to_string(epoch));
    if (rule_.from_epoch > rule_.to_epoch)
      fail(member_->line, "leaves no epoch: from " + std::to_string(rule_.from_epoch) + " to " +
                              std::to_string(rule_.to_epoch));
  }
  void read_format(std::optional<Quantizer>& format, const Role* role) {
    expect(LocatedJson::Kind::Text, "a number format such as \"e4m3\" or \"bfp8:sr\"");
    try {
      format = Quantizer::parse(member_->value.text);
    } catch (const Error& error) {
      fail(member_->line, std::string("is no format: ") + error.what());
    }
    const std::string problem = role == nullptr ? misfit(*format) : misfit(*role, *format);
    if (!problem.empty()) fail(member_->line, "does not fit: " + problem);
  }
  void read_sums(std::optional<Accumulator>& sums) {
    expect(LocatedJson::Kind::Text, "how sums are kept, such as \"fp32\" or \"chunk64/e6m9\"");
    try {
      sums = Accumulator::parse(member_->value.text);
    } catch (const Error& error) {
      fail(member_->line, std::string("cannot be: ") + error.what());
    }
  }

  const LocatedJson& json_;
  const std::string& name_;
  const LocatedJson::Member* member_ = nullptr;
  Rule rule_;
  int formats_ = 0;
};

Policy read_rules(const LocatedJson& rules, const std::string& key, const std::string& name) {
  ULP_CHECK(rules.kind == LocatedJson::Kind::List,
            "{}, line {}: \"{}\" must hold a list of rules, got {}", name, rules.line, key,
            rules.what());
  Policy policy;
  for (const LocatedJson& rule : rules.items) policy.rules.push_back(RuleReader(rule, name).read());
  return policy;
}

Json rule_json(const Rule& rule) {
  Json json = Json::object();
  if (rule.types.size() == 1) json["type"] = to_string(rule.types[0]);
  if (rule.types.size() > 1)
    for (const LayerType type : rule.types) json["type"].push_back(to_string(type));
  if (!rule.path.empty()) json["path"] = rule.path;
  if (rule.position != Position::Any)
    json["position"] = kPositions[static_cast<size_t>(rule.position)];
  if (rule.from_epoch != 1) json["from_epoch"] = rule.from_epoch;
  if (rule.to_epoch != Rule::kNoEnd) json["to_epoch"] = rule.to_epoch;
  if (rule.optional) json["optional"] = true;
  if (rule.forward) json["forward"] = to_string(*rule.forward);
  if (rule.backward) json["backward"] = to_string(*rule.backward);
  for (size_t i = 0; i < kRoles.size(); ++i)
    if (rule.roles[i]) json[kRoles[i].name] = to_string(*rule.roles[i]);
  for (const RuleSums& one : kRuleSums)
    if (const auto& sums = rule.*one.sums) json[one.product.sums] = to_string(*sums);
  if (rule.clamp_mask) json["clamp_mask"] = *rule.clamp_mask;
  return json;
}

}  // namespace

Policy load_policy(const std::filesystem::path& file) {
  const std::vector<uint8_t> bytes = read_file(file);
  return parse_policy({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file.string());
}

Policy parse_policy(std::string_view text, const std::string& name) {
  const LocatedJson json = parse_located(text, name);
  ULP_CHECK(json.kind == LocatedJson::Kind::Object,
            "{}, line {}: a policy is an object with a list of \"rules\", got {}", name, json.line,
            json.what());
  for (const LocatedJson::Member& member : json.members)
    ULP_CHECK(member.key == "rules",
              "{}, line {}: \"{}\" is no key of a policy; there is \"rules\"", name, member.line,
              member.key);
  const LocatedJson* rules = json.find("rules");
  ULP_CHECK(rules != nullptr, "{}: the key \"rules\" is missing", name);
  Policy policy = read_rules(*rules, "rules", name);
  for (Rule& rule : policy.rules) rule.each_type = !rule.optional;
  return policy;
}

std::string rules_json(const Policy& policy) {
  Json rules = Json::array();
  for (const Rule& rule : policy.rules) rules.push_back(rule_json(rule));
  try {
    return rules.dump();
  } catch (const Json::exception&) {
    throw_error("policy: a path is not UTF-8");
  }
}

Policy parse_rules_of(std::string_view text, const std::string& key, const std::string& name) {
  const LocatedJson json = parse_located(text, name);
  const LocatedJson* rules = json.find(key);
  ULP_CHECK(rules != nullptr, "{}: the key \"{}\" is missing", name, key);
  return read_rules(*rules, key, name);
}

}  // namespace ulp::nn
