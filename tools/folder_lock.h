#pragma once

#include <filesystem>

namespace ulp::tools {

/// The only one of its kind in a folder while it lives, in all processes: FOLDER/.ulp-lock with an flock, which the kernel
/// takes back if the process dies. Removed at the end. Throws ulp::Error if somebody else has it; file systems without
/// locks give no protection.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& dir);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
};

}  // namespace ulp::tools
