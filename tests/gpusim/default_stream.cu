// What the legacy default stream orders by itself, and what each kind of stream leaves to the program.
#include "check.h"

__global__ void add_to(int* value, int what) { *value += what; }

void host_function(void* data) {
  *static_cast<int*>(data) += 1;
  REQUIRE(cudaDeviceSynchronize() == cudaErrorNotPermitted);
}

int main() {
  int* value;
  SUCCEED(cudaMalloc(&value, sizeof(int)));
  SUCCEED(cudaMemset(value, 0, sizeof(int)));
  cudaStream_t first, second;
  SUCCEED(cudaStreamCreate(&first));
  SUCCEED(cudaStreamCreate(&second));
  // A blocking stream, the default stream, another blocking stream: in order without an event.
  add_to<<<1, 1, 0, first>>>(value, 1);
  add_to<<<1, 1>>>(value, 10);
  add_to<<<1, 1, 0, second>>>(value, 100);
  int result = 0;
  SUCCEED(cudaMemcpyAsync(&result, value, sizeof(int), cudaMemcpyDeviceToHost, second));  // pageable: it waits
  REQUIRE(result == 111);

  int called = 0;
  SUCCEED(cudaLaunchHostFunc(first, host_function, &called));
  SUCCEED(cudaStreamSynchronize(first));
  REQUIRE(called == 1);

  add_to<<<1, 1, 0, first>>>(value, 1000);
  int queries = 1;
  for (cudaError_t error = cudaStreamQuery(first); error != cudaSuccess; error = cudaStreamQuery(first), ++queries)
    REFUSE(error, cudaErrorNotReady);
  REQUIRE(queries > 0);
  SUCCEED(cudaMemcpy(&result, value, sizeof(int), cudaMemcpyDeviceToHost));
  REQUIRE(result == 1111);

  // Stream-ordered memory: taken, used and given back in one stream.
  int* scratch;
  SUCCEED(cudaMallocAsync(&scratch, sizeof(int), second));
  SUCCEED(cudaMemsetAsync(scratch, 0, sizeof(int), second));
  add_to<<<1, 1, 0, second>>>(scratch, 5);
  SUCCEED(cudaMemcpyAsync(&result, scratch, sizeof(int), cudaMemcpyDeviceToHost, second));
  SUCCEED(cudaFreeAsync(scratch, second));
  SUCCEED(cudaStreamSynchronize(second));
  REQUIRE(result == 5);

  int least = 1, greatest = 1, priority = 1;
  SUCCEED(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  REQUIRE(least == 0 && greatest < 0);
  cudaStream_t urgent;
  SUCCEED(cudaStreamCreateWithPriority(&urgent, cudaStreamNonBlocking, greatest));
  SUCCEED(cudaStreamGetPriority(urgent, &priority));
  REQUIRE(priority == greatest);
  SUCCEED(cudaStreamDestroy(urgent));
  REFUSE(cudaStreamSynchronize(urgent), cudaErrorInvalidResourceHandle);
  SUCCEED(cudaStreamDestroy(first));
  SUCCEED(cudaStreamDestroy(second));
  SUCCEED(cudaFree(value));
  std::puts("ordered");
}
