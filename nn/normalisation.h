#pragma once

#include <vector>

#include "nn/data/dataset.h"

namespace ulp::nn {

/// (value − mean) / std for each channel of an image, of values as the data set scales them ([0, 1] for bytes). Empty: values
/// stay as they are.
struct Normalisation {
  std::vector<double> mean, std;
  bool empty() const { return mean.empty(); }
};

/// Mean and standard deviation (of the population) of each channel over all pixels of the training split. Throws, naming the
/// channel, where they are all the same. Sums of bytes are exact, of F32 in fp64 in the order of the samples.
Normalisation channel_statistics(const Dataset& data);

/// Throws unless there is one finite mean and one finite, positive std a channel.
void check_normalisation(const Normalisation& normalisation, int64_t channels);

}  // namespace ulp::nn
