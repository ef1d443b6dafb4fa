#include <CLI/CLI.hpp>
#include <iostream>
#include <map>

#include "harness/command.h"
#include "harness/flags.h"
#include "harness/report.h"
#include "harness/table.h"
#include "model/checkpoint.h"
#include "model/cost.h"
#include "model/quantised.h"

namespace dsv2::harness {
namespace {

struct InspectFlags {
  std::string path, json;
  bool tensors = false;
};

std::string attention_kind(const Config& c) {
  if (!c.use_mla)
    return concat("MHA ", c.num_attention_heads, " x ", c.head_dim(), ", ", c.num_key_value_heads, " key/value heads");
  return concat("MLA ", c.num_attention_heads, " heads, ", c.q_lora_rank ? concat("q_lora ", *c.q_lora_rank, ", ") : "",
                "kv_lora ", c.kv_lora_rank, ", nope ", c.qk_nope_head_dim, ", rope ", c.qk_rope_head_dim, ", v ",
                c.v_head_dim);
}

std::string experts_kind(const Config& c) {
  if (c.moe_layers().empty()) return "none: every layer is dense";
  return concat(*c.n_routed_experts, " experts of ", c.moe_intermediate_size, ", top ", c.num_experts_per_tok, " ",
                name(c.topk_method), " ", name(c.scoring_func),
                c.n_shared_experts.value_or(0) ? concat(", ", *c.n_shared_experts, " shared") : "", ", in ",
                c.moe_layers().size(), " of ", c.num_hidden_layers, " layers");
}

int run(const InspectFlags& flags) {
  const Config c = Config::load(std::filesystem::is_directory(flags.path)
                                    ? std::filesystem::path(flags.path)
                                    : std::filesystem::path(flags.path).parent_path() / "config.json");
  LoadReport report;
  ProgressLine progress("load");
  const auto weights = Weights::load(
      flags.path, c, &report, [&](std::int64_t done, std::int64_t total) { progress.show(done, total, "tensors"); });
  progress.clear();
  std::map<std::string, std::int64_t> bytes;
  Json tensors = Json::array();
  Table list({"tensor", "dtype", "shape"});
  for_each_tensor(c, *weights, [&](const std::string& tensor, const Shape& shape, const TensorView& view) {
    bytes[std::string(name(view.dtype))] += view.bytes();
    tensors.push_back({{"name", tensor}, {"dtype", name(view.dtype)}, {"shape", shape}});
    list.add({tensor, std::string(name(view.dtype)), to_string(shape)});
  });
  const ParameterCount parameters = count_parameters(c);
  const std::optional<DType> quantised = Checkpoint(flags.path).quantised_dtype(c);
  const double bits_per_weight = 8 * static_cast<double>(weights->bytes(c)) / static_cast<double>(parameters.total);
  if (!flags.json.empty()) {
    Json j = {{"schema_version", kReportSchemaVersion},
              {"path", flags.path},
              {"head", name(c.head)},
              {"config", Json::parse(c.to_json())},
              {"parameters", {{"total", parameters.total}, {"active", parameters.active}}},
              {"bytes", bytes},
              {"bits_per_weight", bits_per_weight},
              {"quantised", quantised ? Json{{"dtype", name(*quantised)}, {"group", kQuantGroup}} : Json(nullptr)},
              {"files", report.files},
              {"tensors_used", report.tensors},
              {"vision_tensors_skipped", report.vision_tensors},
              {"unused", report.unused}};
    if (flags.tensors) j["tensors"] = tensors;
    write_output(flags.json, j.dump(1) + "\n");
    if (flags.json == "-") return 0;
  }
  std::cout << flags.path << ": " << name(c.head) << ", " << c.num_hidden_layers << " layers, hidden " << c.hidden_size
            << ", vocabulary " << c.vocab_size << '\n'
            << "  attention   " << attention_kind(c) << '\n'
            << "  experts     " << experts_kind(c) << '\n'
            << "  RoPE        " << name(c.rope_scaling.type) << ", theta " << c.rope_theta << '\n'
            << "  parameters  " << si(static_cast<double>(parameters.total), "") << " ("
            << si(static_cast<double>(parameters.active), "") << " active)\n"
            << "  bytes      ";
  for (const auto& [dtype, n] : bytes)
    std::cout << (&dtype == &bytes.begin()->first ? " " : ", ") << si(static_cast<double>(n), "B") << " in " << dtype;
  std::cout << ", " << fixed(bits_per_weight, 2) << " bits per weight";
  if (quantised)
    std::cout << "\n  quantised   " << name(*quantised) << ", groups of " << kQuantGroup << "; the checksum of "
              << (report.files == 1 ? "the file" : "every file") << " is right";
  std::cout << "\n  tensors     " << report.tensors << " used from " << report.files << " file"
            << (report.files == 1 ? "" : "s") << ", " << report.vision_tensors << " vision tensors skipped, "
            << report.unused.size() << " not used";
  for (std::size_t i = 0; i < std::min<std::size_t>(report.unused.size(), 3); ++i)
    std::cout << (i ? ", " : ": ") << report.unused[i];
  std::cout << (report.unused.size() > 3 ? ", ...\n" : "\n");
  if (flags.tensors) {
    std::cout << '\n';
    list.print(std::cout);
  }
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* sub = app.add_subcommand("inspect", "Read a checkpoint, check it, and say what it is");
  sub->add_option("path", flags->path, "A folder with config.json and safetensors")->required();
  sub->add_flag("--tensors", flags->tensors, "List every tensor");
  sub->add_option("--json", flags->json, "Write it here (-: stdout)");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
