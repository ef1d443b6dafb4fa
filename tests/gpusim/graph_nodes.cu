// Graphs that are built by hand: every kind of node, what they are told, read back and changed; clones, children,
// events.
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "check.h"

__global__ void scale(int* values, int count, int factor, int add) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) values[i] = values[i] * factor + add;
}
__device__ int symbol[4];

void CUDART_CB count_up(void* counter) { ++*static_cast<int*>(counter); }

struct Launch {
  int* values;
  int count, factor, add;
  void* arguments[4] = {&values, &count, &factor, &add};
  cudaKernelNodeParams params() {
    cudaKernelNodeParams out = {};
    out.func = reinterpret_cast<void*>(scale);
    out.gridDim = dim3(2);
    out.blockDim = dim3(32);
    out.kernelParams = arguments;
    return out;
  }
};

int main(int, char** arguments) {
  const int count = 64;
  int* device;
  int* host;
  SUCCEED(cudaMalloc(&device, count * sizeof(int)));
  SUCCEED(cudaMallocHost(&host, count * sizeof(int)));
  int counter = 0;

  // fill 3 -> scale by 2 and add 1 -> scale by 10 -> copy out -> host function; the copy of a symbol beside them.
  cudaGraph_t graph;
  SUCCEED(cudaGraphCreate(&graph, 0));
  cudaMemsetParams fill = {};
  fill.dst = device;
  fill.value = 3;
  fill.elementSize = 4;
  fill.width = count;
  fill.height = 1;
  cudaGraphNode_t filled, first, second, copied, told, joined, to_symbol;
  SUCCEED(cudaGraphAddMemsetNode(&filled, graph, nullptr, 0, &fill));
  Launch launch{device, count, 2, 1};
  cudaKernelNodeParams kernel = launch.params();
  SUCCEED(cudaGraphAddKernelNode(&first, graph, &filled, 1, &kernel));
  launch.factor = 10;
  launch.add = 0;
  SUCCEED(cudaGraphAddKernelNode(&second, graph, nullptr, 0, &kernel));
  SUCCEED(cudaGraphAddDependencies(graph, &first, &second, nullptr, 1));
  SUCCEED(
      cudaGraphAddMemcpyNode1D(&copied, graph, &second, 1, host, device, count * sizeof(int), cudaMemcpyDeviceToHost));
  cudaHostNodeParams call = {count_up, &counter};
  SUCCEED(cudaGraphAddHostNode(&told, graph, &copied, 1, &call));
  const int constants[4] = {5, 6, 7, 8};
  SUCCEED(cudaGraphAddMemcpyNodeToSymbol(&to_symbol, graph, nullptr, 0, symbol, constants, sizeof constants, 0,
                                         cudaMemcpyHostToDevice));
  const cudaGraphNode_t ends[] = {told, to_symbol};
  SUCCEED(cudaGraphAddEmptyNode(&joined, graph, ends, 2));
  REFUSE(cudaGraphAddDependencies(graph, &told, &filled, nullptr, 1), cudaErrorInvalidValue);  // a circle

  cudaGraphExec_t executable;
  SUCCEED(cudaGraphInstantiate(&executable, graph, 0));
  cudaStream_t stream;
  SUCCEED(cudaStreamCreate(&stream));
  for (int round = 1; round <= 2; ++round) {
    SUCCEED(cudaGraphLaunch(executable, stream));
    SUCCEED(cudaStreamSynchronize(stream));
    for (int i = 0; i < count; ++i) REQUIRE(host[i] == (3 * 2 + 1) * 10);
    REQUIRE(counter == round);
  }
  int from_symbol[4];
  SUCCEED(cudaMemcpyFromSymbol(from_symbol, symbol, sizeof from_symbol));
  REQUIRE(std::memcmp(from_symbol, constants, sizeof constants) == 0);

  // What it looks like.
  std::size_t number = 0;
  SUCCEED(cudaGraphGetNodes(graph, nullptr, &number));
  REQUIRE(number == 7);
  SUCCEED(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &number));
  REQUIRE(number == 6);
  cudaGraphNode_t from[6], to[6];
  SUCCEED(cudaGraphGetEdges(graph, from, to, nullptr, &number));
  bool has_edge = false;
  for (std::size_t i = 0; i < number; ++i) has_edge |= from[i] == first && to[i] == second;
  REQUIRE(has_edge);
  SUCCEED(cudaGraphNodeGetDependencies(joined, from, nullptr, &(number = 6)));
  REQUIRE(number == 2 && from[0] == told && from[1] == to_symbol);
  SUCCEED(cudaGraphNodeGetDependentNodes(filled, from, nullptr, &(number = 6)));
  REQUIRE(number == 1 && from[0] == first);
  SUCCEED(cudaGraphGetRootNodes(graph, from, &(number = 6)));
  REQUIRE(number == 2);
  cudaGraphNodeType type;
  SUCCEED(cudaGraphNodeGetType(told, &type));
  REQUIRE(type == cudaGraphNodeTypeHost);
  cudaKernelNodeParams read = {};
  SUCCEED(cudaGraphKernelNodeGetParams(first, &read));
  REQUIRE(read.func == reinterpret_cast<void*>(scale) && *static_cast<int*>(read.kernelParams[2]) == 2);
  cudaMemsetParams read_fill = {};
  SUCCEED(cudaGraphMemsetNodeGetParams(filled, &read_fill));
  REQUIRE(read_fill.value == 3 && read_fill.width == count);
  const std::string picture = std::string(arguments[0]) + ".dot";
  SUCCEED(cudaGraphDebugDotPrint(graph, picture.c_str(), 0));
  std::ifstream file(picture);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  REQUIRE(text.find("digraph") == 0 && text.find("scale") != std::string::npos && text.find("->") != std::string::npos);

  // The executable graph is told something else, the graph is not.
  launch.factor = 2;
  launch.add = 5;
  SUCCEED(cudaGraphExecKernelNodeSetParams(executable, first, &kernel));
  SUCCEED(cudaGraphNodeSetEnabled(executable, second, 0));
  unsigned enabled = 1;
  SUCCEED(cudaGraphNodeGetEnabled(executable, second, &enabled));
  REQUIRE(enabled == 0);
  SUCCEED(cudaGraphLaunch(executable, stream));
  SUCCEED(cudaStreamSynchronize(stream));
  REQUIRE(host[7] == 3 * 2 + 5);
  REFUSE(cudaGraphExecMemsetNodeSetParams(executable, first, &fill), cudaErrorInvalidValue);

  // A clone that is changed, as the child of a graph between two events.
  cudaGraph_t clone, outer;
  SUCCEED(cudaGraphClone(&clone, graph));
  cudaGraphNode_t cloned, child, recorded, waited, again;
  SUCCEED(cudaGraphNodeFindInClone(&cloned, second, clone));
  launch.factor = 1;
  launch.add = 100;
  SUCCEED(cudaGraphKernelNodeSetParams(cloned, &kernel));
  cudaEvent_t before, after;
  SUCCEED(cudaEventCreate(&before));
  SUCCEED(cudaEventCreate(&after));
  SUCCEED(cudaEventRecord(before, stream));
  SUCCEED(cudaGraphCreate(&outer, 0));
  SUCCEED(cudaGraphAddEventWaitNode(&waited, outer, nullptr, 0, before));
  SUCCEED(cudaGraphAddChildGraphNode(&child, outer, &waited, 1, clone));
  SUCCEED(cudaGraphAddEventRecordNode(&recorded, outer, &child, 1, after));
  cudaGraphNodeParams generic = {};
  generic.type = cudaGraphNodeTypeKernel;
  Launch last{device, count, 2, 0};
  generic.kernel.func = reinterpret_cast<void*>(scale);
  generic.kernel.gridDim = dim3(2);
  generic.kernel.blockDim = dim3(32);
  generic.kernel.kernelParams = last.arguments;
  SUCCEED(cudaGraphAddNode(&again, outer, &recorded, nullptr, 1, &generic));
  SUCCEED(cudaGraphDestroy(clone));  // the child is a copy
  cudaGraphExec_t nested;
  SUCCEED(cudaGraphInstantiate(&nested, outer, 0));
  SUCCEED(cudaGraphLaunch(nested, stream));
  SUCCEED(cudaEventSynchronize(after));
  REQUIRE(host[9] == 3 * 2 + 1 + 100);
  REQUIRE(counter == 4);
  float ms = -1;
  SUCCEED(cudaEventElapsedTime(&ms, before, after));
  REQUIRE(ms >= 0);
  SUCCEED(cudaMemcpy(host, device, count * sizeof(int), cudaMemcpyDeviceToHost));
  REQUIRE(host[9] == 2 * 107);

  SUCCEED(cudaGraphDestroyNode(again));
  SUCCEED(cudaGraphGetNodes(outer, nullptr, &number));
  REQUIRE(number == 3);
  SUCCEED(cudaGraphExecDestroy(nested));
  SUCCEED(cudaGraphExecDestroy(executable));
  SUCCEED(cudaGraphDestroy(outer));
  SUCCEED(cudaGraphDestroy(graph));
  SUCCEED(cudaEventDestroy(before));
  SUCCEED(cudaEventDestroy(after));
  SUCCEED(cudaStreamDestroy(stream));
  SUCCEED(cudaFree(device));
  SUCCEED(cudaFreeHost(host));
  std::puts("built");
}
