#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <map>
#include <set>

#include "model/file.h"
#include "model/json.h"
#include "model/memory.h"
#include "model/quantised.h"
#include "model/random.h"
#include "model/safetensors.h"

namespace dsv2 {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kPrefix = "model.";
constexpr std::int64_t kParallelFrom = 1 << 15;  ///< elements below which a thread team costs more than it saves

std::string_view without_prefix(std::string_view name) {
  return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
}

bool is_vision(std::string_view tensor) {
  const std::string_view name = without_prefix(tensor);
  for (const std::string_view part : {"sam_model.", "vision_model.", "projector.", "image_newline", "view_seperator"})
    if (name.starts_with(part)) return true;
  return false;
}

/// The files of a checkpoint, and where each tensor is.
class Checkpoint {
 public:
  explicit Checkpoint(const std::filesystem::path& path) : source_(path.string()) {
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
  }

  struct Found {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };
  /// By HF's name, else by that name without "model.".
  Found find(const std::string& name, const Shape& shape) const {
    for (const std::string_view spelling : {std::string_view(name), without_prefix(name)})
      if (const auto it = tensors_.find(spelling); it != tensors_.end()) return it->second;
    fail(source_, ": tensor ", name, ": expected shape ", to_string(shape), ", found no such tensor");
  }
  const std::vector<std::shared_ptr<const SafetensorsFile>>& files() const { return files_; }
  /// Throws Error unless there is a tensor for every layer and expert: before memory is taken for those of a config
  /// that claims millions.
  void require_room_for(const Config& config) const {
    const auto moe_layers = static_cast<std::int64_t>(config.moe_layers().size());
    const std::int64_t least = config.num_hidden_layers + moe_layers * config.n_routed_experts.value_or(0);
    const auto held = static_cast<std::int64_t>(tensors_.size());
    DSV2_CHECK(least <= held, source_, ": expected at least ", least, " tensors for num_hidden_layers ",
               config.num_hidden_layers, " and n_routed_experts ", config.n_routed_experts.value_or(0), ", found ",
               held);
  }

 private:
  void open_single(const std::filesystem::path& file) {
    source_ = file.string();
    for (const SafetensorsEntry& e : open(file).entries()) tensors_[e.name] = {files_.back().get(), &e};
  }

  void open_shards(const std::filesystem::path& index) {
    source_ = index.string();
    const nlohmann::json root = parse_json(read_text_file(index), source_);
    DSV2_CHECK(root.is_object() && root.contains("weight_map") && root["weight_map"].is_object(), source_,
               ": weight_map: expected an object, found none");
    std::map<std::string, const SafetensorsFile*> shards;
    for (const auto& [tensor, value] : root["weight_map"].items()) {
      DSV2_CHECK(value.is_string(), source_, ": weight_map ", quote(tensor), ": expected the name of a file, found ",
                 describe(value));
      const auto name = value.get<std::string>();
      const bool plain = !name.empty() && name != "." && name != ".." &&
                         name.find_first_of("/\\") == std::string::npos && name.find('\0') == std::string::npos;
      DSV2_CHECK(plain, source_, ": weight_map ", quote(tensor),
                 ": expected the name of a file beside the index, found ", quote(name));
      const SafetensorsFile*& shard = shards[name];
      if (!shard) shard = &open(index.parent_path() / name);
      const SafetensorsEntry* const entry = shard->find(tensor);
      DSV2_CHECK(entry, source_, ": tensor ", quote(tensor), ": expected in ", name, ", found no such tensor there");
      tensors_[entry->name] = {shard, entry};
    }
  }

  const SafetensorsFile& open(const std::filesystem::path& file) {
    files_.push_back(std::make_shared<const SafetensorsFile>(file));
    return *files_.back();
  }

  std::string source_;
  std::vector<std::shared_ptr<const SafetensorsFile>> files_;
  std::map<std::string_view, Found> tensors_;
};

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

bool is_weight_dtype(std::optional<DType> dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

/// How Weights::random fills a tensor: mean + scale * z.
struct Fill {
  float mean = 0, scale = 1;
  bool always_f32 = false;
};

Fill fill_of(std::string_view name, const Shape& shape) {
  const bool gate = name.ends_with(".mlp.gate.weight"), correction = name.ends_with("e_score_correction_bias");
  if (name.ends_with("embed_tokens.weight")) return {};
  if (correction || name.ends_with(".bias")) return {.scale = 0.02f, .always_f32 = correction};
  if (shape.size() == 1) return {.mean = 1, .scale = 0.1f, .always_f32 = true};
  return {.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape[1]))), .always_f32 = gate};
}

