#include "nn/pieces.h"

#include <algorithm>

namespace ulp::nn {
namespace {

/// Does something for every module of the tree that keeps something between pieces.
template <class F>
void for_incremental(Module& model, const F& f) {
  for (Module* module : model.modules())
    if (auto* own = dynamic_cast<Incremental*>(module)) f(*own);
}

/// What a layer that keeps nothing does to rows: its forward formats alone.
std::string obstacle_of_formats(Module& module) {
  const OpFormats* f = module.formats();
  if (f == nullptr) return "";
  const std::string sums = obstacle_of(f->forward_acc);
  if (!sums.empty()) return sums;
  for (const char* role : module.roles())
    for (const Role& known : kRoles) {
      const bool forward = known.quantizer == &OpFormats::input ||
                           known.quantizer == &OpFormats::output ||
                           known.quantizer == &OpFormats::interior;
      if (std::string_view(role) != known.name) continue;
      if (known.quantizer == &OpFormats::weight && (f->weight.is_stochastic()))
        return obstacle_of(role, f->weight);  // drawn anew for every piece
      if (!forward) continue;
      const std::string found = obstacle_of(role, f->*known.quantizer);
      if (!found.empty()) return found;
    }
  return "";
}

}  // namespace

std::string obstacle_of(const char* role, const Quantizer& q) {
  if (q.is_identity()) return "";
  const std::string name = std::string(role) + " " + to_string(q);
  if (q.is_stochastic()) return name + " draws random numbers";
  if (q.scale.kind == Scale::Kind::Delayed) return name + " has a scale of earlier calls";
  if (q.scale.kind == Scale::Kind::E4M3Tensor || q.block.kind == Block::Kind::Tensor ||
      q.block.kind == Block::Kind::Axis || q.block.kind == Block::Kind::Tile)
    return name + " has scales that several places share";
  return "";
}

std::string obstacle_of(const Accumulator& forward_acc) {
  if (!forward_acc.is_stochastic()) return "";
  return "forward_acc " + to_string(forward_acc) + " draws random numbers";
}

std::string obstacle_of(Module& model) {
  for (Module* module : model.modules()) {
    const auto* own = dynamic_cast<Incremental*>(module);
    const std::string found = own != nullptr ? own->obstacle() : obstacle_of_formats(*module);
    if (!found.empty()) return (module->path().empty() ? "" : module->path() + ": ") + found;
  }
  return "";
}

InPieces::InPieces(Module& model, int64_t batch, int64_t longest) : model_(model) {
  ULP_CHECK(model.mode() == Mode::Evaluate, "sequences come in pieces in evaluation mode only");
  for_incremental(model, [&](Incremental& module) { module.begin(batch, longest); });
}

InPieces::~InPieces() {
  for_incremental(model_, [](Incremental& module) { module.end(); });
}

}  // namespace ulp::nn
