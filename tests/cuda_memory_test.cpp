// What the CUDA backend takes of device memory, against what it says before. On the simulator.
#include <gtest/gtest.h>

#include <cstdlib>

#include "harness/backends.h"
#include "harness/memory_needs.h"
#include "model/weights.h"

namespace dsv2::harness {
namespace {

const Backend& simulated() {
  setenv("GPUSIM_CHECKS", "none", 1);
  return find_backend("cuda-sim");
}

TEST(CudaMemory, IsToldBeforeItIsTaken) {
  const Backend& backend = simulated();
  if (const auto why = backend.unavailable()) GTEST_SKIP() << *why;
  for (const char* preset : {"tiny-mha", "tiny-mla"})
    for (const DType dtype : {DType::f32, DType::bf16, DType::i8, DType::i4}) {
      const Config config = Config::preset(preset);
      Options options;
      options.dtype = dtype;
      options.kv_dtype = DType::f32;
      const auto decoder = backend.create(config, Weights::random(config, 1, dtype), options);
      const std::int64_t weights = decoder->workspace_bytes();
      EXPECT_GE(backend.copied_bytes(config, dtype, options), weights) << preset << ' ' << name(dtype);
      EXPECT_LE(backend.copied_bytes(config, dtype, options), 1.1 * static_cast<double>(weights))
          << preset << ' ' << name(dtype);
      for (const std::int64_t tokens : {1, 20}) {
        Tensor ids(DType::i64, {2, tokens});
        for (auto& id : ids.as<std::int64_t>()) id = 3;
        ForwardInput input;
        input.input_ids = ids.view();
        input.logits = Logits::last;
        decoder->forward(input);
        const std::int64_t took = decoder->workspace_bytes() - weights;
        const std::int64_t told = backend.buffer_bytes(config, options, 2, tokens, tokens);
        EXPECT_GE(told, took) << preset << ' ' << name(dtype) << ", " << tokens << " tokens";
        EXPECT_LE(told, 2 * took) << preset << ' ' << name(dtype) << ", " << tokens << " tokens";
      }
    }
}

TEST(CudaMemory, WhatDoesNotFitIsRefusedWithTheSum) {
  MemoryNeeds needs;
  needs.copies = 20'000'000'000;
  needs.kv = 5'000'000'000;
  needs.buffers = 1'000'000'000;
  needs.device_free = 25'000'000'000;
  try {
    require_memory(needs, "a model");
    ADD_FAILURE() << "expected an error";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "a model: device memory: expected at most 25 GB, as are available, found 20 GB for weights + 5 GB for "
                 "the KV cache + 1 GB for buffers = 26 GB");
  }
  needs.kv = 4'000'000'000;
  EXPECT_NO_THROW(require_memory(needs, "a model"));  // and the host holds none of it
}

}  // namespace
}  // namespace dsv2::harness
