#pragma once

#include <memory>

#include "nn/models/sequence_options.h"
#include "nn/sequential.h"

namespace ulp::nn {

/// A decoder: tokens (N, T) I32, T ≤ context → logits (N, T, vocabulary). Layers: tokens, positions (learned ones), block1 …
/// blockL, norm, head. A block is attention and mlp, each a Residual around a norm and what it is named for: fc1, act and fc2 of
/// the mlp are of width 4·width, with SwiGLU 8/3·width, rounded up to a multiple of 32. Linear layers begin with the deviation
/// 0.02, those before an addition with 0.02 / √(2·layers). `formats`: of linear layers; the others have none (policies give them).
/// Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
std::unique_ptr<Sequential> gpt(int64_t vocabulary, const SequenceOptions& options,
                                const OpFormats& formats = {});

/// One block of gpt and of vit; causal: no place sees those after it.
std::unique_ptr<Module> transformer_block(const SequenceOptions& options, bool causal,
                                          const OpFormats& formats);
std::unique_ptr<Module> sequence_norm(const SequenceOptions& options);

}  // namespace ulp::nn
