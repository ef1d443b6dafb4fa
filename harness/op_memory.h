// Memory for an op under test: poisoned before each run, guarded behind each block.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "model/op.h"

namespace dsv2::harness {

/// Outputs and scratch of one prepared op. Behind every block lie bytes that nobody may write; a block begins on 64
/// bytes and its guard where it ends, so one element too many is seen.
class PoisonedMemory final : public OpMemory {
 public:
  explicit PoisonedMemory(const OpProblem& problem) : problem_(problem) {}

  void* output(std::string_view name, DType dtype) override;
  void* scratch(std::int64_t bytes) override;

  /// Fills every block with a pattern that is NaN in every float type and no index (0), or large finite numbers (1); an
  /// output that starts as an input, with that.
  void poison(int pattern);
  /// Puts outputs that start as an input back to it, and leaves the rest as it is: between timed runs.
  void restart();
  /// The block that was written beyond its end, in words.
  std::optional<std::string> overrun() const;

  /// Every output of the problem, as the op left it. Throws Error naming one that was not asked for.
  std::map<std::string, TensorView, std::less<>> outputs() const;
  /// The same as copies.
  std::map<std::string, Tensor, std::less<>> take_outputs() const;

 private:
  struct Block {
    std::string name;
    DType dtype;
    std::int64_t bytes;
    Tensor memory;  // with the guard
  };
  const OpOutput& spec(std::string_view name) const;
  Block& add(std::string name, DType dtype, std::int64_t bytes);
  void poison(Block& block);

  const OpProblem& problem_;
  int pattern_ = 0;
  std::deque<Block> blocks_;  // stay where they are
};

}  // namespace dsv2::harness
