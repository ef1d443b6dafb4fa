#include "gpusim/cubin.h"

#include <elf.h>

#include <cstring>
#include <vector>

#include "model/error.h"

namespace gpusim {
namespace {

// Entries of .nv.info: u8 format, u8 attribute, u16 bytes; the formats below 4 have no bytes behind these four. Not
// documented by NVIDIA: as observed, and as ptxas -v says.
constexpr std::uint8_t kSizedFormat = 4, kFrameSize = 0x11, kRegisterCount = 0x2f;
constexpr std::size_t kEntryHeader = 4;

/// One of a kernel's numbers.
struct SymbolValue {
  std::uint32_t symbol, value;
};

class Image {
 public:
  explicit Image(std::span<const std::byte> bytes) : bytes_(bytes) {
    const auto header = read<Elf64_Ehdr>(0);
    DSV2_CHECK(std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_ident[EI_CLASS] == ELFCLASS64,
               "machine code: no ELF image");
    for (std::uint64_t i = 0; i < header.e_shnum; ++i)
      sections_.push_back(read<Elf64_Shdr>(header.e_shoff + i * sizeof(Elf64_Shdr)));
    names_ = header.e_shstrndx;
  }

  template <class T>
  T read(std::uint64_t at) const {
    DSV2_CHECK(at <= bytes_.size() && sizeof(T) <= bytes_.size() - at, "machine code: truncated at byte ", at, " of ",
               bytes_.size());
    T value;
    std::memcpy(&value, bytes_.data() + at, sizeof value);
    return value;
  }

  /// The section of this name; null where there is none.
  const Elf64_Shdr* section(std::string_view name) const {
    for (const Elf64_Shdr& s : sections_)
      if (text(names_, s.sh_name) == name) return &s;
    return nullptr;
  }

  /// A name in the section of strings with this index.
  std::string text(std::uint64_t strings, std::uint64_t offset) const {
    DSV2_CHECK(strings < sections_.size(), "machine code: no section of names");
    std::string out;
    for (std::uint64_t at = sections_[strings].sh_offset + offset; const char c = read<char>(at); ++at) out += c;
    return out;
  }

  std::string symbol(const Elf64_Shdr& table, std::uint32_t index) const {
    return text(table.sh_link, read<Elf64_Sym>(table.sh_offset + std::uint64_t{index} * sizeof(Elf64_Sym)).st_name);
  }

 private:
  std::span<const std::byte> bytes_;
  std::vector<Elf64_Shdr> sections_;
  std::uint64_t names_ = 0;
};

}  // namespace

CompiledKernels read_cubin(std::span<const std::byte> bytes, int capability) {
  const Image image(bytes);
  const Elf64_Shdr* const info = image.section(".nv.info");
  const Elf64_Shdr* const symbols = image.section(".symtab");
  CompiledKernels out;
  if (info == nullptr || symbols == nullptr) return out;
  const std::uint64_t end = info->sh_offset + info->sh_size;
  for (std::uint64_t at = info->sh_offset; at < end;) {
    const auto attribute = image.read<std::uint8_t>(at + 1);
    const bool sized = image.read<std::uint8_t>(at) == kSizedFormat;
    if (sized && (attribute == kRegisterCount || attribute == kFrameSize)) {
      const auto entry = image.read<SymbolValue>(at + kEntryHeader);
      CompiledKernel& kernel = out[image.symbol(*symbols, entry.symbol)];
      kernel.capability = capability;
      if (attribute == kRegisterCount)
        kernel.registers = static_cast<int>(entry.value);
      else
        kernel.stack_bytes = entry.value;
    }
    at += kEntryHeader + (sized ? image.read<std::uint16_t>(at + 2) : 0);
  }
  return out;
}

}  // namespace gpusim
