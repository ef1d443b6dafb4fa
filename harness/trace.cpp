#include "harness/trace.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <utility>

#include "harness/op_names.h"
#include "harness/version.h"

namespace dsv2::harness {
namespace {

using Clock = std::chrono::steady_clock;

struct Reading {
  std::string tap;
  std::int64_t at_ns;
};

/// Reads the clock at each tap and does nothing else.
class ClockSink final : public TapSink {
 public:
  explicit ClockSink(std::size_t expected) { readings_.reserve(expected); }
  void start() { start_ = Clock::now(); }
  std::int64_t now() const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count();
  }
  void tap(std::string_view name, const TensorView&, void*) override {
    readings_.push_back({std::string(name), now()});
  }
  const std::vector<Reading>& readings() const { return readings_; }

 private:
  Clock::time_point start_;
  std::vector<Reading> readings_;
};

/// The op that a part of Cost, or a tap, belongs to. `fused_experts`: the block's output is the only one of its
/// experts.
std::string op_name(const std::string& part, bool mla, bool moe, bool fused_experts) {
  const auto is = [&](std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), part) != names.end();
  };
  if (is({"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"})) return "self_attn.qkv_a_proj";
  if (is({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}))
    return mla ? "self_attn.qkv_a_proj" : "self_attn.qkv_proj";
  if (is({"self_attn.q_rope", "self_attn.k_rope"})) return "self_attn.rope";
  if (is({"self_attn.attn_output", "self_attn.kv_write", "self_attn.kv_b_proj"})) return "self_attn.attention";
  if (part.starts_with("mlp.gate.")) return "mlp.gate";
  if (part == "mlp.act") return "mlp";
  if (part == "layer") return "mlp.residual";
  if (moe && fused_experts && is({"mlp", "mlp.shared_experts"})) return "mlp.experts";
  return part;
}

/// What Cost has of layer `index` (or, without one, of what surrounds the layers), by op.
std::map<std::string, OpCost> costs_of(const Cost& cost, std::optional<std::int64_t> index, bool mla, bool moe,
                                       bool fused_experts) {
  std::map<std::string, OpCost> all;
  for (const LayerCost& layer : cost.layers) {
    const bool around = layer.kind == "embedding" || layer.kind == "head";
    if (index ? around || *index < layer.first || *index >= layer.first + layer.count : !around) continue;
    for (const OpCost& part : layer.ops) {
      OpCost& sum = all[op_name(part.name, mla, moe, fused_experts)];
      // Of several kernels the one with the FLOPs gives its name.
      if (sum.op.empty() || part.flops > sum.flops) sum.op = part.op;
      sum.flops += part.flops;
      sum.bytes += part.bytes;
    }
  }
  return all;
}

}  // namespace

std::vector<OpTime> StepProfile::by_op() const {
  std::vector<OpTime> ops;
  std::set<std::pair<std::string, std::optional<std::int64_t>>> counted;
  for (const OpSpan& span : spans) {
    auto it = std::find_if(ops.begin(), ops.end(), [&](const OpTime& o) { return o.name == span.name; });
    if (it == ops.end()) it = ops.insert(ops.end(), OpTime{.name = span.name, .op = span.op});
    it->count += counted.emplace(span.name, span.layer).second;
    it->time_ns += span.end_ns - span.start_ns;
    it->flops += span.flops;
    it->bytes += span.bytes;
  }
  return ops;
}

StepProfile profile_step(Decoder& decoder, const ForwardInput& input, const Workload& work) {
  const Config& config = decoder.config();
  ClockSink clock(static_cast<std::size_t>(config.num_hidden_layers + 1) * 24);
  ForwardInput tapped = input;
  tapped.taps = &clock;
  clock.start();
  decoder.forward(tapped);
  StepProfile step;
  step.total_ns = clock.now();

  const Cost priced = cost(config, work);
  const bool fused_experts = std::none_of(clock.readings().begin(), clock.readings().end(),
                                          [](const Reading& r) { return r.tap.ends_with(".mlp.experts"); });
  std::int64_t before = 0;
  for (const Reading& reading : clock.readings()) {
    const OpName of = op_of_tensor(reading.tap);
    const bool moe = of.layer && config.is_moe_layer(*of.layer);
    std::string name = op_name(of.op, config.use_mla, moe, fused_experts);
    // Experts reported one by one: their sum comes with the last of them.
    if (moe && !fused_experts && name == "mlp") name = step.spans.back().name;
    if (step.spans.empty() || step.spans.back().name != name || step.spans.back().layer != of.layer)
      step.spans.push_back({.name = std::move(name), .op = {}, .layer = of.layer, .start_ns = before});
    step.spans.back().end_ns = before = reading.at_ns;
    step.spans.back().taps.push_back(of.op);
  }
  // An output that was computed with an earlier one comes later in next to no time: it is no op of its own.
  const auto longest_of_its_name = [&](const OpSpan& span) {
    std::int64_t longest = 0;
    for (const OpSpan& s : step.spans)
      if (s.layer == span.layer && s.name == span.name) longest = std::max(longest, s.end_ns - s.start_ns);
    return longest;
  };
  std::vector<OpSpan> kept;
  for (const OpSpan& span : step.spans)
    if ((span.end_ns - span.start_ns) * 20 >= longest_of_its_name(span)) kept.push_back(span);
  step.spans = std::move(kept);

  std::optional<std::int64_t> priced_layer;
  std::map<std::string, OpCost> costs = costs_of(priced, priced_layer, config.use_mla, false, fused_experts);
  for (OpSpan& span : step.spans) {
    if (span.layer != priced_layer) {
      priced_layer = span.layer;
      const bool moe = span.layer && config.is_moe_layer(*span.layer);
      costs = costs_of(priced, span.layer, config.use_mla, moe, fused_experts);
    }
    const auto it = costs.find(span.name);
    if (it == costs.end()) continue;
    span.op = it->second.op;
    span.flops = it->second.flops;
    span.bytes = it->second.bytes;
    it->second.flops = 0;  // of an op in two stretches the first has it
    it->second.bytes = {};
  }
  return step;
}

