// Graphs that are built by hand: nodes, what they depend on, what they are told. A node of a kind that a stream can
// take, too, is made by the stream's own call, into a capture of one.
#include <algorithm>
#include <cstring>
#include <fstream>

#include "gpusim/runtime_graph.h"

namespace gpusim::runtime {
namespace {

using NodePtr = std::unique_ptr<CUgraphNode_st>;

void require(const void* pointer, const char* what) {
  if (pointer == nullptr) refuse(cudaErrorInvalidValue, what, " is null");
}

/// A call of the runtime within another: it has told its own refusal.
void require(cudaError_t error) {
  if (error != cudaSuccess) throw Refusal{error, ""};
}

/// A stream that captures what `body` enqueues into it.
template <class Body>
NodePtr captured(State& state, Body body) {
  Capture capture;
  auto owned = std::make_unique<CUstream_st>();
  CUstream_st* const stream = owned.get();
  capture.origin = stream;
  capture.mode = cudaStreamCaptureModeRelaxed;
  stream->flags = cudaStreamNonBlocking;
  stream->capture = &capture;
  state.streams[stream] = std::move(owned);
  try {
    body(stream);
  } catch (...) {
    state.streams.erase(stream);
    throw;
  }
  state.streams.erase(stream);
  if (capture.nodes.empty()) {  // of no bytes
    auto node = std::make_unique<CUgraphNode_st>();
    node->make = [] { return Operation{.what = "a node that does nothing", .run = {}, .accesses = {}}; };
    return node;
  }
  if (capture.nodes.size() == 1) return std::move(capture.nodes[0]);
  // Slices of a copy, one after the other: one node.
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = capture.nodes[0]->type;
  node->signature = capture.nodes[0]->signature;
  std::vector<std::function<Operation()>> makers;
  for (const auto& part : capture.nodes) makers.push_back(part->make);
  node->make = [makers] {
    Operation whole;
    std::vector<std::function<void(Accesses&)>> runs;
    for (const auto& make : makers) {
      Operation part = make();
      whole.what = part.what;
      runs.push_back(std::move(part.run));
      const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
      append(whole.accesses.reads, part.accesses.reads);
      append(whole.accesses.writes, part.accesses.writes);
    }
    whole.run = [runs](Accesses& accesses) {
      for (const auto& run : runs) run(accesses);
    };
    return whole;
  };
  return node;
}

// ---- nodes by what they are told

NodePtr kernel_node(State& state, const cudaKernelNodeParams& told) {
  if (told.kernelParams == nullptr && told.extra != nullptr)
    refuse(cudaErrorNotSupported, "arguments in the `extra` form are not modelled; use kernelParams");
  NodePtr node = captured(state, [&](cudaStream_t stream) {
    require(cudaLaunchKernel(told.func, told.gridDim, told.blockDim, told.kernelParams, told.sharedMemBytes, stream));
  });
  auto parameters = std::make_shared<NodeParameters>();
  parameters->kernel = told;
  const std::vector<std::size_t>& sizes = state.info(state.kernel(told.func)).parameter_sizes;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto* const from = static_cast<const std::byte*>(told.kernelParams[i]);
    parameters->arguments.emplace_back(from, from + sizes[i]);
  }
  for (auto& argument : parameters->arguments) parameters->argument_pointers.push_back(argument.data());
  parameters->kernel.kernelParams = parameters->argument_pointers.data();
  node->parameters = std::move(parameters);
  return node;
}

NodePtr copy_node(State& state, const cudaMemcpy3DParms& told) {
  NodePtr node = captured(state, [&](cudaStream_t stream) { require(cudaMemcpy3DAsync(&told, stream)); });
  node->type = cudaGraphNodeTypeMemcpy;
  node->parameters = std::make_shared<NodeParameters>();
  node->parameters->copy = told;
  return node;
}

cudaMemcpy3DParms plain_copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  cudaMemcpy3DParms told = {};
  told.srcPtr = {const_cast<void*>(from), bytes, bytes, 1};
  told.dstPtr = {to, bytes, bytes, 1};
  told.extent = {bytes, 1, 1};
  told.kind = kind;
  return told;
}

