#include "nn/models/by_name.h"

#include <algorithm>

#include "nn/models.h"

namespace ulp::nn {
namespace {

constexpr const char* kNames[] = {
    "mlp",          "lenet5",   "vgg16",    "vgg16bn", "vgg7", "preresnet20", "preresnet56",
    "preresnet110", "resnet18", "vit-tiny", "gpt",     "lstm", "gru"};
constexpr const char* kTextNames[] = {"gpt", "lstm", "gru"};

}  // namespace

std::span<const char* const> model_names() { return kNames; }

bool is_model(const std::string& name) {
  return std::ranges::find(kNames, name) != std::end(kNames);
}

bool is_text_model(const std::string& name) {
  return std::ranges::find(kTextNames, name) != std::end(kTextNames);
}

std::unique_ptr<Sequential> make_model(const std::string& name, const ModelOptions& o) {
  if (name == "mlp") return mlp(o.image.numel(), o.hidden, o.classes, o.formats);
  if (name == "lenet5") return lenet5(o.image, o.classes, o.formats);
  if (name == "vgg16") return vgg16(o.image, o.classes, VggNorm::None, o.formats);
  if (name == "vgg16bn") return vgg16(o.image, o.classes, VggNorm::Batch, o.formats);
  if (name == "vgg7") return vgg7(o.image, o.classes, o.formats);
  if (name == "preresnet20") return preresnet(20, o.image, o.classes, o.formats);
  if (name == "preresnet56") return preresnet(56, o.image, o.classes, o.formats);
  if (name == "preresnet110") return preresnet(110, o.image, o.classes, o.formats);
  if (name == "resnet18") return resnet18(o.image, o.classes, o.formats);
  if (name == "vit-tiny") return vit_tiny(o.image, o.classes, o.formats);
  if (name == "gpt") return gpt(o.classes, o.sequence, o.formats);
  for (const auto& [kind, known] :
       {std::pair{RecurrentKind::Lstm, "lstm"}, {RecurrentKind::Gru, "gru"}})
    if (name == known)
      return char_rnn(kind, o.classes, o.sequence.width, {o.sequence.layers}, o.formats);
  std::string all;
  for (const char* known : kNames) all += (all.empty() ? "" : ", ") + std::string(known);
  throw_error("model '{}': unknown; there are {}", name, all);
}

}  // namespace ulp::nn
