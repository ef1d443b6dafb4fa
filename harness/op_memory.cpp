#include "harness/op_memory.h"

#include <algorithm>
#include <cstring>

namespace dsv2::harness {
namespace {

constexpr std::int64_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;
// 0xffffffff is a NaN in f64, f32 and bf16, and -1 as an index; 0x7149f2ca is 1e30 in f32 and 9.9e29 in bf16.
constexpr std::uint32_t kPatterns[] = {0xffffffffu, 0x7149f2cau};

}  // namespace

const OpOutput& PoisonedMemory::spec(std::string_view name) const {
  for (const OpOutput& out : problem_.out)
    if (out.name == name) return out;
  fail(problem_.op, ": output ", name, ": expected one that the op has");
}

PoisonedMemory::Block& PoisonedMemory::add(std::string name, DType dtype, std::int64_t bytes) {
  Block& block = blocks_.emplace_back(Block{std::move(name), dtype, bytes, Tensor(DType::s8, {bytes + kGuardBytes})});
  std::memset(static_cast<char*>(block.memory.data()) + bytes, kGuard, static_cast<std::size_t>(kGuardBytes));
  poison(block);
  return block;
}

void* PoisonedMemory::output(std::string_view name, DType dtype) {
  for (Block& block : blocks_) {
    if (block.name != name) continue;
    DSV2_CHECK(block.dtype == dtype, problem_.op, ": output ", name, ": expected one dtype, found ",
               dsv2::name(block.dtype), " and ", dsv2::name(dtype));
    return block.memory.data();
  }
  return add(std::string(name), dtype, TensorView{dtype, spec(name).shape, nullptr}.bytes()).memory.data();
}

void* PoisonedMemory::scratch(std::int64_t bytes) { return add("", DType::s8, bytes).memory.data(); }

void PoisonedMemory::poison(int pattern) {
  pattern_ = pattern;
  for (Block& block : blocks_) poison(block);
}

void PoisonedMemory::poison(Block& block) {
  if (!block.name.empty() && !spec(block.name).initial.empty()) {
    const Tensor& given = problem_[spec(block.name).initial];
    const Tensor start = given.dtype() == block.dtype ? Tensor() : convert(given.view(), block.dtype);
    std::memcpy(block.memory.data(), start ? start.data() : given.data(), static_cast<std::size_t>(block.bytes));
    return;
  }
  auto* bytes = static_cast<char*>(block.memory.data());
  for (std::int64_t i = 0; i < block.bytes; i += 4)
    std::memcpy(bytes + i, &kPatterns[pattern_], static_cast<std::size_t>(std::min<std::int64_t>(4, block.bytes - i)));
}

void PoisonedMemory::restart() {
  for (Block& block : blocks_)
    if (!block.name.empty() && !spec(block.name).initial.empty()) poison(block);
}

std::optional<std::string> PoisonedMemory::overrun() const {
  for (const Block& block : blocks_) {
    const auto* guard = static_cast<const unsigned char*>(block.memory.data()) + block.bytes;
    const auto* written = std::find_if(guard, guard + kGuardBytes, [](unsigned char b) { return b != kGuard; });
    if (written != guard + kGuardBytes)
      return concat(block.name.empty() ? "scratch" : block.name, " of ", block.bytes,
                    " bytes: written behind its end, at byte ", block.bytes + (written - guard));
  }
  return std::nullopt;
}

std::map<std::string, TensorView, std::less<>> PoisonedMemory::outputs() const {
  std::map<std::string, TensorView, std::less<>> views;
  for (const Block& block : blocks_)
    if (!block.name.empty()) views[block.name] = {block.dtype, spec(block.name).shape, block.memory.data()};
  for (const OpOutput& out : problem_.out)
    DSV2_CHECK(views.contains(out.name), problem_.op, ": output ", out.name, ": expected, the backend gives none");
  return views;
}

std::map<std::string, Tensor, std::less<>> PoisonedMemory::take_outputs() const {
  std::map<std::string, Tensor, std::less<>> copies;
  for (const auto& [name, view] : outputs()) {
    Tensor t(view.dtype, view.shape);
    std::memcpy(t.data(), view.data, static_cast<std::size_t>(view.bytes()));
    copies.emplace(name, std::move(t));
  }
  return copies;
}

}  // namespace dsv2::harness
