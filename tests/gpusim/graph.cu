// A fork and a join, captured, launched three times, changed by an update, and captures that are refused.
#include "check.h"

__global__ void add_to(int* value, int what) { *value += what; }

/// value[0] += a, then value[1] += b beside value[2] += c, then value[3] += 1.
cudaGraph_t captured(cudaStream_t stream, cudaStream_t other, cudaEvent_t event, int* value, int a) {
  cudaGraph_t graph;
  SUCCEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cudaStreamCaptureStatus status;
  SUCCEED(cudaStreamIsCapturing(stream, &status));
  REQUIRE(status == cudaStreamCaptureStatusActive);
  add_to<<<1, 1, 0, stream>>>(value, a);
  SUCCEED(cudaEventRecord(event, stream));
  SUCCEED(cudaStreamWaitEvent(other, event, 0));
  add_to<<<1, 1, 0, other>>>(value + 1, 10);
  add_to<<<1, 1, 0, stream>>>(value + 2, 100);
  SUCCEED(cudaEventRecord(event, other));
  SUCCEED(cudaStreamWaitEvent(stream, event, 0));
  add_to<<<1, 1, 0, stream>>>(value + 3, 1);
  SUCCEED(cudaStreamEndCapture(stream, &graph));
  return graph;
}

int main() {
  int* value;
  int result[4];
  SUCCEED(cudaMalloc(&value, sizeof result));
  SUCCEED(cudaMemset(value, 0, sizeof result));
  cudaStream_t stream, other;
  cudaEvent_t event;
  SUCCEED(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  SUCCEED(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
  SUCCEED(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  SUCCEED(cudaDeviceSynchronize());

  const cudaGraph_t graph = captured(stream, other, event, value, 1);
  std::size_t nodes = 0, roots = 0;
  SUCCEED(cudaGraphGetNodes(graph, nullptr, &nodes));
  SUCCEED(cudaGraphGetRootNodes(graph, nullptr, &roots));
  REQUIRE(nodes == 4 && roots == 1);
  SUCCEED(cudaMemcpy(result, value, sizeof result, cudaMemcpyDeviceToHost));
  REQUIRE(result[0] == 0);  // captured, not run

  cudaGraphExec_t executable;
  SUCCEED(cudaGraphInstantiate(&executable, graph, 0));
  for (int i = 0; i < 3; ++i) SUCCEED(cudaGraphLaunch(executable, stream));
  SUCCEED(cudaStreamSynchronize(stream));
  SUCCEED(cudaMemcpy(result, value, sizeof result, cudaMemcpyDeviceToHost));
  REQUIRE(result[0] == 3 && result[1] == 30 && result[2] == 300 && result[3] == 3);

  const cudaGraph_t changed = captured(stream, other, event, value, 1000);
  cudaGraphExecUpdateResultInfo info;
  SUCCEED(cudaGraphExecUpdate(executable, changed, &info));
  REQUIRE(info.result == cudaGraphExecUpdateSuccess);
  SUCCEED(cudaGraphLaunch(executable, stream));
  SUCCEED(cudaStreamSynchronize(stream));
  SUCCEED(cudaMemcpy(result, value, sizeof result, cudaMemcpyDeviceToHost));
  REQUIRE(result[0] == 1003);

#ifdef REFUSED
  cudaGraph_t none;
  // A call that waits breaks the capture.
  SUCCEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REFUSE(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
  REFUSE(cudaStreamEndCapture(stream, &none), cudaErrorStreamCaptureInvalidated);
  REQUIRE(none == nullptr);
  // A stream that joined and was not joined back.
  SUCCEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  add_to<<<1, 1, 0, stream>>>(value, 1);
  SUCCEED(cudaEventRecord(event, stream));
  SUCCEED(cudaStreamWaitEvent(other, event, 0));
  add_to<<<1, 1, 0, other>>>(value, 1);
  REFUSE(cudaStreamEndCapture(stream, &none), cudaErrorStreamCaptureUnjoined);
  REFUSE(cudaStreamEndCapture(stream, &none), cudaErrorIllegalState);
  // The other graph has another shape.
  SUCCEED(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  add_to<<<1, 1, 0, stream>>>(value, 1);
  SUCCEED(cudaStreamEndCapture(stream, &none));
  REFUSE(cudaGraphExecUpdate(executable, none, &info), cudaErrorGraphExecUpdateFailure);
  REQUIRE(info.result == cudaGraphExecUpdateErrorTopologyChanged);
  SUCCEED(cudaGraphDestroy(none));
#endif

  SUCCEED(cudaGraphExecDestroy(executable));
  SUCCEED(cudaGraphDestroy(graph));
  SUCCEED(cudaGraphDestroy(changed));
  SUCCEED(cudaEventDestroy(event));
  SUCCEED(cudaStreamDestroy(stream));
  SUCCEED(cudaStreamDestroy(other));
  SUCCEED(cudaFree(value));
  std::puts("replayed");
}
