#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <map>
#include <mutex>
#include <set>

#include "model/checkpoint.h"
#include "model/memory.h"
#include "model/quantised.h"
#include "model/random.h"

namespace dsv2 {
namespace {

bool is_weight_dtype(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

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

void require_drawn(DType dtype) {
  DSV2_CHECK(dtype == DType::f32 || dtype == DType::bf16 || is_quantised(dtype),
             "random weights: expected dtype f32, bf16, int8 or int4, found ", name(dtype));
}

// Elements: less is done sooner than threads are woken. Unused without OpenMP.
[[maybe_unused]] constexpr std::int64_t kParallelFrom = 1 << 16;

/// Draws all of `view` into `to`; of a quantised matrix panel by panel, so that it never exists as floats.
void draw(std::byte* to, const TensorView& view, std::uint64_t stream, const Fill& how) {
  if (!is_quantised(view.dtype)) return fill_normal(to, view.dtype, view.size(), stream, how.mean, how.scale);
  const std::int64_t rows = view.dim(0), cols = view.dim(1), panel_bytes = quantised_panel_bytes(view.dtype, cols);
#pragma omp parallel if (view.size() >= kParallelFrom)
  {
    std::vector<float> wide(static_cast<std::size_t>(kQuantPanel * cols));
#pragma omp for schedule(dynamic, 4)
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

/// Every tensor as random weights in `dtype` store it.
std::vector<PlannedTensor> plan_of(const Config& config, DType dtype) {
  std::vector<PlannedTensor> plan;
  Weights shapes;
  for_each_tensor(config, shapes, [&](std::string name, Shape shape, const TensorView&) {
    const DType stored = stored_dtype(name, shape, dtype);
    plan.push_back({std::move(name), stored, std::move(shape)});
  });
  return plan;
}

void tie(const Config& config, Weights& weights) {
  if (config.head == Head::causal_lm && config.tie_word_embeddings) weights.lm_head = weights.embed_tokens;
}

void report_progress(const Progress& progress, std::size_t done, std::size_t total) {
  if (progress) progress(static_cast<std::int64_t>(done), static_cast<std::int64_t>(total));
}

}  // namespace

bool is_kept(std::string_view tensor, const Shape& shape) {
  return shape.size() == 1 || fill_of(tensor, shape).always_f32;
}

std::shared_ptr<const Weights> Weights::load(const std::filesystem::path& path, const Config& config,
                                             LoadReport* report, const Progress& progress) {
  config.validate();
  const Checkpoint checkpoint(path);
  checkpoint.require_room_for(config);
  auto weights = std::make_shared<Weights>();
  const auto slots = slots_of(config, *weights);
  std::vector<Checkpoint::Found> found;
  std::set<const SafetensorsEntry*> used;
  for (const Slot& slot : slots) used.insert(found.emplace_back(checkpoint.find(slot.name, slot.shape)).entry);
  if (checkpoint.quantised()) {  // what was signed was finite
    std::int64_t done = 0, total = 0;
    for (const auto& file : checkpoint.files()) total += static_cast<std::int64_t>(file->entries().size());
    for (const auto& file : checkpoint.files()) {
      require_checksum(*file);
      if (progress) progress(done += static_cast<std::int64_t>(file->entries().size()), total);
    }
  }
  for (std::size_t i = 0; i < slots.size(); ++i) {
    *slots[i].view = found[i].view();
    if (checkpoint.quantised()) continue;
    require_finite(*slots[i].view, found[i].where());
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
      if (is_vision_tensor(e.name))
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
  require_drawn(dtype);
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
                                                DType dtype, const Progress& progress) {
  DSV2_CHECK(is_weight_dtype(dtype) || is_quantised(dtype),
             "rounded weights: expected dtype f32, bf16, f16, int8 or int4, found ", name(dtype));
  auto copy = std::make_shared<Weights>();
  const auto slots = slots_of(config, *copy);
  const auto tensors = tensors_of(config, *weights);
  std::vector<std::size_t> changed;
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const TensorView& view = *slots[i].view = tensors[i].view;
    if (is_kept(slots[i].name, slots[i].shape) || view.dtype == dtype) continue;
    DSV2_CHECK(!is_quantised(view.dtype), "rounded weights: ", slots[i].name, ": expected floats, found ",
               name(view.dtype));
    changed.push_back(i);
    bytes += aligned(TensorView{dtype, view.shape, nullptr}.bytes());
  }
  if (changed.empty()) return weights;
  require_memory(bytes, "rounded weights");
  auto converted = std::make_shared<std::vector<Tensor>>(changed.size());
  std::exception_ptr failure;  // an exception must not leave the parallel region
  std::size_t done = 0;
  std::mutex reporting;
  const bool many = changed.size() >= 64;  // quantise() shares a matrix among the threads itself
#pragma omp parallel for schedule(dynamic) if (many)
  for (std::size_t n = 0; n < changed.size(); ++n) {
    try {
      TensorView& view = *slots[changed[n]].view;
      view = ((*converted)[n] = convert(view, dtype)).view();
      const std::lock_guard lock(reporting);
      report_progress(progress, ++done, changed.size());
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
  std::vector<PlannedTensor> plan;
  std::vector<TensorView> views;
  for_each_tensor(config, *this, [&](std::string name, const Shape&, const TensorView& view) {
    plan.push_back({std::move(name), view.dtype, view.shape});
    views.push_back(view);
  });
  write_checkpoint(
      dir, config, plan, [&](std::size_t i) { return views[i]; }, shard_bytes);
}

std::int64_t Weights::save_random(const std::filesystem::path& dir, const Config& config, std::uint64_t seed,
                                  DType dtype, const Progress& progress, std::int64_t shard_bytes) {
  config.validate();
  require_drawn(dtype);
  const std::vector<PlannedTensor> plan = plan_of(config, dtype);
  Tensor drawn;
  std::size_t done = 0;
  const auto make = [&](std::size_t i) {
    const PlannedTensor& t = plan[i];
    drawn = Tensor(t.dtype, t.shape);
    draw(static_cast<std::byte*>(drawn.data()), drawn.view(), random_stream(seed, t.name), fill_of(t.name, t.shape));
    report_progress(progress, ++done, plan.size());
    return drawn.view();
  };
  write_checkpoint(dir, config, plan, make, shard_bytes);
  std::int64_t bytes = 0;
  for (const PlannedTensor& t : plan) bytes += array_bytes(t.dtype, t.shape);
  return bytes;
}

std::int64_t Weights::bytes(const Config& config) const {
  std::int64_t sum = 0;
  for (const NamedTensor& t : tensors_of(config, *this)) sum += t.view.bytes();
  return sum;
}

}  // namespace dsv2
