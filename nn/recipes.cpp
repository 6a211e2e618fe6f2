#include "nn/recipes.h"

#include <string>
#include <vector>

#include "core/error.h"
#include "core/pattern.h"

namespace ulp::nn {
namespace {

// Notation: x, w and g are a layer's input, its weight and the gradient of its result y; Q rounds, nearest unless said
// otherwise, SR(·) rounds stochastically. Products are y = x wᵀ, dx = g w, dw = gᵀ x, with sums in fp32. Rates, momentum and
// decay belong to data and model, and are no part of a recipe, unless it changes what a rate means or is a method without momentum.

/// Stochastic weight averaging in low precision. With Q the stochastic 8-bit block of one exponent for each index of axis 0:
///   y ← Q(x wᵀ);  dx = Q(g) w;  dw = Q(g)ᵀ x;  v ← momentum·v + Q(dw);  w ← Q(w − lr·v), v ← Q(v)
///   from a moment on, after every epoch:  average ← (n·average + w) / (n + 1)  in fp32, which is what is tested
/// The weight itself is the only copy.
constexpr Recipe kSwalp{
    "swalp",
    "8-bit blocks everywhere, stochastic; the average of the weights",
    "Yang et al. 2019, arXiv 1904.11943",
    "biases and normalisation's parameters have one exponent each; results of norms, activations "
    "and pools are not rounded again",
    R"({"rules": [
  {"type": ["conv", "linear", "attention", "recurrent"], "optional": true, "output": "bfp8-axis0:sr",
   "grad_output_dx": "bfp8-axis0:sr", "grad_output_dw": "bfp8-axis0:sr"},
  {"position": "last", "output": "fp32", "grad_output_dx": "fp32", "grad_output_dw": "fp32"}
]})",
    "--weights bfp8-axis0:sr --grads bfp8-axis0:sr --moment1 bfp8-axis0:sr "
    "--lr-schedule swalp --average swa --average-start 0.67"};

/// Eight bits for operands, sixteen for what is kept. With e5m2 for Q8 and e6m9 for Q16:
///   y = Q8(x) Q8(w)ᵀ;  dx = Q8(g) Q8(w);  dw = Q8(Q8(g)ᵀ Q8(x));  the loss × 1000, gradients / 1000
/// Every product sums 64 terms at a time, each sum and that of all of them rounded by Q16 after every term.
///   v ← SR16(momentum·v + dw);  w ← SR16(w − lr·v)
/// The input of the first layer and all of the last one: Q16.
constexpr Recipe kIbmFp8{
    "ibm-fp8",
    "e5m2 operands, sums in chunks of 64 in e6m9, e6m9 stochastic weights and momentum, loss × "
    "1000",
    "Wang et al. 2018, arXiv 1812.08011",
    "e5m2 is the OCP format with Inf; a term and its addition are rounded once, as by an fma",
    R"({"rules": [
  {"type": ["conv", "linear", "attention", "recurrent"], "optional": true,
   "forward": "e5m2", "backward": "e5m2", "grad_weight": "e5m2",
   "forward_acc": "chunk64/e6m9", "dx_acc": "chunk64/e6m9", "dw_acc": "chunk64/e6m9"},
  {"position": "first", "input": "e6m9", "input_dw": "e6m9"},
  {"position": "last", "forward": "e6m9", "backward": "e6m9", "grad_weight": "e6m9"}
]})",
    "--weights e6m9:sr --moment1 e6m9:sr --loss-scale 1000"};

/// More significant bits forward, more range backward:
///   y = e4m3(x) e4m3(w)ᵀ;  dx = e5m2(g) e4m3(w);  dw = e5m2(g)ᵀ e4m3(x);  fp32 weights;  the loss × a scale that doubles after
///   2000 good steps and is halved by a step with Inf or NaN, which is left out
constexpr Recipe kFp8Hybrid{"fp8-hybrid",
                            "e4m3 forward, e5m2 backward, the loss scaled dynamically",
                            "Micikevicius et al. 2022, arXiv 2209.05433",
                            "results and all other ops are in fp32, in the paper in 16 bits",
                            R"({"rules": [
  {"forward": "e4m3", "backward": "e5m2"}
]})",
                            "--loss-scale dynamic"};

/// The same formats with a scale for each tensor, from the largest magnitude A of its 1024 calls before, M being the format's
/// largest number:  Q(x) = q(x · M/A) · A/M.  No loss scale.
constexpr Recipe kFp8Delayed{
    "fp8-delayed",
    "e4m3 forward, e5m2 backward, scales from 1024 steps before",
    "Micikevicius et al. 2022, arXiv 2209.05433; the history is that of NVIDIA's "
    "TransformerEngine, DelayedScaling",
    "scales are any fp32 number, no margin; attention's products stay in fp32",
    R"({"rules": [
  {"type": ["conv", "linear", "recurrent"], "optional": true,
   "forward": "e4m3+scale=delayed1024", "backward": "e5m2+scale=delayed1024"}
]})",
    ""};

