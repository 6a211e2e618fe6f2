#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace ulp::optim {

enum class Algorithm : uint8_t { Sgd, Adam, AdamW, Lion };
/// "sgd", "adam", "adamw", "lion".
std::string to_string(Algorithm algorithm);
/// Throws ulp::Error naming the algorithms there are.
Algorithm parse_algorithm(std::string_view text);

/// How the weight decay λ acts. Coupled: λ·p is added to the gradient. Decoupled: p ← p − lr·λ·p beside the step.
enum class Decay : uint8_t { Coupled, Decoupled };
/// Plain: p ← Q(p + change). Kahan: what that loses is kept and added the next time.
enum class Update : uint8_t { Plain, Kahan };

/// What is different for some parameters. Whatever is not set stays as it was.
struct ParameterGroup {
  std::string pattern;  // of paths: * is any text, ? any character; "fc*.bias"
  std::optional<double> lr_factor{}, weight_decay{};
  std::optional<Quantizer> weight{}, grad{}, moment1{}, moment2{}, compensation{};
  std::optional<std::optional<Quantizer>> accumulator{};  // an empty one: none
};

/// An optimizer with every state in a format of its own.
struct OptimizerOptions {
  Algorithm algorithm = Algorithm::Sgd;
  double lr = 0.1;
  double momentum = 0;    // sgd; below 1
  bool nesterov = false;  // sgd
  double weight_decay = 0;
  std::optional<Decay> decay{};  // none: the algorithm's own, decoupled for adamw and lion
  double beta1 = 0.9;            // adam, adamw, lion
  double beta2 = 0.999;          // adam, adamw, lion
  double eps = 1e-8;             // adam, adamw
  double grad_scaling = 1;       // gradients are multiplied by it and the state's grad_factor
  GradOrder grad_order = GradOrder::ScaleFirst;  // before or after they are quantised
  GradNormalisation grad_normalisation = GradNormalisation::None;  // element-wise formats only
  Update update = Update::Plain;
  Quantizer weight{};  // what the layers read, stored in its storage_type
  std::optional<Quantizer>
      accumulator{};  // the master copy; none: the stored weight is the only copy
  Quantizer grad{};
  Quantizer moment1{};  // momentum; adam's mean, lion's
  Quantizer moment2{};  // adam's mean square
  int64_t moments_from =
      0;  // parameters of fewer elements keep moments in fp32, unless a group says otherwise
  Quantizer compensation{};              // kahan
  std::vector<ParameterGroup> groups{};  // later ones win

  /// The usual rates of an algorithm: lr 0.1, 0.001, 0.001, 0.0001; beta2 0.99 for lion.
  static OptimizerOptions of(Algorithm algorithm);
  Decay resolved_decay() const;
};

/// Throws what an Optimizer of these parameters would throw for its options. One of a group names it and the parameter.
void check(const OptimizerOptions& options, const std::vector<Parameter*>& parameters);

/// The states that an optimizer may keep of a parameter beside its weight.
enum class Slot : uint8_t { Master, Moment1, Moment2, Compensation };
inline constexpr std::array<Slot, 4> kSlots = {Slot::Master, Slot::Moment1, Slot::Moment2,
                                               Slot::Compensation};
/// "master", "moment1", "moment2", "compensation".
const char* to_string(Slot slot);

