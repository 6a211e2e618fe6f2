#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "core/error.h"
#include "core/tensor.h"

namespace ulp::nn {

/// What is thrown for a file whose bytes were read and are wrong: cut off, changed, or never of the layout. Other failures,
/// such as no permission or no memory, are plain ulp::Errors: they say nothing about the file.
class Damaged : public Error {
 public:
  using Error::Error;
};

struct SafetensorsFile {
  std::map<std::string, Tensor> tensors;  // contiguous, on the CPU
  std::map<std::string, std::string> metadata;
  bool has_checksum = false;  // it had one, and it was right
};

/// Yes: the metadata gets "ulp_checksum", the CRC-32 (zlib's) of the whole file with zeros in place of its eight digits.
enum class Checksum : uint8_t { No, Yes };

/// The safetensors layout: header length (8 bytes, little-endian), a JSON header padded with spaces to 8 bytes, the
/// elements, little-endian and row-major. Entries and elements come widest dtype first, then by name: without gaps,
/// and every tensor aligned to its elements. The same input gives the same bytes. The file appears whole or not at all.
/// CUDA tensors are copied to the CPU one at a time. Throws ulp::Error for an empty handle, text that is not UTF-8 and
/// whatever the disk refuses.
/// Source: https://github.com/huggingface/safetensors, "Format".
void save_safetensors(const std::filesystem::path& path,
                      const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata,
                      Checksum checksum = Checksum::No);

/// Believes nothing it reads: every length, name, type, shape and offset is checked against the file's size before
/// memory is taken for it, and a checksum where there is one. At most 100000 tensors and as many texts, so that the memory
/// for all of them is bounded too. Throws ulp::Error, one line with the file, what it holds and what is allowed: Damaged if
/// that is wrong.
SafetensorsFile load_safetensors(const std::filesystem::path& path);
/// The same from memory. `name` is for messages.
SafetensorsFile parse_safetensors(std::span<const uint8_t> bytes, const std::string& name);

}  // namespace ulp::nn
