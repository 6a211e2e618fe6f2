#include "nn/models/preresnet.h"

#include "nn/models/builder.h"

namespace ulp::nn {
namespace {

constexpr auto kNoBias = Builder::Bias::No;

void add_block(Builder& b, const std::string& name, int64_t channels, int64_t stride) {
  const Builder::Part body = [&](Builder& main) {
    main.batch_norm("bn1");
    main.relu("relu1");
    main.conv("conv1", channels, 3, 1, stride, kNoBias);
    main.batch_norm("bn2");
    main.relu("relu2");
    main.conv("conv2", channels, 3, 1, 1, kNoBias);
  };
  if (b.channels() == channels) return b.residual(name, body);
  b.residual(name, body,
             [&](Builder& side) { side.conv("conv", channels, 1, 0, stride, kNoBias); });
}

}  // namespace

std::unique_ptr<Sequential> preresnet(int depth, const Shape& image, int64_t classes,
                                      const OpFormats& formats) {
  ULP_CHECK(depth >= 8 && (depth - 2) % 6 == 0,
            "preresnet: a depth is 6 n + 2 with n of at least 1, such as 20, 56, 110; got {}",
            depth);
  auto net = std::make_unique<Sequential>();
  Builder b("preresnet" + std::to_string(depth), *net, image, formats);
  b.image();
  b.conv("conv1", 16, 3, 1, 1, kNoBias);
  int64_t channels = 16;
  for (const char* name : {"layer1", "layer2", "layer3"}) {
    b.nest(name, [&](Builder& layer) {
      for (int i = 1; i <= (depth - 2) / 6; ++i)
        add_block(layer, "block" + std::to_string(i), channels, i == 1 && channels > 16 ? 2 : 1);
    });
    channels *= 2;
  }
  b.batch_norm("bn");
  b.relu("relu");
  b.average("average");
  b.linear("fc", classes);
  return net;
}

}  // namespace ulp::nn