/// Block floating point for products, fp32 for the rest. With B8 a stochastic block of 8-bit significands, T8 and T16 the same
/// for tiles of 24 × 24 with 8 and 16 bits:
///   y = B8(x) T8(w)ᵀ;  dx = B8(g) T8(w);  dw = B8(g)ᵀ B8(x);  w ← T16(w − lr·v)
/// B8 has one exponent for each row of x and g: a sample, or a place in a sequence.
constexpr Recipe kHbfp8{
    "hbfp8",
    "8-bit blocks in products, weights kept in 16-bit tiles",
    "Drumond et al. 2018, arXiv 1804.01526; rounding as in the authors' HBFPEmulator",
    "tiles of a convolution's weight span its last two axes (width and input channels); exponents "
    "have fp32's range",
    R"({"rules": [
  {"type": ["conv", "linear", "attention", "recurrent"], "optional": true, "input": "hbfp8-axis0:sr",
   "input_dw": "hbfp8-axis0:sr", "weight": "hbfp8-t24x24:sr", "weight_dx": "hbfp8-t24x24:sr",
   "grad_output_dx": "hbfp8-axis0:sr", "grad_output_dw": "hbfp8-axis0:sr"}
]})",
    "--weights hbfp16-t24x24:sr"};

constexpr std::string_view kAllBf16 = R"({"rules": [
  {"forward": "bf16", "backward": "bf16", "output": "bf16", "grad_input": "bf16", "grad_weight": "bf16",
   "interior": "bf16"}
]})";

/// Every tensor in bf16, no master copy:  w ← SR(w − lr·u),  nearest everywhere else, moments too.
constexpr Recipe kBf16Sr{"bf16-sr",
                         "bf16 throughout, no master weights, stochastic updates",
                         "Zamirai et al. 2020, arXiv 2010.06192 (stochastic rounding)",
                         "what an update computes before it rounds the weight is fp32",
                         kAllBf16,
                         "--weights bf16:sr --grads bf16 --moment1 bf16",
                         "--moment2 bf16"};

/// Every tensor in bf16, no master copy; what rounding the weight loses is kept in bf16 too:
///   y ← −lr·u + c;  s ← Q(w + y);  c ← Q(y − (s − w));  w ← s
constexpr Recipe kBf16Kahan{
    "bf16-kahan",
    "bf16 throughout, no master weights, Kahan updates",
    "Zamirai et al. 2020, arXiv 2010.06192 (Kahan summation)",
    "what an update computes before it rounds the weight is fp32",
    kAllBf16,
    "--weights bf16 --grads bf16 --moment1 bf16 --update kahan --compensation bf16",
    "--moment2 bf16"};

/// OCP MX: groups of 32 along the sum with a power-of-two scale, e4m3 elements for all operands:
///   y = Q(x) Q(w)ᵀ;  dx = Q(g) Q(w);  dw = Q(g)ᵀ Q(x);  the scale's exponent rounded up, so that nothing is clipped
/// Attention's products and the last layer: bf16.
constexpr Recipe kMxfp8{
    "mxfp8",
    "MX groups of 32 e4m3 numbers, scales rounded up",
    "Mishra et al. 2025, arXiv 2506.08027; the format: arXiv 2310.10537",
    "embeddings and results are in fp32, in the paper in bf16; weights have fp32 masters",
    R"({"rules": [
  {"type": ["conv", "linear", "recurrent"], "optional": true, "forward": "mxfp8-rceil",
   "backward": "mxfp8-rceil"},
  {"type": "attention", "optional": true, "forward": "bf16", "backward": "bf16"},
  {"position": "last", "forward": "bf16", "backward": "bf16"}
]})",
    ""};

/// OCP MX with e3m2 elements for all operands, nearest, scale exponents rounded down as the specification's text does.
constexpr Recipe kMxfp6{"mxfp6",
                        "MX groups of 32 e3m2 numbers",
                        "Rouhani et al. 2023, arXiv 2310.10537",
                        "other ops are in fp32, in the paper in bf16",
                        R"({"rules": [
  {"forward": "mxfp6-e3m2", "backward": "mxfp6-e3m2"}
]})",
                        ""};

