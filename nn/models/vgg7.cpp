#include "nn/models/vgg7.h"

#include "nn/models/builder.h"

namespace ulp::nn {

std::unique_ptr<Sequential> vgg7(const Shape& image, int64_t classes, const OpFormats& formats) {
  auto net = std::make_unique<Sequential>();
  Builder b("vgg7", *net, image, formats);
  constexpr auto kNoBias = Builder::Bias::No;
  b.image();
  b.nest("features", [&](Builder& features) {
    int64_t channels = 128;
    for (const char* name : {"block1", "block2", "block3"}) {
      features.nest(name, [&](Builder& block) {
        block.conv("conv1", channels, 3, 1, 1, kNoBias);
        block.relu("relu1");
        block.conv("conv2", channels, 3, 1, 1, kNoBias);
        block.relu("relu2");
        block.max_pool("pool");
      });
      channels *= 2;
    }
  });
  b.flatten("flatten");
  b.nest("classifier", [&](Builder& classifier) {
    classifier.linear("fc1", 1024, kNoBias);
    classifier.relu("relu1");
    classifier.linear("fc2", classes, kNoBias);
  });
  return net;
}

}  // namespace ulp::nn
