#include "nn/embedding.h"

#include <cmath>

#include "autograd/scaling.h"
#include "nn/pieces.h"

namespace ulp::nn {
namespace {

/// Deviation 0.02: ±0.02·√3.  Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
Initialiser small() { return Initialiser::uniform(0.034641016151377546); }

}  // namespace

Embedding::Embedding(int64_t vocabulary, int64_t width, OpFormats formats)
    : vocabulary_(vocabulary), width_(width), formats_(std::move(formats)) {
  ULP_CHECK(vocabulary >= 1 && vocabulary < INT32_MAX && width >= 1,
            "Embedding: sizes must be at least 1, got {} → {}", vocabulary, width);
  weight_ = &add_parameter("weight", {vocabulary, width}, small());
}

Var Embedding::forward(Tape& tape, const Var& tokens) {
  const int64_t count = tokens.value.defined() ? tokens.value.numel() : 0;
  const double rows = unit_ ? unit_rows(count) * std::sqrt(static_cast<double>(vocabulary_)) : 1.0;
  return ops::embedding(tape, tokens.value, ops::scaling(tape, tape.watch(*weight_), 1, rows),
                        formats_, site());
}

bool Embedding::unit_scale(const UnitPlace&) {
  set_initialiser(*weight_, unit_weights());
  unit_ = true;
  set_scaled("dw × (vocabulary/tokens)^½");
  return true;
}

std::string Embedding::describe() const {
  return "Embedding " + std::to_string(vocabulary_) + " → " + std::to_string(width_);
}

TiedLinear::TiedLinear(Embedding& table, OpFormats formats)
    : table_(table), formats_(std::move(formats)) {}

Var TiedLinear::forward(Tape& tape, const Var& x) {
  return ops::linear(tape, x, tape.watch(table_.weight()), {}, formats_, site());
}

std::string TiedLinear::describe() const {
  return "TiedLinear " + std::to_string(table_.width()) + " → " +
         std::to_string(table_.vocabulary()) + ", the embedding's table";
}

std::vector<const char*> TiedLinear::roles() const {
  return {"input",      "weight",         "output",   "grad_output_dx", "weight_dx",
          "grad_input", "grad_output_dw", "input_dw", "grad_weight"};
}

LearnedPositions::LearnedPositions(int64_t context, int64_t width, OpFormats formats)
    : context_(context), width_(width), formats_(std::move(formats)) {
  ULP_CHECK(context >= 1 && width >= 1, "LearnedPositions: sizes must be at least 1, got {} × {}",
            context, width);
  weight_ = &add_parameter("weight", {context, width}, small());
}

Var LearnedPositions::forward(Tape& tape, const Var& x) {
  const bool in_pieces = offset_ >= 0 && mode() == Mode::Evaluate && !tape.recording();
  const bool sequences = unit_ && x.value.defined() && x.shape().rank() > 0;
  const Var table =
      ops::scaling(tape, tape.watch(*weight_), 1, sequences ? unit_rows(x.shape()[0]) : 1.0);
  const Var sum = ops::add_positions(tape, x, table, in_pieces ? offset_ : 0, formats_, site());
  const Var y = unit_ ? scaled(tape, sum, *unit_) : sum;
  if (in_pieces) offset_ += x.shape()[1];
  return y;
}

bool LearnedPositions::unit_scale(const UnitPlace& place) {
  set_initialiser(*weight_, unit_weights());
  unit_ = settled({std::sqrt(0.5), 1}, place.edge);
  set_scaled(unit_text(*unit_) + ", dw × N^−½");
  return true;
}

std::string LearnedPositions::describe() const {
  return "LearnedPositions " + std::to_string(context_) + " × " + std::to_string(width_);
}

void LearnedPositions::begin(int64_t, int64_t longest) {
  ULP_CHECK(longest <= context_, "LearnedPositions: there are {} positions, and {} are wanted",
            context_, longest);
  offset_ = 0;
}

std::string LearnedPositions::obstacle() const { return obstacle_of("output", formats_.output); }

}  // namespace ulp::nn
