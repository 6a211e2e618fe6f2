#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "nn/policy.h"

namespace ulp::nn {

/// A policy as a JSON file:
///   {"rules": [
///     {"type": ["conv", "linear"], "forward": "e4m3", "backward": "e5m2:sr"},
///     {"position": "first", "forward": "bf16"},
///     {"path": "features.*.conv1", "from_epoch": 10, "weight": "bfp8", "output": "bf16"},
///     {"type": "loss", "interior": "fp16"}
///   ]}
/// Conditions: type (one or a list), path (a pattern), position (first, last), from_epoch, to_epoch; with "optional": true the
/// rule, or one of its types, may match nothing.  Formats: forward, backward, every role of kRoles, forward_acc, dx_acc, dw_acc.  Meaning: nn::Rule.
/// Throws ulp::Error with file, line and key, for unknown keys with near ones.
Policy load_policy(const std::filesystem::path& file);
/// The same of a text; `name` begins messages.
Policy parse_policy(std::string_view text, const std::string& name);

/// The value of "rules", as JSON in one line.
std::string rules_json(const Policy& policy);
/// Reads such a value under a key of an object, as config.json has it.
Policy parse_rules_of(std::string_view text, const std::string& key, const std::string& name);

}  // namespace ulp::nn
