// How an op's items are shared among threads: the one place that knows each op's items, their work and their split.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "optimized/cpu/kernels.h"
#include "optimized/cpu/panel.h"
#include "optimized/cpu/thread_team.h"

namespace dsv2::cpu {

/// Runs ops on `threads` threads (0: one per core). The parameters say all but the number of items where that is rows
/// of an array. Copies share one team: one op at a time.
class Runner {
 public:
  Runner(const Kernels& kernels, int threads)
      : kernels_(kernels), team_(std::make_shared<ThreadTeam>(threads > 0 ? threads : available_cores())) {}
  const Kernels& kernels() const { return kernels_; }

  void embedding(const EmbeddingParams& p, std::int64_t rows) const { run(kernels_.embedding, p, rows, p.width); }
  void rms_norm(const RmsNormParams& p, std::int64_t rows) const { run(kernels_.rms_norm, p, rows, p.width); }
  void add(const AddParams& p, std::int64_t elements) const { run(kernels_.add, p, elements, 1, 16); }
  void pack(const PackParams& p, std::int64_t rows) const { run(kernels_.pack, p, rows, p.width); }
  void unpack(const UnpackParams& p, std::int64_t rows) const { run(kernels_.unpack, p, rows, p.width); }
  void linear(const LinearParams& p) const {
    std::int64_t items = 0;
    for (std::int64_t i = 0; i < p.segment_count; ++i) items += padded_to_item(p.segments[i].out_width);
    run(kernels_.linear, p, items, p.rows * p.width, kItem, split_of(p.rows));
  }
  void rope(const RopeParams& p, std::int64_t rows) const { run(kernels_.rope, p, rows, p.heads * p.width); }
  void kv_write(const KvWriteParams& p, std::int64_t rows) const { run(kernels_.kv_write, p, rows, p.heads * p.width); }
  void kv_widen(const KvWidenParams& p, std::int64_t rows) const { run(kernels_.kv_widen, p, rows, p.width); }
  /// Blocks of queries as large as leave every thread one.
  void attention(AttentionParams p) const {
    const std::int64_t queries = p.tokens * p.heads / p.key_heads, heads = p.batch * p.key_heads;
    const std::int64_t blocks = std::min<std::int64_t>((team_->threads() + heads - 1) / heads, queries);
    p.query_block = std::min(kQueryBlock, (queries + blocks - 1) / blocks);
    run(kernels_.attention, p, attention_items(p), p.query_block * p.total * (p.d1 + p.d2 + p.dv), 1,
        p.tokens > 1 ? Split::on_demand : Split::even);
  }
  void attention_probabilities(const AttentionParams& p) const {
    run(kernels_.attention_probabilities, p, p.batch * p.heads * p.tokens, p.total * p.d1, 1, Split::on_demand);
  }
  void mla_absorb(const MlaAbsorbParams& p) const { run(kernels_.mla_absorb, p, p.heads, p.tokens * p.nope * p.width); }
  void gate_select(const GateParams& p, std::int64_t rows) const {
    run(kernels_.gate_select, p, rows, p.experts * p.experts);
  }
  void gate_weight(const GateParams& p, std::int64_t rows) const { run(kernels_.gate_weight, p, rows, p.top_k); }
  void experts_act(const ExpertsParams& p) const {
    const auto [units, products] = expert_work(p);
    run(kernels_.experts_act, p, units, products * 2 * p.hidden / std::max<std::int64_t>(units, 1), kItem,
        split_of(p.tokens));
  }
  void experts_down(const ExpertsParams& p) const {
    run(kernels_.experts_down, p, padded_to_item(p.hidden), expert_work(p).products, kItem, split_of(p.tokens));
  }

 private:
  // Few rows stream matrices from memory, each thread its own contiguous share; many are limited by arithmetic.
  static constexpr std::int64_t kFewRows = 8;
  // Multiplications, or the like, below which an op is not worth waking another thread.
  static constexpr std::int64_t kMinWork = 1 << 16;

  static Split split_of(std::int64_t rows) { return rows > kFewRows ? Split::on_demand : Split::even; }

  struct ExpertWork {
    std::int64_t units = 0, products = 0;  // products: tokens times hidden units
  };
  static ExpertWork expert_work(const ExpertsParams& p) {
    ExpertWork work;
    for (std::int64_t i = 0; i < p.segment_count; ++i) {
      work.units += padded_to_item(p.segments[i].width);
      work.products += p.segments[i].rows * p.segments[i].width;
    }
    return work;
  }

  /// All items of an op, each about `work` multiplications, split at multiples of `grain`.
  template <class Params>
  void run(void (*kernel)(const Params&, Range), const Params& params, std::int64_t items, std::int64_t work,
           std::int64_t grain = 1, Split split = Split::even) const {
    if (items * work >= kMinWork)
      team_->run(items, grain, split, [&](Range range) { kernel(params, range); });
    else if (items > 0)
      kernel(params, {0, items});
  }

  Kernels kernels_;
  std::shared_ptr<ThreadTeam> team_;
};

}  // namespace dsv2::cpu
