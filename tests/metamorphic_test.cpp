// Every property holds of the right decoders, and each is broken by a fault made for it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "harness/faults.h"
#include "harness/metamorphic.h"
#include "optimized/cpu/backend.h"
#include "optimized/cpu/test_hook.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

using Make = decltype(Subject::make);

Options threads(int count, DType dtype = DType::f32) {
  Options o;
  o.dtype = o.kv_dtype = dtype;
  o.threads = count;
  return o;
}

Subject subject(const std::string& name, const Config& config, std::uint64_t seed = 5, DType dtype = DType::f32,
                const Backend& backend = cpu::backend()) {
  return subject_of(backend, name, config, Weights::random(config, seed, dtype), seed, threads(1, dtype));
}

bool any(std::string_view) { return true; }

std::string told(const std::vector<Record>& records) {
  std::string all;
  for (const Record& r : records)
    if (r.status == Status::failed || r.status == Status::error) all += concat(r.name, ": ", r.reason, "; ");
  return all;
}

/// The properties that fail, without the subject's name.
std::set<std::string> broken(const Subject& s, const std::set<std::string>& among = {}) {
  std::set<std::string> names;
  const auto wanted = [&](std::string_view n) {
    return among.empty() || among.contains(std::string(n.substr(s.name.size() + 1)));
  };
  for (const Record& r : check_metamorphic(s, wanted))
    if (r.status != Status::passed && r.status != Status::skipped) names.insert(r.name.substr(s.name.size() + 1));
  return names;
}

TEST(Metamorphic, HoldsOfTheBackends) {
  for (const Backend& backend : {cpu::backend(), reference::backend()})
    for (const char* preset : {"tiny-mha", "tiny-mla"})
      for (const DType dtype : {DType::f32, DType::bf16})
        for (std::uint64_t seed = 1; seed <= 3; ++seed) {
          const auto records = check_metamorphic(subject(preset, Config::preset(preset), seed, dtype, backend), any);
          EXPECT_EQ(records.size(), metamorphic_properties().size());
          EXPECT_EQ(told(records), "") << backend.name << ' ' << name(dtype) << " seed " << seed;
          for (const Record& r : records) {
            EXPECT_EQ(r.seed, seed);
            if (r.status == Status::passed) {
              EXPECT_GE(r.compared, 3) << r.name;
            }
          }
        }
}

TEST(Metamorphic, HoldsOfOtherModels) {
  const auto check = [](const std::string& name, const Config& config) {
    EXPECT_EQ(told(check_metamorphic(subject(name, config), any)), "") << name;
  };
  Config groups = Config::preset("tiny-mla");
  groups.topk_method = TopkMethod::group_limited_greedy;
  groups.norm_topk_prob = false;
  groups.scoring_func = ScoringFunc::softmax;
  check("groups", groups);
  groups.num_experts_per_tok = 5;  // more than two groups hold: rejected experts fill in by their id
  check("fill-in", groups);
  Config dense = Config::preset("tiny-mha");
  dense.n_routed_experts.reset();
  dense.tie_word_embeddings = true;
  check("dense", dense);
  Config classes = Config::preset("tiny-mla");
  classes.head = Head::sequence_classification;
  classes.q_lora_rank.reset();
  check("classes", classes);
}

TEST(Metamorphic, SkipsWithTheReason) {
  const auto skipped = [](const Subject& s) {
    std::map<std::string, std::string> reasons;
    for (const Record& r : check_metamorphic(s, any)) {
      EXPECT_NE(r.status, Status::failed) << r.name << ": " << r.reason;
      if (r.status == Status::skipped) reasons[r.name.substr(s.name.size() + 1)] = r.reason;
    }
    return reasons;
  };
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    Config dynamic = Config::preset(preset);
    dynamic.rope_scaling = {.type = RopeType::dynamic, .factor = 2};
    EXPECT_EQ(skipped(subject("long", dynamic)).count("prefill = chunked prefill"), 0u)
        << "unscaled up to 128 positions";
    dynamic.max_position_embeddings = 8;
    const auto reasons = skipped(subject("short", dynamic));
    for (const char* property : {"prefill = chunked prefill", "prefill = token by token", "row alone = row in a batch",
                                 "padding does not matter"}) {
      ASSERT_TRUE(reasons.contains(property)) << property;
      EXPECT_NE(reasons.at(property).find("dynamic RoPE"), std::string::npos);
    }
  }
  Config plain = Config::preset("tiny-mha");
  plain.n_routed_experts.reset();
  plain.head = Head::none;
  EXPECT_EQ(skipped(subject("plain", plain, 5, DType::f32, reference::backend())).size(), 4u)
      << "no experts, threads, logits, latent";
  Subject unable = subject("unable", Config::preset("tiny-mha"));
  unable.unable = "no such device";
  EXPECT_EQ(skipped(unable).size(), metamorphic_properties().size());
}

