#pragma once

#include <memory>

#include "nn/recurrent.h"
#include "nn/sequential.h"

namespace ulp::nn {

enum class RecurrentKind : uint8_t { Lstm, Gru };

/// A language model of tokens (N, T) I32 in [0, vocabulary) → logits (N, T, vocabulary): embedding, then `lstm` or `gru` of
/// options.layers layers, then the linear layer `head`; all `width` wide between. `formats` are those of the products: of the
/// recurrent layers' both products and of the head; other parts get theirs from policies.
/// Throws unless vocabulary, width and layers are at least 1.
std::unique_ptr<Sequential> char_rnn(RecurrentKind kind, int64_t vocabulary, int64_t width,
                                     const RecurrentOptions& options = {},
                                     const OpFormats& formats = {});

}  // namespace ulp::nn
