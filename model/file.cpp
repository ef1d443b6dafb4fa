#include "model/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>

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

AtomicFile::AtomicFile(const std::filesystem::path& path) : path_(path) {
  static std::atomic<int> serial{0};
  temporary_ = path;
  temporary_ += concat(".", ::getpid(), ".", serial++, ".tmp");
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  DSV2_CHECK(fd_ >= 0, path_.string(), ": cannot be created: ", reason());
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
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

void AtomicFile::commit() {
  DSV2_CHECK(::fsync(fd_) == 0, path_.string(), ": cannot be written: ", reason());
  const int closed = ::close(fd_);
  fd_ = -1;
  DSV2_CHECK(closed == 0, path_.string(), ": cannot be written: ", reason());
  DSV2_CHECK(::rename(temporary_.c_str(), path_.c_str()) == 0, path_.string(), ": cannot be replaced: ", reason());
  temporary_.clear();
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace dsv2