/// Without the reasons to skip, dynamic RoPE would be called wrong: the reasons are needed.
TEST(Metamorphic, DynamicRopeDoesDependOnTheCall) {
  Config dynamic = Config::preset("tiny-mla");
  dynamic.rope_scaling = {.type = RopeType::dynamic, .factor = 2};
  dynamic.max_position_embeddings = 8;
  Subject s = subject("short", Config::preset("tiny-mla"));  // claims to be plain
  s.config.rope_scaling = {.type = RopeType::plain};
  s.make = [&](const Config&, std::shared_ptr<const Weights> weights, const Options& options) {
    return cpu::backend().create(dynamic, std::move(weights), options);
  };
  EXPECT_TRUE(broken(s).contains("prefill = chunked prefill"));
  EXPECT_TRUE(broken(s).contains("padding does not matter"));
}

TEST(Metamorphic, OneLineIsReproducedByNameAndSeed) {
  const Subject s = subject("tiny-mla", Config::preset("tiny-mla"), 77);
  for (const Record& r : check_metamorphic(s, any)) {
    const auto alone = check_metamorphic(s, [&](std::string_view n) { return n == r.name; });
    ASSERT_EQ(alone.size(), 1u) << r.name;
    EXPECT_EQ(alone[0].budget_used, r.budget_used) << r.name;
    EXPECT_EQ(alone[0].worst, r.worst) << r.name;
  }
}

Make with(const cpu::Kernels& kernels) {
  return [kernels](const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
    return cpu::create_with_kernels(config, std::move(weights), options, kernels);
  };
}

class Broken : public ::testing::Test {
 protected:
  Broken() : kernels_(*cpu::find_isa("").kernels) { set_true_kernels(kernels_); }
  std::set<std::string> by(const std::string& preset, const cpu::Kernels& kernels,
                           const std::set<std::string>& among = {}) const {
    Subject s = subject(preset, Config::preset(preset));
    s.make = with(kernels);
    return broken(s, among);
  }
  std::set<std::string> by_fault(const std::string& preset, std::string_view op, std::string_view fault,
                                 const std::set<std::string>& among = {}) const {
    cpu::Kernels wrong = kernels_;
    bool found = false;
    for (const Fault& f : faults())
      if (f.op == op && f.name == fault) f.inject(wrong), found = true;
    EXPECT_TRUE(found) << op << ": " << fault;
    return by(preset, wrong, among);
  }
  const cpu::Kernels& kernels_;
};

TEST_F(Broken, EachByItsPlantedFault) {
  struct Expected {
    const char *preset, *op, *fault;
    std::set<std::string> properties;
  };
  const std::set<std::string> chunks = {"prefill = chunked prefill", "prefill = token by token"};
  const std::set<std::string> batches = {"row alone = row in a batch", "permuted batch = permuted result"};
  const Expected expected[] = {
      {"tiny-mha", "attention", "future token visible", chunks},
      {"tiny-mla", "attention", "mask ignores causality", chunks},
      {"tiny-mha", "rope", "position off by one", chunks},
      {"tiny-mha", "kv_write", "last row missing", chunks},
      {"tiny-mha", "attention", "keys of the first sequence", batches},
      {"tiny-mla", "attention", "values of the first sequence", batches},
      {"tiny-mha", "linear", "rows permuted", batches},
      {"tiny-mha", "attention", "padding visible", {"padding does not matter"}},
      {"tiny-mla", "attention", "first KV row missing", {"padding does not matter"}},
      {"tiny-mha", "experts_down", "first expert missing", {"permuted experts = the same"}},
      {"tiny-mla", "gate_select", "top-k off by one", {"permuted experts = the same"}},
      {"tiny-mha", "gate_weight", "weights in reverse", {"permuted experts = the same"}},
      {"tiny-mha", "linear", "last column of a thread's share lost", {"threads do not matter"}},
      {"tiny-mha", "linear", "rows permuted", {"last logits = all logits, last"}},
      {"tiny-mla", "mla_absorb", "weights of the first head", {"absorbed = expanded"}},
      {"tiny-mla", "mla_absorb", "half of the nope dimensions", {"absorbed = expanded"}},
  };
  std::set<std::string> covered;
  for (const Expected& e : expected) {
    EXPECT_EQ(by_fault(e.preset, e.op, e.fault, e.properties), e.properties)
        << e.preset << ' ' << e.op << ": " << e.fault;
    covered.insert(e.properties.begin(), e.properties.end());
  }
  // The rest is broken by what is made for it below.
  for (const char* other : {"truncate and replay = the same", "a cache's clone is its own", "repeated = the same",
                            "legacy cache there and back"})
    covered.insert(other);
  EXPECT_EQ(covered.size(), metamorphic_properties().size());
}

