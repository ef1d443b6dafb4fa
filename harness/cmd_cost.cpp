#include <CLI/CLI.hpp>
#include <iostream>

#include "harness/command.h"
#include "harness/flags.h"
#include "harness/report.h"
#include "harness/table.h"
#include "model/cost.h"

namespace dsv2::harness {
namespace {

struct CostFlags {
  std::string model, preset, dtype = "bf16", kv_dtype = "bf16", attention = "auto", logits = "all", json;
  Workload work{.context = 8192};
};

/// A figure that somebody published for this work, beside ours.
struct Claim {
  double claimed, computed;
  std::string why;
};

/// The design notes of ocr-mla-40l give 14.13 TFLOP for one decoded token at a context of 8,192.
std::vector<Claim> claims(const std::string& preset, const Workload& w, const Cost& c) {
  if (preset != "ocr-mla-40l" || w.batch != 1 || w.tokens != 1 || w.context != 8192) return {};
  return {{14.13e12, c.flops,
           "the design notes charge the MLPs of 8,192 tokens to one token: 39 MoE layers x 354.3 GFLOP (2 routed + 2 "
           "shared experts) + 225.5 GFLOP (dense layer), to which the attention of one token over the latent adds "
           "40 x 2.15 GFLOP; one token's MLPs take 1/8,192 of that"}};
}

Json bytes_json(const Bytes& b) {
  return {{"weights", b.weights}, {"kv", b.kv}, {"activations", b.activations}, {"total", b.total()}};
}

struct Parameters {
  ParameterCount count;
  std::int64_t head;                       ///< matrix of its own; 0 when tied or absent
  std::int64_t attention;                  ///< of a layer
  std::optional<std::int64_t> dense, moe;  ///< MLP of a layer of that kind, where there is one
};

Parameters parameters_of(const Config& c) {
  Config headless = c;
  headless.head = Head::none;
  const ParameterCount count = count_parameters(c);
  Parameters p{count, count.total - count_parameters(headless).total, attention_parameters(c), {}, {}};
  for (std::int64_t i = 0; i < c.num_hidden_layers; ++i)
    if (auto& kind = c.is_moe_layer(i) ? p.moe : p.dense; !kind) kind = mlp_parameters(c, i);
  return p;
}

Json to_json(const CostFlags& flags, const std::string& label, const Parameters& parameters, const Cost& c,
             const std::vector<Claim>& found) {
  const auto or_null = [](const std::optional<std::int64_t>& n) { return n ? Json(*n) : Json(nullptr); };
  Json j;
  j["schema_version"] = kReportSchemaVersion;
  j["argv"] = command_line();
  j["model"] = label;
  j["workload"] = {
      {"batch", flags.work.batch},     {"tokens", flags.work.tokens},
      {"context", flags.work.context}, {"dtype", flags.dtype},
      {"kv_dtype", flags.kv_dtype},    {"logits", flags.logits},
      {"causal", flags.work.causal},   {"attention", c.mla_form == MlaForm::automatic ? "mha" : name(c.mla_form)}};
  j["parameters"] = {{"total", parameters.count.total},
                     {"active", parameters.count.active},
                     {"without_head", parameters.count.total - parameters.head},
                     {"attention", parameters.attention},
                     {"dense_mlp", or_null(parameters.dense)},
                     {"moe_mlp", or_null(parameters.moe)}};
  j["flops"] = c.flops;
  j["bytes"] = bytes_json(c.bytes);
  j["kv_bytes_per_token"] = c.kv_bytes_per_token;
  j["kv_bytes"] = c.kv_bytes;
  j["weight_bytes"] = c.weight_bytes;
  j["layers"] = Json::array();
  for (const LayerCost& layer : c.layers) {
    Json ops = Json::array();
    for (const OpCost& op : layer.ops)
      ops.push_back({{"op", op.op}, {"name", op.name}, {"flops", op.flops}, {"bytes", bytes_json(op.bytes)}});
    for (std::int64_t i = 0; i < layer.count; ++i) {
      Json row = {{"kind", layer.kind}, {"flops", layer.flops}, {"bytes", bytes_json(layer.bytes)}, {"ops", ops}};
      const bool decoder_layer = layer.kind == "dense" || layer.kind == "moe";
      row["index"] = decoder_layer ? Json(layer.first + i) : Json(nullptr);
      j["layers"].push_back(std::move(row));
    }
  }
  j["claims"] = Json::array();
  for (const Claim& claim : found)
    j["claims"].push_back({{"claimed", claim.claimed}, {"computed", claim.computed}, {"why", claim.why}});
  return j;
}

void print(const CostFlags& flags, const std::string& label, const Parameters& parameters, const Cost& c,
           const std::vector<Claim>& found, std::ostream& out) {
  const Workload& w = flags.work;
  const auto number = [](std::int64_t n) { return si(static_cast<double>(n), ""); };
  out << label << ": " << number(parameters.count.total) << " parameters (" << number(parameters.head)
      << " of them the head), " << number(parameters.count.active) << " active for a token\na layer: attention "
      << number(parameters.attention);
  if (parameters.dense) out << ", dense MLP " << number(*parameters.dense);
  if (parameters.moe) out << ", MoE " << number(*parameters.moe);
  out << "\nbatch " << w.batch << ", " << w.tokens << " new token" << (w.tokens > 1 ? "s" : "") << ", context "
      << w.context << ", weights " << flags.dtype << ", KV " << flags.kv_dtype;
  if (c.mla_form != MlaForm::automatic) out << ", MLA " << name(c.mla_form);
  out << "\n\n";
  Table table({"layer", "count", "op", "FLOP", "weights", "KV", "activations"});
  const auto row = [&](std::string kind, std::string count, std::string op, double flops, const Bytes& b) {
    table.add({std::move(kind), std::move(count), std::move(op), si(flops, "FLOP"), si(b.weights, "B"), si(b.kv, "B"),
               si(b.activations, "B")});
  };
  for (const LayerCost& layer : c.layers) {
    row(layer.kind, std::to_string(layer.count), "one layer", layer.flops, layer.bytes);
    for (const OpCost& op : layer.ops) row("", "", op.name, op.flops, op.bytes);
  }
  row("all", "", "", c.flops, c.bytes);
  table.print(out);
  out << "\nKV cache: " << si(c.kv_bytes_per_token, "B") << " a token, " << si(c.kv_bytes, "B")
      << " in all; weights resident: " << si(c.weight_bytes, "B") << '\n';
  for (const Claim& claim : found)
    out << "\nclaimed elsewhere: " << si(claim.claimed, "FLOP") << "; computed: " << si(claim.computed, "FLOP")
        << "\n  " << claim.why << '\n';
}

Logits parse_logits(std::string_view text) {
  if (text == "none") return Logits::none;
  if (text == "last") return Logits::last;
  if (text == "all") return Logits::all;
  fail("--logits: expected none, last or all, found ", text);
}

int run(CostFlags flags) {
  DSV2_CHECK(flags.model.empty() != flags.preset.empty(), "--model, --preset: expected exactly one of them, found ",
             flags.model.empty() ? "neither" : "both");
  const Config config = flags.model.empty() ? Config::preset(flags.preset) : Config::load(flags.model);
  flags.work.dtype = parse_dtype_flag(flags.dtype, "--dtype");
  flags.work.kv_dtype = parse_dtype_flag(flags.kv_dtype, "--kv-dtype");
  flags.work.mla_form = parse_mla_form(flags.attention);
  flags.work.logits = parse_logits(flags.logits);
  DSV2_CHECK(config.use_mla || flags.work.mla_form == MlaForm::automatic,
             "--attention: expected auto for a model "
             "without MLA, found ",
             flags.attention);
  DSV2_CHECK(flags.work.context >= flags.work.tokens, "--context: expected at least the ", flags.work.tokens,
             " new tokens (it counts them), found ", flags.work.context);
  const Cost c = cost(config, flags.work);
  const Parameters parameters = parameters_of(config);
  const auto found = claims(flags.preset, flags.work, c);
  const std::string label = flags.model.empty() ? flags.preset : flags.model;
  if (!flags.json.empty()) write_output(flags.json, to_json(flags, label, parameters, c, found).dump(1) + "\n");
  if (flags.json != "-") print(flags, label, parameters, c, found, std::cout);
  return 0;
}

}  // namespace

void add_cost(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<CostFlags>();
  CLI::App* sub = app.add_subcommand("cost", "FLOPs, bytes and KV cache of a step, in closed form");
  auto* model = sub->add_option("--model", flags->model, "A folder with config.json, or the file");
  sub->add_option("--preset", flags->preset, "A known configuration")->excludes(model);
  const auto positive = CLI::Range(std::int64_t{1}, std::int64_t{1} << 32);
  sub->add_option("--batch", flags->work.batch, "Sequences (default 1)")->check(positive);
  sub->add_option("--tokens", flags->work.tokens, "New tokens of each (default 1: decode)")->check(positive);
  sub->add_option("--context", flags->work.context, "Keys that the last new token sees, itself included (default 8192)")
      ->check(positive);
  sub->add_option("--dtype", flags->dtype, "Of matrices: f32, bf16, int8, int4 (default bf16)");
  sub->add_option("--kv-dtype", flags->kv_dtype, "Of the KV cache (default bf16)");
  sub->add_option("--attention", flags->attention, "MLA: auto (fewer FLOPs), absorbed or expanded (default auto)");
  sub->add_flag("--causal", flags->work.causal, "Count visible pairs only, not S x T as published counts do");
  sub->add_option("--logits", flags->logits, "Positions that get logits: none, last or all (default all)");
  sub->add_option("--distinct-experts", flags->work.distinct_experts,
                  "Experts that a layer touches, as measured (default: what uniform routing gives)");
  sub->add_option("--json", flags->json, "Write the figures here (-: stdout)");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
