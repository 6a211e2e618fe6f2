#include "nn/models/gpt.h"

#include <cmath>
#include <string>

#include "nn/activations.h"
#include "nn/attention.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/shape_layers.h"
#include "nn/swiglu.h"

namespace ulp::nn {
namespace {

constexpr double kDeviation = 0.02;

/// Uniform of this deviation.
Initialiser deviating(double deviation) { return Initialiser::uniform(std::sqrt(3.0) * deviation); }

/// Of layers whose results are added to what went in: the sum of 2·layers of them has the deviation of one.
double before_addition(const SequenceOptions& o) {
  return kDeviation / std::sqrt(2.0 * static_cast<double>(o.layers));
}

int64_t hidden_width(const SequenceOptions& o) {
  if (o.mlp == SequenceOptions::Mlp::Gelu) return 4 * o.width;
  return (8 * o.width / 3 + 31) / 32 * 32;
}

std::unique_ptr<Module> attention_part(const SequenceOptions& o, bool causal,
                                       const OpFormats& formats) {
  AttentionSettings settings;
  settings.causal = causal;
  settings.context = o.context;
  settings.rotary = o.positions == SequenceOptions::Positions::Rotary;
  settings.qkv_init = deviating(kDeviation);
  settings.out_init = deviating(before_addition(o));
  auto body = std::make_unique<Sequential>();
  body->append("norm", sequence_norm(o));
  body->append("attention",
               std::make_unique<MultiHeadAttention>(o.width, o.heads, settings, formats));
  return std::make_unique<Residual>(std::move(body));
}

std::unique_ptr<Module> mlp_part(const SequenceOptions& o, const OpFormats& formats) {
  const int64_t hidden = hidden_width(o);
  const bool gated = o.mlp == SequenceOptions::Mlp::Swiglu;
  auto body = std::make_unique<Sequential>();
  body->append("norm", sequence_norm(o));
  body->add<Linear>("fc1", o.width, gated ? 2 * hidden : hidden, formats, Linear::Bias::Yes,
                    deviating(kDeviation));
  if (gated)
    body->add<SwiGLU>("act");
  else
    body->add<GELU>("act");
  body->add<Linear>("fc2", hidden, o.width, formats, Linear::Bias::Yes,
                    deviating(before_addition(o)));
  return std::make_unique<Residual>(std::move(body));
}

}  // namespace

std::unique_ptr<Module> sequence_norm(const SequenceOptions& o) {
  if (o.norm == SequenceOptions::Norm::Rms) return std::make_unique<RMSNorm>(o.width);
  return std::make_unique<LayerNorm>(o.width);
}

std::unique_ptr<Module> transformer_block(const SequenceOptions& o, bool causal,
                                          const OpFormats& formats) {
  auto block = std::make_unique<Sequential>();
  block->append("attn", attention_part(o, causal, formats));
  block->append("mlp", mlp_part(o, formats));
  return block;
}

std::unique_ptr<Sequential> gpt(int64_t vocabulary, const SequenceOptions& o,
                                const OpFormats& formats) {
  ULP_CHECK(
      o.layers >= 1 && o.width >= 1 && o.heads >= 1 && o.width % o.heads == 0 && o.context >= 1,
      "gpt: at least one layer and head and a context, and heads that divide the width; got "
      "{} layers, width {}, {} heads, context {}",
      o.layers, o.width, o.heads, o.context);
  ULP_CHECK(o.positions == SequenceOptions::Positions::Learned || o.width / o.heads % 2 == 0,
            "gpt: rotary positions turn pairs; a width of {} has {} for each of {} heads", o.width,
            o.width / o.heads, o.heads);
  auto net = std::make_unique<Sequential>();
  auto tokens = std::make_unique<Embedding>(vocabulary, o.width);
  Embedding& table = *tokens;
  net->append("tokens", std::move(tokens));
  if (o.positions == SequenceOptions::Positions::Learned)
    net->add<LearnedPositions>("positions", o.context, o.width);
  for (int64_t i = 1; i <= o.layers; ++i)
    net->append("block" + std::to_string(i), transformer_block(o, true, formats));
  net->append("norm", sequence_norm(o));
  if (o.tie)
    net->add<TiedLinear>("head", table, formats);
  else
    net->add<Linear>("head", o.width, vocabulary, formats, Linear::Bias::No, deviating(kDeviation));
  return net;
}

}  // namespace ulp::nn
