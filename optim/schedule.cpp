#include "optim/schedule.h"

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace ulp::optim {

Schedule::Kind Schedule::parse(std::string_view name) {
  if (name == "constant") return Kind::Constant;
  if (name == "cosine") return Kind::Cosine;
  if (name == "step") return Kind::Step;
  throw_error("unknown schedule '{}': wanted constant, cosine or step", name);
}

double Schedule::lr(int64_t step) const {
  const double done = total_ <= 0 ? 0 : static_cast<double>(step) / static_cast<double>(total_);
  switch (kind_) {
    case Kind::Constant: return base_;
    case Kind::Cosine: return base_ * 0.5 * (1 + std::cos(std::numbers::pi * done));
    case Kind::Step: return base_ * (done < 0.5 ? 1 : (done < 0.75 ? 0.1 : 0.01));
  }
  return base_;
}

std::vector<float> Schedule::rates(int64_t first, int64_t count) const {
  std::vector<float> all;
  for (int64_t step = first; step < first + count; ++step)
    all.push_back(static_cast<float>(lr(step)));
  return all;
}

}  // namespace ulp::optim