/// Four bits backward, without bias. H: a random Hadamard rotation of 32 elements along the sum, S: SR to MXFP4 of ¾ of a value:
///   y = bf16(x) bf16(w)ᵀ;  dx = 16/9 · S(g H) S(Hᵀ w);  dw = 16/9 · S(gᵀ H) S(Hᵀ x)
/// Attention's products: bf16.
constexpr Recipe kMxfp4RhtSr{
    "mxfp4-rht-sr",
    "bf16 forward, MXFP4 backward: rotated, × 3/4, stochastic",
    "Tseng et al. 2025, arXiv 2502.20586",
    "rotations of 32 elements instead of 64; the forward pass is bf16, not fp8",
    R"({"rules": [
  {"forward": "bf16", "backward": "bf16"},
  {"type": ["conv", "linear", "recurrent"], "optional": true,
   "grad_output_dx": "mxfp4+rht32+q34:sr", "weight_dx": "mxfp4+rht32+q34:sr",
   "grad_output_dw": "mxfp4+rht32+q34:sr", "input_dw": "mxfp4+rht32+q34:sr"}
]})",
    ""};

/// Four bits for all products. N: groups of 16 e2m1 numbers with e4m3 scales under one fp32 scale, T: the same for tiles of
/// 16 × 16, so that forward and backward see the same weight; H: a random Hadamard rotation of 16 elements along the sum:
///   y = N(x) T(w)ᵀ;  dx = SR_N(g) T(w);  dw = SR_N(gᵀ H) N(Hᵀ x)
/// The first and the last layer and attention's products: bf16.
constexpr Recipe kNvfp4{
    "nvfp4",
    "NVFP4 products, 16×16 weight tiles, rotated weight gradients",
    "NVIDIA 2025, arXiv 2509.25149",
    "the first and the last layer are kept in bf16; the paper keeps about 15 % of the layers, most "
    "of them at the end",
    R"({"rules": [
  {"type": ["conv", "linear", "recurrent"], "optional": true,
   "input": "nvfp4", "weight": "nvfp4-t16x16",
   "grad_output_dx": "nvfp4:sr", "weight_dx": "nvfp4-t16x16",
   "grad_output_dw": "nvfp4+rht16:sr", "input_dw": "nvfp4+rht16"},
  {"type": "attention", "optional": true, "forward": "bf16", "backward": "bf16"},
  {"position": "first", "forward": "bf16", "backward": "bf16"},
  {"position": "last", "forward": "bf16", "backward": "bf16"}
]})",
    ""};

/// Adam with 8-bit moments, codes of a dynamic (tree) data type in blocks of 2048 with an fp32 scale, the second moment's
/// without a sign; parameters of fewer than 4096 elements keep fp32 moments:
///   m ← β1·m + (1 − β1)·g;  v ← β2·v + (1 − β2)·g²;  w ← w − lr·m̂/(√v̂ + eps);  stored: Q(m), Q(v)
/// Nothing else is rounded.
constexpr Recipe kAdam8bit{
    "adam8bit",
    "adam with 8-bit moments in blocks of 2048",
    "Dettmers et al. 2021, arXiv 2110.02861",
    "embeddings have no norm of their own. Second moments that round to 0 beside a first one that "
    "does not end in NaN: then --moment2 e5m2-g256-scalef32:sr",
    R"({"rules": []})",
    "--optimizer adam --moment1 dynamic8-g2048-scalef32 --moment2 dynamic8u-g2048-scalef32 "
    "--moments-from 4096"};

/// 8-bit posits, tapered: most bits where most values are.
///   y = P(8,1)(x) P(8,1)(w)ᵀ;  dx = P(8,2)(g) P(8,1)(w);  dw = P(8,2)(g)ᵀ P(8,1)(x)
constexpr Recipe kPosit8{
    "posit8",
    "posit(8,1) forward, posit(8,2) backward",
    "Lu et al. 2019, arXiv 1909.03831",
    "no shift of a layer's values by their mean exponent, no first epoch in fp32; norms, results "
    "and weights are in fp32, in the paper in posit(16,1) and (16,2)",
    R"({"rules": [
  {"forward": "posit8.1", "backward": "posit8.2"}
]})",
    ""};

/// 8-bit floats whose range follows the tensor: its logarithms are shifted and stretched so that their mean is 0 and the largest
/// 15, rounded as e5m2, and turned back (core/squeeze.h). No loss scale.
///   y = S(x) S(w)ᵀ;  dx = S(g) S(w);  dw = S(g)ᵀ S(x),  S(x) = sign(x) · (2^−β · e5m2(2^β · |x|^α))^(1/α)
constexpr Recipe kS2fp8{"s2fp8",
                        "e5m2 with a shift and a factor of each tensor's logarithms",
                        "Cambier et al. 2020, arXiv 2001.05674",
                        "results of products and all other ops are in fp32; rounding is to "
                        "nearest even",
                        R"({"rules": [
  {"forward": "e5m2+scale=squeeze", "backward": "e5m2+scale=squeeze"}
]})",
                        ""};

