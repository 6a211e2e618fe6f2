#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "core/error.h"
#include "nn/data/safetensors.h"
#include "nn/module.h"

namespace ulp::nn {

/// A run between two steps: all that it needs to go on to the same bits. One taken from a run holds handles to the run's own
/// memory; one read from a file has its tensors on the CPU.
struct Checkpoint {
  uint64_t seed = 0;
  StepState state;
  std::map<std::string, Tensor> tensors;  // parameters, buffers and what optimizers keep, by name
  std::map<std::string, std::string> formats;  // tensor → the name of its format, where it has one
  std::map<uint32_t, Tensor> scalings;         // what delayed scaling remembers, see Run::scalings
  std::map<std::string, std::string> notes;    // the caller's, such as where it is in its data
  std::map<std::string, std::string> texts;    // the same for long ones

  /// Adds what `tensors()` and `formats()` of an optimizer say. Throws for a name that is taken, and for the format of a
  /// tensor that there is not.
  void add(const std::map<std::string, Tensor>& more,
           const std::map<std::string, std::string>& their_formats);
};

/// Seed, state, parameters and delayed scaling of a run. Waits for the device, which may know a newer state than the host.
Checkpoint checkpoint_of(const Run& run, const std::vector<Parameter*>& parameters);
/// The same with the model's buffers.
Checkpoint checkpoint_of(const Run& run, Module& model);

/// One safetensors file with a checksum, whole or not at all (AtomicFile). Tensors have their own names, `text.NAME` (U8) is
/// a long text and `delayed_scaling.STREAM` what delayed scaling remembers. Metadata: `ulp_checkpoint` (the layout's number),
/// `seed`, `state.FIELD`, `format.TENSOR` and `note.NAME`. The same on every device.
void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);

/// What load_checkpoint throws for a file that is whole, and of another version of this program: another layout, a field of
/// StepState or a key more or less.
class OtherVersion : public Error {
 public:
  using Error::Error;
};

/// Throws ulp::Error, one line, unless the file is a checkpoint to the last bit: Damaged (safetensors.h) if it can be read
/// and is none.
Checkpoint load_checkpoint(const std::filesystem::path& path);
/// The same from memory. `name` is for messages.
Checkpoint parse_checkpoint(std::span<const uint8_t> bytes, const std::string& name);

/// Puts what was saved into the run and the memory that `live` has handles of, whose addresses stay: a recorded step
/// (StepGraph) goes on with it. Checks first that both hold the same tensors of the same types, shapes and formats, with the
/// same seed, and that no count, scale or code of a table is out of its range; throws naming what differs, and then nothing
/// has changed. Notes and texts are the caller's to compare.
/// The order of the epoch is no part of it: Batches::shuffle(epoch, run.state().batch_offset) makes it again afterwards.
void restore(const Checkpoint& saved, const std::string& name, Run& run, const Checkpoint& live);

/// `delayed_scaling.0000beef`: the tensor of a random stream's delayed scale in a file, and back; empty for another name.
std::string scaling_name(uint32_t stream);
std::optional<uint32_t> scaling_stream(const std::string& name);
/// Throws unless the tensor can be such a state: F32, a scale and magnitudes, finite and not negative.
void check_scaling(const std::string& file, const std::string& name, const Tensor& tensor);

}  // namespace ulp::nn
