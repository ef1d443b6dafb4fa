#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "model/json.h"
#include "model/memory.h"

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian, and mapped as they are");

namespace dsv2 {
namespace {

using nlohmann::json;

constexpr std::int64_t kPrefixBytes = 8;
constexpr std::int64_t kDataAlignment = 64;  // a cache line: the widest element, and quantised panels

struct DTypeRow {
  std::string_view word;
  std::int64_t bytes;
  std::optional<DType> dtype;
};
constexpr DTypeRow kDTypes[] = {
    {"BOOL", 1, {}},        {"U8", 1, {}},          {"I8", 1, DType::s8},   {"F8_E4M3", 1, {}},
    {"F8_E5M2", 1, {}},     {"I16", 2, {}},         {"U16", 2, {}},         {"I32", 4, {}},
    {"U32", 4, {}},         {"U64", 8, {}},         {"F16", 2, DType::f16}, {"BF16", 2, DType::bf16},
    {"F32", 4, DType::f32}, {"F64", 8, DType::f64}, {"I64", 8, DType::i64},
};

const DTypeRow* find_dtype(std::string_view word) {
  const auto* const row =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const auto& r) { return r.word == word; });
  return row == std::end(kDTypes) ? nullptr : row;
}

std::string_view word_of(const NamedTensor& tensor) {
  DSV2_CHECK(!is_quantised(tensor.view.dtype) || tensor.view.shape.size() <= 1, "tensor ", tensor.name,
             ": expected plain elements, found a quantised matrix");
  for (const DTypeRow& row : kDTypes)
    if (row.dtype == tensor.view.dtype) return row.word;
  fail("tensor ", tensor.name, ": safetensors has no dtype for ", name(tensor.view.dtype));
}

/// `value` as a list of integers from 0 to 2^63 - 1.
std::vector<std::int64_t> read_sizes(const json& entry, const char* key, std::string_view where) {
  const auto it = entry.find(key);
  DSV2_CHECK(it != entry.end() && it->is_array(), where, key, ": expected an array, found ",
             it == entry.end() ? "no such key" : describe(*it));
  std::vector<std::int64_t> sizes;
  for (const json& v : *it) {
    const bool fits = v.is_number_unsigned() &&
                      v.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    DSV2_CHECK(fits, where, key, ": expected integers from 0 to 2^63 - 1, found ", describe(v));
    sizes.push_back(v.get<std::int64_t>());
  }
  return sizes;
}

SafetensorsEntry read_entry(const std::string& name, const json& value, std::int64_t data_begin,
                            std::int64_t data_bytes, std::string_view source) {
  const std::string where = concat(source, ": tensor ", quote(name), ": ");
  DSV2_CHECK(value.is_object(), where, "expected an object, found ", describe(value));
  const auto dtype = value.find("dtype");
  DSV2_CHECK(dtype != value.end() && dtype->is_string(), where, "dtype: expected text, found ",
             dtype == value.end() ? "no such key" : describe(*dtype));
  SafetensorsEntry entry{name, dtype->get<std::string>(), read_sizes(value, "shape", where), 0, 0};
  const DTypeRow* const row = find_dtype(entry.dtype);
  DSV2_CHECK(row, where, "dtype: expected one of safetensors', found ", quote(entry.dtype));

  const auto offsets = read_sizes(value, "data_offsets", where);
  DSV2_CHECK(offsets.size() == 2, where, "data_offsets: expected 2 integers, found ", offsets.size());
  DSV2_CHECK(offsets[0] <= offsets[1] && offsets[1] <= data_bytes, where,
             "data_offsets: expected begin <= end <= ", data_bytes, ", found ", to_string(offsets));
  entry.begin = data_begin + offsets[0];
  entry.bytes = offsets[1] - offsets[0];

  // The count grows only while it fits the bytes that are there, so it cannot overflow.
  std::int64_t count = std::count(entry.shape.begin(), entry.shape.end(), 0) ? 0 : 1;
  for (const std::int64_t d : entry.shape) {
    if (count == 0) break;
    DSV2_CHECK(d <= entry.bytes / count, where, "shape: expected ", entry.bytes, " bytes as data_offsets say, found ",
               to_string(entry.shape), " of ", entry.dtype);
    count *= d;
  }
  DSV2_CHECK(count <= entry.bytes && count * row->bytes == entry.bytes, where, "shape: expected ", entry.bytes,
             " bytes as data_offsets say, found ", to_string(entry.shape), " of ", entry.dtype);
  return entry;
}

std::map<std::string, std::string> read_metadata(const json& value, std::string_view source) {
  DSV2_CHECK(value.is_object(), source, ": __metadata__: expected an object, found ", describe(value));
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    DSV2_CHECK(text.is_string(), source, ": __metadata__ ", quote(key), ": expected text, found ", describe(text));
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

}  // namespace