/// Integers with 2, 8, 8 and 8 bits for weights, activations, gradients and errors. With σ(k) = 2^(1−k),
/// Q(v, k) = σ(k)·round(v/σ(k)) held within ±(1 − σ(k)), Shift(v) = 2^round(log2 v) and n terms in the sum of an output:
///   first w: uniform within ±max(√(3/n), ¾);  α = max(Shift(¾ / √(3/n)), 1)                            (nn/wage.h)
///   y = Q(x, 8) Q(w, 2)ᵀ / α;  e = Q(g / Shift(max|g|), 8);  dx = e Q(w, 2) / α where |x| was not held, else 0;  dw = eᵀ Q(x, 8)
///   w ← w − σ(8)·R(lr·dw / Shift(max|dw|)), held within ±(1 − σ(8)),  R rounding stochastically
/// Of w on the grid of σ(8) the last line is SR(w − lr'·dw / Shift(max|dw|)) with lr' = σ(8)·lr: the paper's rates 8, 1, ⅛ are
/// --lr 0.0625 --lr-schedule step:0.125@0.667,0.833.
/// e keeps its factor Shift(max|g|): a power of two that dw's own Shift and that of the next error take out again, so that all
/// rounded numbers are those of the paper.
constexpr Recipe kWage{
    "wage",
    "fixed point of 2 bits for weights, 8 for all else, stochastic 8-bit updates",
    "Wu et al. 2018, arXiv 1802.04680, section 3",
    "an error's largest magnitude is taken behind the ReLU, where the layer reads it; images are "
    "rounded to 8 bits; first weights are rounded to 8 bits, and weights held within 127/128, as "
    "in the paper, in the authors' code 2 bits and 1/2; the bound of first weights is the code's, "
    "the paper's is √2 times larger; parameters of other layers take the same "
    "steps; attention's and recurrent products stay in fp32",
    R"({"rules": [
  {"type": ["conv", "linear"], "optional": true, "forward": "fixed8.7-sym", "weight": "fixed2.1-sym",
   "weight_dx": "fixed2.1-sym", "backward": "fixed8.7-sym+scale=shift", "clamp_mask": true}
]})",
    "--init wage --loss sum-of-squares --weights fixed8.7-sym:sr --grad-normalize shift "
    "--momentum-coef 0"};

/// More significant bits forward, more range backward, and constant factors instead of a loss scale (nn/unit_scaling.h). With n
/// terms in a sum of y, m in one of dx and r in one of dw, all weights begin with size 1:
///   y = n^−½ · e4m3(x) e4m3(w)ᵀ;  dx = m^−½ · e5m2(g) e4m3(w);  dw = r^−½ · e5m2(g)ᵀ e4m3(x)
/// and in residual branches (n·m)^−¼ for both n^−½ and m^−½; element-wise functions have 1/√E[f(z)²] and 1/√E[f'(z)²] of a normal z.
/// A rate then is the share of a weight that a step changes: sgd's is a tenth of its usual one.
constexpr Recipe kUnitScaling{
    "unit-scaling",
    "e4m3 forward, e5m2 backward, weights and all layers of unit size",
    "Blake, Orr, Luschi 2023, arXiv 2303.11257; factors as in the authors' code",
    "sizes are root mean squares, not deviations; residual sums weigh their parts equally; "
    "attention is scaled as in the authors' later library, by the longest sequence; pools have "
    "factors too; results and all other ops are in fp32; no recurrent layers, no tied head",
    R"({"rules": [
  {"forward": "e4m3", "backward": "e5m2"}
]})",
    "--init unit --lr 0.01"};

constexpr Recipe kRecipes[] = {kSwalp,  kWage,      kIbmFp8, kFp8Hybrid,  kFp8Delayed, kHbfp8,
                               kBf16Sr, kBf16Kahan, kMxfp8,  kMxfp6,      kMxfp4RhtSr, kNvfp4,
                               kS2fp8,  kAdam8bit,  kPosit8, kUnitScaling};

}  // namespace

std::span<const Recipe> recipes() { return kRecipes; }

const Recipe& recipe(std::string_view name) {
  std::vector<std::string> names;
  for (const Recipe& one : recipes()) {
    if (one.name == name) return one;
    names.emplace_back(one.name);
  }
  std::string near;
  for (const std::string& one : similar(name, names)) near += (near.empty() ? "" : ", ") + one;
  throw_error("'{}' is no recipe; near it are {}; ulp recipes lists all", name, near);
}

}  // namespace ulp::nn