NodePtr fill_node(State& state, const cudaMemsetParams& told) {
  const std::size_t element = told.elementSize;
  if (element != 1 && element != 2 && element != 4)
    refuse(cudaErrorInvalidValue, "elements of ", element, " bytes, expected 1, 2 or 4");
  const std::size_t width = told.width * element;
  const std::size_t pitch = told.height > 1 ? told.pitch : width;
  if (told.height > 1 && pitch < width)
    refuse(cudaErrorInvalidPitchValue, "rows of ", width, " bytes do not fit a pitch of ", pitch);
  const std::size_t span = told.height == 0 ? 0 : (told.height - 1) * pitch + width;
  if (state.checked_range(told.dst, span, "destination").place == Place::pageable)
    refuse(cudaErrorInvalidValue, "the destination is host memory, which a memset node does not fill");
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = cudaGraphNodeTypeMemset;
  node->signature = "memset";
  node->make = [&state, told, width, pitch, span, element] {
    Operation operation;
    operation.what = dsv2::concat("a node that fills ", width * told.height, " bytes");
    const auto begin = reinterpret_cast<std::uint64_t>(told.dst);
    for (std::size_t row = 0; row < told.height; ++row)
      operation.accesses.writes.push_back({begin + row * pitch, width});
    operation.run = [&state, told, width, pitch, span, element, what = operation.what](Accesses&) {
      state.run_operation(what, [&] {
        state.checked_range(told.dst, span, "destination");
        for (std::size_t row = 0; row < told.height; ++row) {
          auto* const at = static_cast<std::byte*>(told.dst) + row * pitch;
          for (std::size_t i = 0; i < width; i += element) std::memcpy(at + i, &told.value, element);
          const auto address = reinterpret_cast<std::uint64_t>(at);
          if (state.memory.contains(address)) state.memory.mark(address, width, Byte::initialised);
        }
      });
    };
    return operation;
  };
  node->parameters = std::make_shared<NodeParameters>();
  node->parameters->fill = told;
  return node;
}

NodePtr host_node(State& state, const cudaHostNodeParams& told) {
  require(reinterpret_cast<const void*>(told.fn), "the function");
  NodePtr node =
      captured(state, [&](cudaStream_t stream) { require(cudaLaunchHostFunc(stream, told.fn, told.userData)); });
  node->parameters = std::make_shared<NodeParameters>();
  node->parameters->host = told;
  return node;
}

NodePtr marker_node(cudaGraphNodeType type, const char* what) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->type = type;
  node->make = [what] { return Operation{.what = what, .run = {}, .accesses = {}}; };
  return node;
}

NodePtr event_node(State& state, cudaGraphNodeType type, cudaEvent_t event) {
  state.event(event);
  NodePtr node = marker_node(type, "a node that waits for an event");
  node->event = event;
  return node;
}

NodePtr child_node(cudaGraph_t graph) {
  NodePtr node = marker_node(cudaGraphNodeTypeGraph, "a child graph");
  node->child = clone_graph(graph_of(graph));
  node->child->is_child = true;
  return node;
}

// ---- the graph

void check_in(const CUgraph_st& graph, cudaGraphNode_t node) {
  const bool known =
      std::any_of(graph.nodes.begin(), graph.nodes.end(), [node](const NodePtr& other) { return other.get() == node; });
  if (!known) refuse(cudaErrorInvalidValue, "a node that is not of this graph");
}

void add_node(cudaGraphNode_t* out, cudaGraph_t handle, const cudaGraphNode_t* after, std::size_t count, NodePtr node) {
  require(out, "the node to set");
  CUgraph_st& graph = graph_of(handle);
  if (count > 0) require(after, "the dependencies");
  for (std::size_t i = 0; i < count; ++i) {
    check_in(graph, after[i]);
    if (std::find(node->after.begin(), node->after.end(), after[i]) != node->after.end())
      refuse(cudaErrorInvalidValue, "the same dependency twice");
    node->after.push_back(after[i]);
  }
  *out = node.get();
  graph.nodes.push_back(std::move(node));
}

/// What `made` does, `node` does from now on.
void replace(cudaGraphNode_t node, NodePtr made) {
  graph_of_node(node);
  if (node->type != made->type) refuse(cudaErrorInvalidValue, "parameters of another kind of node");
  node->make = std::move(made->make);
  node->signature = std::move(made->signature);
  node->parameters = std::move(made->parameters);
  node->event = made->event;
  node->child = std::move(made->child);
}

