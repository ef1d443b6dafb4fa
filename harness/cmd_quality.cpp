#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/flags.h"
#include "harness/memory_needs.h"
#include "harness/quality.h"
#include "harness/report.h"
#include "harness/table.h"
#include "model/random.h"

namespace dsv2::harness {
namespace {

struct QualityFlags {
  ModelFlags model;
  std::vector<std::string> formats;
  std::int64_t tokens = 128;
  std::optional<std::int64_t> layers;
  int threads = 0;
  std::string json;
};

std::vector<QualityFormat> chosen(const std::vector<std::string>& names) {
  if (names.empty()) return quality_formats();
  std::vector<QualityFormat> formats;
  std::string known;
  for (const QualityFormat& f : quality_formats()) known += concat(known.empty() ? "" : ", ", f.name);
  for (const std::string& n : names) {
    const auto it =
        std::find_if(quality_formats().begin(), quality_formats().end(), [&](const auto& f) { return f.name == n; });
    DSV2_CHECK(it != quality_formats().end(), "--dtype: expected one of ", known, ", found ", n);
    formats.push_back(*it);
  }
  return formats;
}

std::string share(double value) { return concat(fixed(100 * value, 2), " %"); }

std::string small(double value) {
  if (value == 0) return "0";
  return value < 1e-3 ? concat(fixed(value * 1e6, 2), "e-6") : fixed(value, 5);
}

int run(const QualityFlags& flags) {
  Config config = flags.model.config();
  const std::vector<QualityFormat> formats = chosen(flags.formats);
  if (flags.layers) {
    DSV2_CHECK(*flags.layers <= config.num_hidden_layers, "--layers: expected at most ", config.num_hidden_layers,
               ", found ", *flags.layers);
    config.num_hidden_layers = *flags.layers;
  }
  DSV2_CHECK(config.head == Head::causal_lm, "quality: expected a model that predicts tokens, found ",
             name(config.head));
  const DType stored = flags.model.stored_dtype(config, flags.model.random() ? DType::bf16 : DType::f32);
  DSV2_CHECK(!is_quantised(stored), flags.model.label(),
             ": expected a checkpoint in floats to measure from, found one in ", name(stored));
  const Backend& backend = find_backend("cpu");
  const auto needs = [&](DType dtype, const Options& options) {
    return memory_needs(config, backend, dtype, options, 1, flags.tokens, flags.tokens);
  };
  Options f32;
  f32.threads = flags.threads;
  require_memory(needs(stored, f32), flags.model.label());
  const auto weights = flags.model.weights(config, flags.model.random() ? DType::bf16 : DType::f32);
  Tensor ids(DType::i64, {1, flags.tokens});
  const std::uint64_t stream = random_stream(flags.model.seed(), "quality");
  for (std::int64_t i = 0; i < flags.tokens; ++i)
    ids.as<std::int64_t>()[static_cast<std::size_t>(i)] =
        static_cast<std::int64_t>(random_bits(stream, i) % static_cast<std::uint64_t>(config.vocab_size));
  ProgressLine progress("quality");
  progress.show<std::size_t>(0, formats.size() + 1, "f32");
  const ForwardOutput want = quality_pass(backend, config, weights, f32, ids);
  std::vector<Quality> found;
  for (const QualityFormat& format : formats) {
    progress.show(found.size() + 1, formats.size() + 1, format.name);
    Options options = f32;
    options.dtype = format.arithmetic;
    MemoryNeeds more = needs(format.stored, options);
    more.weights += needs(stored, f32).weights;
    if (weights->layers.front().self_attn.o_proj.weight.dtype == format.stored) more.weights /= 2;  // shared
    require_memory(more, concat(flags.model.label(), " in ", format.name));
    const auto low = format.weights(weights, config);
    found.push_back(judge_quality(quality_pass(backend, config, low, options, ids), want));
    found.back().format = format.name;
    found.back().weights = weights_error(config, *low, *weights);
  }
  progress.clear();
  if (!flags.json.empty()) {
    Json j = {{"schema_version", kReportSchemaVersion},
              {"argv", command_line()},
              {"model", flags.model.label()},
              {"seed", flags.model.seed()},
              {"weights", name(stored)},
              {"layers", config.num_hidden_layers},
              {"tokens", flags.tokens},
              {"baseline", "cpu, f32 products of the weights as stored"},
              {"rows", Json::array()}};
    for (const Quality& q : found) j["rows"].push_back(q.to_json());
    write_output(flags.json, dump(j));
    if (flags.json == "-") return 0;
  }
  std::cout << flags.model.label() << ", " << config.num_hidden_layers << " layers, weights in " << name(stored) << ", "
            << flags.tokens << " tokens, seed " << flags.model.seed()
            << "; against f32 products of the same weights\n\n";
  Table table(
      {"format", "what", "weights", "embeddings", "middle layer", "last hidden", "logits", "KL (nats)", "top-1"});
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Quality& q = found[i];
    table.add({q.format, std::string(formats[i].description), share(q.weights), share(q.hidden_states.front()),
               share(q.hidden_states[q.hidden_states.size() / 2]), share(q.hidden_states.back()), share(q.logits),
               small(q.kl), percent(q.top1)});
  }
  table.print(std::cout);
  std::cout << "\nrelative L2 but for the last two; --json has every layer\n";
  return 0;
}

}  // namespace

void add_quality(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<QualityFlags>();
  CLI::App* sub = app.add_subcommand("quality", "How far low precision takes a model from itself in f32");
  flags->model.add_to(*sub);
  sub->add_option("--dtype", flags->formats,
                  "bf16, int8, int8-weights, q8_0-weights, int4, int4-weights, q4_0-weights (default: all)")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub->add_option("--tokens", flags->tokens, "Drawn from the seed, one sequence (default 128)")
      ->check(CLI::Range(1, 1 << 16));
  sub->add_option("--layers", flags->layers, "The first so many layers alone: less memory")
      ->check(CLI::Range(1, 1 << 16));
  sub->add_option("--threads", flags->threads, "Of the cpu backend (default: every core)")->check(CLI::Range(0, 4096));
  sub->add_option("--json", flags->json, "Write the figures here, by layer too (-: stdout)");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
