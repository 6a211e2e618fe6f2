#include "nn/models/resnet18.h"

#include "nn/models/builder.h"

namespace ulp::nn {
namespace {

constexpr auto kNoBias = Builder::Bias::No;

void add_block(Builder& b, const std::string& name, int64_t channels, int64_t stride) {
  b.nest(name, [&](Builder& block) {
    const Builder::Part body = [&](Builder& main) {
      main.conv("conv1", channels, 3, 1, stride, kNoBias);
      main.batch_norm("bn1");
      main.relu("relu1");
      main.conv("conv2", channels, 3, 1, 1, kNoBias);
      main.batch_norm("bn2");
    };
    if (block.channels() == channels)
      block.residual("sum", body);
    else
      block.residual("sum", body, [&](Builder& side) {
        side.conv("conv", channels, 1, 0, stride, kNoBias);
        side.batch_norm("bn");
      });
    block.relu("relu");
  });
}

}  // namespace

std::unique_ptr<Sequential> resnet18(const Shape& image, int64_t classes,
                                     const OpFormats& formats) {
  auto net = std::make_unique<Sequential>();
  Builder b("resnet18", *net, image, formats);
  b.image();
  b.conv("conv1", 64, 3, 1, 1, kNoBias);
  b.batch_norm("bn1");
  b.relu("relu1");
  int64_t channels = 64;
  for (const char* name : {"layer1", "layer2", "layer3", "layer4"}) {
    b.nest(name, [&](Builder& layer) {
      add_block(layer, "block1", channels, channels > 64 ? 2 : 1);
      add_block(layer, "block2", channels, 1);
    });
    channels *= 2;
  }
  b.average("average");
  b.linear("fc", classes);
  return net;
}

}  // namespace ulp::nn
