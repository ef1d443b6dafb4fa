#include <CLI/CLI.hpp>
#include <iostream>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/flags.h"
#include "harness/generate.h"
#include "harness/taps.h"
#include "model/safetensors.h"

namespace dsv2::harness {
namespace {

struct DumpFlags {
  ModelFlags model;
  BackendFlags backend;
  std::string dtype, prompt_ids, out;
};

int run(const DumpFlags& flags) {
  const std::vector<std::int64_t> prompt = parse_ids(flags.prompt_ids, "--prompt-ids");
  const Config config = flags.model.config();
  const auto chosen = flags.backend.backends();
  DSV2_CHECK(chosen.size() == 1, "--backend: expected one to dump from, found ", chosen.size());
  const Options options = flags.backend.options(flags.model.dtype(flags.dtype, config, "f32"));
  require_runs(*chosen.front(), config, options);
  const auto decoder = chosen.front()->create(config, flags.model.weights(config, options.dtype), options);
  OwnedInput input;
  input.set("input_ids", Tensor::from<std::int64_t>(prompt, {1, static_cast<std::int64_t>(prompt.size())}));
  RecordingSink taps;
  input.input.taps = &taps;
  input.input.logits = config.head == Head::none ? Logits::none : Logits::all;
  input.input.attentions = true;
  const ForwardOutput out = decoder->forward(input.input);
  std::vector<NamedTensor> tensors = {{"input_ids", input.tensors.at("input_ids").view()}};
  for (const auto& [tap, tensor] : taps.all()) tensors.push_back({tap, tensor.view()});
  for (std::size_t i = 0; i < out.attentions.size(); ++i)
    tensors.push_back({concat("layers.", i, ".self_attn.attn_weights"), out.attentions[i].view()});
  if (out.logits) tensors.push_back({"logits", out.logits.view()});
  tensors.push_back({"last_hidden_state", out.last_hidden_state.view()});
  write_safetensors(
      flags.out, tensors,
      {{"format", "pt"}, {"backend", std::string(chosen.front()->name)}, {"dtype", std::string(name(options.dtype))}});
  std::cerr << tensors.size() << " tensors in " << flags.out << '\n';
  return 0;
}

}  // namespace

void add_dump(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<DumpFlags>();
  CLI::App* sub = app.add_subcommand("dump", "Write every intermediate of one forward pass, to compare in torch");
  flags->model.add_to(*sub);
  flags->backend.add_to(*sub, "reference");
  sub->add_option("--dtype", flags->dtype,
                  "Of matrices and their arithmetic (default: what a quantised checkpoint has, else f32)");
  sub->add_option("--prompt-ids", flags->prompt_ids, "Token ids: 1,2,3")->required();
  sub->add_option("--out", flags->out, "A safetensors file; names are those of model/taps.h")->required();
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
