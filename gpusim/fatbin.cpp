#include "gpusim/fatbin.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "model/error.h"

namespace gpusim {
namespace {

// The layout is not documented by NVIDIA; offsets as observed in what nvcc 13.0 to 13.5 emit.
constexpr std::uint32_t kContainerMagic = 0xBA55ED50;
constexpr std::size_t kContainerHeader = 16;  // u32 magic, u16 version, u16 header bytes, u64 bytes of entries
constexpr std::size_t kEntryHeader = 64;      // the fixed part; name and options follow it

enum class EntryKind : std::uint16_t { ptx = 1, machine_code = 2 };

enum EntryFlag : std::uint32_t { lz4 = 0x2000, zstd = 0x8000, arch_specific = 0x100000 };

// A PTX text of more than this is a broken length, not a program.
constexpr std::uint64_t kLargestText = std::uint64_t{1} << 31;

/// Little-endian fields of a container, each read checked against its end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  T read(std::size_t at, const char* what) const {
    T value;
    std::memcpy(&value, slice(at, sizeof value, what).data(), sizeof value);
    return value;
  }

  std::span<const std::byte> slice(std::size_t at, std::uint64_t bytes, const char* what) const {
    DSV2_CHECK(at <= bytes_.size() && bytes <= bytes_.size() - at, "fat binary: truncated: ", what, " needs ", bytes,
               " bytes at ", at, ", the container has ", bytes_.size());
    return bytes_.subspan(at, bytes);
  }

 private:
  std::span<const std::byte> bytes_;
};

struct Entry {
  std::size_t at;
  EntryKind kind;
  std::uint32_t header_bytes;
  std::uint64_t payload_bytes;  // padded
};

Entry read_entry(const Reader& reader, std::size_t at) {
  reader.slice(at, kEntryHeader, "the header of an entry");
  const Entry entry = {at, static_cast<EntryKind>(reader.read<std::uint16_t>(at, "kind")),
                       reader.read<std::uint32_t>(at + 4, "header size"),
                       reader.read<std::uint64_t>(at + 8, "payload size")};
  DSV2_CHECK(entry.header_bytes >= kEntryHeader, "fat binary: the entry at ", at, " has a header of ",
             entry.header_bytes, " bytes, expected at least ", kEntryHeader);
  reader.slice(at, entry.header_bytes, "the header of an entry");
  reader.slice(at + entry.header_bytes, entry.payload_bytes, "the payload of an entry");
  return entry;
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// What an entry holds, and how many bytes it is once decompressed.
struct Payload {
  bool zstd = false;
  std::span<const std::byte> bytes;
  std::uint64_t size = 0;
};

Payload read_payload(const Reader& reader, const Entry& entry, const char* what) {
  const std::size_t at = entry.at;
  Payload out;
  out.zstd = (reader.read<std::uint32_t>(at + 40, "flags") & EntryFlag::zstd) != 0;
  const auto compressed = reader.read<std::uint32_t>(at + 16, "compressed size");
  DSV2_CHECK(!out.zstd || compressed <= entry.payload_bytes, "fat binary: the ", what, " entry at ", at, " says ",
             compressed, " compressed bytes of a payload of ", entry.payload_bytes);
  out.bytes = reader.slice(at + entry.header_bytes, out.zstd ? compressed : entry.payload_bytes, what);
  out.size = out.zstd ? reader.read<std::uint64_t>(at + 56, "uncompressed size") : out.bytes.size();
  DSV2_CHECK(out.size <= kLargestText, "fat binary: the ", what, " entry at ", at, " says ", out.size,
             " bytes, expected at most ", kLargestText);
  return out;
}

void decompress(std::span<const std::byte> payload, std::span<std::byte> out, const std::string& what) {
  const std::size_t got = ZSTD_decompress(out.data(), out.size(), payload.data(), payload.size());
  DSV2_CHECK(!ZSTD_isError(got), "fat binary: ", what, ": zstd: ", ZSTD_getErrorName(got));
  DSV2_CHECK(got == out.size(), "fat binary: ", what, " decompresses to ", got, " bytes, expected ", out.size());
}

MachineCode read_machine_code(const Reader& reader, const Entry& entry) {
  const Payload payload = read_payload(reader, entry, "machine code");
  return {static_cast<int>(reader.read<std::uint32_t>(entry.at + 28, "architecture")), payload.zstd, payload.size,
          payload.bytes};
}

PtxImage read_ptx(const Reader& reader, const Entry& entry) {
  const std::size_t at = entry.at;
  const auto flags = reader.read<std::uint32_t>(at + 40, "flags");
  const auto name_at = reader.read<std::uint32_t>(at + 32, "name offset");
  const auto name_bytes = reader.read<std::uint32_t>(at + 36, "name size");
  DSV2_CHECK((flags & EntryFlag::lz4) == 0, "fat binary: the PTX entry at ", at,
             " is compressed with LZ4, which is not read; compile with nvcc 13, or with -Xfatbin -compress=false");

  PtxImage image;
  image.isa_minor = reader.read<std::uint16_t>(at + 24, "PTX version");
  image.isa_major = reader.read<std::uint16_t>(at + 26, "PTX version");
  image.capability = static_cast<int>(reader.read<std::uint32_t>(at + 28, "architecture"));
  image.arch_specific = (flags & EntryFlag::arch_specific) != 0;
  image.zstd = (flags & EntryFlag::zstd) != 0;
  if (name_bytes > 0 && std::uint64_t{name_at} + name_bytes <= entry.header_bytes)
    image.source = as_text(reader.slice(at + name_at, name_bytes, "the name of an entry"));
  const Payload payload = read_payload(reader, entry, "PTX");
  image.payload = payload.bytes;
  image.text_bytes =
      payload.zstd ? payload.size : as_text(payload.bytes).substr(0, as_text(payload.bytes).find('\0')).size();
  return image;
}

}  // namespace