/// The same in an executable graph, whose shape it leaves.
void replace(cudaGraphExec_t handle, cudaGraphNode_t node, const CUgraphNode_st& made) {
  CUgraphExec_st& graph = executable_of(handle);
  const auto found = std::find(graph.origins.begin(), graph.origins.end(), node);
  if (found == graph.origins.end()) refuse(cudaErrorInvalidValue, "the node is not of the graph that was instantiated");
  CUgraphExec_st::Node& entry = graph.nodes[static_cast<std::size_t>(found - graph.origins.begin())];
  if (entry.type != made.type) refuse(cudaErrorInvalidValue, "parameters of another kind of node");
  if (entry.signature != made.signature)
    refuse(cudaErrorInvalidValue, "the node copies ", entry.signature, ", and cannot be made to copy ", made.signature);
  entry.make = made.make;
  entry.event = made.event;
}

NodeParameters& parameters_of(cudaGraphNode_t node, cudaGraphNodeType type) {
  graph_of_node(node);
  if (node->type != type) refuse(cudaErrorInvalidValue, "another kind of node");
  if (node->parameters == nullptr)
    refuse(cudaErrorNotSupported, "the parameters of a node that was captured are not kept");
  return *node->parameters;
}

cudaEvent_t& event_of(cudaGraphNode_t node, cudaGraphNodeType type) {
  graph_of_node(node);
  if (node->type != type) refuse(cudaErrorInvalidValue, "another kind of node");
  return node->event;
}

cudaMemsetParams as_fill(const cudaMemsetParamsV2& told) {
  cudaMemsetParams out = {};
  out.dst = told.dst;
  out.pitch = told.pitch;
  out.value = told.value;
  out.elementSize = told.elementSize;
  out.width = told.width;
  out.height = told.height;
  return out;
}

NodePtr node_of(State& state, const cudaGraphNodeParams& told) {
  switch (told.type) {
    case cudaGraphNodeTypeKernel: {
      cudaKernelNodeParams kernel = {};
      kernel.func = told.kernel.func;
      kernel.gridDim = told.kernel.gridDim;
      kernel.blockDim = told.kernel.blockDim;
      kernel.sharedMemBytes = told.kernel.sharedMemBytes;
      kernel.kernelParams = told.kernel.kernelParams;
      kernel.extra = told.kernel.extra;
      return kernel_node(state, kernel);
    }
    case cudaGraphNodeTypeMemcpy:
      return copy_node(state, told.memcpy.copyParams);
    case cudaGraphNodeTypeMemset:
      return fill_node(state, as_fill(told.memset));
    case cudaGraphNodeTypeHost:
      return host_node(state, {told.host.fn, told.host.userData});
    case cudaGraphNodeTypeGraph:
      return child_node(told.graph.graph);
    case cudaGraphNodeTypeEmpty:
      return marker_node(cudaGraphNodeTypeEmpty, "an empty node");
    case cudaGraphNodeTypeWaitEvent:
      return event_node(state, told.type, told.eventWait.event);
    case cudaGraphNodeTypeEventRecord:
      return event_node(state, told.type, told.eventRecord.event);
    default:
      refuse(cudaErrorNotSupported, "nodes of type ", static_cast<int>(told.type),
             " are not modelled: semaphores, allocations and conditions within graphs");
  }
}

/// The first `*count` of `found` into `out`, nulls behind them; how many there are where `out` is null.
void hand_out(const std::vector<cudaGraphNode_t>& found, cudaGraphNode_t* out, std::size_t* count) {
  require(count, "the number to set");
  for (std::size_t i = 0; out != nullptr && i < *count; ++i) out[i] = i < found.size() ? found[i] : nullptr;
  *count = out == nullptr ? found.size() : std::min(*count, found.size());
}

bool is_ahead(cudaGraphNode_t node, cudaGraphNode_t of) {
  return node == of || std::any_of(of->after.begin(), of->after.end(),
                                   [node](cudaGraphNode_t earlier) { return is_ahead(node, earlier); });
}

const char* name_of(cudaGraphNodeType type) {
  constexpr const char* kNames[] = {"kernel", "memcpy", "memset",     "host",
                                    "graph",  "empty",  "wait event", "record event"};
  const auto index = static_cast<std::size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "node";
}

