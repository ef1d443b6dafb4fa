#include "model/checkpoint.h"

#include <algorithm>

#include "model/checksum.h"
#include "model/json.h"
#include "model/quantised.h"

namespace dsv2 {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kPrefix = "model.";
constexpr std::string_view kFormat = "dsv2-quantised", kVersion = "1";
constexpr std::string_view kPanelWord = "U8";
constexpr std::int64_t kPanelAlignment = 64;
[[maybe_unused]] constexpr std::int64_t kParallelFrom =
    1 << 15;  // elements below which a thread team costs more than it saves

std::string_view without_prefix(std::string_view name) {
  return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
}

std::int64_t panels_of(std::int64_t rows) { return (rows + kQuantPanel - 1) / kQuantPanel; }

/// Index of the first element whose exponent bits are all set (NaN or Inf); n when all are finite.
template <class Bits>
std::int64_t first_non_finite(const void* data, std::int64_t n, Bits exponent) {
  const auto* const x = static_cast<const Bits*>(data);
  constexpr std::int64_t kBlock = 4096;
  std::int64_t first = n;
#pragma omp parallel for schedule(static) reduction(min : first) if (n >= kParallelFrom)
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = std::min(n, begin + kBlock);
    unsigned found = 0;  // without an early exit, so that the loop vectorises
    for (std::int64_t i = begin; i < end; ++i) found |= (x[i] & exponent) == exponent;
    if (found == 0) continue;
    std::int64_t i = begin;
    while ((x[i] & exponent) != exponent) ++i;
    first = std::min(first, i);
  }
  return first;
}

std::int64_t first_non_finite(const TensorView& v) {
  switch (v.dtype) {
    case DType::f32:
      return first_non_finite<std::uint32_t>(v.data, v.size(), 0x7f800000u);
    case DType::bf16:
      return first_non_finite<std::uint16_t>(v.data, v.size(), 0x7f80u);
    default:
      return first_non_finite<std::uint16_t>(v.data, v.size(), 0x7c00u);
  }
}

bool in_panels(const PlannedTensor& tensor) { return is_quantised(tensor.dtype) && tensor.shape.size() > 1; }

/// As the header has it.
SafetensorsEntry entry_of(const PlannedTensor& tensor) {
  if (!in_panels(tensor)) return dsv2::entry_of(NamedTensor{tensor.name, {tensor.dtype, tensor.shape, nullptr}});
  return {tensor.name,
          std::string(kPanelWord),
          {panels_of(tensor.shape[0]), quantised_panel_bytes(tensor.dtype, tensor.shape[1])},
          0,
          array_bytes(tensor.dtype, tensor.shape)};
}

/// In which order the tensors of a file follow each other, so that all are aligned: panels first, then by element.
int alignment_of(const PlannedTensor& tensor) {
  return in_panels(tensor) ? static_cast<int>(kPanelAlignment) : bits(tensor.dtype) / 8;
}

}  // namespace

bool is_quantised_file(const std::map<std::string, std::string>& metadata, std::string_view source) {
  const auto value = [&](const char* key) {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string() : it->second;
  };
  if (value("format") != kFormat) return false;
  const auto require = [&](const char* key, const std::string& expected) {
    DSV2_CHECK(value(key) == expected, source, ": __metadata__ ", quote(key), ": expected ", quote(expected),
               ", found ", metadata.contains(key) ? quote(value(key)) : "no such key");
  };
  require("version", std::string(kVersion));
  require("group", std::to_string(kQuantGroup));
  DSV2_CHECK(metadata.contains(kChecksumKey), source, ": __metadata__ ", quote(kChecksumKey),
             ": expected the checksum of the data, found no such key");
  return true;
}

DType dtype_of_panels(const SafetensorsEntry& entry, const Shape& shape, std::string_view where) {
  for (const DType dtype : {DType::i4, DType::i8})
    if (shape.size() == 2 && entry.shape == Shape{panels_of(shape[0]), quantised_panel_bytes(dtype, shape[1])})
      return dtype;
  DSV2_CHECK(shape.size() == 2, where, "expected a vector of F32, BF16 or F16, found panels of U8");
  fail(where, "expected ", panels_of(shape[0]), " panels of ", quantised_panel_bytes(DType::i4, shape[1]),
       " (int4) or ", quantised_panel_bytes(DType::i8, shape[1]), " bytes (int8) for a matrix of shape ",
       to_string(shape), ", found ", to_string(entry.shape));
}

