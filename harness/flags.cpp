#include "harness/flags.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "harness/backends.h"
#include "harness/machine.h"
#include "harness/ranges.h"
#include "harness/table.h"
#include "model/checkpoint.h"
#include "optimized/cpu/kernels.h"

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
  sub.add_option("--threads", threads_, "Threads of the optimized backends (default, and 0: every core)");
  sub.add_option("--isa", isa_, "Instruction set of the cpu backend (default: the best this machine has)");
  sub.add_option("--kv-dtype", kv_dtypes_, "Of the KV cache: f32, bf16 or int8 (default: f32 with f32, else bf16)")
      ->delimiter(',')
      ->allow_extra_args(false);
  sub.add_option("--attention", attention_, "MLA: auto, absorbed or expanded (default auto)");
}

std::vector<const Backend*> BackendFlags::backends() const {
  std::vector<const Backend*> chosen;
  for (const std::string& n : names_) chosen.push_back(&find_backend(n));
  // A simulator is not asked: its environment may still be set.
  const auto unable = [](const Backend* b) { return !b->simulated && b->unavailable(); };
  if (!chosen.empty() && std::ranges::all_of(chosen, unable))
    throw Unavailable(concat(chosen.front()->name, ": ", *chosen.front()->unavailable()));
  return chosen;
}

std::vector<int> BackendFlags::thread_counts() const {
  constexpr std::int64_t kMost = 4096;
  std::vector<int> counts;
  for (const std::int64_t n : threads_.empty() ? std::vector<std::int64_t>{0} : parse_range(threads_, "--threads")) {
    DSV2_CHECK(n <= kMost, "--threads: expected 0 to ", kMost, ", found ", n);
    counts.push_back(n > 0 ? static_cast<int>(n) : machine().cores);
  }
  return counts;
}

int BackendFlags::thread_count() const { return std::ranges::max(thread_counts()); }

std::vector<Options> BackendFlags::every_options(std::string_view dtype) const {
  Options o;
  o.dtype = parse_dtype_flag(dtype, "--dtype");
  o.isa = isa_;
  if (!isa_.empty()) cpu::find_isa(isa_);  // now, in one line, instead of once for each thing that is run
  o.mla_form = parse_mla_form(attention_);
  std::vector<DType> kv_dtypes;
  for (const std::string& kv : kv_dtypes_) kv_dtypes.push_back(parse_dtype_flag(kv, "--kv-dtype"));
  if (kv_dtypes.empty()) kv_dtypes.push_back(o.dtype == DType::f32 ? DType::f32 : DType::bf16);
  std::vector<Options> all;
  for (const DType kv : kv_dtypes)
    for (const int threads : thread_counts()) {
      o.kv_dtype = kv;
      o.threads = threads;
      all.push_back(o);
    }
  return all;
}

Options BackendFlags::options(std::string_view dtype) const {
  DSV2_CHECK(thread_counts().size() == 1, "--threads: expected one value, found ", threads_);
  DSV2_CHECK(kv_dtypes_.size() <= 1, "--kv-dtype: expected one value, found ", kv_dtypes_.size());
  return every_options(dtype).front();
}

void ModelFlags::add_to(CLI::App& sub, bool draw_seed) {
  auto* model = sub.add_option("--model", model_, "A checkpoint: folder with config.json and safetensors");
  auto* preset = sub.add_option("--preset", preset_, "A known configuration with random weights");
  model->excludes(preset);
  if (draw_seed) seed_ = std::random_device{}();
  sub.add_option("--seed", seed_,
                 concat("Seed of random weights and inputs (default ", draw_seed ? "drawn and printed)" : "1)"));
}

namespace {

Progress tensors_on(ProgressLine& line) {
  return [&line](std::int64_t done, std::int64_t total) { line.show(done, total, "tensors"); };
}

}  // namespace

