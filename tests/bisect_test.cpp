// Where bisect() says that a decoder goes wrong, against where a planted fault first acts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>

#include "harness/bisect.h"
#include "harness/faults.h"
#include "harness/routing.h"
#include "harness/taps.h"
#include "optimized/cpu/backend.h"
#include "optimized/cpu/test_hook.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

Options one_thread(DType dtype = DType::f32) {
  Options o;
  o.dtype = o.kv_dtype = dtype;
  o.threads = 1;
  return o;
}

MakeDecoder with(const cpu::Kernels& kernels) {
  return [kernels](const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
    return cpu::create_with_kernels(config, std::move(weights), options, kernels);
  };
}

BisectWork work_of(const std::string& preset, DType dtype = DType::f32, std::uint64_t seed = 3) {
  const Config config = Config::preset(preset);
  return bisect_work(preset, config, Weights::random(config, seed, dtype), seed);
}

/// The tap at which two decoders first differ in any bit when the second is fed with the first one's intermediates.
class FirstDifference final : public TapSink {
 public:
  explicit FirstDifference(const RecordingSink& right) : right_(right) {}
  void tap(std::string_view name, const TensorView& view, void* data) override {
    const auto bytes = static_cast<std::size_t>(view.bytes());
    if (!first && std::memcmp(data, right_.find(name)->data(), bytes) != 0) first = std::string(name);
    std::memcpy(data, right_.find(name)->data(), bytes);
  }
  std::optional<std::string> first;

 private:
  const RecordingSink& right_;
};

/// Where these kernels first do anything else than the right ones: no bound, no reference.
std::optional<std::string> first_difference(const BisectWork& work, const cpu::Kernels& wrong, const Options& options) {
  const auto right = cpu::backend().create(work.config, work.weights, options);
  const auto tested = cpu::create_with_kernels(work.config, work.weights, options, wrong);
  const auto cache = right->make_cache(2, 8);
  for (const BisectWork::Call& call : work.calls) {
    const auto same_start = cache->clone();
    RecordingSink recording;
    ForwardInput in = call.input.input;
    in.logits = Logits::all;
    in.cache = cache.get(), in.taps = &recording;
    right->forward(in);
    FirstDifference difference(recording);
    in.cache = same_start.get(), in.taps = &difference;
    tested->forward(in);
    if (difference.first) return difference.first;
  }
  return std::nullopt;
}

bool names(const BisectOp& found, std::string_view op) {
  return std::find(found.ops.begin(), found.ops.end(), op) != found.ops.end();
}

class Bisect : public ::testing::Test {
 protected:
  Bisect() : kernels_(*cpu::find_isa("").kernels) { set_true_kernels(kernels_); }
  const cpu::Kernels& kernels_;
};

TEST_F(Bisect, RightDecodersAreWithinBudget) {
  for (const char* preset : {"tiny-mha", "tiny-mla"})
    for (const DType dtype : {DType::f32, DType::bf16})
      for (std::uint64_t seed = 1; seed <= 10; ++seed) {
        const BisectWork work = work_of(preset, dtype, seed);
        const Bisection b = bisect(work, cpu::backend().create, one_thread(dtype));
        EXPECT_EQ(b.first_out(), nullptr) << preset << ' ' << name(dtype) << " seed " << seed;
        EXPECT_GT(b.worst_local()->local->budget_used, 0.01);
        EXPECT_GT(b.worst_accumulated()->accumulated->budget_used, 0.01);
      }
}

TEST_F(Bisect, NamesTheOpAndTheLayerOfEveryFault) {
  int acting = 0;
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    const BisectWork work = work_of(preset);
    for (const Fault& fault : faults()) {
      SCOPED_TRACE(concat(preset, ": ", fault.op, ": ", fault.name));
      cpu::Kernels wrong = kernels_;
      fault.inject(wrong);
      const auto truth = first_difference(work, wrong, one_thread());
      const Bisection b = bisect(work, with(wrong), one_thread());
      const BisectOp* found = b.first_out();
      EXPECT_EQ(found != nullptr, truth.has_value());
      if (!found || !truth) continue;
      ++acting;
      EXPECT_TRUE(names(*found, fault.op)) << found->tap;
      EXPECT_TRUE(located_at(fault.op, found->tap)) << found->tap;
      EXPECT_EQ(layer_of(found->tap), layer_of(*truth)) << found->tap << ", expected " << *truth;
      if (fault.op != "kv_write") {
        EXPECT_EQ(found->tap, *truth);
      } else {
        EXPECT_NE(found->tap.find(".cache."), std::string::npos) << found->tap;
      }
    }
  }
  EXPECT_GE(acting, 80);
}

