#include "nn/recurrent.h"

#include <cmath>

#include "nn/pieces.h"

namespace ulp::nn {
namespace {

const std::vector<const char*> kProductRoles = {"input",          "weight",    "output",
                                                "grad_output_dx", "weight_dx", "grad_input",
                                                "grad_output_dw", "input_dw",  "grad_weight"};

/// A part of a layer that policies give formats to; the layer runs it.
class Part : public Module {
 public:
  Part(std::string what, OpFormats formats, std::vector<const char*> roles)
      : what_(std::move(what)), formats_(std::move(formats)), roles_(std::move(roles)) {}
  Var forward(Tape&, const Var&) override {
    throw_error("{}: it is a part of a recurrent layer, which runs it", path());
  }
  std::string describe() const override { return what_; }
  LayerType type() const override { return LayerType::Recurrent; }
  OpFormats* formats() override { return &formats_; }
  std::vector<const char*> roles() const override { return roles_; }

  const OpFormats& own_formats() const { return formats_; }
  RandomSite own_site() const { return site(); }

 private:
  std::string what_;
  OpFormats formats_;
  std::vector<const char*> roles_;
};

/// One of the two products, with its parameters. It is shown x (N, T, in), what it multiplies in all steps.
class ProductPart : public Part {
 public:
  using Repeat = ProductShapes::Repeat;
  /// repeat: Once for all steps, or Steps.
  ProductPart(const std::string& name, int64_t in, int64_t out, double bound, bool bias,
              Repeat repeat, OpFormats formats)
      : Part(name + " product " + std::to_string(in) + " → " + std::to_string(out) +
                 (bias ? "" : ", no bias"),
             std::move(formats), kProductRoles),
        repeat_(repeat) {
    weight_ = &add_parameter("weight", {out, in}, Initialiser::uniform(bound));
    if (bias) bias_ = &add_parameter("bias", {out}, Initialiser::uniform(bound));
  }
  std::optional<ProductShapes> product_shapes(const Shape& x, const Shape&) const override {
    const Tensor& w = weight_->value;
    const bool once = repeat_ == Repeat::Once;
    return ProductShapes{x[0] * (once ? x[1] : 1), w.size(0), w.size(1), w.dtype(), repeat_,
                         once ? 1 : x[1]};
  }
  Var weight(Tape& tape) const { return tape.watch(*weight_); }
  Var bias(Tape& tape) const { return bias_ == nullptr ? Var{} : tape.watch(*bias_); }

 private:
  Repeat repeat_;
  Parameter* weight_;
  Parameter* bias_ = nullptr;
};

std::string text_of(const char* what, int64_t size) {
  return std::string(what) + " of " + std::to_string(size);
}

/// Why a role rounds the elements of a piece otherwise than those of a whole sequence, (rows, …) in one use; empty if it does not.
std::string obstacle_of(const char* role, const Quantizer& q, bool of_sequence) {
  if (q.is_identity()) return "";
  const std::string name = std::string(role) + " " + to_string(q);
  if (q.is_stochastic()) return name + " draws other random numbers for a piece";
  using Kind = Block::Kind;
  const bool shared = (q.block.kind == Kind::Tensor && q.scale.kind != Scale::Kind::Delayed) ||
                      (q.block.kind == Kind::Axis && q.block.axis != 0) ||
                      q.block.kind == Kind::Tile || q.scale.kind == Scale::Kind::E4M3Tensor;
  return of_sequence && shared ? name + " shares a scale between elements of a sequence" : "";
}

}  // namespace

class Recurrent::Layer : public Module {
 public:
  Layer(Kind kind, int64_t inputs, int64_t hidden, bool bias, const ops::RecurrentFormats& f)
      : kind_(kind),
        inputs_(inputs),
        hidden_(hidden),
        input_("Input", inputs, gates() * hidden, bound(), bias, ProductPart::Repeat::Once,
               f.input_product),
        hidden_part_("Hidden", hidden, gates() * hidden, bound(), bias, ProductPart::Repeat::Steps,
                     f.hidden_product),
        gates_(text_of("Gates", gates() * hidden), f.gates, {"interior", "grad_input"}),
        h_(text_of("Hidden state", hidden), f.hidden_state, {"output", "grad_input"}),
        c_(text_of("Cell state", hidden), f.cell_state, {"output", "grad_input"}) {}

  ops::RecurrentResult run(Tape& tape, const Var& x, const ops::RecurrentState& state) {
    const ops::RecurrentWeights weights{input_.weight(tape), hidden_part_.weight(tape),
                                        input_.bias(tape), hidden_part_.bias(tape)};
    ops::RecurrentSites sites;
    sites.input_product = input_.own_site();
    sites.hidden_product = hidden_part_.own_site();
    sites.gates = gates_.own_site();
    sites.hidden_state = h_.own_site();
    sites.cell_state = c_.own_site();
    const ops::RecurrentFormats f{input_.own_formats(), hidden_part_.own_formats(),
                                  gates_.own_formats(), h_.own_formats(), c_.own_formats()};
    const ops::RecurrentResult result = kind_ == Kind::Lstm
                                            ? ops::lstm(tape, x, weights, state, f, sites)
                                            : ops::gru(tape, x, weights, state, f, sites);
    input_.show(x, {});
    hidden_part_.show(result.y, {});
    show(x, result.y);
    return result;
  }
  Var forward(Tape& tape, const Var& x) override { return run(tape, x, {}).y; }
  std::string describe() const override {
    return (kind_ == Kind::Lstm ? "LSTM layer " : "GRU layer ") + std::to_string(inputs_) + " → " +
           std::to_string(hidden_);
  }
  std::vector<Child> children() override {
    std::vector<Child> all{{"input_product", &input_},
                           {"hidden_product", &hidden_part_},
                           {"gates", &gates_},
                           {"hidden_state", &h_}};
    if (kind_ == Kind::Lstm) all.push_back({"cell_state", &c_});
    return all;
  }
  /// Of this layer's formats. Roles of single steps see the same tensors either way, and the same draws.
  std::string obstacle() const {
    struct Use {
      const Part& part;
      const char* role;
      const Quantizer& quantizer;
      bool of_sequence;
    };
    const OpFormats &fi = input_.own_formats(), &fh = hidden_part_.own_formats();
    for (const Use& use :
         {Use{input_, "input", fi.input, true}, Use{input_, "weight", fi.weight, false},
          Use{input_, "output", fi.output, true}, Use{hidden_part_, "weight", fh.weight, false}}) {
      const std::string why = obstacle_of(use.role, use.quantizer, use.of_sequence);
      if (!why.empty()) return use.part.path() + ": " + why;
    }
    const std::string why = nn::obstacle_of(fi.forward_acc);
    return why.empty() ? "" : input_.path() + ": " + why;
  }

