#include "nn/models/mlp.h"

#include "nn/activations.h"
#include "nn/linear.h"

namespace ulp::nn {

std::unique_ptr<Sequential> mlp(int64_t inputs, std::span<const int64_t> hidden, int64_t classes,
                                const OpFormats& formats) {
  auto net = std::make_unique<Sequential>();
  int64_t width = inputs;
  int index = 1;
  for (const int64_t next : hidden) {
    net->add<Linear>("fc" + std::to_string(index), width, next, formats);
    net->add<ReLU>("relu" + std::to_string(index));
    width = next;
    ++index;
  }
  net->add<Linear>("fc" + std::to_string(index), width, classes, formats);
  return net;
}

}  // namespace ulp::nn