TEST_F(Broken, FaultsThatAskTheSameBothWaysAreNotSeen) {
  // What metamorphic checks cannot see: a wrong answer, given alike to every way of asking. Golden cases are for that.
  EXPECT_TRUE(by_fault("tiny-mha", "attention", "softmax scale dropped").empty());
  EXPECT_TRUE(by_fault("tiny-mha", "experts_act", "another activation").empty());
}

cpu::Kernels true_kernels;

TEST_F(Broken, ProbabilitiesOfOneFormAlone) {
  true_kernels = kernels_;
  cpu::Kernels wrong = kernels_;
  wrong.attention_probabilities = [](const cpu::AttentionParams& p, cpu::Range items) {
    true_kernels.attention_probabilities(p, items);
    // A sequence at a time is the expanded form.
    if (p.batch == 1 && p.tokens == 1 && items.begin == 0) p.out[0] *= 1.01f;
  };
  EXPECT_TRUE(by("tiny-mla", wrong).contains("absorbed = expanded"));
}

TEST_F(Broken, RepetitionByAKernelThatRacesNowAndThen) {
  true_kernels = kernels_;
  cpu::Kernels wrong = kernels_;
  wrong.rms_norm = [](const cpu::RmsNormParams& p, cpu::Range items) {
    static int calls = 0;
    true_kernels.rms_norm(p, items);
    if (++calls % 11 == 0) p.y[items.begin * p.width] *= 1 + 0x1p-23f;  // one ulp, once in a while
  };
  EXPECT_TRUE(by("tiny-mha", wrong).contains("repeated = the same"));
}

TEST_F(Broken, TruncationByRowsThatAreNotOverwritten) {
  true_kernels = kernels_;
  cpu::Kernels wrong = kernels_;
  wrong.kv_write = [](const cpu::KvWriteParams& p, cpu::Range items) {
    for (std::int64_t i = items.begin; i < items.end; ++i) {
      const auto* row = static_cast<const float*>(p.y) + i / p.tokens * p.batch_stride + i % p.tokens * p.width;
      if (*row == 0) true_kernels.kv_write(p, {i, i + 1});
    }
  };
  EXPECT_EQ(by("tiny-mha", wrong), (std::set<std::string>{"truncate and replay = the same"}));
}

/// A decoder whose caches misbehave.
class OtherCaches final : public Decoder {
 public:
  enum class Fault { none, clone_shares, truncate_keeps_one, legacy_is_rounded };
  OtherCaches(std::unique_ptr<Decoder> right, Fault fault) : right_(std::move(right)), fault_(fault) {}
  const Config& config() const override { return right_->config(); }
  const Options& options() const override { return right_->options(); }
  std::int64_t workspace_bytes() const override { return right_->workspace_bytes(); }
  std::unique_ptr<KvCache> make_cache(std::int64_t batch, std::int64_t capacity) const override {
    return std::make_unique<Cache>(right_->make_cache(batch, capacity), fault_);
  }
  std::unique_ptr<KvCache> make_cache(const LegacyCache& legacy) const override {
    return std::make_unique<Cache>(right_->make_cache(legacy), fault_);
  }
  ForwardOutput forward(const ForwardInput& input) override {
    ForwardInput in = input;
    if (in.cache) in.cache = dynamic_cast<Cache&>(*in.cache).held.get();
    return right_->forward(in);
  }