 private:
  int64_t gates() const { return kind_ == Kind::Lstm ? 4 : 3; }
  double bound() const { return 1 / std::sqrt(static_cast<double>(hidden_)); }

  Kind kind_;
  int64_t inputs_, hidden_;
  ProductPart input_, hidden_part_;
  Part gates_, h_, c_;
};

Recurrent::~Recurrent() = default;

Recurrent::Recurrent(Kind kind, int64_t inputs, int64_t hidden, const RecurrentOptions& options,
                     const ops::RecurrentFormats& formats)
    : kind_(kind), inputs_(inputs), hidden_(hidden), options_(options) {
  const char* const name = kind == Kind::Lstm ? "LSTM" : "GRU";
  ULP_CHECK(inputs >= 1 && hidden >= 1 && options.layers >= 1,
            "{}: inputs, hidden and layers must be at least 1, got {}, {} and {}", name, inputs,
            hidden, options.layers);
  ULP_CHECK(options.dropout >= 0 && options.dropout < 1,
            "{}: the dropout must be from 0 to below 1, got {}", name, options.dropout);
  for (int64_t k = 0; k < options.layers; ++k) {
    layers_.push_back(
        std::make_unique<Layer>(kind, k == 0 ? inputs : hidden, hidden, options.bias, formats));
    if (options.dropout > 0 && k + 1 < options.layers)
      dropouts_.push_back(std::make_unique<Dropout>(options.dropout));
  }
}

std::string Recurrent::describe() const {
  return (kind_ == Kind::Lstm ? "LSTM " : "GRU ") + std::to_string(inputs_) + " → " +
         std::to_string(hidden_) +
         (options_.layers == 1 ? "" : ", " + std::to_string(options_.layers) + " layers") +
         (options_.bias ? "" : ", no bias");
}

std::vector<Module::Child> Recurrent::children() {
  std::vector<Child> all;
  for (size_t k = 0; k < layers_.size(); ++k) {
    all.push_back({"layer" + std::to_string(k + 1), layers_[k].get()});
    if (k < dropouts_.size())
      all.push_back({"dropout" + std::to_string(k + 1), dropouts_[k].get()});
  }
  return all;
}

Recurrent::Result Recurrent::run(Tape& tape, const Var& x,
                                 const std::vector<ops::RecurrentState>& states) {
  ULP_CHECK(states.empty() || states.size() == layers_.size(),
            "{}: {} layers need as many states, got {}", describe(), layers_.size(), states.size());
  Result result{x, {}};
  for (size_t k = 0; k < layers_.size(); ++k) {
    const ops::RecurrentResult r =
        layers_[k]->run(tape, result.y, states.empty() ? ops::RecurrentState{} : states[k]);
    result.y = k < dropouts_.size() ? (*dropouts_[k])(tape, r.y) : r.y;
    result.states.push_back(r.state);
  }
  return result;
}

Var Recurrent::forward(Tape& tape, const Var& x) {
  if (!carried_) return run(tape, x).y;
  ULP_CHECK(mode() == Mode::Evaluate && !tape.recording(),
            "{}: piece by piece it runs in evaluation mode without recording", describe());
  ULP_CHECK(x.value.defined() && x.shape().rank() == 3 && x.shape()[0] == carried_->batch,
            "{}: begun with {} sequences; the next piece must be ({}, T, {}), got {}", describe(),
            carried_->batch, carried_->batch, inputs_, x.value);
  ULP_CHECK(x.shape()[1] <= carried_->left, "{}: {} more elements, but there is room for {}",
            describe(), x.shape()[1], carried_->left);
  Result result = run(tape, x, carried_->states);
  carried_->states.clear();
  for (const ops::RecurrentState& s : result.states) {  // tensors alone: the tape may go
    ops::RecurrentState kept;
    kept.h.value = s.h.value;
    kept.c.value = s.c.value;
    carried_->states.push_back(kept);
  }
  carried_->left -= x.shape()[1];
  return result.y;
}

void Recurrent::begin(int64_t batch, int64_t longest) {
  ULP_CHECK(batch >= 1 && longest >= 1,
            "{}: pieces need at least one sequence and one element, got {} and {}", describe(),
            batch, longest);
  carried_ = Carried{batch, longest, {}};
}

void Recurrent::end() { carried_.reset(); }

std::string Recurrent::obstacle() const {
  for (const auto& layer : layers_) {
    std::string why = layer->obstacle();
    if (!why.empty()) return why;
  }
  return "";
}

}  // namespace ulp::nn
