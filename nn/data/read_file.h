#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace ulp::nn {

/// A regular file open for reading; its size is the one it had when it was opened.
class InputFile {
 public:
  /// Throws ulp::Error with the path and the system's reason.
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  uint64_t size() const { return size_; }
  /// Fills `to` from byte `offset` on. Throws if the file ends before that.
  void read(uint64_t offset, std::span<uint8_t> to) const;

 private:
  std::filesystem::path path_;
  int descriptor_;
  uint64_t size_ = 0;
};

std::vector<uint8_t> read_file(const std::filesystem::path& path);

/// Deflate turns two bits into at most 258 bytes: content never exceeds this many times the compressed size.
inline constexpr uint64_t kMaxGzipRatio = 1032;

/// The first `limit` bytes of gzip content, all of it if there are fewer; the check sums are compared where the end is
/// reached. Memory follows what is really there, not `limit`. `name` is for messages.
std::vector<uint8_t> gunzip(std::span<const uint8_t> compressed, size_t limit,
                            const std::string& name);

}  // namespace ulp::nn