/// A kernel that is wrong in one layer: it counts its calls, of which a forward pass has `calls_a_layer` a layer.
struct OneLayer {
  static inline std::int64_t calls = 0, wrong_layer = 0, layers = 0, calls_a_layer = 1;
  static bool now() { return calls++ / calls_a_layer % layers == wrong_layer; }
};

TEST_F(Bisect, FindsTheOneLayerThatIsWrong) {
  struct Planted {
    const char* op;
    std::int64_t calls_a_layer;
    void (*inject)(cpu::Kernels&);
  };
  static cpu::Kernels right;
  right = kernels_;
  const Planted planted[] = {
      {"attention", 1,
       [](cpu::Kernels& k) {
         k.attention = [](const cpu::AttentionParams& given, cpu::Range items) {
           cpu::AttentionParams p = given;
           if (OneLayer::now()) p.scale *= 1.01f;
           right.attention(p, items);
         };
       }},
      {"rope", 2,  // queries, keys
       [](cpu::Kernels& k) {
         k.rope = [](const cpu::RopeParams& given, cpu::Range items) {
           cpu::RopeParams p = given;
           if (OneLayer::now()) p.interleaved = !p.interleaved;
           right.rope(p, items);
         };
       }},
      {"kv_write", 2,  // both parts
       [](cpu::Kernels& k) {
         k.kv_write = [](const cpu::KvWriteParams& given, cpu::Range items) {
           cpu::KvWriteParams p = given;
           if (OneLayer::now()) items.end = std::max(items.begin, items.end - 1);
           right.kv_write(p, items);
         };
       }},
      {"experts_down", 1,
       [](cpu::Kernels& k) {
         k.experts_down = [](const cpu::ExpertsParams& given, cpu::Range items) {
           right.experts_down(given, items);
           if (OneLayer::now()) given.y[given.hidden - 1] += 1e-3f;
         };
       }},
  };
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    const BisectWork work = work_of(preset);
    Options options = one_thread();
    options.mla_form = MlaForm::absorbed;  // expanded attends to one sequence at a time
    for (const Planted& plant : planted) {
      for (std::int64_t layer = 0; layer < work.config.num_hidden_layers; ++layer) {
        SCOPED_TRACE(concat(preset, ": ", plant.op, " in layer ", layer));
        OneLayer::calls = 0, OneLayer::wrong_layer = layer;
        OneLayer::layers = work.config.num_hidden_layers, OneLayer::calls_a_layer = plant.calls_a_layer;
        cpu::Kernels wrong = kernels_;
        plant.inject(wrong);
        const Bisection b = bisect(work, with(wrong), options);
        const BisectOp* found = b.first_out();
        ASSERT_NE(found, nullptr);
        EXPECT_TRUE(names(*found, plant.op)) << found->tap;
        EXPECT_EQ(layer_of(found->tap), layer) << found->tap;
        EXPECT_EQ(found->call, "prefill");
        for (const BisectOp& op : b.ops)  // the layers around it are judged alone
          if (op.call == "prefill" && layer_of(op.tap) != layer && op.local) {
            EXPECT_TRUE(op.local->passed) << op.tap;
          }
        // What the error does to everything behind it shows in the other run.
        for (const BisectOp& op : b.ops)
          if (op.tap == "norm" && op.call == "prefill") {
            EXPECT_FALSE(op.accumulated->passed) << op.accumulated->budget_used;
          }
      }
    }
  }
}

/// A fault that no single op shows: every sum is off by less than its own budget, always to the same side.
TEST_F(Bisect, DriftWithinEveryOpsBudgetShowsFreeRunning) {
  static cpu::Kernels right;
  right = kernels_;
  cpu::Kernels wrong = kernels_;
  wrong.add = [](const cpu::AddParams& p, cpu::Range items) {
    right.add(p, items);
    for (std::int64_t i = items.begin; i < items.end; ++i) p.x[i] *= 1 + 14 * 0x1p-24f;
  };
  Config config = Config::preset("tiny-mha");
  config.num_hidden_layers = 80;
  const BisectWork work = bisect_work("deep", config, Weights::random(config, 3, DType::f32), 3);
  const Bisection b = bisect(work, with(wrong), one_thread());
  const BisectOp* found = b.first_out();
  ASSERT_NE(found, nullptr);
  EXPECT_TRUE(found->local->passed);
  EXPECT_FALSE(found->accumulated->passed);
  EXPECT_GT(layer_of(found->tap), 0);
  EXPECT_EQ(bisect(work, cpu::backend().create, one_thread()).first_out(), nullptr);
}

