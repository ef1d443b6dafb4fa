// Op cases: the table, what is drawn, and that the gate of single ops rejects what is wrong.
#include <gtest/gtest.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <random>
#include <set>

#include "harness/faults.h"
#include "harness/op_cases.h"
#include "harness/op_judge.h"
#include "harness/op_memory.h"
#include "harness/run_op.h"
#include "optimized/cpu/backend.h"
#include "reference/backend.h"
#include "tests/temporary_folder.h"

namespace dsv2::harness {
namespace {

using testing::message_of;

std::uint64_t drawn_seed() {
  static const std::uint64_t kSeed = [] {
    const char* text = std::getenv("DSV2_TEST_SEED");
    return text ? std::strtoull(text, nullptr, 10) : std::random_device{}();
  }();
  return kSeed;
}

/// Cases that take next to no time: all but those of real widths and many rows.
std::vector<OpCase> quick_cases() {
  std::vector<OpCase> cases = op_cases();
  std::erase_if(cases, [](const OpCase& c) { return !is_small(c); });
  return cases;
}

Options one_thread() {
  Options options;
  options.threads = 1;
  return options;
}

/// A backend whose only op is this one.
Backend with_op(OpKernel kernel) {
  static OpKernel in_use;
  in_use = kernel;
  Backend backend = cpu::backend();
  backend.ops = [] { return std::span<const OpKernel>(&in_use, 1); };
  return backend;
}

OpCase case_named(std::string_view name) {
  for (const OpCase& c : op_cases())
    if (c.name() == name) return c;
  ADD_FAILURE() << "no case " << name;
  return {};
}

const OpKernel& own(std::string_view op) { return *find_op(cpu::backend(), op); }

TEST(OpCases, NamesAreUniqueAndEveryOpIsComputedByEveryBackend) {
  std::set<std::string> names;
  for (const OpCase& c : op_cases()) EXPECT_TRUE(names.insert(c.name()).second) << c.name();
  for (const std::string_view op : op_names())
    for (const Backend& backend : {reference::backend(), cpu::backend()})
      EXPECT_NE(find_op(backend, op), nullptr) << op << " on " << backend.name;
  // And the other way round: a kernel without cases would never be checked.
  const auto tested = op_names();
  for (const Backend& backend : {reference::backend(), cpu::backend()})
    for (const OpKernel& kernel : backend.ops())
      EXPECT_NE(std::find(tested.begin(), tested.end(), kernel.op), tested.end()) << kernel.op;
}

TEST(OpCases, TheTableCoversWhatItPromises) {
  std::set<std::string> seen;
  for (const OpCase& c : op_cases()) {
    const std::string op(c.op);
    seen.insert(concat(op, " S", c.tokens));
    seen.insert(concat(op, c.past > 0 ? " past" : " start"));
    seen.insert(concat(op, " ", name(c.fill)));
    seen.insert(concat(op, " ", dsv2::name(c.dtype), c.stored != c.dtype ? " stored otherwise" : ""));
    seen.insert(concat(op, has_real_widths(c) ? " real width" : " small width"));
    seen.insert(concat(op, " kv ", dsv2::name(c.kv_dtype)));
  }
  for (const char* op :
       {"rms_norm", "linear", "rope", "attention", "experts", "lm_head", "gate", "kv_write", "embedding"}) {
    for (const char* what : {" S1", " S2", " S33", " S257", " normal", " real width", " small width"})
      EXPECT_TRUE(seen.contains(concat(op, what))) << op << what;
  }
  for (const char* what :
       {"attention past", "attention start", "attention kv bf16", "kv_write kv bf16", "attention kv int8",
        "kv_write kv int8", "rope past", "gate_select near_tie", "linear denormal", "linear zeros", "linear large",
        "linear tiny", "linear bf16", "linear f32 stored otherwise", "argmax near_tie", "kv_write bf16_tie",
        "attention hidden", "gate_weight large"})
    EXPECT_TRUE(seen.contains(what)) << what;
}

TEST(OpCases, WhatIsDrawnDependsOnCaseAndSeedAlone) {
  const OpCase c = case_named("linear/self_attn.q_proj/odd-mha/b2-s33-p0/bf16/normal");
  const OpProblem a = draw(c, 7), b = draw(c, 7), other = draw(c, 8);
  for (const auto& [name, tensor] : a.in) {
    const auto bytes = static_cast<std::size_t>(tensor.view().bytes());
    EXPECT_EQ(std::memcmp(tensor.data(), b[name].data(), bytes), 0) << name;
    EXPECT_NE(std::memcmp(tensor.data(), other[name].data(), bytes), 0) << name;
  }
}

TEST(OpCases, UnknownOpIsRefusedWithTheKnownOnes) {
  const std::string message = message_of<Error>([] { chosen_cases({{"rms_nrom"}, {}, {}}); });
  EXPECT_NE(message.find("--op"), std::string::npos) << message;
  EXPECT_NE(message.find("rms_norm"), std::string::npos) << message;
  EXPECT_NE(message.find("found rms_nrom"), std::string::npos) << message;
}

TEST(OpCases, CostsOfRealShapesAreThoseOfTheClosedForm) {
  const OpCase c = case_named("linear/self_attn.o_proj/deepseek-ocr/b1-s33-p0/bf16/normal");
  const OpCost price = op_cost(c, draw(c, 1));
  EXPECT_EQ(price.flops, 2.0 * 33 * 1280 * 1280);
  EXPECT_EQ(price.bytes.weights, 2.0 * 1280 * 1280);
  const OpCase decode = case_named("attention/self_attn.attention/deepseek-ocr/b1-s1-p511/f32/kv_bf16/normal");
  EXPECT_EQ(op_cost(decode, draw(decode, 1)).flops, 2.0 * 512 * 10 * 256);
  EXPECT_EQ(op_cost(decode, draw(decode, 1)).bytes.kv, 512.0 * 2 * 1280 * 2);
}

TEST(OpGate, EveryIsaPassesEveryQuickCase) {
  const std::uint64_t seed = drawn_seed();
  for (const cpu::IsaInfo& isa : cpu::isas()) {
    if (!isa.runs_here) continue;
    Options options = one_thread();
    options.isa = isa.name;
    for (const OpCase& c : quick_cases()) {
      const Record r = OpRun(c, seed).on(cpu::backend(), options);
      EXPECT_EQ(r.status, Status::passed) << isa.name << " seed " << seed << ' ' << r.name << ": " << r.reason;
    }
  }
}

TEST(OpGate, TheReferenceIsTestedAsItsTwinInFloat) {
  const std::uint64_t seed = drawn_seed();
  std::int64_t with_error = 0;
  for (const OpCase& c : quick_cases()) {
    const Record r = OpRun(c, seed).on(reference::backend(), one_thread());
    const bool cannot = c.op == "kv_write" && c.kv_dtype == DType::i8;  // it keeps its rows unquantised
    EXPECT_EQ(r.status, cannot ? Status::skipped : Status::passed)
        << "seed " << seed << ' ' << r.name << ": " << r.reason;
    with_error += r.budget_used > 0;
  }
  EXPECT_GT(with_error, 100);  // it is not the judge itself
}

TEST(OpGate, EveryFaultIsRejectedByACaseOfAnOpThatRunsTheKernel) {
  const cpu::Kernels& kernels = *cpu::find_isa("").kernels;
  set_true_kernels(kernels);
  std::vector<OpCase> cases = quick_cases();
  for (const Fault& fault : faults()) {
    cpu::Kernels wrong = kernels;
    fault.inject(wrong);
    const Backend backend = backend_with(wrong);
    if (fault.name == "shared expert missing") continue;  // a mistake of who calls it: the decoder's tests see it
    const DType dtype = fault.where == Where::int4        ? DType::i4
                        : fault.where == Where::quantised ? DType::i8
                                                          : DType::f32;
    bool caught = false;
    for (const OpCase& c : cases) {
      if (!runs_kernel(c.op, fault.op) || c.dtype != dtype) continue;
      if (c.op == "kv_write" && c.fill != Fill::normal) continue;
      const Record r = OpRun(c, 1).on(backend, one_thread());
      if (r.status == Status::failed) {
        caught = true;
        break;
      }
    }
    EXPECT_TRUE(caught) << fault.op << ": " << fault.name;
  }
}

TEST(OpGate, ElementBehindTheOutputIsSeen) {
  const Backend backend =
      with_op({"add", own("add").unsupported, [](const OpProblem& p, const Options& o, OpMemory& m) {
                 const auto run = own("add").prepare(p, o, m);
                 auto* x = static_cast<float*>(m.output("x", DType::f32));
                 return std::function<void()>([=, n = p["x"].size()] { run(), x[n] = 0; });
               }});
  const Record r =
      OpRun(case_named("add/self_attn.residual/odd-mla/b2-s33-p0/f32/normal"), 1).on(backend, one_thread());
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_NE(r.reason.find("written behind its end, at byte 17160"), std::string::npos) << r.reason;
}

TEST(OpGate, ChangedInputIsSeen) {
  const Backend backend =
      with_op({"add", own("add").unsupported, [](const OpProblem& p, const Options& o, OpMemory& m) {
                 const auto run = own("add").prepare(p, o, m);
                 auto* y = const_cast<float*>(p["y"].as<float>().data());
                 return std::function<void()>([=] { run(), y[5] = -y[5]; });
               }});
  const Record r =
      OpRun(case_named("add/self_attn.residual/tiny-mha/b1-s2-p0/f32/normal"), 1).on(backend, one_thread());
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_EQ(r.failures.front().name, "inputs") << r.failures.front().reason;
}

TEST(OpGate, ResultThatDependsOnOldMemoryIsSeen) {
  // Right at the first run only where the scratch happens to be NaN: a stale read that poison of one kind would miss.
  const Backend backend =
      with_op({"add", own("add").unsupported, [](const OpProblem& p, const Options& o, OpMemory& m) {
                 const auto run = own("add").prepare(p, o, m);
                 auto* x = static_cast<float*>(m.output("x", DType::f32));
                 auto* stale = static_cast<float*>(m.scratch(4));
                 return std::function<void()>([=] { run(), x[0] += *stale == *stale ? *stale * 1e-36f : 0.0f; });
               }});
  const Record r =
      OpRun(case_named("add/self_attn.residual/tiny-mha/b1-s2-p0/f32/normal"), 1).on(backend, one_thread());
  EXPECT_EQ(r.status, Status::failed) << r.reason;
}

/// Times a few runs of one case by hand.
Record timed(const Backend& backend, std::string_view name) {
  OpRun run(case_named(name), 1);
  return run.on(backend, one_thread(), [](const Measured& work, Record& record) {
    for (std::int64_t i = 0; i < 4; ++i) {
      work.prepare(i);
      work.run();
      record.samples_ns.push_back(100);
      if (!work.inspect(i)) return;
    }
  });
}

TEST(OpGate, TimedOutputsMustFollowTheirInputs) {
  const char* name = "rms_norm/input_layernorm/tiny-mha/b2-s33-p0/f32/normal";
  EXPECT_EQ(timed(cpu::backend(), name).status, Status::passed);
  EXPECT_EQ(timed(cpu::backend(), "add/self_attn.residual/tiny-mha/b2-s33-p0/f32/normal").status, Status::passed);
  EXPECT_EQ(timed(cpu::backend(), "experts/mlp.experts/odd-mla/b2-s33-p0/bf16/normal").status, Status::passed);

  // Right at the first run and kept from then on, but for what the gate's own two runs see.
  const Backend backend =
      with_op({"rms_norm", own("rms_norm").unsupported, [](const OpProblem& p, const Options& o, OpMemory& m) {
                 const auto run = own("rms_norm").prepare(p, o, m);
                 auto* y = static_cast<float*>(m.output("y", DType::f32));
                 const auto size = static_cast<std::size_t>(p["x"].size());
                 auto kept = std::make_shared<std::vector<float>>();
                 return std::function<void()>([=] {
                   run();
                   if (kept->empty()) kept->assign(y, y + size);
                   std::copy(kept->begin(), kept->end(), y);
                 });
               }});
  const Record r = timed(backend, name);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_EQ(r.failures.front().name, "timed output") << r.reason;
  EXPECT_TRUE(r.to_json()["median_ns"].is_null());
}

TEST(OpGate, RowsBeyondTheContextAreNan) {
  const OpProblem p = draw(case_named("attention/self_attn.attention/tiny-mha/b2-s33-p7/f32/kv_f32/normal"), 1);
  const Tensor& k = p["k1"];  // [B,K,C,d]
  const std::int64_t C = k.dim(2), d = k.dim(3);
  EXPECT_GT(C, p.call.total);
  for (std::int64_t i = 0; i < k.size(); ++i) EXPECT_EQ(std::isnan(k.at(i)), i / d % C >= p.call.total);
}

TEST(OpGate, ScalesOfInt8RowsBeyondTheContextAreNan) {
  const OpProblem p = draw(case_named("attention/self_attn.attention/odd-mha/b2-s33-p7/f32/kv_int8/normal"), 1);
  const Tensor& s = p["k1_scales"];  // [B,K,C]
  for (std::int64_t i = 0; i < s.size(); ++i) EXPECT_EQ(std::isnan(s.at(i)), i % s.dim(2) >= p.call.total);
}

/// On a right kernel's output, f(rows, scales, of the case) breaks one thing.
Record write_and_break(void (*f)(std::int8_t*, bf16_t*, const OpProblem&)) {
  static decltype(f) breaking;
  breaking = f;
  const Backend backend =
      with_op({"kv_write", own("kv_write").unsupported, [](const OpProblem& p, const Options& o, OpMemory& m) {
                 const auto run = own("kv_write").prepare(p, o, m);
                 auto* q = static_cast<std::int8_t*>(m.output("cached_first", DType::s8));
                 auto* s = static_cast<bf16_t*>(m.output("cached_first_scales", DType::bf16));
                 return std::function<void()>([=, &p] { run(), breaking(q, s, p); });
               }});
  return OpRun(case_named("kv_write/self_attn.kv_write/odd-mha/b2-s33-p7/f32/kv_int8/normal"), 1)
      .on(backend, one_thread());
}

TEST(OpGate, Int8RowsOfOthersAndHalfAStepTooMuchAreSeen) {
  EXPECT_EQ(write_and_break([](std::int8_t*, bf16_t*, const OpProblem&) {}).status, Status::passed);
  const Record before = write_and_break([](std::int8_t* q, bf16_t*, const OpProblem&) { q[0] ^= 1; });
  EXPECT_EQ(before.status, Status::failed);
  EXPECT_NE(before.reason.find("row 0 of matrix 0 was written to"), std::string::npos) << before.reason;
  const Record behind = write_and_break([](std::int8_t*, bf16_t* s, const OpProblem& p) { s[p.call.total] = {0}; });
  EXPECT_NE(behind.reason.find("row 40 of matrix 0 was written to"), std::string::npos) << behind.reason;
  const auto step = [](std::int8_t* q, bf16_t*, const OpProblem& p) {
    std::int8_t& first = q[p.call.past * p["cached_first"].dim(3)];
    first = static_cast<std::int8_t>(first > 0 ? first - 1 : first + 1);
  };
  EXPECT_EQ(write_and_break(step).status, Status::failed);
}

TEST(OpGate, TiesOfBf16RoundBothWays) {
  const OpProblem p = draw(case_named("kv_write/self_attn.kv_write/tiny-mha/b2-s33-p7/f32/kv_bf16/bf16_tie"), 1);
  std::set<bool> up;
  for (const float x : p["first"].as<float>()) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    ASSERT_EQ(bits & 0xffffu, 0x8000u);
    up.insert(bits & 0x10000u);
  }
  EXPECT_EQ(up.size(), 2u);
}

TEST(OpGate, LeastWeightOfAHiddenKeyIsSeen) {
  for (const char* name : {"attention/self_attn.attention/tiny-mha/b2-s33-p7/f32/kv_f32/hidden/padding",
                           "attention/self_attn.attention/odd-mla/expanded/b3-s2-p131/f32/kv_bf16/hidden/padding"}) {
    const OpCase c = case_named(name);
    EXPECT_EQ(OpRun(c, 1).on(cpu::backend(), one_thread()).status, Status::passed) << name;
    const Backend backend = with_op(
        {"attention", own("attention").unsupported, [](const OpProblem& p, const Options& options, OpMemory& memory) {
           auto run = own("attention").prepare(p, options, memory);
           auto* y = static_cast<float*>(memory.output("y", DType::f32));
           const std::int64_t last = p.rows() / p.call.batch - 1, width = p.out[0].shape[1] * p.out[0].shape[2];
           // The first sequence's first key is padding, and its last query sees others.
           const auto leak = static_cast<float>(p["v"].at(0) * std::numeric_limits<float>::min());
           return std::function<void()>([=] { run(), y[last * width] += leak; });
         }});
    EXPECT_EQ(OpRun(c, 1).on(backend, one_thread()).status, Status::failed) << name;
  }
}

#if defined(__SSE__)
TEST(OpGate, KernelThatLeavesDenormalsFlushedIsSeen) {
  const Backend backend = with_op(
      {"rms_norm", own("rms_norm").unsupported, [](const OpProblem& p, const Options& options, OpMemory& memory) {
         return std::function<void()>([run = own("rms_norm").prepare(p, options, memory)] {
           run();
           _mm_setcsr(_mm_getcsr() | _MM_FLUSH_ZERO_ON | 0x40u);  // results, and inputs
         });
       }});
  const unsigned before = _mm_getcsr();
  const Record r =
      OpRun(case_named("rms_norm/input_layernorm/tiny-mha/b1-s1-p0/f32/normal"), 1).on(backend, one_thread());
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_NE(r.reason.find("denormal"), std::string::npos) << r.reason;
  constexpr unsigned kFlags = _MM_FLUSH_ZERO_ON | 0x40u;
  EXPECT_EQ(_mm_getcsr() & kFlags, before & kFlags) << "the harness flushes no more than before";
}
#endif

/// Judges a choice of experts made from the right one by `change`.
Comparison judge_choice(std::string_view name,
                        const std::function<void(std::span<std::int64_t>, const OpProblem&)>& change,
                        std::int64_t* ties = nullptr) {
  const OpCase c = case_named(name);
  const OpProblem p = draw(c, 3);
  PoisonedMemory memory(p);
  own("gate_select").prepare(p, one_thread(), memory)();
  auto outputs = memory.take_outputs();
  change(outputs.at("topk_idx").as<std::int64_t>(), p);
  const OpJudge::Verdict verdict = OpJudge(c, p).judge({{"topk_idx", outputs.at("topk_idx").view()}});
  if (ties) *ties = verdict.ties;
  return verdict.comparisons.front();
}

TEST(OpGate, ChoiceOfExpertsIsADecision) {
  const char* apart = "gate_select/mlp.gate.topk_idx/greedy/b1-s1-p0/f32/normal";
  EXPECT_TRUE(judge_choice(apart, [](auto, const auto&) {}).passed);
  const auto another = [](std::span<std::int64_t> ids, const OpProblem&) {
    std::int64_t other = 0;
    while (std::find(ids.begin(), ids.end(), other) != ids.end()) ++other;
    ids[0] = other;
    std::sort(ids.begin(), ids.end());
  };
  EXPECT_FALSE(judge_choice(apart, another).passed);
  EXPECT_FALSE(judge_choice(apart, [](auto ids, const auto&) { ids[1] = ids[0]; }).passed);
  EXPECT_FALSE(judge_choice(apart, [](auto ids, const auto&) { std::swap(ids[0], ids[1]); }).passed);
  EXPECT_FALSE(judge_choice(apart, [](auto ids, const auto&) { ids[0] = -1; }).passed);

  // All logits equal: the lower ids win, and nothing else is excused.
  const char* equal = "gate_select/mlp.gate.topk_idx/greedy/b1-s1-p0/f32/zeros";
  EXPECT_TRUE(judge_choice(equal, [](auto, const auto&) {}).passed);
  EXPECT_FALSE(judge_choice(equal, [](auto ids, const auto&) { ids[3] = 9; }).passed);

  // Two experts whose logits are an ulp apart may be exchanged: a tie, and counted.
  const char* near = "gate_select/mlp.gate.topk_idx/greedy/b2-s33-p0/f32/near_tie";
  std::int64_t ties = 0;
  const auto swap_neighbours = [](std::span<std::int64_t> ids, const OpProblem& p) {
    // Row 1: a chosen expert at 0.75 + ulp against one left out at 0.75.
    const std::int64_t k = p.config.num_experts_per_tok, E = p["logits"].dim(1);
    const auto row = ids.subspan(static_cast<std::size_t>(k), static_cast<std::size_t>(k));
    for (auto& id : row)
      for (std::int64_t e = 0; e < E; ++e)
        if (p["logits"].at(E + e) == 0.75 && p["logits"].at(E + id) > 0.75 &&
            std::find(row.begin(), row.end(), e) == row.end()) {
          id = e;
          std::sort(row.begin(), row.end());
          return;
        }
    ADD_FAILURE() << "no near tie was drawn";
  };
  EXPECT_TRUE(judge_choice(near, swap_neighbours, &ties).passed);
  EXPECT_GE(ties, 1);
}

TEST(OpGate, SignOfZeroIsNoFault) {
  const OpCase c = case_named("add/self_attn.residual/tiny-mha/b1-s1-p0/f32/zeros");
  const OpProblem p = draw(c, 1);
  Tensor negative(DType::f32, p.out[0].shape);
  for (float& x : negative.as<float>()) x = -0.0f;
  EXPECT_TRUE(OpJudge(c, p).judge({{"x", negative.view()}}).comparisons.front().passed);
}

TEST(OpGate, LowPrecisionIsHeldAgainstWhatAFrameworkLoses) {
  const OpCase c = case_named("linear/self_attn.q_proj/tiny-mha/b1-s257-p0/bf16/normal");
  const OpProblem p = draw(c, 1);
  const OpJudge judge(c, p);
  EXPECT_GT(judge.framework_error(), 1e-4);
  EXPECT_LT(judge.framework_error(), 1e-2);
  // Noise of three times the framework's error stays within the bound of each element, and is refused all the same.
  PoisonedMemory memory(p);
  find_op(reference::backend(), "linear")->prepare(p, Options{}, memory)();
  auto outputs = memory.take_outputs();
  std::mt19937_64 engine(1);
  std::normal_distribution<double> noise(0, 3 * judge.framework_error());
  for (double& y : outputs.at("y").as<double>()) y *= 1 + noise(engine);
  const Comparison verdict = judge.judge({{"y", outputs.at("y").view()}}).comparisons.front();
  EXPECT_FALSE(verdict.passed);
  EXPECT_NE(verdict.reason.find("framework"), std::string::npos) << verdict.reason;
}

}  // namespace
}  // namespace dsv2::harness