/// In which dtype a tensor of weights in `dtype` is stored: vectors, and what decides, stay f32 or as they are (bias).
DType stored_dtype(std::string_view name, const Shape& shape, DType dtype) {
  if (fill_of(name, shape).always_f32) return DType::f32;
  return shape.size() == 1 && is_quantised(dtype) ? DType::bf16 : dtype;
}

/// Draws all of `view` into `to`; of a quantised matrix panel by panel, so that it never exists as floats.
void draw(std::byte* to, const TensorView& view, std::uint64_t stream, const Fill& how) {
  if (!is_quantised(view.dtype)) return fill_normal(to, view.dtype, view.size(), stream, how.mean, how.scale);
  const std::int64_t rows = view.dim(0), cols = view.dim(1), panel_bytes = quantised_panel_bytes(view.dtype, cols);
#pragma omp parallel
  {
    std::vector<float> wide(static_cast<std::size_t>(kQuantPanel * cols));
#pragma omp for
    for (std::int64_t first = 0; first < rows; first += kQuantPanel) {
      const std::int64_t count = std::min(kQuantPanel, rows - first);
      fill_normal(wide.data(), DType::f32, count * cols, stream, how.mean, how.scale, first * cols);
      quantise_panel(wide.data(), count, cols, view.dtype, to + first / kQuantPanel * panel_bytes);
    }
  }
}

std::int64_t aligned(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// The views of a model before they have data: name, shape and the field to set.
struct Slot {
  std::string name;
  Shape shape;
  TensorView* view;
};

std::vector<Slot> slots_of(const Config& config, Weights& weights) {
  std::vector<Slot> slots;
  for_each_tensor(config, weights, [&](std::string name, Shape shape, TensorView& view) {
    slots.push_back({std::move(name), std::move(shape), &view});
  });
  return slots;
}

std::vector<NamedTensor> tensors_of(const Config& config, const Weights& weights) {
  std::vector<NamedTensor> tensors;
  for_each_tensor(config, weights, [&](std::string name, const Shape&, const TensorView& view) {
    tensors.push_back({std::move(name), view});
  });
  return tensors;
}

void tie(const Config& config, Weights& weights) {
  if (config.head == Head::causal_lm && config.tie_word_embeddings) weights.lm_head = weights.embed_tokens;
}

void report_progress(const Progress& progress, std::size_t done, std::size_t total) {
  if (progress) progress(static_cast<std::int64_t>(done), static_cast<std::int64_t>(total));
}

}  // namespace

std::shared_ptr<const Weights> Weights::load(const std::filesystem::path& path, const Config& config,
                                             LoadReport* report, const Progress& progress) {
  config.validate();
  const Checkpoint checkpoint(path);
  checkpoint.require_room_for(config);
  auto weights = std::make_shared<Weights>();
  const auto slots = slots_of(config, *weights);
  std::vector<Checkpoint::Found> found;
  std::set<const SafetensorsEntry*> used;
  for (const Slot& slot : slots) {
    const auto [file, entry] = found.emplace_back(checkpoint.find(slot.name, slot.shape));
    const std::string where = concat(file->source(), ": tensor ", slot.name, ": ");
    DSV2_CHECK(entry->shape == slot.shape, where, "expected shape ", to_string(slot.shape), ", found ",
               to_string(entry->shape));
    DSV2_CHECK(is_weight_dtype(dtype_of_safetensors(entry->dtype)), where, "expected dtype F32, BF16 or F16, found ",
               entry->dtype);
    used.insert(entry);
  }
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto [file, entry] = found[i];
    const TensorView view = *slots[i].view = file->view(*entry);
    const std::int64_t bad = first_non_finite(view);
    DSV2_CHECK(bad == view.size(), file->source(), ": tensor ", slots[i].name, ": expected finite values, found ",
               view.at(std::min(bad, view.size() - 1)), " at element ", bad);
    report_progress(progress, i + 1, slots.size());
  }
  tie(config, *weights);

  LoadReport counts;
  counts.files = static_cast<std::int64_t>(checkpoint.files().size());
  counts.tensors = static_cast<std::int64_t>(slots.size());
  for (const auto& file : checkpoint.files()) {
    weights->storage_.push_back(file);
    for (const SafetensorsEntry& e : file->entries()) {
      if (used.contains(&e)) continue;
      if (is_vision(e.name))
        ++counts.vision_tensors;
      else
        counts.unused.push_back(e.name);
    }
  }
  if (report) *report = std::move(counts);
  return weights;
}

