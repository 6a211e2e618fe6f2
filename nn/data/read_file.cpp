#include "nn/data/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <new>
#include <system_error>

#include "core/error.h"

namespace ulp::nn {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

bool is_gzip(std::span<const uint8_t> bytes) {
  return bytes.size() >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b;
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& path)
    : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  ULP_CHECK(descriptor_ >= 0, "{}: cannot be read: {}", path.native(), reason(errno));
  struct stat status {};
  const int error = ::fstat(descriptor_, &status) == 0 ? 0 : errno;
  if (error == 0 && S_ISREG(status.st_mode)) {
    size_ = static_cast<uint64_t>(status.st_size);
    return;
  }
  ::close(descriptor_);
  throw_error("{}: cannot be read: {}", path.native(),
              error != 0 ? reason(error) : "it is not a regular file");
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(uint64_t offset, std::span<uint8_t> to) const {
  while (!to.empty()) {
    const ssize_t count = ::pread(descriptor_, to.data(), to.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    ULP_CHECK(count >= 0, "{}: cannot be read: {}", path_.native(), reason(errno));
    ULP_CHECK(count > 0, "{}: ends at byte {}, {} more were expected", path_.native(), offset,
              to.size());
    to = to.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
}

std::vector<uint8_t> read_file(const std::filesystem::path& path) {
  const InputFile file(path);
  std::vector<uint8_t> bytes(file.size());
  file.read(0, bytes);
  return bytes;
}

std::vector<uint8_t> gunzip(std::span<const uint8_t> compressed, size_t limit,
                            const std::string& name) {
  constexpr int kGzipOnly = 15 + 16;  // zlib: the largest window, gzip header and trailer
  constexpr size_t kStep = size_t{1} << 20;
  z_stream stream{};
  const int begun = inflateInit2(&stream, kGzipOnly);
  if (begun == Z_MEM_ERROR) throw std::bad_alloc();
  ULP_CHECK(begun == Z_OK, "{}: zlib cannot be started", name);
  const std::unique_ptr<z_stream, int (*)(z_stream*)> owner(&stream, inflateEnd);

  std::vector<uint8_t> content;
  size_t filled = 0;
  size_t used = 0;
  while (filled < limit) {
    if (filled == content.size()) content.resize(std::min(limit, std::max(kStep, 2 * filled)));
    const size_t room = std::min(content.size() - filled, kStep);
    const size_t rest = std::min(compressed.size() - used, kStep);
    stream.next_in = const_cast<Bytef*>(compressed.data() + used);  // zlib only reads it
    stream.avail_in = static_cast<uInt>(rest);
    stream.next_out = content.data() + filled;
    stream.avail_out = static_cast<uInt>(room);
    const int status = inflate(&stream, Z_NO_FLUSH);
    if (status == Z_MEM_ERROR) throw std::bad_alloc();
    used += rest - stream.avail_in;
    filled += room - stream.avail_out;
    if (status == Z_STREAM_END) {
      if (used == compressed.size()) break;
      // gzip files may be several members in a row.
      ULP_CHECK(is_gzip(compressed.subspan(used)), "{}: {} bytes after the end of its gzip data",
                name, compressed.size() - used);
      ULP_CHECK(inflateReset(&stream) == Z_OK, "{}: zlib cannot be restarted", name);
      continue;
    }
    ULP_CHECK(status != Z_BUF_ERROR || used < compressed.size(),
              "{}: truncated, ends in the middle of its gzip data", name);
    ULP_CHECK(status == Z_OK, "{}: corrupt gzip data near byte {}{}{}", name, used,
              stream.msg != nullptr ? ": " : "", stream.msg != nullptr ? stream.msg : "");
  }
  content.resize(filled);
  return content;
}

}  // namespace ulp::nn
