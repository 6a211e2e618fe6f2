#include "nn/models/vgg16.h"

#include <vector>

#include "nn/models/builder.h"

namespace ulp::nn {

std::unique_ptr<Sequential> vgg16(const Shape& image, int64_t classes, VggNorm norm,
                                  const OpFormats& formats) {
  struct Block {
    int convolutions;
    int64_t channels;
  };
  const std::vector<Block> blocks{{2, 64}, {2, 128}, {3, 256}, {3, 512}, {3, 512}};
  auto net = std::make_unique<Sequential>();
  Builder b(norm == VggNorm::Batch ? "vgg16bn" : "vgg16", *net, image, formats);
  b.image();
  b.nest("features", [&](Builder& features) {
    for (size_t i = 0; i < blocks.size(); ++i)
      features.nest("block" + std::to_string(i + 1), [&](Builder& block) {
        for (int k = 1; k <= blocks[i].convolutions; ++k) {
          const std::string number = std::to_string(k);
          block.conv("conv" + number, blocks[i].channels, 3, 1);
          if (norm == VggNorm::Batch) block.batch_norm("bn" + number);
          block.relu("relu" + number);
        }
        block.max_pool("pool");
      });
  });
  b.flatten("flatten");
  b.nest("classifier", [&](Builder& classifier) {
    for (const char* number : {"1", "2"}) {
      classifier.dropout(std::string("drop") + number, 0.5);
      classifier.linear(std::string("fc") + number, 512);
      classifier.relu(std::string("relu") + number);
    }
    classifier.linear("fc3", classes);
  });
  return net;
}

}  // namespace ulp::nn
