#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "autograd/recurrent.h"
#include "nn/dropout.h"
#include "nn/incremental.h"
#include "nn/module.h"

namespace ulp::nn {

/// Options of LSTM and GRU.
struct RecurrentOptions {
  int64_t layers = 1;
  double dropout = 0;  // of what a layer gives to the next one
  bool bias = true;
};

/// What LSTM and GRU share: layers one above the other, each over the whole sequence.  x: (N, T, In) → (N, T, hidden), from states
/// of zeros.
///
/// Children: layer1, layer2 … with input_product, hidden_product, gates, hidden_state and cell_state (LSTM) below, whose formats
/// are those parts of ops::RecurrentFormats: a policy reaches each by its path or by the type `recurrent`. Parameters, uniform
/// within ±1/√hidden as PyTorch's: layerK.input_product.weight (G·H, In) and .bias (G·H), layerK.hidden_product.weight (G·H, H)
/// and .bias. Between layers dropoutK, if there is dropout.
///
/// Piece by piece (Incremental) the states are carried from one forward pass to the next.
class Recurrent : public Module, public Incremental {
 public:
  Recurrent(const Recurrent&) = delete;
  ~Recurrent() override;

  Var forward(Tape& tape, const Var& x) override;
  std::string describe() const override;
  std::vector<Child> children() override;

  void begin(int64_t batch, int64_t longest) override;
  void end() override;
  std::string obstacle() const override;

  /// The same from given states, one a layer, and with the last ones. None: zeros.
  struct Result {
    Var y;
    std::vector<ops::RecurrentState> states;
  };
  Result run(Tape& tape, const Var& x, const std::vector<ops::RecurrentState>& states = {});

  int64_t hidden() const { return hidden_; }

 protected:
  enum class Kind : uint8_t { Lstm, Gru };
  Recurrent(Kind kind, int64_t inputs, int64_t hidden, const RecurrentOptions& options,
            const ops::RecurrentFormats& formats);

 private:
  class Layer;

  Kind kind_;
  int64_t inputs_, hidden_;
  RecurrentOptions options_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<std::unique_ptr<Dropout>> dropouts_;

  struct Carried {
    int64_t batch, left;  // elements that may still come
    std::vector<ops::RecurrentState> states;
  };
  std::optional<Carried> carried_;
};

/// ops::lstm, layer by layer.
class LSTM : public Recurrent {
 public:
  /// Throws unless the sizes are at least 1 and 0 ≤ dropout < 1.
  LSTM(int64_t inputs, int64_t hidden, const RecurrentOptions& options = {},
       const ops::RecurrentFormats& formats = {})
      : Recurrent(Kind::Lstm, inputs, hidden, options, formats) {}
};

/// ops::gru, layer by layer. Its formats have no cell_state.
class GRU : public Recurrent {
 public:
  GRU(int64_t inputs, int64_t hidden, const RecurrentOptions& options = {},
      const ops::RecurrentFormats& formats = {})
      : Recurrent(Kind::Gru, inputs, hidden, options, formats) {}
};

}  // namespace ulp::nn
