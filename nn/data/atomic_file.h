#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace ulp::nn {

/// A file that appears under its name only when it is complete: written beside it under a temporary name, synchronised
/// to the disk, renamed. Whoever reads the path sees the old file or the new one. Without commit() nothing changes and
/// the temporary file is removed. Every failure throws ulp::Error with the path and the system's reason.
class AtomicFile {
 public:
  /// The directory must exist. What is at `path` must be a regular file or nothing; a link is replaced.
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const uint8_t> bytes);
  void write(std::string_view text);
  void commit();

 private:
  [[noreturn]] void fail(const char* what, int error) const;
  void sync_directory() const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty once renamed
  int descriptor_ = -1;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

}  // namespace ulp::nn