void print_dot(const CUgraph_st& graph, std::ostream& out, const std::string& prefix) {
  std::unordered_map<const CUgraphNode_st*, std::size_t> numbers;
  for (const auto& node : graph.nodes) {
    const std::size_t number = numbers.size();
    numbers[node.get()] = number;
    std::string what = node->make().what;
    std::replace(what.begin(), what.end(), '"', '\'');
    out << "  " << prefix << number << " [label=\"" << name_of(node->type) << "\\n" << what << "\"];\n";
    if (node->child != nullptr) print_dot(*node->child, out, dsv2::concat(prefix, number, "_"));
  }
  for (const auto& node : graph.nodes) {
    for (const cudaGraphNode_t earlier : node->after)
      out << "  " << prefix << numbers[earlier] << " -> " << prefix << numbers[node.get()] << ";\n";
  }
}

}  // namespace
}  // namespace gpusim::runtime

using namespace gpusim::runtime;

extern "C" {

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                   std::size_t count, const cudaKernelNodeParams* told) {
  return call("cudaGraphAddKernelNode", [&](State& state) {
    require(told, "the parameters");
    add_node(out, graph, after, count, kernel_node(state, *told));
  });
}

cudaError_t cudaGraphAddMemcpyNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                   std::size_t count, const cudaMemcpy3DParms* told) {
  return call("cudaGraphAddMemcpyNode", [&](State& state) {
    require(told, "the parameters");
    add_node(out, graph, after, count, copy_node(state, *told));
  });
}

cudaError_t cudaGraphAddMemcpyNode1D(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                     std::size_t count, void* to, const void* from, std::size_t bytes,
                                     cudaMemcpyKind kind) {
  return call("cudaGraphAddMemcpyNode1D", [&](State& state) {
    add_node(out, graph, after, count, copy_node(state, plain_copy(to, from, bytes, kind)));
  });
}

cudaError_t cudaGraphAddMemcpyNodeToSymbol(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                           std::size_t count, const void* symbol, const void* from, std::size_t bytes,
                                           std::size_t offset, cudaMemcpyKind kind) {
  return call("cudaGraphAddMemcpyNodeToSymbol", [&](State& state) {
    add_node(out, graph, after, count, captured(state, [&](cudaStream_t stream) {
               require(cudaMemcpyToSymbolAsync(symbol, from, bytes, offset, kind, stream));
             }));
  });
}

cudaError_t cudaGraphAddMemcpyNodeFromSymbol(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                             std::size_t count, void* to, const void* symbol, std::size_t bytes,
                                             std::size_t offset, cudaMemcpyKind kind) {
  return call("cudaGraphAddMemcpyNodeFromSymbol", [&](State& state) {
    add_node(out, graph, after, count, captured(state, [&](cudaStream_t stream) {
               require(cudaMemcpyFromSymbolAsync(to, symbol, bytes, offset, kind, stream));
             }));
  });
}

cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                   std::size_t count, const cudaMemsetParams* told) {
  return call("cudaGraphAddMemsetNode", [&](State& state) {
    require(told, "the parameters");
    add_node(out, graph, after, count, fill_node(state, *told));
  });
}

cudaError_t cudaGraphAddHostNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                 std::size_t count, const cudaHostNodeParams* told) {
  return call("cudaGraphAddHostNode", [&](State& state) {
    require(told, "the parameters");
    add_node(out, graph, after, count, host_node(state, *told));
  });
}

cudaError_t cudaGraphAddEmptyNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                  std::size_t count) {
  return call("cudaGraphAddEmptyNode", [&](State&) {
    add_node(out, graph, after, count, marker_node(cudaGraphNodeTypeEmpty, "an empty node"));
  });
}

cudaError_t cudaGraphAddEventRecordNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                        std::size_t count, cudaEvent_t event) {
  return call("cudaGraphAddEventRecordNode", [&](State& state) {
    add_node(out, graph, after, count, event_node(state, cudaGraphNodeTypeEventRecord, event));
  });
}

cudaError_t cudaGraphAddEventWaitNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                      std::size_t count, cudaEvent_t event) {
  return call("cudaGraphAddEventWaitNode", [&](State& state) {
    add_node(out, graph, after, count, event_node(state, cudaGraphNodeTypeWaitEvent, event));
  });
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                       std::size_t count, cudaGraph_t child) {
  return call("cudaGraphAddChildGraphNode", [&](State&) { add_node(out, graph, after, count, child_node(child)); });
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                             const cudaGraphEdgeData*, std::size_t count, cudaGraphNodeParams* told) {
  return call("cudaGraphAddNode", [&](State& state) {
    require(told, "the parameters");
    add_node(out, graph, after, count, node_of(state, *told));
  });
}

