#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>

#include "harness/command.h"
#include "harness/flags.h"
#include "harness/report.h"
#include "harness/table.h"
#include "model/cost.h"
#include "model/quantise_checkpoint.h"

namespace dsv2::harness {
namespace {

struct QuantizeFlags {
  std::string from, dtype, head_dtype, out, json;
  bool force = false;
};

double bits_per_weight(std::int64_t bytes, std::int64_t parameters) {
  return 8 * static_cast<double>(bytes) / static_cast<double>(parameters);
}

Json to_json(const QuantizeFlags& flags, const QuantiseReport& report) {
  const auto row = [](const QuantiseReport::Row& r) {
    return Json{{"tensor", r.tensor},
                {"dtype", name(r.dtype)},
                {"parameters", r.elements},
                {"bytes", r.bytes},
                {"relative_l2", finite_or_null(r.error)}};
  };
  Json j = {{"schema_version", kReportSchemaVersion},
            {"argv", command_line()},
            {"from", flags.from},
            {"out", flags.out},
            {"dtype", flags.dtype},
            {"head_dtype", flags.head_dtype.empty() ? flags.dtype : flags.head_dtype},
            {"parameters", report.parameters},
            {"bytes", report.bytes},
            {"bits_per_weight", bits_per_weight(report.bytes, report.parameters)},
            {"quantised_parameters", report.quantised_parameters},
            {"quantised_bytes", report.quantised_bytes},
            {"relative_l2", finite_or_null(report.error)},
            {"worst", row(report.worst)},
            {"left_out", report.left_out},
            {"tensors", Json::array()}};
  for (const QuantiseReport::Row& r : report.tensors) j["tensors"].push_back(row(r));
  return j;
}

int run(const QuantizeFlags& flags) {
  namespace fs = std::filesystem;
  const DType dtype = parse_dtype_flag(flags.dtype, "--dtype");
  DSV2_CHECK(is_quantised(dtype), "--dtype: expected int8 or int4, found ", flags.dtype);
  QuantiseOptions options{.dtype = dtype};
  if (!flags.head_dtype.empty()) {
    options.head_dtype = parse_dtype_flag(flags.head_dtype, "--head-dtype");
    DSV2_CHECK(options.head_dtype != DType::f32, "--head-dtype: expected bf16, int8 or int4, found f32");
  }
  std::error_code none;
  DSV2_CHECK(fs::exists(flags.from, none), flags.from, ": expected a checkpoint, found nothing there");
  const fs::path folder = fs::is_directory(flags.from) ? fs::path(flags.from) : fs::path(flags.from).parent_path();
  DSV2_CHECK(!fs::equivalent(folder.empty() ? "." : folder, flags.out, none), "--out: ", flags.out,
             ": expected another folder than the source's");
  const Config config = Config::load(folder / "config.json");
  const bool own_head =
      config.head == Head::sequence_classification || (config.head == Head::causal_lm && !config.tie_word_embeddings);
  DSV2_CHECK(flags.head_dtype.empty() || own_head, "--head-dtype: expected a model with a head of its own, found ",
             config.head == Head::causal_lm ? "one tied to the embeddings" : "one without a head");
  require_checkpoint_folder(flags.out, flags.force, cost(config, {.dtype = dtype}).weight_bytes);
  ProgressLine progress("quantise");
  const QuantiseReport report =
      quantise_checkpoint(flags.from, config, options, flags.out,
                          [&](std::int64_t done, std::int64_t total) { progress.show(done, total, "tensors"); });
  progress.clear();
  if (!flags.json.empty()) write_output(flags.json, dump(to_json(flags, report)));
  if (flags.json == "-") return 0;
  const auto text = [](double error) { return percent(error); };
  std::cout << flags.out << ": " << si(static_cast<double>(report.parameters), "") << " parameters in "
            << si(static_cast<double>(report.bytes), "B") << ", "
            << fixed(bits_per_weight(report.bytes, report.parameters), 2) << " bits per weight ("
            << fixed(bits_per_weight(report.quantised_bytes, report.quantised_parameters), 2) << " of the quantised)\n"
            << "  relative L2 error of the weights: " << text(report.error) << " over all, at worst "
            << text(report.worst.error) << " in " << report.worst.tensor << '\n';
  if (report.left_out > 0)
    std::cout << "  left out: " << report.left_out << " tensors of the source that are no part of the decoder\n";
  return 0;
}

}  // namespace

void add_quantize(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* sub = app.add_subcommand("quantize", "Write a checkpoint with its matrices in int8 or int4");
  sub->add_option("source", flags->from, "A folder with config.json and safetensors")->required();
  sub->add_option("--dtype", flags->dtype, "Of matrices and embeddings: int8 or int4")->required();
  sub->add_option("--head-dtype", flags->head_dtype, "Of the head: bf16, int8 or int4 (default: as --dtype)");
  sub->add_option("--out", flags->out, "The folder; made if missing, sharded above 2 GB")->required();
  sub->add_flag("--force", flags->force, "Write into a folder that is not empty");
  sub->add_option("--json", flags->json, "Write what came out, tensor by tensor (-: stdout)");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
