// A user's program: a small random model, one forward pass, the most likely next token.
#include <algorithm>
#include <cstdint>
#include <iostream>
#include <vector>

#include "optimized/cpu/backend.h"

int main() {
  const auto config = dsv2::Config::preset("tiny-mla");
  const auto weights = dsv2::Weights::random(config, /*seed=*/1, dsv2::DType::f32);
  const auto decoder = dsv2::cpu::backend().create(config, weights, {});
  const std::vector<std::int64_t> prompt = {1, 2, 3};
  const dsv2::TensorView ids{dsv2::DType::i64, {1, 3}, prompt.data()};
  const auto output = decoder->forward({.input_ids = ids, .logits = dsv2::Logits::last});
  const auto logits = output.logits.as<float>();
  std::cout << "next token: " << std::max_element(logits.begin(), logits.end()) - logits.begin() << '\n';
}
