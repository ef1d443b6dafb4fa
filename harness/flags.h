// Flags that several commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include "model/decoder.h"
#include "model/weights.h"

namespace dsv2::harness {

/// --backend, --threads, --isa, --kv-dtype, --attention: which decoders, and how they run.
class BackendFlags {
 public:
  void add_to(CLI::App& sub, const std::string& defaults);
  void leave_out(std::string_view name) { std::erase(names_, name); }  ///< of the defaults
  /// In the order given. Throws Error for an unknown name, Unavailable where this machine can run none of them.
  std::vector<const Backend*> backends() const;
  /// Throws Error naming the flag for a dtype, KV dtype or attention form that is not one, and for lists of values.
  Options options(std::string_view dtype) const;
  /// One for each value of --kv-dtype, and of --threads for each of those.
  std::vector<Options> every_options(std::string_view dtype) const;
  int thread_count() const;  ///< as used: the most of --threads, or every core this process may use
  bool threads_given() const { return !threads_.empty(); }

 private:
  std::vector<int> thread_counts() const;

  std::vector<std::string> names_, kv_dtypes_;
  std::string threads_, isa_, attention_ = "auto";
};

/// --model DIR or --preset NAME with --seed and --dtype: where a command's model comes from.
class ModelFlags {
 public:
  /// `draw_seed`: without --seed it is a random one, for the command to print; else 1.
  void add_to(CLI::App& sub, bool draw_seed = false);
  bool given() const { return !model_.empty() || !preset_.empty(); }
  Config config() const;  ///< throws Error unless exactly one of --model and --preset is given
  /// The dtype to compute in: `flag`; without it `otherwise`, or what a quantised checkpoint is stored in. Throws Error
  /// for one that such a checkpoint is not stored in.
  std::string dtype(const std::string& flag, const Config& config, std::string_view otherwise) const;
  std::vector<std::string> dtypes(const std::vector<std::string>& flag, const Config& config,
                                  std::string_view otherwise) const;
  /// The checkpoint, or weights drawn in `dtype`; rounded to it where it is lower than what is stored.
  std::shared_ptr<const Weights> weights(const Config& config, DType dtype) const;
  /// What weights(config, dtype) are going to be stored in.
  DType stored_dtype(const Config& config, DType dtype) const;
  std::string label() const;  ///< the preset's name, or the folder's
  bool random() const { return model_.empty(); }
  std::uint64_t seed() const { return seed_; }
  const std::string& model() const { return model_; }

 private:
  std::string model_, preset_;
  std::uint64_t seed_ = 1;
};

/// The checkpoint in folder `model`, rounded to `dtype` where that is lower than what is stored.
std::shared_ptr<const Weights> load_weights(const std::string& model, const Config& config, DType dtype);

/// For a command that writes a checkpoint: `out` is made if missing. Throws Error naming it when it is no folder, is
/// not empty and not to be overwritten (`force`), or has no room for `bytes`.
void require_checkpoint_folder(const std::filesystem::path& out, bool force, double bytes);

/// f32, bf16, ...; throws Error naming `flag` and the known ones.
DType parse_dtype_flag(std::string_view text, std::string_view flag);

/// auto, absorbed or expanded; throws Error naming --attention.
MlaForm parse_mla_form(std::string_view text);

/// "1,2,3" as ids; throws Error naming `flag`.
std::vector<std::int64_t> parse_ids(std::string_view text, std::string_view flag);

/// The regular expression of --filter; throws Error naming the flag for one that is none.
std::regex parse_filter(const std::string& text);

/// "5%", "5 %" or "0.05" as 0.05. Throws Error naming `flag` for anything else, or below 0.
double parse_share(std::string_view text, std::string_view flag);

/// argv of this process.
std::vector<std::string> command_line();

/// golden/ under the working folder, else in the checkout that this binary was built from.
std::string default_golden_folder();

}  // namespace dsv2::harness
