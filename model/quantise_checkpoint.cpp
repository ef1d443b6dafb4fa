#include "model/quantise_checkpoint.h"

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

/// Of the values stored in `to` against those of `from`, both [rows, cols].
Squares compare(const TensorView& from, const TensorView& to) {
  const std::int64_t rows = from.dim(0), cols = from.dim(1);
  double error = 0, norm = 0;
#pragma omp parallel reduction(+ : error, norm)
  {
    std::vector<float> x(static_cast<std::size_t>(cols)), y(x.size());
#pragma omp for
    for (std::int64_t row = 0; row < rows; ++row) {
      widen_rows_into(from, row, 1, x.data());
      widen_rows_into(to, row, 1, y.data());
      double row_error = 0, row_norm = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double off = double{y[i]} - double{x[i]};
        row_error += off * off, row_norm += double{x[i]} * double{x[i]};
      }
      error += row_error, norm += row_norm;
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
    const TensorView view = found[i].view();
    require_finite(view, found[i].where());
    if (progress) progress(static_cast<std::int64_t>(++done), static_cast<std::int64_t>(plan.size()));
    if (view.dtype == t.dtype) return view;
    made = convert(view, t.dtype);
    if (!is_quantised(t.dtype)) require_finite(made.view(), concat(found[i].where(), name(t.dtype), ": "));
    const Squares squares = compare(view, made.view());
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
