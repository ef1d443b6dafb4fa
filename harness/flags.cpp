#include "harness/flags.h"

#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "harness/backends.h"
#include "harness/machine.h"
#include "harness/table.h"

namespace dsv2::harness {

void BackendFlags::add_to(CLI::App& sub, const std::string& defaults) {
  for (std::size_t from = 0; from <= defaults.size();) {
    const std::size_t to = std::min(defaults.find(',', from), defaults.size());
    names_.push_back(defaults.substr(from, to - from));
    from = to + 1;
  }
  sub.add_option("--backend", names_, "Backends, as `dsv2 backends` lists them (default " + defaults + ")")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub.add_option("--threads", threads_, "Threads of the optimized backends (default: every core)")
      ->check(CLI::Range(0, 4096));
  sub.add_option("--isa", isa_, "Instruction set of the cpu backend (default: the best this machine has)");
  sub.add_option("--kv-dtype", kv_dtype_, "Of the KV cache (default: f32 with f32, else bf16)");
  sub.add_option("--attention", attention_, "MLA: auto, absorbed or expanded (default auto)");
}

std::vector<const Backend*> BackendFlags::backends() const {
  std::vector<const Backend*> chosen;
  for (const std::string& n : names_) chosen.push_back(&find_backend(n));
  return chosen;
}

int BackendFlags::thread_count() const { return threads_ > 0 ? threads_ : machine().cores; }

Options BackendFlags::options(std::string_view dtype) const {
  Options o;
  o.dtype = parse_dtype_flag(dtype, "--dtype");
  o.kv_dtype = !kv_dtype_.empty()      ? parse_dtype_flag(kv_dtype_, "--kv-dtype")
               : o.dtype == DType::f32 ? DType::f32
                                       : DType::bf16;
  o.threads = thread_count();
  o.isa = isa_;
  o.mla_form = parse_mla_form(attention_);
  return o;
}

void ModelFlags::add_to(CLI::App& sub, bool draw_seed) {
  auto* model = sub.add_option("--model", model_, "A checkpoint: folder with config.json and safetensors");
  auto* preset = sub.add_option("--preset", preset_, "A known configuration with random weights");
  model->excludes(preset);
  if (draw_seed) seed_ = std::random_device{}();
  sub.add_option("--seed", seed_,
                 concat("Seed of random weights and inputs (default ", draw_seed ? "drawn and printed)" : "1)"));
}

Config ModelFlags::config() const {
  DSV2_CHECK(model_.empty() != preset_.empty(), "--model, --preset: expected exactly one of them, found ",
             model_.empty() ? "neither" : "both");
  return model_.empty() ? Config::preset(preset_) : Config::load(model_);
}

std::shared_ptr<const Weights> ModelFlags::weights(const Config& config, DType dtype) const {
  if (!model_.empty()) {
    ProgressLine progress("load");
    auto stored = Weights::load(model_, config, nullptr,
                                [&](std::int64_t done, std::int64_t total) { progress.show(done, total, "tensors"); });
    return dtype == DType::f32 ? stored : Weights::rounded(stored, config, dtype);
  }
  ProgressLine progress("draw weights");
  return Weights::random(config, seed_, dtype,
                         [&](std::int64_t done, std::int64_t total) { progress.show(done, total, "tensors"); });
}

std::string ModelFlags::label() const {
  if (model_.empty()) return preset_;
  const auto path = std::filesystem::absolute(model_).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

MlaForm parse_mla_form(std::string_view text) {
  if (text == "auto") return MlaForm::automatic;
  for (const MlaForm form : {MlaForm::absorbed, MlaForm::expanded})
    if (text == name(form)) return form;
  fail("--attention: expected auto, absorbed or expanded, found ", text);
}

DType parse_dtype_flag(std::string_view text, std::string_view flag) {
  const auto dtype = parse_dtype(text);
  DSV2_CHECK(dtype && (*dtype == DType::f32 || *dtype == DType::bf16 || *dtype == DType::i8 || *dtype == DType::i4),
             flag, ": expected f32, bf16, int8 or int4, found ", text);
  return *dtype;
}

std::vector<std::int64_t> parse_ids(std::string_view text, std::string_view flag) {
  std::vector<std::int64_t> ids;
  const char *at = text.data(), *end = at + text.size();
  while (at <= end) {
    std::int64_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    DSV2_CHECK(error == std::errc() && (next == end || *next == ','), flag, ": expected ids like 1,2,3, found ", text);
    ids.push_back(id);
    at = next + 1;
  }
  return ids;
}

std::vector<std::string> command_line() {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(in, word, '\0');) words.push_back(word);
  return words;
}

std::string default_golden_folder() {
  if (std::filesystem::is_directory("golden")) return "golden";
  return DSV2_SOURCE_GOLDEN;
}

}  // namespace dsv2::harness
