// What the programs of these tests share: a call that has to succeed, and one that has to be refused.
#pragma once

#include <cstdio>
#include <cstdlib>

inline void succeed(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(3);
}

/// Also takes the error back, as a program that goes on does.
inline void refuse(cudaError_t error, cudaError_t expected, const char* what, int line) {
  const cudaError_t last = cudaGetLastError();
  if (error == expected && (last == expected || error == cudaSuccess)) return;
  std::fprintf(stderr, "line %d: %s: expected %s, found %s, last error %s\n", line, what, cudaGetErrorName(expected),
               cudaGetErrorName(error), cudaGetErrorName(last));
  std::exit(3);
}

inline void require(bool condition, const char* what, int line) {
  if (condition) return;
  std::fprintf(stderr, "line %d: not so: %s\n", line, what);
  std::exit(3);
}

#define SUCCEED(call) succeed(call, #call, __LINE__)
#define REFUSE(call, expected) refuse(call, expected, #call, __LINE__)
#define REQUIRE(condition) require(condition, #condition, __LINE__)