std::shared_ptr<const Weights> Weights::random(const Config& config, std::uint64_t seed, DType dtype,
                                               const Progress& progress) {
  config.validate();
  DSV2_CHECK(dtype == DType::f32 || dtype == DType::bf16 || is_quantised(dtype),
             "random weights: expected dtype f32, bf16, int8 or int4, found ", name(dtype));
  auto weights = std::make_shared<Weights>();
  const auto slots = slots_of(config, *weights);
  std::int64_t bytes = 0;
  for (const Slot& s : slots) {
    *s.view = {stored_dtype(s.name, s.shape, dtype), s.shape, nullptr};
    bytes += aligned(s.view->bytes());
  }
  const auto pages = allocate_pages(bytes, "random weights");
  auto* next = static_cast<std::byte*>(pages.get());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const Slot& s = slots[i];
    const Fill how = fill_of(s.name, s.shape);
    draw(next, *s.view, random_stream(seed, s.name), how);
    s.view->data = next;
    next += aligned(s.view->bytes());
    report_progress(progress, i + 1, slots.size());
  }
  weights->storage_.push_back(pages);
  tie(config, *weights);
  return weights;
}

std::shared_ptr<const Weights> Weights::rounded(std::shared_ptr<const Weights> weights, const Config& config,
                                                DType dtype) {
  DSV2_CHECK(is_weight_dtype(dtype) || is_quantised(dtype),
             "rounded weights: expected dtype f32, bf16, f16, int8 or int4, found ", name(dtype));
  auto copy = std::make_shared<Weights>();
  const auto slots = slots_of(config, *copy);
  const auto tensors = tensors_of(config, *weights);
  std::vector<std::size_t> changed;
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const TensorView& view = *slots[i].view = tensors[i].view;
    const bool kept = view.shape.size() == 1 || fill_of(slots[i].name, slots[i].shape).always_f32;
    if (kept || view.dtype == dtype) continue;
    DSV2_CHECK(!is_quantised(view.dtype), "rounded weights: ", slots[i].name, ": expected floats, found ",
               name(view.dtype));
    changed.push_back(i);
    bytes += aligned(TensorView{dtype, view.shape, nullptr}.bytes());
  }
  if (changed.empty()) return weights;
  require_memory(bytes, "rounded weights");
  auto converted = std::make_shared<std::vector<Tensor>>(changed.size());
  std::exception_ptr failure;              // an exception must not leave the parallel region
  const bool many = changed.size() >= 64;  // quantise() shares a matrix among the threads itself
#pragma omp parallel for schedule(dynamic) if (many)
  for (std::size_t n = 0; n < changed.size(); ++n) {
    try {
      TensorView& view = *slots[changed[n]].view;
      view = ((*converted)[n] = convert(view, dtype)).view();
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
  copy->storage_ = {std::move(weights), std::move(converted)};
  tie(config, *copy);
  return copy;
}

void Weights::save(const std::filesystem::path& dir, const Config& config, std::int64_t shard_bytes) const {
  const auto tensors = tensors_of(config, *this);
  std::vector<std::pair<std::size_t, std::size_t>> shards;  // ranges of `tensors`
  std::int64_t total = 0, filled = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::int64_t size = tensors[i].view.bytes();
    if (shards.empty() || filled + size > shard_bytes) shards.emplace_back(i, i), filled = 0;
    shards.back().second = i + 1;
    filled += size;
    total += size;
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};  // transformers refuses files without it
  const auto write = [&](const std::string& file, std::size_t begin, std::size_t end) {
    write_safetensors(dir / file, std::span(tensors).subspan(begin, end - begin), metadata);
  };
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  DSV2_CHECK(!error, dir.string(), ": cannot be made: ", error.message());
  write_text_file(dir / "config.json", config.to_json());
  // An older index must not name the new shards, and an older single file would be read in their place.
  std::filesystem::remove(dir / kIndexFile, error);
  if (shards.size() == 1) return write(kSingleFile, 0, tensors.size());

  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = total;
  const auto five = [](std::size_t n) {
    const std::string digits = std::to_string(n);
    return std::string(5 - std::min<std::size_t>(5, digits.size()), '0') + digits;
  };
  for (std::size_t n = 0; n < shards.size(); ++n) {
    const std::string file = concat("model-", five(n + 1), "-of-", five(shards.size()), ".safetensors");
    const auto [begin, end] = shards[n];
    write(file, begin, end);
    for (std::size_t i = begin; i < end; ++i) index["weight_map"][tensors[i].name] = file;
  }
  write_text_file(dir / kIndexFile, index.dump(2) + "\n");
  std::filesystem::remove(dir / kSingleFile, error);
}

std::int64_t Weights::bytes(const Config& config) const {
  std::int64_t sum = 0;
  for (const NamedTensor& t : tensors_of(config, *this)) sum += t.view.bytes();
  return sum;
}

}  // namespace dsv2