namespace {

/// Where an event belongs, and what is known of it.
struct Track {
  int pid, tid;
};
Json event(const Track& track, const std::string& name, const char* category, std::int64_t start_ns,
           std::int64_t end_ns, Json args = Json::object()) {
  return {{"name", name},
          {"cat", category},
          {"ph", "X"},
          {"ts", static_cast<double>(start_ns) / 1e3},  // the format counts in microseconds
          {"dur", static_cast<double>(end_ns - start_ns) / 1e3},
          {"pid", track.pid},
          {"tid", track.tid},
          {"args", std::move(args)}};
}

Json label(const Track& track, const char* what, const std::string& name) {
  return {{"name", what}, {"ph", "M"}, {"pid", track.pid}, {"tid", track.tid}, {"args", {{"name", name}}}};
}

Json args_of(const OpSpan& span) {
  const auto ns = static_cast<double>(span.end_ns - span.start_ns);
  Json args = {{"outputs", span.taps}};
  if (!span.op.empty()) args["kernel"] = span.op;
  if (span.flops > 0) {
    args["flops"] = span.flops;
    args["gflop_s"] = finite_or_null(span.flops / ns);
  }
  if (span.bytes.total() > 0) {
    args["bytes"] = bytes_json(span.bytes);
    args["gb_s"] = finite_or_null(span.bytes.total() / ns);
  }
  return args;
}

/// The block that an op is part of; empty for one that stands in its layer alone.
std::string block_of(const OpSpan& span) {
  for (const char* block : {"self_attn", "mlp"})
    if (span.name.starts_with(block)) return block;
  return {};
}

/// Events of spans [first, last), which `key` parts into runs of neighbours: one event for each run whose key is not
/// empty, what `inside` makes of its spans below it.
template <class Key, class Inside>
void nest(Json& events, const Track& track, std::span<const OpSpan> spans, const char* category, Key key,
          Inside inside) {
  for (std::size_t first = 0; first < spans.size();) {
    std::size_t last = first;
    const std::string name = key(spans[first]);
    while (last < spans.size() && key(spans[last]) == name) ++last;
    const auto run = spans.subspan(first, last - first);
    if (!name.empty()) events.push_back(event(track, name, category, run.front().start_ns, run.back().end_ns));
    inside(run);
    first = last;
  }
}

void add_step(Json& events, const Track& track, const StepProfile& step) {
  events.push_back(event(track, "forward", "forward", 0, step.total_ns, {{"record", step.name}}));
  const auto ops = [&](std::span<const OpSpan> spans) {
    for (const OpSpan& s : spans) events.push_back(event(track, s.name, "op", s.start_ns, s.end_ns, args_of(s)));
  };
  const auto blocks = [&](std::span<const OpSpan> spans) { nest(events, track, spans, "block", block_of, ops); };
  const auto layer_of = [](const OpSpan& s) { return s.layer ? concat("layer ", *s.layer) : std::string(); };
  nest(events, track, step.spans, "layer", layer_of, blocks);
}

}  // namespace

Json trace_of(std::span<const StepProfile> steps) {
  Json labels = Json::array(), events = Json::array();
  std::vector<std::string> processes;
  int tid = 0;
  for (const StepProfile& step : steps) {
    const std::string process = concat(step.backend, ' ', step.dtype);
    auto it = std::find(processes.begin(), processes.end(), process);
    const bool is_new = it == processes.end();
    if (is_new) it = processes.insert(it, process);
    const Track track{.pid = static_cast<int>(it - processes.begin()) + 1, .tid = ++tid};
    if (is_new) labels.push_back(label(track, "process_name", process));
    labels.push_back(label(track, "thread_name", step.what));
    add_step(events, track, step);
  }
  // By time; what begins together stays in the order of nesting.
  std::stable_sort(events.begin(), events.end(), [](const Json& a, const Json& b) { return a["ts"] < b["ts"]; });
  for (Json& e : events) labels.push_back(std::move(e));
  return {{"displayTimeUnit", "ns"},
          {"traceEvents", std::move(labels)},
          {"otherData",
           {{"tool", version_line()},
            {"cpu", machine().cpu},
            {"isa", machine().isa},
            {"note",
             "A run of each step beside the measured ones; reading the clock after each op makes it a little slower. "
             "Every step begins at 0. The first op holds the set-up of the call."}}}};
}

}  // namespace dsv2::harness