std::string PtxImage::text() const {
  if (!zstd) return std::string(as_text(payload.first(text_bytes)));
  std::string out(text_bytes, '\0');
  decompress(payload, std::as_writable_bytes(std::span(out)), dsv2::concat("PTX of compute_", capability));
  while (!out.empty() && out.back() == '\0') out.pop_back();
  return out;
}

std::vector<std::byte> MachineCode::image() const {
  if (!zstd) return {payload.begin(), payload.end()};
  std::vector<std::byte> out(image_bytes);
  decompress(payload, out, dsv2::concat("machine code of sm_", capability));
  return out;
}

const MachineCode* FatBinary::nearest_machine_code(const DeviceModel& device) const {
  const MachineCode* best = nullptr;
  for (const MachineCode& code : machine_code)
    if (best == nullptr || (code.capability <= device.capability && code.capability > best->capability) ||
        (best->capability > device.capability && code.capability <= device.capability))
      best = &code;
  return best;
}

const PtxImage* FatBinary::choose(const DeviceModel& device) const {
  const PtxImage* best = nullptr;
  for (const PtxImage& image : ptx) {
    const bool runs =
        image.arch_specific ? image.capability == device.capability : image.capability <= device.ptx_capability;
    // Of compute_90 and compute_90a the latter is what a compiler for sm_90 would take.
    const auto rank = [](const PtxImage& i) { return 2 * i.capability + (i.arch_specific ? 1 : 0); };
    if (runs && (best == nullptr || rank(image) > rank(*best))) best = &image;
  }
  return best;
}

std::string FatBinary::describe() const {
  std::string out = ptx.empty() ? "no PTX" : "PTX of";
  for (const PtxImage& image : ptx)
    out +=
        dsv2::concat(&image == ptx.data() ? " " : ", ", "compute_", image.capability, image.arch_specific ? "a" : "");
  for (std::size_t i = 0; i < machine_code.size(); ++i)
    out += dsv2::concat(i == 0 ? "; machine code of " : ", ", "sm_", machine_code[i].capability);
  return out;
}

std::size_t fat_binary_bytes(const std::byte* container) {
  const Reader reader({container, kContainerHeader});
  const auto magic = reader.read<std::uint32_t>(0, "magic");
  DSV2_CHECK(magic == kContainerMagic, "fat binary: expected the magic number ", std::hex, kContainerMagic, ", found ",
             magic);
  return reader.read<std::uint16_t>(6, "header size") + reader.read<std::uint64_t>(8, "size");
}

FatBinary read_fat_binary(std::span<const std::byte> container) {
  const Reader whole(container);
  whole.slice(0, kContainerHeader, "the container's header");
  const std::size_t bytes = fat_binary_bytes(container.data());
  const std::size_t header = whole.read<std::uint16_t>(6, "header size");
  DSV2_CHECK(header >= kContainerHeader, "fat binary: a header of ", header, " bytes, expected at least ",
             kContainerHeader);
  const Reader reader(whole.slice(0, bytes, "the container"));

  FatBinary out;
  for (std::size_t at = header; at < bytes;) {
    const Entry entry = read_entry(reader, at);
    if (entry.kind == EntryKind::ptx) out.ptx.push_back(read_ptx(reader, entry));
    if (entry.kind == EntryKind::machine_code) out.machine_code.push_back(read_machine_code(reader, entry));
    at += entry.header_bytes + entry.payload_bytes;
  }
  return out;
}

}  // namespace gpusim
