// One allocation of each kind, none given back.
#include "check.h"

int main() {
  void *device, *managed, *pinned;
  SUCCEED(cudaMalloc(&device, 1000));
  SUCCEED(cudaMallocManaged(&managed, 2000));
  SUCCEED(cudaMallocHost(&pinned, 3000));
  std::puts("leaked");
}