TEST_F(Bisect, FusedOpsAreAllNamed) {
  // A backend that reports only what it must: the sink does not see the rest.
  class Hidden final : public Decoder {
   public:
    explicit Hidden(std::unique_ptr<Decoder> all) : all_(std::move(all)) {}
    const Config& config() const override { return all_->config(); }
    const Options& options() const override { return all_->options(); }
    std::unique_ptr<KvCache> make_cache(std::int64_t b, std::int64_t c) const override {
      return all_->make_cache(b, c);
    }
    std::unique_ptr<KvCache> make_cache(const LegacyCache& l) const override { return all_->make_cache(l); }
    std::int64_t workspace_bytes() const override { return 0; }
    ForwardOutput forward(const ForwardInput& input) override {
      struct Few final : TapSink {
        TapSink* to;
        void tap(std::string_view name, const TensorView& view, void* data) override {
          const bool layer = std::count(name.begin(), name.end(), '.') == 1;
          if (layer || layer_of(name) < 0 || is_router_tap(name)) to->tap(name, view, data);
        }
      } few;
      few.to = input.taps;
      ForwardInput in = input;
      in.taps = &few;
      return all_->forward(in);
    }

   private:
    std::unique_ptr<Decoder> all_;
  };
  cpu::Kernels wrong = kernels_;
  for (const Fault& fault : faults())
    if (fault.name == "softmax scale dropped") fault.inject(wrong);
  const BisectWork work = work_of("tiny-mla");
  const Bisection b = bisect(
      work,
      [&](const Config& config, std::shared_ptr<const Weights> weights, const Options& options) {
        return std::make_unique<Hidden>(cpu::create_with_kernels(config, std::move(weights), options, wrong));
      },
      one_thread());
  const BisectOp* found = b.first_out();
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->tap, "layers.0");
  for (const char* op : {"attention", "mla_absorb", "linear", "experts_act", "experts_down", "add", "rms_norm"})
    EXPECT_TRUE(names(*found, op)) << op;
  for (const char* op : {"embedding", "rope", "kv_write", "gate_select"}) EXPECT_FALSE(names(*found, op)) << op;
}

TEST(Routing, TiesAreWhereTheGatesRuleMayGoEitherWay) {
  Config config = Config::preset("tiny-mha");
  config.num_experts_per_tok = 2;
  config.n_routed_experts = 4;
  const double logits[] = {1.0, 2.0, 1.0 + 1e-6, 0.5};
  const TensorView right_logits{DType::f64, {1, 4}, logits};
  const auto judge = [&](std::vector<std::int64_t> got, double slack, const TensorView& bias = {}) {
    const std::int64_t want[] = {1, 2};
    const std::vector<double> slacks(4, slack);
    return judge_choices({DType::i64, {1, 2}, got.data()}, {DType::i64, {1, 2}, want}, right_logits, slacks, config,
                         bias)
        .front();
  };
  EXPECT_EQ(judge({1, 2}, 0), Choice::same);
  EXPECT_EQ(judge({0, 1}, 1e-6), Choice::tie);
  EXPECT_EQ(judge({0, 1}, 1e-7), Choice::tie) << "scores are rounded, too";
  EXPECT_EQ(judge({0, 1}, 0), Choice::other);
  EXPECT_EQ(judge({1, 3}, 1e-6), Choice::other);
  EXPECT_EQ(judge({0, 2}, 1e-6), Choice::other);
  EXPECT_EQ(judge({1, 3}, 0.3), Choice::tie);
  EXPECT_EQ(judge({1, 7}, 1e9), Choice::other) << "no expert";
  EXPECT_EQ(judge({1, 1}, 1e9), Choice::other) << "one expert twice";

  config.topk_method = TopkMethod::noaux_tc;
  config.scoring_func = ScoringFunc::sigmoid;
  const float bias[] = {0, 0, -0.5f, 0.0f};
  EXPECT_EQ(judge({0, 1}, 1e-3, {DType::f32, {4}, bias}), Choice::tie) << "the rule itself chooses it";
  EXPECT_EQ(judge({1, 3}, 1e-3, {DType::f32, {4}, bias}), Choice::other);
}

