#pragma once

#include <map>
#include <string>
#include <vector>

#include "nn/batches.h"
#include "nn/norm.h"

namespace ulp::nn {

/// Sets the running statistics of a model's batch norms to those of its weights as they are: the mean over the whole batches of
/// `batches`, in the order and with the augmentation of an epoch, of what each batch norm sees in a forward pass in Mode::Train
/// that records nothing (variances with 1/(R − 1), as training takes them). One forward pass over the samples; none, and nothing
/// drawn, in a model without batch norm. Draws as of the current step; afterwards the run stands at a fresh one. What delayed
/// scaling remembers is used and stays. Not within a recorded step; between epochs, as it walks through the source.
/// Source: the batch normalisation update of SWA, arXiv 1803.05407.
void recompute_running_statistics(Run& run, Module& model, BatchSource& batches, int64_t epoch);

/// A second set of a model's running statistics, for weights that take the place of those that train (optim::Average).
///   optim::Average::InPlace weights(average);
///   RunningStatistics::InPlace in_place(statistics);
///   recompute_running_statistics(run, model, batches, epoch);
class RunningStatistics {
 public:
  /// As they are now, of an initialised model, which must live as long.
  RunningStatistics(Run& run, Module& model);

  /// While it lives, the batch norms hold the second set. Not around a recorded step.
  class InPlace {
   public:
    explicit InPlace(RunningStatistics& statistics) : statistics_(statistics) {
      statistics_.exchange();
    }
    ~InPlace() { statistics_.exchange(); }
    InPlace(const InPlace&) = delete;
    InPlace& operator=(const InPlace&) = delete;

   private:
    RunningStatistics& statistics_;
  };

  /// "<buffer path>.average" each; none in a model without batch norm. Handles share memory.
  std::map<std::string, Tensor> tensors() const;

 private:
  struct Second {
    Buffer* buffer;
    Tensor value;
  };
  void exchange();

  std::vector<Second> all_;
};

}  // namespace ulp::nn
