// Graphs of the CUDA runtime: captured from streams, instantiated, launched.
#include <algorithm>

#include "gpusim/runtime_state.h"

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;  // each after all that it depends on
};

/// A graph that can be launched: a copy of its nodes, so that the graph itself may go or change.
struct CUgraphExec_st {
  struct Node {
    cudaGraphNodeType type;
    std::function<gpusim::Operation()> make;
    std::string signature;
    std::vector<std::size_t> after;  // indices of earlier nodes
    int branch;                      // nodes of a branch are in one chain
    bool enabled = true;
  };
  std::vector<Node> nodes;
  std::vector<gpusim::Scheduler::Stream> branches;  // the streams that stand for them; the first is the launching one
  std::vector<cudaGraphNode_t> origins;             // the graph's nodes, while it lives
  gpusim::TaskPtr last;                             // launches of one executable graph do not overlap
};

namespace gpusim::runtime {
namespace {

using Graphs = std::unordered_map<cudaGraph_t, std::unique_ptr<CUgraph_st>>;
using Executables = std::unordered_map<cudaGraphExec_t, std::unique_ptr<CUgraphExec_st>>;

// Never destroyed, as the State: destructors of the program's may still give graphs back.
Graphs& graphs() {
  static auto* const all = new Graphs;
  return *all;
}

Executables& executables() {
  static auto* const all = new Executables;
  return *all;
}

unsigned long long captures_begun = 0;

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse(cudaErrorInvalidValue, what, " is null");
}

CUgraph_st& graph_of(cudaGraph_t handle) {
  const auto found = graphs().find(handle);
  if (found == graphs().end()) refuse(cudaErrorInvalidValue, "this is no graph, or one that was destroyed");
  return *found->second;
}

CUgraphExec_st& executable_of(cudaGraphExec_t handle) {
  const auto found = executables().find(handle);
  if (found == executables().end())
    refuse(cudaErrorInvalidValue, "this is no executable graph, or one that was destroyed");
  return *found->second;
}

void begin_capture(State& state, cudaStream_t handle, cudaStreamCaptureMode mode) {
  CUstream_st& stream = state.stream(handle);
  if (state.is_legacy(stream))
    refuse(cudaErrorStreamCaptureUnsupported,
           "the legacy default stream cannot be captured; use one of cudaStreamCreate");
  if (stream.capture != nullptr) refuse(cudaErrorIllegalState, "the stream is capturing already");
  auto capture = std::make_unique<Capture>();
  capture->origin = &stream;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->id = ++captures_begun;
  capture->members = {&stream};
  stream.capture = capture.get();
  stream.frontier.clear();
  state.captures.push_back(std::move(capture));
}

/// Every node must be one that the origin's stream waits for.
bool all_joined(const Capture& capture, const std::vector<cudaGraphNode_t>& frontier) {
  std::vector<cudaGraphNode_t> leaves;
  for (const auto& node : capture.nodes) {
    const bool has_dependents = std::any_of(capture.nodes.begin(), capture.nodes.end(), [&](const auto& other) {
      return std::find(other->after.begin(), other->after.end(), node.get()) != other->after.end();
    });
    if (!has_dependents) leaves.push_back(node.get());
  }
  return std::all_of(leaves.begin(), leaves.end(), [&](cudaGraphNode_t leaf) {
    return std::find(frontier.begin(), frontier.end(), leaf) != frontier.end();
  });
}

void end_capture(State& state, cudaStream_t handle, cudaGraph_t* out) {
  CUstream_st& stream = state.stream(handle);
  if (stream.capture == nullptr) refuse(cudaErrorIllegalState, "the stream is not capturing");
  if (stream.capture->origin != &stream)
    refuse(cudaErrorStreamCaptureUnmatched, "the capture began in another stream; end it there");
  Capture& capture = *stream.capture;
  if (capture.mode != cudaStreamCaptureModeRelaxed && capture.thread != std::this_thread::get_id())
    refuse(cudaErrorStreamCaptureWrongThread, "the capture began in another thread");

  const bool invalid = capture.invalid;
  const bool joined = all_joined(capture, stream.frontier);
  auto graph = std::make_unique<CUgraph_st>();
  graph->nodes = std::move(capture.nodes);
  for (CUstream_st* member : capture.members) {
    member->capture = nullptr;
    member->frontier.clear();
  }
  for (const auto& [event, value] : state.events)
    if (value->capture == &capture) {
      value->capture = nullptr;
      value->frontier.clear();
    }
  std::erase_if(state.captures, [&](const auto& other) { return other.get() == &capture; });

  *out = nullptr;
  if (invalid) refuse(cudaErrorStreamCaptureInvalidated, "the capture was broken by a call that was refused before");
  if (!joined)
    refuse(cudaErrorStreamCaptureUnjoined,
           "a stream that joined the capture was not joined back: record an event in it "
           "and let the first stream wait for it");
  *out = graph.get();
  graphs()[*out] = std::move(graph);
}

/// A node goes on the branch of a node that it depends on and that is that branch's last so far, else on a new one.
std::unique_ptr<CUgraphExec_st> instantiate(State& state, const CUgraph_st& graph) {
  auto out = std::make_unique<CUgraphExec_st>();
  std::unordered_map<cudaGraphNode_t, std::size_t> index;
  std::vector<std::size_t> tails;
  for (const auto& node : graph.nodes) {
    CUgraphExec_st::Node entry = {node->type, node->make, node->signature, {}, -1};
    for (const cudaGraphNode_t earlier : node->after) entry.after.push_back(index.at(earlier));
    for (const std::size_t earlier : entry.after) {
      const int branch = out->nodes[earlier].branch;
      if (entry.branch < 0 && tails[static_cast<std::size_t>(branch)] == earlier) entry.branch = branch;
    }
    const std::size_t at = out->nodes.size();
    if (entry.branch < 0) {
      entry.branch = static_cast<int>(tails.size());
      tails.push_back(at);
    }
    tails[static_cast<std::size_t>(entry.branch)] = at;
    index[node.get()] = at;
    out->origins.push_back(node.get());
    out->nodes.push_back(std::move(entry));
  }
  for (std::size_t branch = 0; branch < tails.size(); ++branch)
    out->branches.push_back(branch == 0
                                ? Scheduler::kLegacy
                                : state.scheduler.add_stream(false, dsv2::concat("branch ", branch, " of a graph")));
  return out;
}

void submit_graph(State& state, CUgraphExec_st& graph, CUstream_st& stream) {
  const auto marker = [](const char* what) { return Operation{.what = what, .run = {}, .accesses = {}}; };
  std::vector<TaskPtr> first;
  if (graph.last != nullptr) first.push_back(graph.last);
  const TaskPtr entry = state.scheduler.submit(stream.id, marker("cudaGraphLaunch"), first);
  std::vector<TaskPtr> tasks;
  for (const CUgraphExec_st::Node& node : graph.nodes) {
    std::vector<TaskPtr> after = {entry};
    for (const std::size_t earlier : node.after) after.push_back(tasks[earlier]);
    const Scheduler::Stream on = node.branch == 0 ? stream.id : graph.branches[static_cast<std::size_t>(node.branch)];
    tasks.push_back(state.scheduler.submit(on, node.enabled ? node.make() : marker("a disabled node"), after));
  }
  graph.last = state.scheduler.submit(stream.id, marker("the end of a graph"), tasks);
}

/// Into a capture: the nodes become nodes of the graph that is captured.
void capture_graph(const CUgraphExec_st& graph, CUstream_st& stream) {
  Capture& capture = *stream.capture;
  std::vector<cudaGraphNode_t> added;
  std::vector<bool> has_dependents(graph.nodes.size(), false);
  for (const CUgraphExec_st::Node& node : graph.nodes) {
    auto copy = std::make_unique<CUgraphNode_st>();
    copy->type = node.type;
    copy->make = node.make;
    copy->signature = node.signature;
    if (node.after.empty()) copy->after = stream.frontier;
    for (const std::size_t earlier : node.after) {
      copy->after.push_back(added[earlier]);
      has_dependents[earlier] = true;
    }
    added.push_back(copy.get());
    capture.nodes.push_back(std::move(copy));
  }
  if (added.empty()) return;
  stream.frontier.clear();
  for (std::size_t i = 0; i < added.size(); ++i)
    if (!has_dependents[i]) stream.frontier.push_back(added[i]);
}

/// Why `to` cannot take the place of `from`; success when it can.
cudaGraphExecUpdateResult difference(const CUgraphExec_st& from, const CUgraphExec_st& to) {
  if (from.nodes.size() != to.nodes.size()) return cudaGraphExecUpdateErrorTopologyChanged;
  for (std::size_t i = 0; i < from.nodes.size(); ++i) {
    if (from.nodes[i].after != to.nodes[i].after) return cudaGraphExecUpdateErrorTopologyChanged;
    if (from.nodes[i].type != to.nodes[i].type) return cudaGraphExecUpdateErrorNodeTypeChanged;
    if (from.nodes[i].signature != to.nodes[i].signature) return cudaGraphExecUpdateErrorParametersChanged;
  }
  return cudaGraphExecUpdateSuccess;
}

}  // namespace

