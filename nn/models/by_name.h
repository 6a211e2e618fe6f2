#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nn/models/sequence_options.h"
#include "nn/sequential.h"

namespace ulp::nn {

/// The models there are, by name: mlp, lenet5, vgg16, vgg16bn, vgg7, preresnet20, preresnet56, preresnet110, resnet18,
/// vit-tiny; of texts: gpt, lstm, gru.
std::span<const char* const> model_names();
bool is_model(const std::string& name);
/// Whether a model is for texts, else it is for images.
bool is_text_model(const std::string& name);

/// What a model is made for.
struct ModelOptions {
  Shape image;                  // (H, W, C) of the samples; of texts none
  int64_t classes = 0;          // of texts: tokens
  SequenceOptions sequence;     // of models of texts
  std::vector<int64_t> hidden;  // of mlp
  OpFormats formats;            // of convolutions and linear layers
};

/// Throws ulp::Error for a name that is none, and where the samples are too small for the model.
std::unique_ptr<Sequential> make_model(const std::string& name, const ModelOptions& options);

}  // namespace ulp::nn
