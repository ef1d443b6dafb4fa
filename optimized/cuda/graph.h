// A sequence of launches that is submitted as one.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "optimized/cuda/device.h"

namespace dsv2::cuda {

class Graph {
 public:
  /// Records what `enqueue` puts into the stream; nothing of it runs.
  template <class Enqueue>
  Graph(cudaStream_t stream, Enqueue&& enqueue) {
    DSV2_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    DSV2_CUDA(cudaStreamEndCapture(stream, &graph));
    const cudaError_t error = cudaGraphInstantiate(&instance_, graph, 0);
    cudaGraphDestroy(graph);
    DSV2_CUDA(error);
  }
  Graph(Graph&& other) noexcept : instance_(std::exchange(other.instance_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(instance_, other.instance_);
    return *this;
  }
  ~Graph() {
    if (instance_) cudaGraphExecDestroy(instance_);
  }

  void launch(cudaStream_t stream) const { DSV2_CUDA(cudaGraphLaunch(instance_, stream)); }

 private:
  cudaGraphExec_t instance_ = nullptr;
};

}  // namespace dsv2::cuda