/// Which groups are kept is a decision, too; and an expert of a rejected group competes with 0 (QUIRKS 7).
TEST(Routing, TiesBetweenGroups) {
  Config config = Config::preset("tiny-mla");  // noaux_tc on sigmoid scores
  config.n_routed_experts = 6;
  config.num_experts_per_tok = 2;
  config.n_group = 3, config.topk_group = 1;
  // Biased scores -0.3 -0.3 | -0.3 -0.3 | -0.9 -0.9: of whichever pair is kept, the zeros of the others are chosen.
  const double logits[] = {0, 1e-6, 0, 0, 0, 0};
  const float bias[] = {-0.8f, -0.8f, -0.8f, -0.8f, -1.4f, -1.4f};
  const auto judge = [&](std::vector<std::int64_t> got, double slack) {
    const std::int64_t want[] = {2, 3};  // group 0 is kept: the first zeros
    const std::vector<double> slacks(6, slack);
    return judge_choices({DType::i64, {1, 2}, got.data()}, {DType::i64, {1, 2}, want}, {DType::f64, {1, 6}, logits},
                         slacks, config, {DType::f32, {6}, bias})
        .front();
  };
  EXPECT_EQ(judge({2, 3}, 0), Choice::same);
  EXPECT_EQ(judge({0, 1}, 1e-5), Choice::tie) << "group 1 is kept";
  EXPECT_EQ(judge({0, 1}, 1e-9), Choice::tie) << "within what scores are rounded by";
  EXPECT_EQ(judge({0, 2}, 1e-5), Choice::other);
  EXPECT_EQ(judge({4, 5}, 1e-5), Choice::other);
}

/// One token's logits moved across a tie in the tested decoder alone: counted, and what follows is not poisoned.
TEST_F(Bisect, TiesAreCountedAndSettled) {
  Config config = Config::preset("tiny-mha");
  config.topk_method = TopkMethod::group_limited_greedy;  // whose weights are zero in a rejected group
  config.n_group = 4, config.topk_group = 2;
  const auto drawn = Weights::random(config, 3, DType::f32);
  // All experts' gate rows alike: every choice is a tie.
  auto tied = std::make_shared<Weights>();
  for_each_tensor(config, *tied, [](const std::string&, const Shape&, TensorView&) {});
  tied->embed_tokens = drawn->embed_tokens, tied->norm = drawn->norm, tied->lm_head = drawn->lm_head;
  tied->layers = drawn->layers;
  Tensor same(DType::f32, drawn->layers[1].gate.shape);
  const std::int64_t E = same.dim(0), D = same.dim(1);
  for (std::int64_t e = 0; e < E; ++e)
    std::copy_n(drawn->layers[1].gate.as<float>().data(), D, same.as<float>().data() + e * D);
  for (std::size_t layer : {1u, 2u}) tied->layers[layer].gate = same.view();

  static cpu::Kernels right;
  right = kernels_;
  cpu::Kernels other = kernels_;
  other.gate_select = [](const cpu::GateParams& p, cpu::Range items) {  // ties to the higher id
    right.gate_select(p, items);
    for (std::int64_t n = items.begin; n < items.end; ++n) {
      for (std::int64_t e = 0; e < p.experts; ++e)
        if (e / (p.experts / p.groups) < p.groups - p.top_groups)
          p.scores[n * p.experts + e] = 0;
        else
          p.scores[n * p.experts + e] = 1.0f / static_cast<float>(p.experts);
      for (std::int64_t j = 0; j < p.top_k; ++j) p.topk_idx[n * p.top_k + j] = p.experts - p.top_k + j;
    }
  };
  const BisectWork work = bisect_work("tied", config, tied, 4);
  const Bisection b = bisect(work, with(other), one_thread());
  EXPECT_EQ(b.first_out(), nullptr) << b.first_out()->tap;
  const std::int64_t tokens = 2 * 7 + 2;
  EXPECT_EQ(b.ties, 2 * 2 * tokens) << "two MoE layers, two runs";

  // Without the ties it is a wrong choice.
  const Bisection wrong = bisect(bisect_work("drawn", config, drawn, 3), with(other), one_thread());
  ASSERT_NE(wrong.first_out(), nullptr);
  EXPECT_EQ(wrong.first_out()->tap, "layers.1.mlp.gate.topk_idx");
}