cudaError_t cudaGraphDestroyNode(cudaGraphNode_t node) {
  return call("cudaGraphDestroyNode", [&](State&) {
    CUgraph_st& graph = graph_of_node(node);
    for (const auto& other : graph.nodes) std::erase(other->after, node);
    std::erase_if(graph.nodes, [node](const NodePtr& other) { return other.get() == node; });
  });
}

// ---- dependencies

cudaError_t cudaGraphAddDependencies(cudaGraph_t handle, const cudaGraphNode_t* from, const cudaGraphNode_t* to,
                                     const cudaGraphEdgeData*, std::size_t count) {
  return call("cudaGraphAddDependencies", [&](State&) {
    const CUgraph_st& graph = graph_of(handle);
    for (std::size_t i = 0; i < count; ++i) {
      check_in(graph, from[i]);
      check_in(graph, to[i]);
      if (is_ahead(to[i], from[i])) refuse(cudaErrorInvalidValue, "the dependency would close a circle");
      if (std::find(to[i]->after.begin(), to[i]->after.end(), from[i]) != to[i]->after.end())
        refuse(cudaErrorInvalidValue, "the dependency is there already");
      to[i]->after.push_back(from[i]);
    }
  });
}

cudaError_t cudaGraphRemoveDependencies(cudaGraph_t handle, const cudaGraphNode_t* from, const cudaGraphNode_t* to,
                                        const cudaGraphEdgeData*, std::size_t count) {
  return call("cudaGraphRemoveDependencies", [&](State&) {
    const CUgraph_st& graph = graph_of(handle);
    for (std::size_t i = 0; i < count; ++i) {
      check_in(graph, to[i]);
      if (std::erase(to[i]->after, from[i]) == 0) refuse(cudaErrorInvalidValue, "there is no such dependency");
    }
  });
}

cudaError_t cudaGraphGetEdges(cudaGraph_t handle, cudaGraphNode_t* from, cudaGraphNode_t* to, cudaGraphEdgeData* data,
                              std::size_t* count) {
  return call("cudaGraphGetEdges", [&](State&) {
    require(count, "the number to set");
    std::vector<cudaGraphNode_t> sources, targets;
    for (const auto& node : graph_of(handle).nodes) {
      for (const cudaGraphNode_t earlier : node->after) {
        sources.push_back(earlier);
        targets.push_back(node.get());
      }
    }
    const std::size_t asked = *count;
    hand_out(sources, from, count);
    *count = asked;
    hand_out(targets, to, count);
    for (std::size_t i = 0; data != nullptr && i < *count; ++i) data[i] = {};
  });
}

cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* out, cudaGraphEdgeData* data,
                                         std::size_t* count) {
  return call("cudaGraphNodeGetDependencies", [&](State&) {
    graph_of_node(node);
    hand_out(node->after, out, count);
    for (std::size_t i = 0; data != nullptr && i < *count; ++i) data[i] = {};
  });
}

cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t node, cudaGraphNode_t* out, cudaGraphEdgeData* data,
                                           std::size_t* count) {
  return call("cudaGraphNodeGetDependentNodes", [&](State&) {
    std::vector<cudaGraphNode_t> found;
    for (const auto& other : graph_of_node(node).nodes) {
      if (std::find(other->after.begin(), other->after.end(), node) != other->after.end()) found.push_back(other.get());
    }
    hand_out(found, out, count);
    for (std::size_t i = 0; data != nullptr && i < *count; ++i) data[i] = {};
  });
}

// ---- copies and pictures of graphs

cudaError_t cudaGraphClone(cudaGraph_t* clone, cudaGraph_t original) {
  return call("cudaGraphClone", [&](State&) {
    require(clone, "the graph to set");
    *clone = add_graph(clone_graph(graph_of(original)));
  });
}

cudaError_t cudaGraphNodeFindInClone(cudaGraphNode_t* node, cudaGraphNode_t original, cudaGraph_t clone) {
  return call("cudaGraphNodeFindInClone", [&](State&) {
    require(node, "the node to set");
    const CUgraph_st& graph = graph_of(clone);
    const auto found = std::find_if(graph.nodes.begin(), graph.nodes.end(),
                                    [original](const NodePtr& copy) { return copy->original == original; });
    if (found == graph.nodes.end()) refuse(cudaErrorInvalidValue, "no node of the clone is a copy of this one");
    *node = found->get();
  });
}

