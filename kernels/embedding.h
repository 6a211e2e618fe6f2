#pragma once

// Embeddings, rotary positions and gated activations of sequences. kernel.h says what a row means.

#include "core/quantizer.h"
#include "core/random.h"
#include "kernels/kernel.h"

namespace ulp {

/// out[i, :] = table[tokens[i], :], then `output` (element-wise) rounds. A token outside [0, V) makes a row of NaN.
/// table (V, D): any float, tokens (N): I32, out (N, D).
struct EmbeddingArgs {
  Tensor table, tokens, out;
  Quantizer output{};
  RandomKey key{};
};

/// order (N, I32) = the positions of tokens (N, I32), sorted by token, ascending for each; starts (V + 1, I32): those of token v
/// are order[starts[v]] … order[starts[v + 1] − 1]. Tokens outside [0, V) come last, and starts[V] is where they begin.
struct GroupTokensArgs {
  Tensor tokens, order, starts;
};

/// out[v, :] = Σ grad[i, :] over the positions i of token v, ascending, in the order of core/sum.h (+0 where there are none);
/// then `output` (element-wise) rounds. grad (N, D): any float; order and starts: what group_tokens made; out (V, D).
struct EmbeddingBackwardArgs {
  Tensor grad, order, starts, out;
  Quantizer output{};
  RandomKey key{};
};

/// Elements i and i + D/2 of each head are turned by the angle of their position:
///   out_i = x_i·c − x_j·s,  out_j = x_j·c + x_i·s,  j = i + D/2, (c, s) = turns[t, i, :]; inverse: with −s.
/// Then `output` (element-wise) rounds. in, out (N, T, H, D), D even; in: any float; turns (T, D/2, 2): F32 (F64 with F64).
struct RotaryArgs {
  Tensor in, turns, out;
  bool inverse = false;
  Quantizer output{};
  RandomKey key{};
};

/// out (N, C) = silu(a)·b, a and b the halves of each row of in (N, 2·C); then `output` (element-wise) rounds. in: any float.
struct SwigluArgs {
  Tensor in, out;
  Quantizer output{};
  RandomKey key{};
};

/// out (N, 2·C) = the gradient toward in: grad·b·silu'(a) and grad·silu(a). in, grad (N, C): any float.
struct SwigluBackwardArgs {
  Tensor in, grad, out;
  Quantizer output{};
  RandomKey key{};
};

/// Windows of a text for a model that tells each token from those before it: out (N, T) = text[s … s + T − 1] and labels (N·T) =
/// text[s + 1 … s + T], s being where window n begins. In order: s = (begin + n)·T. At random: s = word · (L − T) / 2^32, rounded
/// down, of word begin + n of `key`; with `state` begin is its batch_offset, which is moved on by N, and that of `epoch`.
/// text (L): U8 or I32, L > T; out and labels: I32.
struct GatherWindowsArgs {
  Tensor text, out, labels;
  bool random = false;
  int64_t begin = 0;
  RandomKey key{};
  StepState* state = nullptr;        // on the stream's device, like the next
  const StepState* epoch = nullptr;  // where the epoch begins among all windows; null: at 0

  int64_t windows() const { return out.size(0); }
  int64_t length() const { return out.size(1); }
};

/// Where window i begins in a text of `length` tokens.
ULP_HD int64_t window_start(bool random, const RandomSource& source, int64_t i, int64_t length,
                            int64_t window) {
  if (!random) return i * window;
  const auto starts = static_cast<uint64_t>(length - window);
  return static_cast<int64_t>((source.word(static_cast<uint64_t>(i)) * starts) >> 32);
}

// clang-format off
#define ULP_EMBEDDING_KERNELS(X)                        \
  X(embedding, EmbeddingArgs)                           \
  X(group_tokens, GroupTokensArgs)                      \
  X(embedding_backward, EmbeddingBackwardArgs)          \
  X(rotary, RotaryArgs)                                 \
  X(swiglu, SwigluArgs)                                 \
  X(swiglu_backward, SwigluBackwardArgs)                \
  X(gather_windows, GatherWindowsArgs)
// clang-format on

ULP_EMBEDDING_KERNELS(ULP_DECLARE_KERNEL)

/// Throw unless the arguments of a row are as it says.
void check_embedding(Stream stream, const EmbeddingArgs& args);
void check_group_tokens(Stream stream, const GroupTokensArgs& args);
void check_embedding_backward(Stream stream, const EmbeddingBackwardArgs& args);
void check_rotary(Stream stream, const RotaryArgs& args);
void check_swiglu(Stream stream, const SwigluArgs& args);
void check_swiglu_backward(Stream stream, const SwigluBackwardArgs& args);
void check_gather_windows(Stream stream, const GatherWindowsArgs& args);

}  // namespace ulp
