// Profiles of a step against what cost says of it, and the trace made of them against the rules of its format.
#include "harness/trace.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <set>

#include "harness/backends.h"
#include "harness/generate.h"
#include "harness/op_names.h"
#include "model/file.h"
#include "tests/temporary_folder.h"

namespace dsv2::harness {
namespace {

TEST(OpNames, OfTapsGoldenTensorsAndComparisons) {
  const auto name = [](const char* tensor) {
    const OpName of = op_of_tensor(tensor);
    return concat(of.op, " ", of.layer ? std::to_string(*of.layer) : "-");
  };
  EXPECT_EQ(name("layers.3.self_attn.q_a_proj"), "self_attn.q_a_proj 3");
  EXPECT_EQ(name("layers.11"), "layer 11");
  EXPECT_EQ(name("full: layers.0.self_attn.k_rope (alone)"), "self_attn.k_rope 0");
  EXPECT_EQ(name("full.hidden_states.1"), "hidden_states 1");
  EXPECT_EQ(name("prefill.cache.2.k_pe"), "cache.k_pe 2");
  EXPECT_EQ(name("greedy.logits step 3"), "logits -");
  EXPECT_EQ(name("lm_head"), "lm_head -");
  EXPECT_EQ(name("full: norm (alone)"), "norm -");
  EXPECT_EQ(name("timed logits are finite"), " -");
  EXPECT_EQ(name(""), " -");
  EXPECT_EQ(name("layers.x"), "x -");
}

struct Profiled {
  StepProfile prefill, decode;
  Cost prefill_cost, decode_cost;
};

Profiled profile(const char* preset, const char* backend) {
  constexpr std::int64_t B = 2, S = 5;
  const Config config = Config::preset(preset);
  Options options;
  options.dtype = DType::f32;
  options.threads = 1;
  const auto decoder = find_backend(backend).create(config, Weights::random(config, 1, DType::f32), options);
  const auto cache = decoder->make_cache(B, S + 1);
  Workload prefill;
  prefill.batch = B;
  prefill.tokens = prefill.context = S;
  prefill.causal = true;
  prefill.logits = Logits::last;
  Workload decode = prefill;
  decode.tokens = 1;
  decode.context = S + 1;
  const auto run = [&](std::int64_t tokens, const Workload& work) {
    OwnedInput input;
    input.set("input_ids", Tensor(DType::i64, {B, tokens}));
    input.input.cache = cache.get();
    input.input.logits = Logits::last;
    StepProfile step = profile_step(*decoder, input.input, work);
    step.name = concat(preset, "/", backend, "/", tokens);
    step.backend = backend;
    step.dtype = "f32";
    step.what = concat(tokens, " tokens");
    return step;
  };
  Profiled all{.prefill = run(S, prefill), .decode = {}, .prefill_cost = cost(config, prefill), .decode_cost = {}};
  all.decode = run(1, decode);
  all.decode_cost = cost(config, decode);
  return all;
}

TEST(Profile, ItsOpsAddUpToTheCost) {
  for (const char* preset : {"tiny-mha", "tiny-mla"})
    for (const char* backend : {"reference", "cpu"}) {
      const Profiled p = profile(preset, backend);
      for (const auto& [step, price] : {std::pair{&p.prefill, &p.prefill_cost}, {&p.decode, &p.decode_cost}}) {
        double flops = 0;
        Bytes bytes;
        std::int64_t time = 0;
        std::set<std::string> names;
        for (const OpTime& op : step->by_op()) {
          EXPECT_TRUE(names.insert(op.name).second) << op.name;
          EXPECT_FALSE(op.op.empty()) << op.name << " is nothing that cost knows";
          EXPECT_GE(op.count, 1) << op.name;
          EXPECT_LE(op.count, Config::preset(preset).num_hidden_layers) << op.name;
          flops += op.flops;
          bytes += op.bytes;
          time += op.time_ns;
        }
        EXPECT_DOUBLE_EQ(flops, price->flops) << step->name;
        EXPECT_DOUBLE_EQ(bytes.total(), price->bytes.total()) << step->name;
        EXPECT_GT(time, 0) << step->name;
        EXPECT_LE(time, step->total_ns) << step->name;
      }
    }
}

TEST(Profile, BackendsHaveTheSameOps) {
  for (const char* preset : {"tiny-mha", "tiny-mla"}) {
    const auto names = [&](const char* backend) {
      std::set<std::string> all;
      for (const OpTime& op : profile(preset, backend).prefill.by_op())
        if (op.name != "mlp.shared_experts") all.insert(op.name);  // cpu runs them with the routed ones
      return all;
    };
    EXPECT_EQ(names("reference"), names("cpu"));
  }
}

TEST(Profile, SpansFollowOneAnother) {
  const Profiled p = profile("tiny-mla", "reference");
  std::int64_t before = 0;
  for (const OpSpan& span : p.prefill.spans) {
    EXPECT_GE(span.start_ns, before) << span.name;
    EXPECT_GE(span.end_ns, span.start_ns) << span.name;
    EXPECT_FALSE(span.taps.empty()) << span.name;
    before = span.end_ns;
  }
  EXPECT_LE(before, p.prefill.total_ns);
}

/// Sorted, no duration below 0, every event within the one that it stands in; how deep it goes.
std::size_t check_trace(const Json& trace) {
  double last = 0;
  std::size_t depth = 0;
  std::map<int, std::vector<const Json*>> open;
  std::map<int, std::string> threads;
  for (const Json& e : trace.at("traceEvents")) {
    if (e.at("ph") == "M") {
      if (e.at("name") == "thread_name") threads[e.at("tid")] = e.at("args").at("name");
      continue;
    }
    EXPECT_EQ(e.at("ph"), "X");
    const double ts = e.at("ts"), dur = e.at("dur");
    EXPECT_GE(ts, last) << e;
    EXPECT_GE(dur, 0) << e;
    EXPECT_TRUE(threads.contains(e.at("tid"))) << e;
    last = ts;
    auto& stack = open[e.at("tid")];
    constexpr double kRounding = 1e-6;  // of a microsecond, in the sum of two doubles
    const auto end = [](const Json& event) { return event.at("ts").get<double>() + event.at("dur").get<double>(); };
    const std::map<std::string, int> rank = {{"forward", 0}, {"layer", 1}, {"block", 2}, {"op", 3}};
    while (!stack.empty() && end(*stack.back()) <= ts + kRounding) stack.pop_back();
    if (stack.empty()) {
      EXPECT_EQ(e.at("name"), "forward") << e;
    } else {
      EXPECT_LE(end(e), end(*stack.back()) + kRounding) << e << " within " << *stack.back();
      EXPECT_LT(rank.at(stack.back()->at("cat")), rank.at(e.at("cat"))) << e << " within " << *stack.back();
    }
    stack.push_back(&e);
    depth = std::max(depth, stack.size());
  }
  return depth;
}

TEST(Trace, EventsAreSortedAndNested) {
  std::vector<StepProfile> steps;
  for (const char* backend : {"reference", "cpu"}) {
    Profiled p = profile("tiny-mla", backend);
    steps.push_back(std::move(p.prefill));
    steps.push_back(std::move(p.decode));
  }
  const Json trace = trace_of(steps);
  EXPECT_EQ(check_trace(trace), 4u) << "forward, layer, block, op";
  std::map<std::string, int> count;
  double flops = 0;
  for (const Json& e : trace.at("traceEvents")) {
    ++count[e.at("name")];
    if (e.at("tid") == 1) flops += e.at("args").value("flops", 0.0);
  }
  EXPECT_EQ(count["process_name"], 2);
  EXPECT_EQ(count["thread_name"], 4);
  EXPECT_EQ(count["forward"], 4);
  EXPECT_EQ(count["layer 0"], 4);
  EXPECT_EQ(count["self_attn"], 4 * static_cast<int>(Config::preset("tiny-mla").num_hidden_layers));
  EXPECT_DOUBLE_EQ(flops, profile("tiny-mla", "cpu").prefill_cost.flops);
  EXPECT_NE(trace.at("otherData").at("note").get<std::string>().find("slower"), std::string::npos);
}

TEST(Trace, OfTheCommand) {
  const testing::TemporaryFolder folder;
  const auto bench = [&](const std::string& more) {
    return WEXITSTATUS(
        std::system(concat(DSV2_BINARY,
                           " bench --preset tiny-mha --backend reference,cpu --dtype f32,bf16 --prompt 4 "
                           "--depth 3 --generate 1 --repetitions 1 ",
                           more, " >/dev/null 2>&1")
                        .c_str()));
  };
  const std::string file = (folder / "t.json").string();
  ASSERT_EQ(bench("--trace " + file), 0);
  const Json trace = read_json(file);
  EXPECT_EQ(check_trace(trace), 4u);
  std::set<std::string> processes;
  for (const Json& e : trace.at("traceEvents"))
    if (e.at("name") == "process_name") processes.insert(e.at("args").at("name"));
  EXPECT_EQ(processes, (std::set<std::string>{"reference f32", "cpu f32", "reference bf16", "cpu bf16"}));
  EXPECT_EQ(bench("--trace - --json -"), 2);
}

}  // namespace
}  // namespace dsv2::harness