cudaError_t cudaGraphDebugDotPrint(cudaGraph_t graph, const char* path, unsigned) {
  return call("cudaGraphDebugDotPrint", [&](State&) {
    require(path, "the path");
    std::ofstream file(path);
    file << "digraph {\n";
    print_dot(graph_of(graph), file, "n");
    file << "}\n";
    if (!file.flush()) refuse(cudaErrorOperatingSystem, "cannot write ", path);
  });
}

// ---- what nodes are told

cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t node, cudaKernelNodeParams* out) {
  return call("cudaGraphKernelNodeGetParams", [&](State&) {
    require(out, "the parameters to set");
    *out = parameters_of(node, cudaGraphNodeTypeKernel).kernel;
  });
}

cudaError_t cudaGraphKernelNodeSetParams(cudaGraphNode_t node, const cudaKernelNodeParams* told) {
  return call("cudaGraphKernelNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(node, kernel_node(state, *told));
  });
}

cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t node, cudaMemcpy3DParms* out) {
  return call("cudaGraphMemcpyNodeGetParams", [&](State&) {
    require(out, "the parameters to set");
    *out = parameters_of(node, cudaGraphNodeTypeMemcpy).copy;
  });
}

cudaError_t cudaGraphMemcpyNodeSetParams(cudaGraphNode_t node, const cudaMemcpy3DParms* told) {
  return call("cudaGraphMemcpyNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(node, copy_node(state, *told));
  });
}

cudaError_t cudaGraphMemcpyNodeSetParams1D(cudaGraphNode_t node, void* to, const void* from, std::size_t bytes,
                                           cudaMemcpyKind kind) {
  return call("cudaGraphMemcpyNodeSetParams1D",
              [&](State& state) { replace(node, copy_node(state, plain_copy(to, from, bytes, kind))); });
}

cudaError_t cudaGraphMemsetNodeGetParams(cudaGraphNode_t node, cudaMemsetParams* out) {
  return call("cudaGraphMemsetNodeGetParams", [&](State&) {
    require(out, "the parameters to set");
    *out = parameters_of(node, cudaGraphNodeTypeMemset).fill;
  });
}

cudaError_t cudaGraphMemsetNodeSetParams(cudaGraphNode_t node, const cudaMemsetParams* told) {
  return call("cudaGraphMemsetNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(node, fill_node(state, *told));
  });
}

cudaError_t cudaGraphHostNodeGetParams(cudaGraphNode_t node, cudaHostNodeParams* out) {
  return call("cudaGraphHostNodeGetParams", [&](State&) {
    require(out, "the parameters to set");
    *out = parameters_of(node, cudaGraphNodeTypeHost).host;
  });
}

cudaError_t cudaGraphHostNodeSetParams(cudaGraphNode_t node, const cudaHostNodeParams* told) {
  return call("cudaGraphHostNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(node, host_node(state, *told));
  });
}

cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
  return call("cudaGraphChildGraphNodeGetGraph", [&](State&) {
    require(graph, "the graph to set");
    graph_of_node(node);
    if (node->child == nullptr) refuse(cudaErrorInvalidValue, "another kind of node");
    *graph = node->child.get();
  });
}

cudaError_t cudaGraphEventRecordNodeGetEvent(cudaGraphNode_t node, cudaEvent_t* event) {
  return call("cudaGraphEventRecordNodeGetEvent", [&](State&) {
    require(event, "the event to set");
    *event = event_of(node, cudaGraphNodeTypeEventRecord);
  });
}

cudaError_t cudaGraphEventRecordNodeSetEvent(cudaGraphNode_t node, cudaEvent_t event) {
  return call("cudaGraphEventRecordNodeSetEvent", [&](State& state) {
    state.event(event);
    event_of(node, cudaGraphNodeTypeEventRecord) = event;
  });
}

cudaError_t cudaGraphEventWaitNodeGetEvent(cudaGraphNode_t node, cudaEvent_t* event) {
  return call("cudaGraphEventWaitNodeGetEvent", [&](State&) {
    require(event, "the event to set");
    *event = event_of(node, cudaGraphNodeTypeWaitEvent);
  });
}

