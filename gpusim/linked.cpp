#include "gpusim/linked.h"

#include <elf.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <vector>

#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::uint64_t kLargestTable = 64 << 20;  // of names or section headers: more is a broken file

/// A file of ELF, read piece by piece: a program may be large.
class ElfFile {
 public:
  explicit ElfFile(const std::string& path) : path_(path), in_(path, std::ios::binary) {
    DSV2_CHECK(in_, path, ": cannot be read");
  }

  template <class T>
  T read(std::uint64_t at) {
    T value;
    in_.seekg(static_cast<std::streamoff>(at));
    in_.read(reinterpret_cast<char*>(&value), sizeof value);
    DSV2_CHECK(in_, path_, ": not a whole ELF file: it ends before byte ", at + sizeof value);
    return value;
  }

  std::string bytes(std::uint64_t at, std::uint64_t size) {
    DSV2_CHECK(size <= kLargestTable, path_, ": not a sound ELF file: a table of ", size, " bytes");
    std::string out(size, '\0');
    in_.seekg(static_cast<std::streamoff>(at));
    in_.read(out.data(), static_cast<std::streamsize>(size));
    DSV2_CHECK(in_, path_, ": not a whole ELF file: it ends before byte ", at + size);
    return out;
  }

 private:
  std::string path_;
  std::ifstream in_;
};

std::string name_in(const std::string& table, std::uint64_t at) {
  return at < table.size() ? std::string(table.c_str() + at) : std::string();
}

bool needs_shared_library(ElfFile& file, const Elf64_Shdr& dynamic, const Elf64_Shdr& strings) {
  const std::string names = file.bytes(strings.sh_offset, strings.sh_size);
  for (std::uint64_t at = 0; at + sizeof(Elf64_Dyn) <= dynamic.sh_size; at += sizeof(Elf64_Dyn)) {
    const auto entry = file.read<Elf64_Dyn>(dynamic.sh_offset + at);
    if (entry.d_tag == DT_NEEDED && name_in(names, entry.d_un.d_val).rfind("libgpusim", 0) == 0) return true;
  }
  return false;
}

bool is_linked(ElfFile& file, const Elf64_Ehdr& header) {
  std::vector<Elf64_Shdr> sections;
  for (unsigned i = 0; i < header.e_shnum; ++i)
    sections.push_back(file.read<Elf64_Shdr>(header.e_shoff + std::uint64_t{i} * sizeof(Elf64_Shdr)));
  if (header.e_shstrndx >= sections.size()) return false;
  const Elf64_Shdr& names_section = sections[header.e_shstrndx];
  const std::string names = file.bytes(names_section.sh_offset, names_section.sh_size);
  for (const Elf64_Shdr& section : sections) {
    if (name_in(names, section.sh_name) == kMarkerSection) return true;
    if (section.sh_type == SHT_DYNAMIC && section.sh_link < sections.size() &&
        needs_shared_library(file, section, sections[section.sh_link]))
      return true;
  }
  return false;
}

}  // namespace

void require_linked_program(const std::string& path) {
  struct stat status;
  DSV2_CHECK(stat(path.c_str(), &status) == 0, path, ": no such file");
  DSV2_CHECK(S_ISREG(status.st_mode) && access(path.c_str(), X_OK) == 0, path, ": not an executable file");
  ElfFile file(path);
  DSV2_CHECK(static_cast<std::uint64_t>(status.st_size) >= sizeof(Elf64_Ehdr), path, ": not a program (ELF)");
  const auto header = file.read<Elf64_Ehdr>(0);
  DSV2_CHECK(std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0, path, ": not a program (ELF)");
  DSV2_CHECK(header.e_ident[EI_CLASS] == ELFCLASS64 && header.e_shentsize == sizeof(Elf64_Shdr), path,
             ": not a program of 64 bits");
  DSV2_CHECK(is_linked(file, header), path,
             ": not linked with gpusim; compile with nvcc -cudart none and link gpusim (gpusim/README.md)");
}

}  // namespace gpusim
