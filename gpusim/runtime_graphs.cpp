// Graphs of the CUDA runtime: captured from streams, instantiated, launched.
#include <algorithm>

#include "gpusim/runtime_graph.h"

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

/// Turns a graph's nodes into those of an executable one.
class Instantiation {
 public:
  Instantiation(State& state, const CUgraph_st& graph) : state_(state) { add(graph, {}); }

  std::unique_ptr<CUgraphExec_st> finish() {
    for (std::size_t branch = 0; branch < tails_.size(); ++branch)
      out_->branches.push_back(
          branch == 0 ? Scheduler::kLegacy
                      : state_.scheduler.add_stream(false, dsv2::concat("branch ", branch, " of a graph")));
    return std::move(out_);
  }

 private:
  /// The last of the nodes added: those that what follows the graph has to wait for.
  std::vector<std::size_t> add(const CUgraph_st& graph, const std::vector<std::size_t>& before) {
    const std::vector<cudaGraphNode_t> nodes = sorted_nodes(graph);
    if (nodes.size() != graph.nodes.size())
      refuse(cudaErrorInvalidValue, "the graph's nodes depend on each other in a circle");
    std::unordered_map<cudaGraphNode_t, std::vector<std::size_t>> ends;
    std::vector<std::size_t> leaves;
    for (const cudaGraphNode_t node : nodes) {
      std::vector<std::size_t> after;
      if (node->after.empty()) after = before;
      for (const cudaGraphNode_t earlier : node->after)
        after.insert(after.end(), ends[earlier].begin(), ends[earlier].end());
      ends[node] = node->child != nullptr ? add(*node->child, after) : std::vector<std::size_t>{add(*node, after)};
      const bool is_leaf = std::none_of(nodes.begin(), nodes.end(), [node](cudaGraphNode_t other) {
        return std::find(other->after.begin(), other->after.end(), node) != other->after.end();
      });
      if (is_leaf) leaves.insert(leaves.end(), ends[node].begin(), ends[node].end());
    }
    return nodes.empty() ? before : leaves;
  }

  /// A node goes on the branch of a node that it depends on and that is that branch's last so far, else on a new one.
  std::size_t add(CUgraphNode_st& node, const std::vector<std::size_t>& after) {
    CUgraphExec_st::Node entry = {node.type, node.make, node.signature, node.event, after, -1};
    for (const std::size_t earlier : after) {
      const int branch = out_->nodes[earlier].branch;
      if (entry.branch < 0 && tails_[static_cast<std::size_t>(branch)] == earlier) entry.branch = branch;
    }
    const std::size_t at = out_->nodes.size();
    if (entry.branch < 0) {
      entry.branch = static_cast<int>(tails_.size());
      tails_.push_back(at);
    }
    tails_[static_cast<std::size_t>(entry.branch)] = at;
    out_->origins.push_back(&node);
    out_->nodes.push_back(std::move(entry));
    return at;
  }

  State& state_;
  std::unique_ptr<CUgraphExec_st> out_ = std::make_unique<CUgraphExec_st>();
  std::vector<std::size_t> tails_;
};

std::unique_ptr<CUgraphExec_st> instantiate(State& state, const CUgraph_st& graph) {
  return Instantiation(state, graph).finish();
}