Checkpoint::Checkpoint(const std::filesystem::path& path) : source_(path.string()) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    // Where both are there, HF reads the single file.
    if (std::filesystem::exists(path / kSingleFile, ignored))
      open_single(path / kSingleFile);
    else if (std::filesystem::exists(path / kIndexFile, ignored))
      open_shards(path / kIndexFile);
    else
      fail(source_, ": expected ", kSingleFile, " or ", kIndexFile, " in this folder, found neither");
  } else if (path.extension() == ".json") {
    open_shards(path);
  } else {
    open_single(path);
  }
  for (const auto& file : files_) {
    const bool quantised = is_quantised_file(file->metadata(), file->source());
    DSV2_CHECK(file == files_.front() || quantised == quantised_, file->source(), ": __metadata__ ", quote("format"),
               ": expected ", quantised_ ? "a" : "no", " quantised file, as ", files_.front()->source(), " is",
               quantised_ ? "" : " none");
    quantised_ = quantised;
  }
}

TensorView Checkpoint::Found::view() const {
  if (!is_quantised(dtype)) return file->view(*entry);
  return {dtype, shape, file->bytes(*entry).data()};
}

std::string Checkpoint::Found::where() const { return concat(file->source(), ": tensor ", entry->name, ": "); }

Checkpoint::Found Checkpoint::find(const std::string& name, const Shape& shape) const {
  for (const std::string_view spelling : {std::string_view(name), without_prefix(name)}) {
    const auto it = tensors_.find(spelling);
    if (it == tensors_.end()) continue;
    const auto [file, entry] = it->second;
    const std::string where = concat(file->source(), ": tensor ", name, ": ");
    if (quantised_ && entry->dtype == kPanelWord) {
      const DType dtype = dtype_of_panels(*entry, shape, where);
      const bool aligned = reinterpret_cast<std::uintptr_t>(file->bytes(*entry).data()) % kPanelAlignment == 0;
      DSV2_CHECK(aligned, where, "expected panels that begin at a multiple of ", kPanelAlignment,
                 " bytes, found them at ", entry->begin);
      return {file, entry, dtype, shape};
    }
    DSV2_CHECK(entry->shape == shape, where, "expected shape ", to_string(shape), ", found ", to_string(entry->shape));
    const auto dtype = dtype_of_safetensors(entry->dtype);
    DSV2_CHECK(dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16, where,
               "expected dtype F32, BF16 or F16, found ", entry->dtype);
    return {file, entry, *dtype, shape};
  }
  fail(source_, ": tensor ", name, ": expected shape ", to_string(shape), ", found no such tensor");
}

DType Checkpoint::matrix_dtype(const Config& config) const {
  const Shape shape = {config.hidden_size, config.num_attention_heads * config.value_head_dim()};
  return find("model.layers.0.self_attn.o_proj.weight", shape).dtype;
}

std::optional<DType> Checkpoint::quantised_dtype(const Config& config) const {
  const DType dtype = matrix_dtype(config);
  return is_quantised(dtype) ? std::optional(dtype) : std::nullopt;
}

void Checkpoint::require_room_for(const Config& config) const {
  const auto moe_layers = static_cast<std::int64_t>(config.moe_layers().size());
  const std::int64_t least = config.num_hidden_layers + moe_layers * config.n_routed_experts.value_or(0);
  const auto held = static_cast<std::int64_t>(tensors_.size());
  DSV2_CHECK(least <= held, source_, ": expected at least ", least, " tensors for num_hidden_layers ",
             config.num_hidden_layers, " and n_routed_experts ", config.n_routed_experts.value_or(0), ", found ", held);
}

void Checkpoint::open_single(const std::filesystem::path& file) {
  source_ = file.string();
  for (const SafetensorsEntry& e : open(file).entries()) tensors_[e.name] = {files_.back().get(), &e};
}

void Checkpoint::open_shards(const std::filesystem::path& index) {
  source_ = index.string();
  const nlohmann::json root = parse_json(read_text_file(index), source_);
  DSV2_CHECK(root.is_object() && root.contains("weight_map") && root["weight_map"].is_object(), source_,
             ": weight_map: expected an object, found none");
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [tensor, value] : root["weight_map"].items()) {
    DSV2_CHECK(value.is_string(), source_, ": weight_map ", quote(tensor), ": expected the name of a file, found ",
               describe(value));
    const auto name = value.get<std::string>();
    const bool plain = !name.empty() && name != "." && name != ".." && name.find_first_of("/\\") == std::string::npos &&
                       name.find('\0') == std::string::npos;
    DSV2_CHECK(plain, source_, ": weight_map ", quote(tensor), ": expected the name of a file beside the index, found ",
               quote(name));
    const SafetensorsFile*& shard = shards[name];
    if (!shard) shard = &open(index.parent_path() / name);
    const SafetensorsEntry* const entry = shard->find(tensor);
    DSV2_CHECK(entry, source_, ": tensor ", quote(tensor), ": expected in ", name, ", found no such tensor there");
    tensors_[entry->name] = {shard, entry};
  }
}

