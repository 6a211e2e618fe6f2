#pragma once

#include <cstdint>

#include "core/bits.h"

namespace ulp {

/// What batches scored, added up where the model runs.
struct ScoreTotals {
  int64_t samples = 0, correct = 0;
  double loss = 0;  // Σ mean loss of a batch · its samples, in the order of the batches
  int64_t batches = 0;
  int64_t bad_batch = -1;  // the first whose loss is not a finite number
  float bad_loss = 0;      // that loss
  float last_loss = 0;
};

/// Adds a batch of n samples with this mean loss, all but `correct`.
ULP_HD void add_batch(ScoreTotals& t, float loss, int64_t n) {
  if (t.bad_batch < 0 && (bits_of(loss) & ~kSignBit) >= kInfinityBits) {
    t.bad_batch = t.batches;
    t.bad_loss = loss;
  }
  ++t.batches;
  t.samples += n;
  t.loss += static_cast<double>(loss) * static_cast<double>(n);
  t.last_loss = loss;
}

}  // namespace ulp
