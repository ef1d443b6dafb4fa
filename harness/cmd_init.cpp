#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>

#include "harness/command.h"
#include "harness/flags.h"
#include "harness/table.h"
#include "model/cost.h"

namespace dsv2::harness {
namespace {

struct InitFlags {
  std::string preset, config, dtype = "bf16", out;
  std::uint64_t seed = 1;
  bool force = false;
};

int run(const InitFlags& flags) {
  namespace fs = std::filesystem;
  DSV2_CHECK(flags.preset.empty() != flags.config.empty(), "--preset, --config: expected exactly one of them, found ",
             flags.preset.empty() ? "neither" : "both");
  const Config config = flags.preset.empty() ? Config::load(flags.config) : Config::preset(flags.preset);
  const DType dtype = parse_dtype_flag(flags.dtype, "--dtype");
  DSV2_CHECK(dtype == DType::f32 || dtype == DType::bf16, "--dtype: expected f32 or bf16, found ", flags.dtype);
  const fs::path out = flags.out;
  DSV2_CHECK(!fs::exists(out) || fs::is_directory(out), flags.out, ": expected a folder");
  DSV2_CHECK(flags.force || !fs::exists(out) || fs::is_empty(out), flags.out,
             ": is not empty; --force writes into it all the same");
  fs::create_directories(out);
  const double needed = cost(config, {.dtype = dtype}).weight_bytes,
               room = static_cast<double>(fs::space(out).available);
  DSV2_CHECK(needed < room, flags.out, ": expected room for ", si(needed, "B"), ", found ", si(room, "B"));
  ProgressLine progress("draw weights");
  const auto weights = Weights::random(
      config, flags.seed, dtype, [&](std::int64_t done, std::int64_t total) { progress.show(done, total, "tensors"); });
  progress.clear();
  weights->save(out, config);
  std::cout << flags.out << ": " << si(static_cast<double>(count_parameters(config).total), "") << " parameters, "
            << si(static_cast<double>(weights->bytes(config)), "B") << ", seed " << flags.seed << '\n';
  return 0;
}

}  // namespace

void add_init(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<InitFlags>();
  CLI::App* sub = app.add_subcommand("init", "Write a checkpoint with random weights");
  sub->add_option("--preset", flags->preset, "A known configuration");
  sub->add_option("--config", flags->config, "A config.json, or the folder that holds it");
  sub->add_option("--seed", flags->seed, "Of the weights (default 1)");
  sub->add_option("--dtype", flags->dtype, "f32 or bf16 (default bf16)");
  sub->add_option("--out", flags->out, "The folder; made if missing, sharded above 2 GB")->required();
  sub->add_flag("--force", flags->force, "Write into a folder that is not empty");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
