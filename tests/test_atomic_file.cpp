#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "nn/data/atomic_file.h"
#include "tests/files.h"

using namespace ulp;
using namespace ulp::nn;
using namespace ulp::tests;
namespace fs = std::filesystem;

TEST_SUITE("atomic_file") {
  TEST_CASE("atomic files") {
    const TemporaryFolder folder;
    const fs::path path = folder / "out.jsonl";
    const int descriptor = ::open(folder.path().c_str(), O_TMPFILE | O_WRONLY, 0600);
    const bool unnamed = descriptor >= 0;  // the file system has files without a name
    if (unnamed) ::close(descriptor);
    write_file_atomically(path, "first\n");
    CHECK(get(path) == "first\n");
    {
      AtomicFile file(path);
      file.write("half of the sec");
      CHECK(get(path) == "first\n");
      if (unnamed) CHECK(folder.entries() == std::vector<std::string>{"out.jsonl"});
    }
    CHECK(get(path) == "first\n");
    CHECK(folder.entries() == std::vector<std::string>{"out.jsonl"});
    write_file_atomically(path, std::string("\0binary\n", 8));
    CHECK(get(path) == std::string("\0binary\n", 8));
    write_file_atomically(folder / std::string(255, 'n'), "the longest name");
    CHECK(get(folder / std::string(255, 'n')) == "the longest name");
    CHECK(folder.entries().size() == 2);

    AtomicFile twice(path);
    twice.commit();
    CHECK(message_of([&] { twice.commit(); }) == Contains("twice"));
    CHECK(message_of([&] { twice.write("more"); }) == Contains("committed"));
  }

  TEST_CASE("a link is replaced, by a file with the permissions of any new one") {
    const TemporaryFolder folder;
    put(folder / "other", "kept");
    fs::create_symlink(folder / "other", folder / "link");
    const mode_t old_mask = ::umask(027);
    write_file_atomically(folder / "link", "new");
    ::umask(old_mask);
    CHECK(get(folder / "other") == "kept");
    CHECK(get(folder / "link") == "new");
    CHECK(fs::symlink_status(folder / "link").type() == fs::file_type::regular);
    CHECK(fs::status(folder / "link").permissions() ==
          (fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read));
  }

  TEST_CASE("a file keeps its permissions when it is replaced") {
    const TemporaryFolder folder;
    put(folder / "private", "old");
    const fs::perms owner_only = fs::perms::owner_read | fs::perms::owner_write;
    fs::permissions(folder / "private", owner_only);
    write_file_atomically(folder / "private", "new");
    CHECK(get(folder / "private") == "new");
    CHECK(fs::status(folder / "private").permissions() == owner_only);
  }

  TEST_CASE("temporary files of killed programs, and nothing else, can be removed") {
    const TemporaryFolder folder;
    for (const char* name : {".ulp-1-0.tmp", ".ulp-4194304-123.tmp"}) put(folder / name, "half");
    const std::vector<std::string> others = {".ulp--0.tmp",    ".ulp-1-.tmp", ".ulp-1-2-3.tmp",
                                             ".ulp-1-2.tmp.x", ".ulp-1.tmp",  ".ulp-x-1.tmp",
                                             "notes"};
    for (const std::string& name : others) put(folder / name, "mine");
    remove_temporary_files(folder.path());
    CHECK(folder.entries() == others);
    fs::create_directory(folder / ".ulp-1-0.tmp");
    fs::create_symlink(folder / "notes", folder / ".ulp-1-1.tmp");
    remove_temporary_files(folder.path());
    CHECK(folder.entries().size() == others.size() + 2);
    CHECK(message_of([&] { remove_temporary_files(folder / "none"); }) ==
          Contains("No such file or directory"));
  }

  TEST_CASE("what cannot be written leaves nothing behind") {
    const TemporaryFolder folder;
    const auto message = [](const fs::path& path) {
      return message_of([&] { write_file_atomically(path, "x"); });
    };
    const fs::path lost = folder / "no such folder" / "out";
    CHECK(message(lost) == lost.native() + ": cannot be written: No such file or directory");
    CHECK(message(folder.path()) == Contains("is not a regular file"));
    CHECK(message("/dev/null") == Contains("is not a regular file"));
    CHECK(message(folder / "") == Contains("names no file"));
    CHECK(message(folder / std::string(256, 'n')) == Contains("File name too long"));
    if (::geteuid() != 0) {  // root may write anywhere
      fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec);
      CHECK(message(folder / "out") == Contains("Permission denied"));
      fs::permissions(folder.path(), fs::perms::owner_all);
    }
    CHECK(folder.entries().empty());

    // A limit on file sizes fails a write half way, as a full disk does.
    put(folder / "out", "old");
    rlimit old_limit{};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &old_limit) == 0);
    const rlimit small{4096, old_limit.rlim_max};
    const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
    const std::string full =
        message_of([&] { write_file_atomically(folder / "out", std::string(100'000, 'x')); });
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &old_limit) == 0);
    ::signal(SIGXFSZ, old_handler);
    CHECK(full == (folder / "out").native() + ": cannot be written: File too large");
    CHECK(get(folder / "out") == "old");
    CHECK(folder.entries() == std::vector<std::string>{"out"});
  }
}