TEST_F(Bisect, GoldenCasesHaveEveryCallAndStep) {
  const GoldenCase golden = GoldenCase::load(DSV2_SOURCE_DIR "/golden/cases/greedy_generation_mla");
  const BisectWork work = bisect_work(golden);
  std::size_t expected = golden.calls.size();
  for (const GoldenGeneration& g : golden.generate) expected += static_cast<std::size_t>(golden.expected(g.ids).dim(1));
  EXPECT_EQ(work.calls.size(), expected);
  const Bisection b = bisect(work, cpu::backend().create, one_thread());
  EXPECT_EQ(b.first_out(), nullptr);
  const Record r = bisect_record(work, "cpu", one_thread(), b);
  EXPECT_EQ(r.status, Status::passed);
  EXPECT_EQ(r.bisect.size(), b.ops.size());
}

TEST_F(Bisect, ADecoderThatThrowsIsJudgedUpToThere) {
  static cpu::Kernels right;
  right = kernels_;
  cpu::Kernels wrong = kernels_;
  wrong.gate_select = [](const cpu::GateParams& p, cpu::Range items) {
    right.gate_select(p, items);
    p.topk_idx[items.begin * p.top_k] = -1;  // forced, it becomes a right one; free, the decoder refuses it
  };
  const BisectWork work = work_of("tiny-mha");
  const Bisection b = bisect(work, with(wrong), one_thread());
  ASSERT_TRUE(b.stopped);
  ASSERT_NE(b.first_out(), nullptr);
  EXPECT_EQ(b.first_out()->tap, "layers.1.mlp.gate.topk_idx");
  EXPECT_EQ(bisect_record(work, "cpu", one_thread(), b).status, Status::failed);
}

TEST_F(Bisect, ANarrowerCacheHasItsOwnBound) {
  Options options = one_thread();
  for (const DType kv_dtype : {DType::bf16, DType::i8}) {
    options.kv_dtype = kv_dtype;
    for (const char* preset : {"tiny-mha", "tiny-mla"}) {
      const Bisection b = bisect(work_of(preset), cpu::backend().create, options);
      ASSERT_EQ(b.first_out(), nullptr) << preset << ' ' << b.first_out()->tap;
    }
  }
}

TEST_F(Bisect, NamesTheFaultsOfAnInt8Cache) {
  Options options = one_thread();
  options.kv_dtype = DType::i8;
  std::set<std::string_view> found;
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    const BisectWork work = work_of(preset);
    for (const Fault& fault : faults()) {
      if (fault.where != Where::int8_cache) continue;
      SCOPED_TRACE(concat(preset, ": ", fault.op, ": ", fault.name));
      cpu::Kernels wrong = kernels_;
      fault.inject(wrong);
      const Bisection b = bisect(work, with(wrong), options);
      if (!b.first_out()) continue;
      EXPECT_TRUE(names(*b.first_out(), fault.op)) << b.first_out()->tap;
      found.insert(fault.name);
    }
  }
  for (const Fault& fault : faults())
    EXPECT_EQ(found.contains(fault.name), fault.where == Where::int8_cache) << fault.name;
}

TEST_F(Bisect, TheLineNamesOpIndexCallAndValues) {
  cpu::Kernels wrong = kernels_;
  for (const Fault& fault : faults())
    if (fault.op == "rope" && fault.name == "rotated backwards") fault.inject(wrong);
  const BisectWork work = work_of("tiny-mla");
  std::vector<Bisected> all(1);
  all[0].bisection = bisect(work, with(wrong), one_thread());
  all[0].record = bisect_record(work, "cpu", one_thread(), all[0].bisection);
  const std::string line = verdict(all);
  EXPECT_TRUE(line.starts_with("first out of budget: layers.0.self_attn.q_rope[")) << line;
  EXPECT_NE(line.find("] (rope) in tiny-mla prefill on cpu f32: got "), std::string::npos) << line;
  EXPECT_TRUE(line.ends_with(" x the bound (teacher-forced)")) << line;
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(all[0].record.status, Status::failed);
}

}  // namespace
}  // namespace dsv2::harness
