#include "model/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "model/error.h"

namespace dsv2 {
namespace {

std::string reason() { return std::generic_category().message(errno); }

/// An open regular file; closed with the object.
struct Readable {
  int fd;
  std::int64_t size = 0;

  // O_NONBLOCK: opening a FIFO must fail below, not wait for a writer.
  explicit Readable(const std::filesystem::path& path) : fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    DSV2_CHECK(fd >= 0, path.string(), ": cannot be opened: ", reason());
    struct stat info {};
    const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    if (!regular) ::close(fd);
    DSV2_CHECK(regular, path.string(), ": expected a regular file, found ",
               S_ISDIR(info.st_mode) ? "a directory" : "something else");
    size = info.st_size;
  }
  ~Readable() { ::close(fd); }
  Readable(const Readable&) = delete;
  Readable& operator=(const Readable&) = delete;
};

}  // namespace

std::string read_text_file(const std::filesystem::path& path, std::int64_t max_bytes) {
  const Readable file(path);
  DSV2_CHECK(file.size <= max_bytes, path.string(), ": expected at most ", max_bytes, " bytes, found ", file.size);
  std::string text(static_cast<std::size_t>(file.size), '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(file.fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    DSV2_CHECK(n >= 0, path.string(), ": cannot be read: ", reason());
    if (n == 0) break;  // shrank since fstat
    done += static_cast<std::size_t>(n);
  }
  text.resize(done);
  return text;
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Readable file(path);
  if (file.size == 0) return;
  void* const p = ::mmap(nullptr, static_cast<std::size_t>(file.size), PROT_READ, MAP_PRIVATE, file.fd, 0);
  DSV2_CHECK(p != MAP_FAILED, path.string(), ": cannot be mapped: ", reason());
  data_ = static_cast<const std::byte*>(p);
  size_ = static_cast<std::size_t>(file.size);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

namespace {

/// Every TemporaryPath alive. Never destroyed: a signal may come while static objects are.
struct Temporaries {
  std::mutex mutex;
  std::set<std::filesystem::path> paths;
};
Temporaries& temporaries() {
  static auto* const all = new Temporaries;
  return *all;
}

std::filesystem::path beside(std::filesystem::path path) {
  static std::atomic<int> serial{0};
  path += concat(".", ::getpid(), ".", serial++, ".tmp");
  return path;
}

}  // namespace

TemporaryPath::TemporaryPath(std::filesystem::path path) : path_(std::move(path)) {
  const std::lock_guard lock(temporaries().mutex);
  temporaries().paths.insert(path_);
}

TemporaryPath::~TemporaryPath() {
  if (!held_) return;
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
  release();
}

void TemporaryPath::release() {
  const std::lock_guard lock(temporaries().mutex);
  temporaries().paths.erase(path_);
  held_ = false;
}

void remove_temporaries() {
  temporaries().mutex.lock();  // and never unlocked
  std::error_code ignored;
  for (const auto& path : temporaries().paths) std::filesystem::remove_all(path, ignored);
}

std::filesystem::path make_temporary_folder() {
  std::string name = (std::filesystem::temp_directory_path() / "dsv2-XXXXXX").string();
  DSV2_CHECK(::mkdtemp(name.data()), name, ": cannot be made: ", reason());
  return name;
}

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path), temporary_(beside(path)) {
  fd_ = ::open(temporary_.path().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ >= 0) return;
  const std::string why = reason();
  temporary_.release();  // what is there, if anything, is not ours
  fail(path_.string(), ": cannot be created: ", why);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  const auto* p = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    DSV2_CHECK(n > 0, path_.string(), ": cannot be written: ", reason());
    p += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void AtomicFile::write_at(std::int64_t offset, const void* data, std::size_t bytes) {
  const ssize_t n = ::pwrite(fd_, data, bytes, offset);
  DSV2_CHECK(n == static_cast<ssize_t>(bytes), path_.string(), ": cannot be written: ", reason());
}

void AtomicFile::close() {
  if (fd_ < 0) return;
  DSV2_CHECK(::fsync(fd_) == 0, path_.string(), ": cannot be written: ", reason());
  const int closed = ::close(fd_);
  fd_ = -1;
  DSV2_CHECK(closed == 0, path_.string(), ": cannot be written: ", reason());
}

void AtomicFile::commit() {
  close();
  DSV2_CHECK(::rename(temporary_.path().c_str(), path_.c_str()) == 0, path_.string(),
             ": cannot be replaced: ", reason());
  temporary_.release();
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace dsv2