Config ModelFlags::config() const {
  DSV2_CHECK(model_.empty() != preset_.empty(), "--model, --preset: expected exactly one of them, found ",
             model_.empty() ? "neither" : "both");
  return model_.empty() ? Config::preset(preset_) : Config::load(model_);
}

std::string ModelFlags::dtype(const std::string& flag, const Config& config, std::string_view otherwise) const {
  const auto stored = model_.empty() ? std::nullopt : Checkpoint(model_).quantised_dtype(config);
  if (!stored) return flag.empty() ? std::string(otherwise) : flag;
  if (!flag.empty())
    DSV2_CHECK(parse_dtype_flag(flag, "--dtype") == *stored, "--dtype: expected ", name(*stored), ", as ", model_,
               " is stored, found ", flag);
  return std::string(name(*stored));
}

std::vector<std::string> ModelFlags::dtypes(const std::vector<std::string>& flag, const Config& config,
                                            std::string_view otherwise) const {
  if (flag.empty()) return {dtype("", config, otherwise)};
  for (const std::string& one : flag) dtype(one, config, otherwise);
  return flag;
}

std::shared_ptr<const Weights> load_weights(const std::string& model, const Config& config, DType dtype) {
  auto stored = [&] {
    ProgressLine progress("load");
    return Weights::load(model, config, nullptr, tensors_on(progress));
  }();
  const bool as_stored = dtype == DType::f32 || is_quantised(stored->layers.front().self_attn.o_proj.weight.dtype);
  if (as_stored) return stored;
  ProgressLine progress(concat(is_quantised(dtype) ? "quantise to " : "round to ", name(dtype)));
  return Weights::rounded(stored, config, dtype, tensors_on(progress));
}

std::shared_ptr<const Weights> ModelFlags::weights(const Config& config, DType dtype) const {
  if (!model_.empty()) return load_weights(model_, config, dtype);
  ProgressLine progress("draw weights");
  return Weights::random(config, seed_, dtype, tensors_on(progress));
}

DType ModelFlags::stored_dtype(const Config& config, DType dtype) const {
  if (model_.empty()) return dtype;
  const DType stored = Checkpoint(model_).matrix_dtype(config);
  return dtype == DType::f32 || is_quantised(stored) ? stored : dtype;
}

std::string ModelFlags::label() const {
  if (model_.empty()) return preset_;
  const auto path = std::filesystem::absolute(model_).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

void require_checkpoint_folder(const std::filesystem::path& out, bool force, double bytes) {
  namespace fs = std::filesystem;
  DSV2_CHECK(!fs::exists(out) || fs::is_directory(out), out.string(), ": expected a folder");
  DSV2_CHECK(force || !fs::exists(out) || fs::is_empty(out), out.string(),
             ": is not empty; --force writes into it all the same");
  std::error_code error;
  fs::create_directories(out, error);
  DSV2_CHECK(!error, out.string(), ": cannot be made: ", error.message());
  const auto room = static_cast<double>(fs::space(out).available);
  DSV2_CHECK(bytes < room, out.string(), ": expected room for ", si(bytes, "B"), ", found ", si(room, "B"));
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

std::regex parse_filter(const std::string& text) {
  try {
    return std::regex(text);
  } catch (const std::regex_error& e) {
    fail("--filter: expected a regular expression, found ", text, ": ", e.what());
  }
}

double parse_share(std::string_view text, std::string_view flag) {
  std::string number(text);
  double scale = 1;
  if (number.ends_with('%')) {
    number.pop_back();
    while (number.ends_with(' ')) number.pop_back();
    scale = 0.01;
  }
  char* end = nullptr;
  const double value = std::strtod(number.c_str(), &end);
  const bool plain = !number.empty() && number.find_first_not_of("0123456789.") == std::string::npos;
  DSV2_CHECK(plain && *end == '\0', flag, ": expected a share like 5% or 0.05, found ", text);
  return value * scale;
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
