#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "autograd/step_graph.h"
#include "nn/data/dataset.h"
#include "nn/evaluate.h"
#include "nn/models/sequence_options.h"
#include "nn/policy.h"
#include "nn/sequential.h"
#include "nn/training_loss.h"
#include "optim/average.h"
#include "optim/grad_scaler.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"

namespace ulp::tools {

inline constexpr int64_t kMaxWidth = 1000000;  // of a hidden layer
inline constexpr int64_t kMaxLayers = 1000;    // of models of texts

/// An average as it is asked for; the training makes steps of its moments.
struct Averaging {
  optim::AverageOptions options;
  optim::Moment start, every;
};

/// A published method as it was asked for: its settings are in the experiment already.
struct RecipeUse {
  std::string name, source, flags;    // flags: those of it that hold
  std::vector<std::string> replaced;  // "--lr-schedule swalp": given otherwise, or of no use
};

/// Everything that decides a training run. What it prints and what config.json holds is this, resolved.
struct Experiment {
  std::string data = "digits";
  std::string model = "mlp";
  std::vector<int64_t> hidden = {256, 128};
  nn::LossKind loss = nn::LossKind::CrossEntropy;
  nn::WeightScheme init = nn::WeightScheme::Standard;
  nn::SequenceOptions sequence;  // of models of texts; its context is the data's
  nn::TokenKind tokens = nn::TokenKind::Characters;  // of texts
  double validation = 0.1;                           // the share of a text
  int64_t epochs = 10;
  int64_t epoch_steps = 0;  // of texts; 0: as many as there are windows from end to end
  int64_t batch_size = 128;
  uint64_t seed = 1;
  Device device{};
  Math math = Math::Strict;
  StepGraph::Use graph = StepGraph::Use::Auto;
  std::optional<RecipeUse> recipe;       // for people; what it stands for is in the rest
  nn::Policy policy;                     // which formats go where
  optim::OptimizerOptions optimizer;     // its lr is the schedule's base
  std::string lr_schedule = "constant";  // as ScheduleSpec::text writes it
  optim::GradScalerOptions scaling;
  int64_t accumulate_steps = 1;  // batches a step
  std::optional<Averaging> average;
  nn::Normalisation normalisation;
  Augmentation augmentation;
  int64_t resident_bytes = INT64_MAX;  // of samples on the device; no result depends on it
  bool stats = false;                  // what rounding does to every role goes into metrics.jsonl

  /// The same run in fp32 throughout, without loss scaling; clipped and averaged alike.
  Experiment baseline() const;
};

/// Tells data sets apart: a checksum of all samples and labels; of a text, of its tokens.
std::string fingerprint(const nn::Dataset& data);

nlohmann::ordered_json to_json(const Experiment& experiment, const nn::Dataset& data);

/// What config.json says of a trained model, as far as its forward pass needs it.
struct SavedExperiment {
  Experiment experiment;
  int64_t inputs = 0, classes = 0;
  std::optional<Shape> sample_shape;  // of the images; older files have none
  nn::Vocabulary vocabulary;          // of a text
  std::string fingerprint;            // of a text; older files have none
};
/// Reads what to_json wrote. Throws ulp::Error naming the file and the key that is missing or wrong.
SavedExperiment read_config(const std::filesystem::path& file);

/// The whole resolved configuration for people, formats of layers apart.
std::string describe(const Experiment& experiment, const nn::Dataset& data, nn::Module& model);

/// The models there are: "mlp, lenet5, …".
std::string model_list();
std::unique_ptr<nn::Sequential> make_model(const Experiment& experiment, const nn::Dataset& data);

/// Reads the data of an experiment: images, or a text where its name says so. Throws where the model is not for it. `known`: the
/// characters of a trained model, which a text must keep to; empty: the text's own.
nn::Dataset load_data(const Experiment& experiment, const nn::Vocabulary& known = {});
/// Batches of the training split.
std::unique_ptr<nn::BatchSource> training_batches(Run& run, const nn::Dataset& data,
                                                  const Experiment& experiment);
/// The test split in batches of a fixed size, so that block formats see the same blocks in every evaluation.
std::unique_ptr<nn::BatchSource> test_batches(Run& run, const nn::Dataset& data,
                                              const Experiment& experiment);
nn::Score test_score(Run& run, nn::Module& model, nn::BatchSource& test,
                     const nn::TrainingLoss& loss);
/// "  perplexity 4.21" of a text; empty of images.
std::string perplexity_text(const nn::Dataset& data, double loss);
/// What is scored after each epoch: "validation" of a text, "test" of images.
const char* test_name(const nn::Dataset& data);

/// Makes the folder of a run. Throws ulp::Error if there cannot be one or nothing can be written there.
void make_folder(const std::filesystem::path& dir);

}  // namespace ulp::tools
