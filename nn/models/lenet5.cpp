#include "nn/models/lenet5.h"

#include <algorithm>

#include "nn/models/builder.h"

namespace ulp::nn {

std::unique_ptr<Sequential> lenet5(const Shape& image, int64_t classes, const OpFormats& formats) {
  auto net = std::make_unique<Sequential>();
  Builder b("lenet5", *net, image, formats);
  b.image();
  b.conv("conv1", 6, 5, std::min(image[0], image[1]) < 32 ? 2 : 0);
  b.relu("relu1");
  b.max_pool("pool1");
  b.conv("conv2", 16, 5, 0);
  b.relu("relu2");
  b.max_pool("pool2");
  b.flatten("flatten");
  b.linear("fc1", 120);
  b.relu("relu3");
  b.linear("fc2", 84);
  b.relu("relu4");
  b.linear("fc3", classes);
  return net;
}

}  // namespace ulp::nn