/// What a node does in one launch; a record is a new one each time.
Operation operation_of(State& state, const CUgraphExec_st::Node& node) {
  if (node.type != cudaGraphNodeTypeEventRecord) return node.make();
  CUevent_st& event = state.event(node.event);
  event.capture = nullptr;
  event.stamp = std::make_shared<CUevent_st::Stamp>();
  return Operation{.what = "a node that records an event",
                   .run = [stamp = event.stamp](Accesses&) { stamp->ms = now_ms(); },
                   .accesses = {}};
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
    if (node.type == cudaGraphNodeTypeWaitEvent && node.enabled) {
      if (const TaskPtr recorded = state.event(node.event).task; recorded != nullptr) after.push_back(recorded);
    }
    const Scheduler::Stream on = node.branch == 0 ? stream.id : graph.branches[static_cast<std::size_t>(node.branch)];
    tasks.push_back(
        state.scheduler.submit(on, node.enabled ? operation_of(state, node) : marker("a disabled node"), after));
    if (node.type == cudaGraphNodeTypeEventRecord && node.enabled) state.event(node.event).task = tasks.back();
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
    copy->event = node.event;
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

namespace {

CUgraph_st* find_node(CUgraph_st& graph, cudaGraphNode_t node) {
  for (const auto& known : graph.nodes) {
    if (known.get() == node) return &graph;
    if (known->child == nullptr) continue;
    if (CUgraph_st* const found = find_node(*known->child, node); found != nullptr) return found;
  }
  return nullptr;
}

CUgraph_st* find_child(CUgraph_st& graph, cudaGraph_t handle) {
  for (const auto& known : graph.nodes) {
    if (known->child == nullptr) continue;
    if (known->child.get() == handle) return handle;
    if (CUgraph_st* const found = find_child(*known->child, handle); found != nullptr) return found;
  }
  return nullptr;
}

}  // namespace

CUgraph_st& graph_of(cudaGraph_t handle) {
  const auto found = graphs().find(handle);
  if (found != graphs().end()) return *found->second;
  for (const auto& [other, graph] : graphs()) {
    if (CUgraph_st* const child = find_child(*graph, handle); child != nullptr) return *child;
  }
  refuse(cudaErrorInvalidValue, "this is no graph, or one that was destroyed");
}

CUgraphExec_st& executable_of(cudaGraphExec_t handle) {
  const auto found = executables().find(handle);
  if (found == executables().end())
    refuse(cudaErrorInvalidValue, "this is no executable graph, or one that was destroyed");
  return *found->second;
}

cudaGraph_t add_graph(std::unique_ptr<CUgraph_st> graph) {
  const cudaGraph_t handle = graph.get();
  graphs()[handle] = std::move(graph);
  return handle;
}

CUgraph_st& graph_of_node(cudaGraphNode_t node) {
  for (const auto& [handle, graph] : graphs()) {
    if (CUgraph_st* const found = find_node(*graph, node); found != nullptr) return *found;
  }
  refuse(cudaErrorInvalidValue, "this is no node of a graph, or one that was destroyed");
}

std::vector<cudaGraphNode_t> sorted_nodes(const CUgraph_st& graph) {
  std::vector<cudaGraphNode_t> out;
  std::unordered_map<const CUgraphNode_st*, bool> placed;
  for (bool progress = true; progress && out.size() < graph.nodes.size();) {
    progress = false;
    for (const auto& node : graph.nodes) {
      const bool ready =
          std::all_of(node->after.begin(), node->after.end(), [&](cudaGraphNode_t earlier) { return placed[earlier]; });
      if (!ready || placed[node.get()]) continue;
      placed[node.get()] = true;
      out.push_back(node.get());
      progress = true;
    }
  }
  return out;
}

std::unique_ptr<CUgraph_st> clone_graph(const CUgraph_st& graph) {
  auto out = std::make_unique<CUgraph_st>();
  std::unordered_map<const CUgraphNode_st*, CUgraphNode_st*> copies;
  for (const auto& node : graph.nodes) {
    out->nodes.push_back(std::make_unique<CUgraphNode_st>(*node));
    CUgraphNode_st& copy = *out->nodes.back();
    copy.original = node.get();
    if (node->child != nullptr) {
      copy.child = clone_graph(*node->child);
      copy.child->is_child = true;
    }
    copies[node.get()] = &copy;
  }
  for (const auto& copy : out->nodes) {
    for (CUgraphNode_st*& earlier : copy->after) earlier = copies.at(earlier);
  }
  return out;
}

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
    *graph = add_graph(std::make_unique<CUgraph_st>());
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", [&](State&) {
    if (graph_of(graph).is_child) refuse(cudaErrorInvalidValue, "the graph belongs to the node that it stands in");
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
