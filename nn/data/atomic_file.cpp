#include "nn/data/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace ulp::nn {
namespace fs = std::filesystem;
namespace {

fs::path directory_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Short, so that any allowed file name leaves room for it.
std::string temporary_name() {
  static std::atomic<uint64_t> count{0};
  return ".ulp-" + std::to_string(::getpid()) + "-" + std::to_string(count++) + ".tmp";
}

bool is_temporary_name(std::string_view name) {
  constexpr std::string_view kBegin = ".ulp-", kEnd = ".tmp";
  if (!name.starts_with(kBegin) || !name.ends_with(kEnd)) return false;
  name.remove_prefix(kBegin.size());
  name.remove_suffix(kEnd.size());
  const size_t dash = name.find('-');
  const auto is_number = [](std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
  };
  return dash != std::string_view::npos && is_number(name.substr(0, dash)) &&
         is_number(name.substr(dash + 1));
}

// What names an open file that has no name.
std::string descriptor_path(int descriptor) {
  return "/proc/self/fd/" + std::to_string(descriptor);
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path) : path_(path) {
  ULP_CHECK(path.has_filename(), "{}: cannot be written: it names no file", path.native());
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  ULP_CHECK(!fs::exists(status) || fs::is_regular_file(status),
            "{}: cannot be written: it exists and is not a regular file", path.native());
  open_unnamed();
  if (descriptor_ < 0) open_named();
  // What was for its owner's eyes only stays so.
  struct stat old;
  if (::lstat(path.c_str(), &old) == 0 && S_ISREG(old.st_mode) &&
      ::fchmod(descriptor_, old.st_mode & 07777) != 0)
    fail("cannot be written with the permissions of the file it replaces", errno);
}

void AtomicFile::open_unnamed() {
  descriptor_ = ::open(directory_of(path_).c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
  if (descriptor_ >= 0 && ::access(descriptor_path(descriptor_).c_str(), F_OK) != 0)
    ::close(std::exchange(descriptor_, -1));  // without /proc it could never get a name
}

void AtomicFile::open_named() {
  do {
    temporary_ = directory_of(path_) / temporary_name();
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EEXIST);
  if (descriptor_ < 0) fail("cannot be written", errno);
}

// A link cannot replace a file, a rename can: the file gets a temporary name for as long as that takes.
void AtomicFile::give_name() {
  const std::string unnamed = descriptor_path(descriptor_);
  int status;
  do {
    temporary_ = directory_of(path_) / temporary_name();
    status = ::linkat(AT_FDCWD, unnamed.c_str(), AT_FDCWD, temporary_.c_str(), AT_SYMLINK_FOLLOW);
  } while (status != 0 && errno == EEXIST);
  if (status == 0) return;
  temporary_.clear();  // not ours
  fail("cannot be written", errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* what, int error) const {
  throw_error("{}: {}: {}", path_.native(), what, std::generic_category().message(error));
}

void AtomicFile::write(std::span<const uint8_t> bytes) {
  ULP_CHECK(descriptor_ >= 0, "{}: cannot be written: it is committed", path_.native());
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot be written", errno);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void AtomicFile::write(std::string_view text) {
  write({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

void AtomicFile::write_at(uint64_t offset, std::string_view text) {
  ULP_CHECK(descriptor_ >= 0, "{}: cannot be written: it is committed", path_.native());
  while (!text.empty()) {
    const ssize_t count =
        ::pwrite(descriptor_, text.data(), text.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot be written", errno);
    text.remove_prefix(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
}

void AtomicFile::commit() {
  ULP_CHECK(descriptor_ >= 0, "{}: cannot be committed twice", path_.native());
  if (::fsync(descriptor_) != 0) fail("cannot be written", errno);
  if (temporary_.empty()) give_name();
  if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot be written", errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be replaced", errno);
  temporary_.clear();
  sync_directory();
}

void AtomicFile::sync_directory() const {
  const int directory = ::open(directory_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0 && errno == EACCES) return;  // one may write into a directory and not list it
  if (directory < 0) fail("is written, its directory cannot be synchronised", errno);
  const int error = ::fsync(directory) == 0 ? 0 : errno;
  ::close(directory);
  // EINVAL: a file system that has nothing to synchronise for directories.
  if (error != 0 && error != EINVAL)
    fail("is written, its directory cannot be synchronised", error);
}

void write_file_atomically(const fs::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

void remove_temporary_files(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error))
    if (is_temporary_name(at->path().filename().native()) &&
        at->symlink_status().type() == fs::file_type::regular)
      ULP_CHECK(::unlink(at->path().c_str()) == 0 || errno == ENOENT, "{}: cannot be removed: {}",
                at->path().native(), std::generic_category().message(errno));
  ULP_CHECK(!error, "{}: cannot be listed: {}", directory.native(), error.message());
}

}  // namespace ulp::nn
