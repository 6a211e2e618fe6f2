#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace ulp::nn {

/// A file that appears under its name only when it is complete: written in the same directory without a name, or under
/// a temporary one where the file system has no unnamed files, synchronised to the disk, renamed. Whoever reads the path
/// sees the old file or the new one. Without commit() nothing changes and nothing is left; a killed program leaves at
/// most a temporary name (see remove_temporary_files). Every failure throws ulp::Error with the path and the system's
/// reason.
class AtomicFile {
 public:
  /// The directory must exist. What is at `path` must be a regular file or nothing; a link is replaced.
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const uint8_t> bytes);
  void write(std::string_view text);
  /// Over what was written there.
  void write_at(uint64_t offset, std::string_view text);
  void commit();

 private:
  [[noreturn]] void fail(const char* what, int error) const;
  void open_unnamed();
  void open_named();
  void give_name();
  void sync_directory() const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty while there is no such name
  int descriptor_ = -1;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

/// Removes the temporary files that killed programs left in the directory. Nobody else may be writing there.
void remove_temporary_files(const std::filesystem::path& directory);

}  // namespace ulp::nn
