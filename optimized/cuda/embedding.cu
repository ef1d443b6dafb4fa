// A block a row; its threads walk along it. Rows in f32 and bf16 are read as they lie, panels word by word's bytes: of
// one row of a panel, which is all that a look-up needs. Nothing is rounded.
#include "optimized/cuda/device.h"
#include "optimized/cuda/kernels.h"
#include "optimized/cuda/load.cuh"

namespace dsv2::cuda {
namespace {

constexpr int kThreads = 128;

template <Storage W>
__global__ void embedding_kernel(EmbeddingParams p) {
  const int id = p.ids[blockIdx.x];
  float* y = p.y + static_cast<std::int64_t>(blockIdx.x) * p.table.in;
  if constexpr (W == Storage::f32 || W == Storage::bf16) {
    for (int c = threadIdx.x; c < p.table.in; c += kThreads)
      y[c] = load(p.table.data, W, static_cast<std::int64_t>(id) * p.table.stride + c);
  } else {
    using Q = Quantised<W>;
    const std::byte* panel = Q::panel(p.table, id);
    const int row = id % kPanelRows;
    for (int c = threadIdx.x; c < p.table.in; c += kThreads) {
      const std::byte* block = panel + c / kBlockColumns * Q::kBlockBytes;
      const int column = c % kBlockColumns;
      y[c] = Q::scale(block, column / kGroupColumns, row) *
             Q::value(Q::word(block, column / Q::kWordColumns, row), column % Q::kWordColumns);
    }
  }
}

}  // namespace

void embedding(const EmbeddingParams& p, cudaStream_t stream) {
  const auto launch = [&](auto kernel) { kernel<<<static_cast<unsigned>(p.rows), kThreads, 0, stream>>>(p); };
  switch (p.table.storage) {
    case Storage::f32:
      launch(embedding_kernel<Storage::f32>);
      break;
    case Storage::bf16:
      launch(embedding_kernel<Storage::bf16>);
      break;
    case Storage::i8:
      launch(embedding_kernel<Storage::i8>);
      break;
    case Storage::i4:
      launch(embedding_kernel<Storage::i4>);
      break;
  }
  DSV2_CUDA_LAUNCHED(embedding);
}

}  // namespace dsv2::cuda