const SafetensorsFile& Checkpoint::open(const std::filesystem::path& file) {
  files_.push_back(std::make_shared<const SafetensorsFile>(file));
  return *files_.back();
}

bool is_vision_tensor(std::string_view tensor) {
  const std::string_view name = without_prefix(tensor);
  for (const std::string_view part : {"sam_model.", "vision_model.", "projector.", "image_newline", "view_seperator"})
    if (name.starts_with(part)) return true;
  return false;
}

void require_finite(const TensorView& view, std::string_view where) {
  const std::int64_t bad = first_non_finite(view);
  DSV2_CHECK(bad == view.size(), where, "expected finite values, found ", view.at(std::min(bad, view.size() - 1)),
             " at element ", bad);
}

void require_checksum(const SafetensorsFile& file) {
  Checksum sum;
  sum.update(file.data());
  const std::string &expected = file.metadata().at(kChecksumKey), found = checksum_text(sum.digest());
  DSV2_CHECK(found == expected, file.source(), ": checksum of the data: expected ", quote(expected),
             " as __metadata__ says, found ", quote(found), ": the file is damaged");
}

void write_checkpoint(const std::filesystem::path& dir, const Config& config, std::span<const PlannedTensor> tensors,
                      const std::function<TensorView(std::size_t)>& make, std::int64_t shard_bytes) {
  struct Shard {
    std::vector<std::size_t> tensors;
    std::int64_t bytes = 0;
  };
  std::vector<Shard> shards;
  std::vector<SafetensorsEntry> entries;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::int64_t bytes = entries.emplace_back(entry_of(tensors[i])).bytes;
    if (shards.empty() || shards.back().bytes + bytes > shard_bytes) shards.emplace_back();
    shards.back().tensors.push_back(i);
    shards.back().bytes += bytes;
    total += bytes;
  }
  const bool quantised = std::any_of(tensors.begin(), tensors.end(), in_panels);
  std::map<std::string, std::string> metadata = {{"format", "pt"}};  // transformers refuses files without it
  if (quantised)
    metadata = {
        {"format", std::string(kFormat)}, {"version", std::string(kVersion)}, {"group", std::to_string(kQuantGroup)}};
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  DSV2_CHECK(!error, dir.string(), ": cannot be made: ", error.message());

  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total;
  const auto five = [](std::size_t n) {
    const std::string digits = std::to_string(n);
    return std::string(5 - std::min<std::size_t>(5, digits.size()), '0') + digits;
  };
  std::vector<std::unique_ptr<SafetensorsWriter>> files;
  for (Shard& shard : shards) {
    const std::string file =
        shards.size() == 1 ? kSingleFile
                           : concat("model-", five(files.size() + 1), "-of-", five(shards.size()), ".safetensors");
    for (const std::size_t i : shard.tensors) index["weight_map"][tensors[i].name] = file;
    std::stable_sort(shard.tensors.begin(), shard.tensors.end(),
                     [&](std::size_t a, std::size_t b) { return alignment_of(tensors[a]) > alignment_of(tensors[b]); });
    std::vector<SafetensorsEntry> header;
    for (const std::size_t i : shard.tensors) header.push_back(entries[i]);
    files.push_back(std::make_unique<SafetensorsWriter>(dir / file, header, metadata, quantised));
    for (const std::size_t i : shard.tensors) {
      const TensorView view = make(i);
      DSV2_CHECK(view.dtype == tensors[i].dtype && view.shape == tensors[i].shape, dir.string(), ": tensor ",
                 tensors[i].name, ": expected ", name(tensors[i].dtype), " ", to_string(tensors[i].shape), ", made ",
                 name(view.dtype), " ", to_string(view.shape));
      files.back()->write({static_cast<const std::byte*>(view.data), static_cast<std::size_t>(view.bytes())});
    }
    files.back()->finish();
  }
  // An older index must not name the new shards, and an older single file would be read in their place.
  std::filesystem::remove(dir / kIndexFile, error);
  for (const auto& file : files) file->commit();
  write_text_file(dir / "config.json", config.to_json());
  if (shards.size() == 1) return;
  write_text_file(dir / kIndexFile, index.dump(2) + "\n");
  std::filesystem::remove(dir / kSingleFile, error);
}

}  // namespace dsv2
