#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/flags.h"
#include "harness/generate.h"
#include "harness/memory_needs.h"
#include "harness/report.h"
#include "harness/statistics.h"
#include "harness/table.h"

namespace dsv2::harness {
namespace {

struct GenerateFlags {
  ModelFlags model;
  BackendFlags backend;
  std::string dtype, prompt_ids, eos, json;
  std::int64_t max_new_tokens = 16, ngram = 0, window = 0;
};

int run(const GenerateFlags& flags) {
  const std::vector<std::int64_t> prompt = parse_ids(flags.prompt_ids, "--prompt-ids");
  const Config config = flags.model.config();
  const auto chosen = flags.backend.backends();
  DSV2_CHECK(chosen.size() == 1, "--backend: expected one to generate with, found ", chosen.size());
  const Backend& backend = *chosen.front();
  const Options options = flags.backend.options(flags.model.dtype(flags.dtype, config, "f32"));
  require_runs(backend, config, options);
  GenerateOptions wish;
  wish.max_new_tokens = flags.max_new_tokens;
  wish.eos_token_id = flags.eos.empty()     ? config.eos_token_id
                      : flags.eos == "none" ? std::vector<std::int64_t>{}
                                            : parse_ids(flags.eos, "--eos");
  wish.no_repeat_ngram = flags.ngram;
  wish.window = flags.window;
  const bool stream = flags.json != "-";
  wish.on_step = [&](std::int64_t step, const std::vector<std::int64_t>& ids) {
    if (stream) std::cout << (step ? "," : "") << ids.front() << std::flush;
  };
  OwnedInput input;
  input.set("input_ids", Tensor::from<std::int64_t>(prompt, {1, static_cast<std::int64_t>(prompt.size())}));
  require_memory(
      memory_needs(config, backend, flags.model.stored_dtype(config, options.dtype), options, 1,
                   static_cast<std::int64_t>(prompt.size()) + std::max<std::int64_t>(flags.max_new_tokens, 0),
                   static_cast<std::int64_t>(prompt.size())),
      flags.model.label());
  const auto decoder = backend.create(config, flags.model.weights(config, options.dtype), options);
  validate_input(input.input, config);
  const Generation g = generate(*decoder, std::move(input), wish);
  if (stream) std::cout << '\n';
  const double prefill_s = static_cast<double>(g.prefill_ns) * 1e-9;
  const double step_ns = g.step_ns.empty() ? 0 : median({g.step_ns.begin(), g.step_ns.end()});
  std::cerr << "prefill " << prompt.size() << " tokens in " << fixed(prefill_s * 1e3, 1) << " ms ("
            << fixed(static_cast<double>(prompt.size()) / prefill_s, 1) << " tokens/s)";
  if (step_ns > 0)
    std::cerr << ", decode " << g.step_ns.size() << " steps at " << fixed(1e9 / step_ns, 1) << " tokens/s (median)";
  std::cerr << '\n';
  if (!flags.json.empty()) {
    const Json j = {{"schema_version", kReportSchemaVersion},
                    {"argv", command_line()},
                    {"prompt_ids", prompt},
                    {"ids", g.ids.front()},
                    {"prefill_ns", g.prefill_ns},
                    {"step_ns", g.step_ns}};
    write_output(flags.json, j.dump(1) + "\n");
  }
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* sub = app.add_subcommand("generate", "Continue a prompt of token ids greedily");
  flags->model.add_to(*sub);
  flags->backend.add_to(*sub, "cpu");
  sub->add_option("--dtype", flags->dtype,
                  "Of matrices and their arithmetic (default: what a quantised checkpoint has, else f32)");
  sub->add_option("--prompt-ids", flags->prompt_ids, "Token ids: 1,2,3")->required();
  sub->add_option("--max-new-tokens", flags->max_new_tokens, "At most this many (default 16)");
  sub->add_option("--eos", flags->eos, "Ids that end the sequence, or none (default: the configuration's)");
  sub->add_option("--no-repeat-ngram", flags->ngram, "No n-gram of this length twice (default 0: off)");
  sub->add_option("--window", flags->window, "... within this many last tokens (default 0: all)");
  sub->add_option("--json", flags->json, "Write ids and times here (-: stdout)");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
