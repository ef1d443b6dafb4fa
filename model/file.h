// Files that nobody vouches for, and files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace dsv2 {

/// Largest JSON text that is read (config, index, safetensors header): the limit of the safetensors format.
inline constexpr std::int64_t kMaxJsonBytes = 100'000'000;

/// The whole of a regular file. Throws Error naming the file when it is missing, not a regular file, not readable or
/// larger than `max_bytes`.
std::string read_text_file(const std::filesystem::path& path, std::int64_t max_bytes = kMaxJsonBytes);

/// A regular file mapped for reading. Throws Error as read_text_file(). An empty file has no bytes.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A path that exists no longer than this object: its end removes what is there, a folder with all that it holds.
class TemporaryPath {
 public:
  explicit TemporaryPath(std::filesystem::path path);
  ~TemporaryPath();
  TemporaryPath(const TemporaryPath&) = delete;
  TemporaryPath& operator=(const TemporaryPath&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void release();  ///< what is there now stays

 private:
  std::filesystem::path path_;
  bool held_ = true;
};

/// A new, empty folder where the system keeps temporary ones. Throws Error when it cannot be made.
std::filesystem::path make_temporary_folder();

/// For a process that is about to be ended from outside: removes what every TemporaryPath stands for. From then on
/// whoever makes or ends a TemporaryPath waits forever, so that nothing new is left either.
void remove_temporaries();

/// Writes beside `path` and takes its name in commit(), so readers see the old file or the whole new one. Without
/// commit() nothing is left behind. Throws Error naming the file and the system's reason.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes);                          ///< at the end
  void write_at(std::int64_t offset, const void* data, std::size_t bytes);  ///< over what was written
  void close();   ///< all of it is on the disk; nothing more can be written
  void commit();  ///< after close(), if nobody called it yet

 private:
  std::filesystem::path path_;
  TemporaryPath temporary_;
  int fd_ = -1;
};

/// `text` as the whole of the file `path`, through AtomicFile.
void write_text_file(const std::filesystem::path& path, std::string_view text);

}  // namespace dsv2