cudaError_t cudaGraphEventWaitNodeSetEvent(cudaGraphNode_t node, cudaEvent_t event) {
  return call("cudaGraphEventWaitNodeSetEvent", [&](State& state) {
    state.event(event);
    event_of(node, cudaGraphNodeTypeWaitEvent) = event;
  });
}

cudaError_t cudaGraphNodeSetParams(cudaGraphNode_t node, cudaGraphNodeParams* told) {
  return call("cudaGraphNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(node, node_of(state, *told));
  });
}

// ---- and those of executable graphs

cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t graph, cudaGraphNode_t node,
                                             const cudaKernelNodeParams* told) {
  return call("cudaGraphExecKernelNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(graph, node, *kernel_node(state, *told));
  });
}

cudaError_t cudaGraphExecMemcpyNodeSetParams(cudaGraphExec_t graph, cudaGraphNode_t node,
                                             const cudaMemcpy3DParms* told) {
  return call("cudaGraphExecMemcpyNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(graph, node, *copy_node(state, *told));
  });
}

cudaError_t cudaGraphExecMemcpyNodeSetParams1D(cudaGraphExec_t graph, cudaGraphNode_t node, void* to, const void* from,
                                               std::size_t bytes, cudaMemcpyKind kind) {
  return call("cudaGraphExecMemcpyNodeSetParams1D",
              [&](State& state) { replace(graph, node, *copy_node(state, plain_copy(to, from, bytes, kind))); });
}

cudaError_t cudaGraphExecMemsetNodeSetParams(cudaGraphExec_t graph, cudaGraphNode_t node,
                                             const cudaMemsetParams* told) {
  return call("cudaGraphExecMemsetNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(graph, node, *fill_node(state, *told));
  });
}

cudaError_t cudaGraphExecHostNodeSetParams(cudaGraphExec_t graph, cudaGraphNode_t node,
                                           const cudaHostNodeParams* told) {
  return call("cudaGraphExecHostNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(graph, node, *host_node(state, *told));
  });
}

cudaError_t cudaGraphExecEventRecordNodeSetEvent(cudaGraphExec_t graph, cudaGraphNode_t node, cudaEvent_t event) {
  return call("cudaGraphExecEventRecordNodeSetEvent",
              [&](State& state) { replace(graph, node, *event_node(state, cudaGraphNodeTypeEventRecord, event)); });
}

cudaError_t cudaGraphExecEventWaitNodeSetEvent(cudaGraphExec_t graph, cudaGraphNode_t node, cudaEvent_t event) {
  return call("cudaGraphExecEventWaitNodeSetEvent",
              [&](State& state) { replace(graph, node, *event_node(state, cudaGraphNodeTypeWaitEvent, event)); });
}

cudaError_t cudaGraphExecNodeSetParams(cudaGraphExec_t graph, cudaGraphNode_t node, cudaGraphNodeParams* told) {
  return call("cudaGraphExecNodeSetParams", [&](State& state) {
    require(told, "the parameters");
    replace(graph, node, *node_of(state, *told));
  });
}

cudaError_t cudaGraphNodeGetEnabled(cudaGraphExec_t handle, cudaGraphNode_t node, unsigned* enabled) {
  return call("cudaGraphNodeGetEnabled", [&](State&) {
    require(enabled, "the answer to set");
    const CUgraphExec_st& graph = executable_of(handle);
    const auto found = std::find(graph.origins.begin(), graph.origins.end(), node);
    if (found == graph.origins.end())
      refuse(cudaErrorInvalidValue, "the node is not of the graph that was instantiated");
    *enabled = graph.nodes[static_cast<std::size_t>(found - graph.origins.begin())].enabled ? 1 : 0;
  });
}

cudaError_t cudaGraphInstantiateWithParams(cudaGraphExec_t* out, cudaGraph_t graph, cudaGraphInstantiateParams* told) {
  if (told != nullptr) {
    told->errNode_out = nullptr;
    told->result_out = cudaGraphInstantiateSuccess;
  }
  const cudaError_t error = cudaGraphInstantiate(out, graph, told == nullptr ? 0 : told->flags);
  if (error != cudaSuccess && told != nullptr) told->result_out = cudaGraphInstantiateError;
  return error;
}

cudaError_t cudaGraphExecGetFlags(cudaGraphExec_t graph, unsigned long long* flags) {
  return call("cudaGraphExecGetFlags", [&](State&) {
    require(flags, "the flags to set");
    executable_of(graph);
    *flags = 0;
  });
}

}  // extern "C"
