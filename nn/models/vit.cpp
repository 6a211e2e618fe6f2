#include "nn/models/vit.h"

#include <algorithm>

#include "nn/conv.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/models/gpt.h"
#include "nn/pool.h"
#include "nn/shape_layers.h"

namespace ulp::nn {

std::unique_ptr<Sequential> vit_tiny(const Shape& image, int64_t classes,
                                     const OpFormats& formats) {
  ULP_CHECK(image.rank() == 3 && image.numel() > 0,
            "vit-tiny: it is for images (H, W, C), got samples of shape {}", image);
  const int64_t patch = std::min(image[0], image[1]) < 16 ? 2 : 4;
  ULP_CHECK(image[0] % patch == 0 && image[1] % patch == 0,
            "vit-tiny: images of {} x {} pixels cannot be cut into patches of {} x {}", image[0],
            image[1], patch, patch);
  SequenceOptions options;
  options.layers = 12;
  options.width = 192;
  options.heads = 3;
  options.context = (image[0] / patch) * (image[1] / patch);
  auto net = std::make_unique<Sequential>();
  net->add<Reshape>("image", image);
  ops::ConvOptions cut;
  cut.stride = patch;
  net->add<Conv2d>("patches", image[2], options.width, patch, cut, formats);
  net->add<Reshape>("sequence", Shape{options.context, options.width});
  net->add<LearnedPositions>("positions", options.context, options.width);
  for (int64_t i = 1; i <= options.layers; ++i)
    net->append("block" + std::to_string(i), transformer_block(options, false, formats));
  net->append("norm", sequence_norm(options));
  net->add<GlobalAvgPool>("pool");
  net->add<Linear>("head", options.width, classes, formats, Linear::Bias::Yes,
                   Initialiser::uniform(0.034641016151377546));
  return net;
}

}  // namespace ulp::nn