/// One step for every parameter that has a gradient, in OptimLP's order:
///   g ← Qg(g·s), or Qg(g)·s as grad_order says, s = grad_scaling·grad_factor;  p ← accumulator;  d ← g + λ·p (coupled decay)
///                with grad_normalisation each parameter's s is divided by 2^round(log2 max|g·s|) first
///   sgd          m ← momentum·m + d;  u ← nesterov ? d + momentum·m : m
///   adam, adamw  m ← β1·m + (1 − β1)·d;  v ← β2·v + (1 − β2)·d²
///                u ← (m / (1 − β1^t)) / (√(v / (1 − β2^t)) + eps),  t = 1, 2 … counts this optimizer's updates
///   lion         u ← sign(β1·m + (1 − β1)·d);  m ← β2·m + (1 − β2)·d
///   p ← p − lr·λ·p (decoupled decay);  p ← p − lr·u, with the unrounded new moments
///   accumulator ← Qacc(p), p ← same;  weight ← Qw(p);  stored moments ← Qm(m), Qv(v)
/// kahan, for the copy that is kept (accumulator, else weight), Q being its quantizer:
///   y ← −lr·(u + λ·p) + c;  s ← Q(p + y);  c ← Qc(y − (s − p));  p ← s
/// OptimizerArgs (kernels/kernels.h) says where each of these rounds in fp32. grad_factor: StepState's.
/// Unlike OptimLP: gradients are scaled with or without a gradient format, and weights are quantised before the first step.
/// Groups of block formats run along the last axis of weights and gradients, and along all elements of a state in row-major
/// order; axis blocks of a vector are one element each, whatever axis is named.
/// Sources: QPyTorch's qtorch.optim.OptimLP; Adam, arXiv 1412.6980; AdamW, arXiv 1711.05101; Lion, arXiv 2302.06675; Kahan
/// and stochastic updates without a master, arXiv 2010.06192; block-wise 8-bit states, arXiv 2110.02861.
class Optimizer {
 public:
  /// Takes over the parameters: makes their states and quantises the weights at once (draws of step 0). The model must be
  /// initialised. Several optimizers may share a run if each has its own parameters. Throws for a coefficient out of range,
  /// a setting that its algorithm has no use for, an unsigned format of a signed state, a block axis that a parameter lacks (naming it), or a group's pattern that
  /// matches no parameter (naming similar paths).
  Optimizer(Run& run, std::vector<Parameter*> parameters, const OptimizerOptions& options);

  /// Updates in place, forgets the gradients, and moves the run on to the next step. Where roles are counted
  /// (autograd/role_stats.h) also what the update's roundings do, by the random streams of "<parameter path>/grad" (what its
  /// quantizer gets, scaled or not as grad_order says), "weight" and each slot's name: on copies, before the update, which stays
  /// what it is. A skipped step has its states counted as they are.
  void step();
  void zero_grad();

  /// The rates of the next steps, in the device's memory; the last one stays. Not within a recorded step (StepGraph).
  /// With momenta, one for each rate, those are sgd's momentum, or β1 of the others, instead of the options' until rates are
  /// set without; sgd needs a momentum above 0 in its options then, which decides whether there is a state for it.
  void set_rates(std::span<const float> rates, std::span<const float> momenta = {});
  /// One rate from now on.
  void set_lr(double lr);
  /// That of the next step, before a group's factor.
  double lr() const;
  const OptimizerOptions& options() const { return options_; }

  /// What the optimizer holds for one parameter, by slot; undefined where it holds none.
  struct State {
    Parameter* parameter;
    OptimizerOptions options;  // with the groups applied; lr_factor apart
    double lr_factor = 1;
    std::array<StoredState, kSlots.size()> stored;

    const StoredState& operator[](Slot slot) const { return stored[static_cast<size_t>(slot)]; }
    const Quantizer& format(Slot slot) const;
  };
  const std::vector<State>& states() const { return states_; }
  /// A state's numbers, F32.
  Tensor read(const State& state, Slot slot) const;

  /// Everything beside the weights that a resumed run needs, under "<parameter path>.<state>", codes of packed states under
  /// "….codes" with "….scales" and "….factor", and "optimizer.steps". The handles share memory with the optimizer.
  std::map<std::string, Tensor> tensors() const;
  /// The format's name of each.
  std::map<std::string, std::string> formats() const;
  /// Bytes of all states, the weights apart.
  int64_t bytes() const;

 private:
  /// Parameters that one launch serves.
  struct Launch {
    std::vector<size_t> states;
    bool fused;
    std::shared_ptr<ParameterTable> table;
  };

  RandomKey key(const Parameter& parameter, const char* role) const;
  Tensor quantised(const Tensor& in, const Quantizer& quantizer, const RandomKey& key, DType dtype,
                   const Tensor& stats = {}) const;
  Tensor scaling(const RandomKey& key, const Quantizer& quantizer) const;
  OptimizerArgs arguments(const State& like) const;
  void make_states(State& state);
  Tensor unrounded_gradient(const State& state, OptimizerArgs& args) const;
  Tensor normalised_gradient(const State& state) const;
  void set_keys(const Parameter& parameter, OptimizerParameter& one) const;
  void count_roundings(const State& state) const;
  void update_fused(const Launch& launch);
  void update_blocks(const State& state);

  Run& run_;
  OptimizerOptions options_;
  std::vector<State> states_;
  std::vector<Launch> launches_;
  std::vector<float> rates_;
  bool own_momenta_ = false;  // they follow the rates on the device
  int64_t updates_ = 0;       // steps made since the rates were set
  Tensor rates_on_device_, updates_on_device_, steps_on_device_;  // F32 (S), I32 (1), I32 (1)
};

}  // namespace ulp::optim
