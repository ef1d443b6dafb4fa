// Blocks of memory of three dimensions: allocated, filled, copied whole and in part, by calls and by a node of a graph.
#include <vector>

#include "check.h"

constexpr std::size_t kWidth = 24, kHeight = 5, kDepth = 3;

int main() {
  cudaPitchedPtr block;
  SUCCEED(cudaMalloc3D(&block, make_cudaExtent(kWidth, kHeight, kDepth)));
  REQUIRE(block.pitch >= kWidth && block.xsize == kWidth && block.ysize == kHeight);
  SUCCEED(cudaMemset3D(block, 7, make_cudaExtent(kWidth, kHeight, kDepth)));
  std::vector<unsigned char> host(kWidth * kHeight * kDepth), out(host.size(), 0);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<unsigned char>(i * 31);
  const auto at = [](std::size_t x, std::size_t y, std::size_t z) { return (z * kHeight + y) * kWidth + x; };

  // A part in, of 10 x 3 x 2 bytes from (2, 1, 1) to (4, 2, 0); everything out.
  cudaMemcpy3DParms in = {};
  in.srcPtr = make_cudaPitchedPtr(host.data(), kWidth, kWidth, kHeight);
  in.srcPos = make_cudaPos(2, 1, 1);
  in.dstPtr = block;
  in.dstPos = make_cudaPos(4, 2, 0);
  in.extent = make_cudaExtent(10, 3, 2);
  in.kind = cudaMemcpyHostToDevice;
  SUCCEED(cudaMemcpy3D(&in));
  cudaMemcpy3DParms back = {};
  back.srcPtr = block;
  back.dstPtr = make_cudaPitchedPtr(out.data(), kWidth, kWidth, kHeight);
  back.extent = make_cudaExtent(kWidth, kHeight, kDepth);
  back.kind = cudaMemcpyDeviceToHost;
  SUCCEED(cudaMemcpy3D(&back));
  for (std::size_t z = 0; z < kDepth; ++z) {
    for (std::size_t y = 0; y < kHeight; ++y) {
      for (std::size_t x = 0; x < kWidth; ++x) {
        const bool inside = x >= 4 && x < 14 && y >= 2 && z < 2;
        REQUIRE(out[at(x, y, z)] == (inside ? host[at(x - 2, y - 1, z + 1)] : 7));
      }
    }
  }

  // The same by a node, of several slices that do not follow each other.
  SUCCEED(cudaMemset3DAsync(block, 9, make_cudaExtent(kWidth, kHeight, kDepth), nullptr));
  SUCCEED(cudaDeviceSynchronize());
  cudaGraph_t graph;
  cudaGraphNode_t node, last;
  cudaGraphExec_t executable;
  SUCCEED(cudaGraphCreate(&graph, 0));
  SUCCEED(cudaGraphAddMemcpyNode(&node, graph, nullptr, 0, &in));
  SUCCEED(cudaGraphAddMemcpyNode(&last, graph, &node, 1, &back));
  SUCCEED(cudaGraphInstantiate(&executable, graph, 0));
  SUCCEED(cudaGraphLaunch(executable, nullptr));
  SUCCEED(cudaDeviceSynchronize());
  REQUIRE(out[at(4, 2, 0)] == host[at(2, 1, 1)] && out[at(13, 4, 1)] == host[at(11, 3, 2)] && out[at(3, 2, 0)] == 9);
  cudaMemcpy3DParms read = {};
  SUCCEED(cudaGraphMemcpyNodeGetParams(node, &read));
  REQUIRE(read.extent.width == 10 && read.dstPos.x == 4);
  SUCCEED(cudaGraphExecDestroy(executable));
  SUCCEED(cudaGraphDestroy(graph));
  SUCCEED(cudaFree(block.ptr));
  std::puts("copied");
}