 private:
  struct Cache final : KvCache {
    Cache(std::shared_ptr<KvCache> from, Fault f) : held(std::move(from)), fault(f) {}
    std::int64_t batch() const override { return held->batch(); }
    std::int64_t length() const override { return held->length(); }
    std::int64_t capacity() const override { return held->capacity(); }
    void truncate(std::int64_t length) override {
      held->truncate(std::min(held->length(), length + (fault == Fault::truncate_keeps_one)));
    }
    std::unique_ptr<KvCache> clone() const override {
      return std::make_unique<Cache>(fault == Fault::clone_shares ? held : std::shared_ptr<KvCache>(held->clone()),
                                     fault);
    }
    std::int64_t bytes() const override { return held->bytes(); }
    LegacyCache to_legacy() const override {
      LegacyCache legacy = held->to_legacy();
      if (fault == Fault::legacy_is_rounded)
        for (LegacyLayer& layer : legacy)
          layer.first = convert(convert(layer.first.view(), DType::bf16).view(), DType::f32);
      return legacy;
    }
    std::shared_ptr<KvCache> held;
    Fault fault;
  };
  std::unique_ptr<Decoder> right_;
  Fault fault_;
};

TEST(BrokenCaches, AreCaughtByTheirProperty) {
  using F = OtherCaches::Fault;
  const std::pair<F, std::set<std::string>> expected[] = {
      {F::none, {}},
      {F::clone_shares, {"a cache's clone is its own"}},
      {F::truncate_keeps_one, {"truncate and replay = the same"}},
      {F::legacy_is_rounded, {"legacy cache there and back"}},
  };
  for (const auto& [fault, properties] : expected) {
    Subject s = subject("tiny-mla", Config::preset("tiny-mla"));
    s.make = [fault = fault](const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
      return std::make_unique<OtherCaches>(cpu::backend().create(config, std::move(weights), options), fault);
    };
    EXPECT_EQ(broken(s), properties) << static_cast<int>(fault);
  }
}

TEST(ExpertOrder, SharesMemoryAndKeepsItAlive) {
  const Config config = Config::preset("tiny-mla");
  auto drawn = Weights::random(config, 1, DType::bf16);
  const std::vector<std::int64_t> order = {3, 2, 1, 0, 7, 6, 5, 4};
  std::vector<const void*> experts;
  for (const MlpWeights& e : drawn->layers[1].experts) experts.push_back(e.up_proj.weight.data);
  const std::vector<double> gate = widen<double>(drawn->layers[1].gate);
  const std::weak_ptr<const Weights> watched = drawn;
  auto reordered = with_experts_in_order(std::move(drawn), order);
  EXPECT_FALSE(watched.expired());
  const std::int64_t D = config.hidden_size;
  for (std::size_t e = 0; e < order.size(); ++e) {
    const auto old = static_cast<std::size_t>(order[e]);
    EXPECT_EQ(reordered->layers[1].experts[e].up_proj.weight.data, experts[old]);
    for (std::int64_t d = 0; d < D; ++d)
      ASSERT_EQ(reordered->layers[1].gate.at(static_cast<std::int64_t>(e) * D + d),
                gate[old * static_cast<std::size_t>(D) + static_cast<std::size_t>(d)]);
  }
  EXPECT_EQ(reordered->bytes(config), watched.lock()->bytes(config));
  reordered.reset();
  EXPECT_TRUE(watched.expired());
}

/// Experts that all score alike: another order chooses others, which is a tie and no error.
TEST(Metamorphic, TiesAreCountedAndSettled) {
  const Config config = Config::preset("tiny-mha");
  const auto drawn = Weights::random(config, 1, DType::f32);
  const auto alike = with_experts_in_order(drawn, {0, 0, 0, 0, 0, 0, 0, 0});  // gate rows of the first
  Subject s = subject("alike", config);
  auto mixed = std::make_shared<Weights>();
  mixed->embed_tokens = drawn->embed_tokens, mixed->norm = drawn->norm, mixed->lm_head = drawn->lm_head;
  mixed->layers = drawn->layers;
  for (std::size_t i = 0; i < mixed->layers.size(); ++i) mixed->layers[i].gate = alike->layers[i].gate;
  s.weights = mixed;
  std::int64_t most = 0;
  for (s.seed = 1; s.seed <= 4; ++s.seed) {  // an order may keep the first three where they are
    const auto records =
        check_metamorphic(s, [](std::string_view n) { return n == "alike/permuted experts = the same"; });
    ASSERT_EQ(records.size(), 1u);
    EXPECT_EQ(records[0].status, Status::passed) << records[0].reason;
    most = std::max(most, records[0].ties);
  }
  EXPECT_EQ(most, 2 * 3 * 21) << "two MoE layers, every token";
}

}  // namespace
}  // namespace dsv2::harness
