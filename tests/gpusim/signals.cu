// A program that is ended by a signal, with a finding to its name.
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "check.h"

__global__ void beyond(int* out) {
  out[threadIdx.x + 1] = 1;  // FAULT beyond
}

int main(int, char** arguments) {
  int* out;
  SUCCEED(cudaMalloc(&out, 32 * sizeof(int)));
  beyond<<<1, 32>>>(out);
  (void)cudaDeviceSynchronize();
  if (std::strcmp(arguments[1], "abort") == 0) std::abort();
  if (std::strcmp(arguments[1], "terminate") == 0) std::raise(SIGTERM);
  if (std::strcmp(arguments[1], "own") == 0) {
    std::signal(SIGINT, [](int) { std::exit(9); });
    std::raise(SIGINT);
  }
  volatile int* const nowhere = nullptr;
  return *nowhere;
}
