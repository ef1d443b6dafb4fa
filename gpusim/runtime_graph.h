// Graphs as the runtime keeps them: what captures (runtime_graphs.cpp) and building by hand (runtime_graph_nodes.cpp)
// share.
#pragma once

#include "gpusim/runtime_state.h"

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;  ///< in the order in which they were made
  bool is_child = false;                               ///< of a node, which it belongs to
};

/// A graph that can be launched: a copy of its nodes, so that the graph itself may go or change.
struct CUgraphExec_st {
  struct Node {
    cudaGraphNodeType type;
    std::function<gpusim::Operation()> make;
    std::string signature;
    cudaEvent_t event;               ///< that it records or waits for
    std::vector<std::size_t> after;  ///< indices of earlier nodes
    int branch;                      ///< nodes of a branch are in one chain
    bool enabled = true;
  };
  std::vector<Node> nodes;
  std::vector<gpusim::Scheduler::Stream> branches;  ///< the streams that stand for them; the first is the launching one
  std::vector<cudaGraphNode_t> origins;             ///< the graph's nodes, while it lives
  gpusim::TaskPtr last;                             ///< launches of one executable graph do not overlap
};

namespace gpusim::runtime {

/// What the program gave a node that it made by hand: for those who ask for it.
struct NodeParameters {
  cudaKernelNodeParams kernel = {};
  std::vector<std::vector<std::byte>> arguments;
  std::vector<void*> argument_pointers;  ///< into `arguments`
  cudaMemcpy3DParms copy = {};
  cudaMemsetParams fill = {};
  cudaHostNodeParams host = {};
};

/// Refuse where it is none.
CUgraph_st& graph_of(cudaGraph_t handle);
CUgraphExec_st& executable_of(cudaGraphExec_t handle);
cudaGraph_t add_graph(std::unique_ptr<CUgraph_st> graph);
/// The graph that holds a node; refuses where none does.
CUgraph_st& graph_of_node(cudaGraphNode_t node);
/// The nodes, each after all that it depends on; empty where they go round in a circle.
std::vector<cudaGraphNode_t> sorted_nodes(const CUgraph_st& graph);
/// A copy; `originals` of each node say whose copy it is.
std::unique_ptr<CUgraph_st> clone_graph(const CUgraph_st& graph);

}  // namespace gpusim::runtime
