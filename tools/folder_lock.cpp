#include "tools/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/error.h"

namespace ulp::tools {
namespace {

/// Is the open file still the one of that name? Who had it before may have removed it.
bool has_name(int descriptor, const std::filesystem::path& file) {
  struct stat open {
  }, named{};
  return ::fstat(descriptor, &open) == 0 && ::lstat(file.c_str(), &named) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

}  // namespace

FolderLock::FolderLock(const std::filesystem::path& dir) : file_(dir / ".ulp-lock") {
  while (true) {
    descriptor_ =
        ::open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    ULP_CHECK(descriptor_ >= 0, "{}: cannot be opened: {}", file_.string(),
              std::generic_category().message(errno));
    int error = 0;
    while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      error = errno;
      if (error != EINTR) break;
      error = 0;
    }
    if (error == EWOULDBLOCK) {
      ::close(descriptor_);
      throw_error(
          "--out {}: another run of ulp is writing there; wait until it ends, or give another "
          "--out",
          file_.parent_path().string());
    }
    if (error != 0 || has_name(descriptor_, file_)) return;
    ::close(descriptor_);
  }
}

FolderLock::~FolderLock() {
  if (has_name(descriptor_, file_)) ::unlink(file_.c_str());
  ::close(descriptor_);
}

}  // namespace ulp::tools