std::optional<DType> dtype_of_safetensors(std::string_view word) {
  const DTypeRow* const row = find_dtype(word);
  return row ? row->dtype : std::nullopt;
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view source) {
  const auto file_bytes = static_cast<std::int64_t>(file.size());
  DSV2_CHECK(file_bytes >= kPrefixBytes, source, ": expected at least ", kPrefixBytes, " bytes of safetensors, found ",
             file_bytes);
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kPrefixBytes);
  DSV2_CHECK(length <= static_cast<std::uint64_t>(kMaxJsonBytes), source, ": header length: expected at most ",
             kMaxJsonBytes, ", found ", length);
  const std::int64_t data_begin = kPrefixBytes + static_cast<std::int64_t>(length);
  DSV2_CHECK(data_begin <= file_bytes, source, ": header length: expected at most ", file_bytes - kPrefixBytes,
             " in a file of ", file_bytes, " bytes, found ", length);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kPrefixBytes, length);
  const json root = parse_json(text, source);
  DSV2_CHECK(root.is_object(), source, ": header: expected an object, found ", describe(root));

  SafetensorsHeader header;
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__")
      header.metadata = read_metadata(value, source);
    else
      header.entries.push_back(read_entry(name, value, data_begin, file_bytes - data_begin, source));
  }
  auto& entries = header.entries;
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes); });
  std::int64_t end = data_begin;
  std::string_view before = "the header";
  for (const SafetensorsEntry& e : entries) {
    DSV2_CHECK(e.begin == end, source, ": tensor ", quote(e.name), ": data_offsets: expected to begin at ",
               end - data_begin, ", the end of ", before, ", found ", e.begin - data_begin);
    end += e.bytes;
    before = e.name;
  }
  DSV2_CHECK(end == file_bytes, source, ": expected the tensors to fill ", file_bytes - data_begin, " bytes, found ",
             end - data_begin);
  return header;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : source_(path.string()), file_(path), header_(parse_safetensors(file_.bytes(), source_)) {
  for (std::size_t i = 0; i < entries().size(); ++i) index_.emplace(entries()[i].name, i);
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const SafetensorsEntry& e : entries()) names.push_back(e.name);
  return names;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries()[it->second];
}

TensorView SafetensorsFile::view(std::string_view name) const {
  const SafetensorsEntry* const entry = find(name);
  DSV2_CHECK(entry, source_, ": expected tensor ", name, ", found no such name");
  return view(*entry);
}

TensorView SafetensorsFile::view(const SafetensorsEntry& entry) const {
  const auto dtype = dtype_of_safetensors(entry.dtype);
  DSV2_CHECK(dtype, source_, ": tensor ", quote(entry.name), ": expected dtype F64, F32, BF16, F16, I64 or I8, found ",
             entry.dtype);
  DSV2_CHECK(!is_quantised(*dtype) || entry.shape.size() <= 1, source_, ": tensor ", quote(entry.name),
             ": expected a vector of ", entry.dtype, ", found shape ", to_string(entry.shape));
  const std::byte* const data = file_.bytes().data() + entry.begin;
  const auto alignment = static_cast<std::uintptr_t>(bits(*dtype) / 8);
  if (reinterpret_cast<std::uintptr_t>(data) % alignment == 0) return {*dtype, entry.shape, data};
  const std::lock_guard lock(mutex_);
  Tensor& copy = copies_[entry.begin];
  if (!copy) {
    require_memory(entry.bytes, source_);
    copy = Tensor(*dtype, entry.shape);
    std::memcpy(copy.data(), data, static_cast<std::size_t>(entry.bytes));
  }
  return copy.view();
}

std::span<const std::byte> SafetensorsFile::data() const {
  if (entries().empty()) return {};
  return file_.bytes().subspan(static_cast<std::size_t>(entries().front().begin));
}

std::span<const std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const {
  return file_.bytes().subspan(static_cast<std::size_t>(entry.begin), static_cast<std::size_t>(entry.bytes));
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::span<const SafetensorsEntry> tensors,
                                     std::map<std::string, std::string> metadata, bool sign)
    : file_(path), source_(path.string()) {
  const std::string unknown = checksum_text(0);
  if (sign) {
    checksum_.emplace();
    metadata[kChecksumKey] = unknown;
  }
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  for (const SafetensorsEntry& t : tensors) {
    DSV2_CHECK(t.name != "__metadata__" && !header.contains(t.name), source_, ": tensor ", t.name,
               ": expected a name of its own, found it taken");
    header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {missing_, missing_ + t.bytes}}};
    missing_ += t.bytes;
  }
  std::string text = header.dump();
  text.resize((kPrefixBytes + text.size() + kDataAlignment - 1) / kDataAlignment * kDataAlignment - kPrefixBytes, ' ');
  if (sign) checksum_at_ = kPrefixBytes + static_cast<std::int64_t>(text.find(unknown));
  const std::uint64_t length = text.size();
  file_.write(&length, sizeof length);
  file_.write(text.data(), text.size());
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  missing_ -= static_cast<std::int64_t>(bytes.size());
  DSV2_CHECK(missing_ >= 0, source_, ": expected no more bytes than its tensors have, found ", -missing_, " more");
  if (checksum_) checksum_->update(bytes);
  file_.write(bytes.data(), bytes.size());
}

void SafetensorsWriter::finish() {
  DSV2_CHECK(missing_ == 0, source_, ": expected the bytes of all tensors, found ", missing_, " missing");
  if (checksum_) {
    const std::string text = checksum_text(checksum_->digest());
    file_.write_at(checksum_at_, text.data(), text.size());
    checksum_.reset();
  }
  file_.close();
}

void SafetensorsWriter::commit() {
  finish();
  file_.commit();
}

SafetensorsEntry entry_of(const NamedTensor& tensor) {
  return {tensor.name, std::string(word_of(tensor)), tensor.view.shape, 0, tensor.view.bytes()};
}

void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : tensors) order.push_back(&t);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return bits(a->view.dtype) > bits(b->view.dtype); });
  std::vector<SafetensorsEntry> entries;
  for (const NamedTensor* t : order) entries.push_back(entry_of(*t));
  SafetensorsWriter writer(path, entries, metadata);
  for (const NamedTensor* t : order)
    writer.write({static_cast<const std::byte*>(t->view.data), static_cast<std::size_t>(t->view.bytes())});
  writer.commit();
}

}  // namespace dsv2
