#include <CLI/CLI.hpp>
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
  DSV2_CHECK(flags.preset.empty() != flags.config.empty(), "--preset, --config: expected exactly one of them, found ",
             flags.preset.empty() ? "neither" : "both");
  const Config config = flags.preset.empty() ? Config::load(flags.config) : Config::preset(flags.preset);
  const DType dtype = parse_dtype_flag(flags.dtype, "--dtype");
  require_checkpoint_folder(flags.out, flags.force, cost(config, {.dtype = dtype}).weight_bytes);
  ProgressLine progress("draw weights");
  const std::int64_t bytes =
      Weights::save_random(flags.out, config, flags.seed, dtype,
                           [&](std::int64_t done, std::int64_t total) { progress.show(done, total, "tensors"); });
  progress.clear();
  std::cout << flags.out << ": " << si(static_cast<double>(count_parameters(config).total), "") << " parameters, "
            << si(static_cast<double>(bytes), "B") << ", seed " << flags.seed << '\n';
  return 0;
}

}  // namespace

void add_init(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<InitFlags>();
  CLI::App* sub = app.add_subcommand("init", "Write a checkpoint with random weights");
  sub->add_option("--preset", flags->preset, "A known configuration");
  sub->add_option("--config", flags->config, "A config.json, or the folder that holds it");
  sub->add_option("--seed", flags->seed, "Of the weights (default 1)");
  sub->add_option("--dtype", flags->dtype, "f32, bf16, int8 or int4 (default bf16)");
  sub->add_option("--out", flags->out, "The folder; made if missing, sharded above 2 GB")->required();
  sub->add_flag("--force", flags->force, "Write into a folder that is not empty");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