void forget_graphs() {
  graphs().clear();
  executables().clear();
}

}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", [&](State& state) { begin_capture(state, stream, mode); });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call("cudaStreamEndCapture", [&](State& state) {
    require(graph, "the graph to set");
    end_capture(state, stream, graph);
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return call("cudaStreamIsCapturing", [&](State& state) {
    require(status, "the status to set");
    const CUstream_st& stream = state.stream(handle);
    *status = stream.capture == nullptr ? cudaStreamCaptureStatusNone
              : stream.capture->invalid ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
  });
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, std::size_t* count) {
  return call("cudaStreamGetCaptureInfo", [&](State& state) {
    require(status, "the status to set");
    if (graph != nullptr) refuse(cudaErrorNotSupported, "the graph of a capture under way is not handed out");
    const CUstream_st& stream = state.stream(handle);
    *status = stream.capture == nullptr ? cudaStreamCaptureStatusNone
              : stream.capture->invalid ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
    if (stream.capture == nullptr) return;
    if (id != nullptr) *id = stream.capture->id;
    if (dependencies != nullptr) *dependencies = stream.frontier.data();
    if (edges != nullptr) *edges = nullptr;
    if (count != nullptr) *count = stream.frontier.size();
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return call("cudaThreadExchangeStreamCaptureMode", [&](State&) {
    require(mode, "the mode");
    thread_local cudaStreamCaptureMode mine = cudaStreamCaptureModeGlobal;
    std::swap(mine, *mode);
  });
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned flags) {
  return call("cudaGraphCreate", [&](State&) {
    require(graph, "the graph to set");
    if (flags != 0) refuse(cudaErrorInvalidValue, "flags ", flags, ", expected 0");
    auto made = std::make_unique<CUgraph_st>();
    *graph = made.get();
    graphs()[*graph] = std::move(made);
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", [&](State&) {
    graph_of(graph);
    graphs().erase(graph);
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  return call("cudaGraphGetNodes", [&](State&) {
    require(count, "the number to set");
    const CUgraph_st& found = graph_of(graph);
    for (std::size_t i = 0; nodes != nullptr && i < *count; ++i)
      nodes[i] = i < found.nodes.size() ? found.nodes[i].get() : nullptr;
    *count = nodes == nullptr ? found.nodes.size() : std::min(*count, found.nodes.size());
  });
}

cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  return call("cudaGraphGetRootNodes", [&](State&) {
    require(count, "the number to set");
    std::vector<cudaGraphNode_t> roots;
    for (const auto& node : graph_of(graph).nodes)
      if (node->after.empty()) roots.push_back(node.get());
    for (std::size_t i = 0; nodes != nullptr && i < *count; ++i) nodes[i] = i < roots.size() ? roots[i] : nullptr;
    *count = nodes == nullptr ? roots.size() : std::min(*count, roots.size());
  });
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  return call("cudaGraphNodeGetType", [&](State&) {
    require(node, "the node");
    require(type, "the type to set");
    *type = node->type;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiate", [&](State& state) {
    require(out, "the executable graph to set");
    auto made = instantiate(state, graph_of(graph));
    *out = made.get();
    executables()[*out] = std::move(made);
  });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(out, graph, flags);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  return call("cudaGraphExecDestroy", [&](State&) {
    executable_of(graph);
    executables().erase(graph);  // what was launched still runs
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t stream) {
  return call("cudaGraphUpload", [&](State& state) {
    executable_of(graph);
    state.stream(stream);
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
  return call("cudaGraphLaunch", [&](State& state) {
    CUgraphExec_st& graph = executable_of(handle);
    CUstream_st& stream = state.stream(stream_handle);
    if (stream.capture != nullptr)
      capture_graph(graph, stream);
    else
      submit_graph(state, graph, stream);
  });
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t handle, cudaGraph_t graph, cudaGraphExecUpdateResultInfo* info) {
  return call("cudaGraphExecUpdate", [&](State& state) {
    CUgraphExec_st& old = executable_of(handle);
    const auto updated = instantiate(state, graph_of(graph));
    const cudaGraphExecUpdateResult result = difference(old, *updated);
    if (info != nullptr) *info = {.result = result, .errorNode = nullptr, .errorFromNode = nullptr};
    if (result != cudaGraphExecUpdateSuccess)
      throw Refusal{cudaErrorGraphExecUpdateFailure, ""};  // a program then instantiates anew: no mistake of its
    for (std::size_t i = 0; i < old.nodes.size(); ++i) old.nodes[i].make = updated->nodes[i].make;
    old.origins = updated->origins;
  });
}

cudaError_t cudaGraphNodeSetEnabled(cudaGraphExec_t handle, cudaGraphNode_t node, unsigned enabled) {
  return call("cudaGraphNodeSetEnabled", [&](State&) {
    CUgraphExec_st& graph = executable_of(handle);
    const auto found = std::find(graph.origins.begin(), graph.origins.end(), node);
    if (found == graph.origins.end())
      refuse(cudaErrorInvalidValue, "the node is not of the graph that was instantiated");
    graph.nodes[static_cast<std::size_t>(found - graph.origins.begin())].enabled = enabled != 0;
  });
}

}  // extern "C"
