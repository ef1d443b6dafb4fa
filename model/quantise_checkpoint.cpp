#include "model/quantise_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "model/checkpoint.h"
#include "model/quantised.h"

namespace dsv2 {
namespace {

struct Squares {
  double error = 0, norm = 0;
  double relative() const { return norm > 0 ? std::sqrt(error / norm) : 0; }
};

/// Quantises `from` [rows, cols] into `to` and reads back what that stores: once over the source, a panel at a time.
/// The squares are not finite when the source is not.
Squares quantise_into(const TensorView& from, Tensor& to) {
  const std::int64_t rows = from.dim(0), cols = from.dim(1), bytes = quantised_panel_bytes(to.dtype(), cols);
  double error = 0, norm = 0;
#pragma omp parallel reduction(+ : error, norm)
  {
    std::vector<float> x(static_cast<std::size_t>(kQuantPanel * cols)), y(x.size());
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t first = 0; first < rows; first += kQuantPanel) {
      const std::int64_t count = std::min(kQuantPanel, rows - first);
      widen_rows_into(from, first, count, x.data());
      quantise_panel(x.data(), count, cols, to.dtype(),
                     static_cast<std::byte*>(to.data()) + first / kQuantPanel * bytes);
      widen_rows_into(to.view(), first, count, y.data());
      double panel_error = 0, panel_norm = 0;
#pragma omp simd reduction(+ : panel_error, panel_norm)
      for (std::int64_t i = 0; i < count * cols; ++i) {
        const double exact = x[static_cast<std::size_t>(i)], off = exact - y[static_cast<std::size_t>(i)];
        panel_error += off * off;
        panel_norm += exact * exact;
      }
      error += panel_error, norm += panel_norm;
    }
  }
  return {error, norm};
}

/// Rounds `from` to bf16.
Squares round_into(const TensorView& from, Tensor& to) {
  to = convert(from, to.dtype());
  const std::int64_t rows = from.dim(0), cols = from.dim(1);
  double error = 0, norm = 0;
#pragma omp parallel for reduction(+ : error, norm)
  for (std::int64_t row = 0; row < rows; ++row) {
    std::vector<float> x(static_cast<std::size_t>(cols)), y(x.size());
    widen_rows_into(from, row, 1, x.data());
    widen_rows_into(to.view(), row, 1, y.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = x[i], off = exact - y[i];
      error += off * off;
      norm += exact * exact;
    }
  }
  return {error, norm};
}

bool is_head(std::string_view tensor) { return tensor == "lm_head.weight" || tensor == "score.weight"; }

}  // namespace

QuantiseReport quantise_checkpoint(const std::filesystem::path& from, const Config& config,
                                   const QuantiseOptions& options, const std::filesystem::path& dir,
                                   const Progress& progress, std::int64_t shard_bytes) {
  DSV2_CHECK(is_quantised(options.dtype), "quantise: expected dtype int8 or int4, found ", name(options.dtype));
  config.validate();
  const Checkpoint source(from);
  DSV2_CHECK(!source.quantised(), source.files().front()->source(),
             ": expected a checkpoint in floats, found one that is quantised already");
  source.require_room_for(config);

  QuantiseReport report;
  std::vector<PlannedTensor> plan;
  std::vector<Checkpoint::Found> found;
  std::set<const SafetensorsEntry*> used;
  Weights shapes;
  for_each_tensor(config, shapes, [&](std::string tensor, Shape shape, const TensorView&) {
    const Checkpoint::Found& f = found.emplace_back(source.find(tensor, shape));
    used.insert(f.entry);
    DType dtype = is_head(tensor) ? options.head_dtype.value_or(options.dtype) : options.dtype;
    if (is_kept(tensor, shape)) dtype = f.dtype;
    const std::int64_t elements = element_count(shape), bytes = array_bytes(dtype, shape);
    report.parameters += elements, report.bytes += bytes;
    if (is_quantised(dtype)) report.quantised_parameters += elements, report.quantised_bytes += bytes;
    plan.push_back({std::move(tensor), dtype, std::move(shape)});
  });
  for (const auto& file : source.files())
    for (const SafetensorsEntry& e : file->entries()) report.left_out += !used.contains(&e);

  Squares all;
  Tensor made;
  std::size_t done = 0;
  const auto make = [&](std::size_t i) {
    const PlannedTensor& t = plan[i];
    TensorView view = found[i].view();
    if (progress) progress(static_cast<std::int64_t>(++done), static_cast<std::int64_t>(plan.size()));
    if (view.dtype == t.dtype) {
      require_finite(view, found[i].where());
      return view;
    }
    made = Tensor(t.dtype, t.shape);
    const Squares squares = is_quantised(t.dtype) ? quantise_into(view, made) : round_into(view, made);
    if (!std::isfinite(squares.norm)) require_finite(view, found[i].where());
    if (!is_quantised(t.dtype)) require_finite(made.view(), concat(found[i].where(), name(t.dtype), ": "));
    all.error += squares.error, all.norm += squares.norm;
    report.tensors.push_back({t.name, t.dtype, made.size(), made.view().bytes(), squares.relative()});
    if (report.worst.tensor.empty() || report.tensors.back().error > report.worst.error)
      report.worst = report.tensors.back();
    return made.view();
  };
  write_checkpoint(dir, config, plan, make, shard_bytes);
  report.error = all.relative();
  return report;
}

}  // namespace dsv2
