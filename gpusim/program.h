// A kernel made ready to run: its calls inlined, its registers packed by liveness, one compact record an instruction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gpusim/counts.h"
#include "gpusim/finding.h"
#include "gpusim/launch.h"
#include "gpusim/ptx.h"

namespace gpusim {

struct Instruction;
struct Warp;
using Handler = void (*)(Warp&, const Instruction&);

inline constexpr int kWarpLanes = 32;

/// Generic addresses: those of global memory are host addresses; the other spaces have windows that no host address
/// falls into. The low 32 bits are the address within the space.
inline constexpr int kWindowShift = 48;
inline constexpr std::uint64_t kSharedWindow = std::uint64_t{0x5afe} << kWindowShift;
inline constexpr std::uint64_t kLocalWindow = std::uint64_t{0x10ca} << kWindowShift;
inline constexpr std::uint64_t kParamWindow = std::uint64_t{0x9a4a} << kWindowShift;
inline constexpr std::uint64_t kFunctionWindow = std::uint64_t{0xf00c} << kWindowShift;

/// Shared memory begins here, as the first KiB is the system's: a null pointer into it is caught.
inline constexpr std::uint32_t kSharedBase = 1024;
/// Blocks of a cluster see each other's shared memory this far apart: bits 24 and up of an address are the rank + 1.
inline constexpr int kClusterRankShift = 24;

/// Rounding of conversions; the integer ones round to a whole number within a floating-point type.
enum class Rounding : std::uint8_t { nearest, zero, down, up, nearest_away };

/// One instruction. A slot is an operand's byte offset in the warp's registers or, behind them, in its copy of the
/// launch's constants; -1 is none. While a kernel is lowered, bit 0 says that it is one in the constants. A register's
/// slot holds a value a lane: 32 of 4, 8 or 16 bytes; a predicate's is one 32-bit mask. What a field holds beyond that
/// is the business of the handler and of the function that lowers for it.
struct alignas(64) Instruction {
  Handler run = nullptr;
  std::int32_t d = -1;
  std::int32_t d2 = -1;
  std::int32_t a = -1;
  std::int32_t b = -1;
  std::int32_t c = -1;
  std::int32_t e = -1;
  std::int32_t guard = -1;
  std::int32_t list = -1;  ///< of Program::lists, where the slots of vector operands begin
  std::int64_t immediate = 0;
  std::int32_t target = -1;
  bool guard_negated = false;
  ptx::Space space = ptx::Space::generic;
  std::uint8_t bytes = 0;           ///< of one element in memory
  std::uint8_t elements = 1;        ///< of a vector operand
  std::uint8_t register_bytes = 4;  ///< a lane, of the data's register
  std::uint8_t flags = 0;
  std::uint8_t mode = 0;
  std::uint8_t address_bytes = 8;
};
static_assert(sizeof(Instruction) == 64);

/// Bits of Instruction::flags.
enum InstructionFlags : std::uint8_t {
  kSigned = 1,       ///< loads: extend the sign
  kNegated = 2,      ///< the source predicate is negated
  kReleases = 2,     ///< memory: release, acq_rel
  kSaturate = 4,     ///< cvt
  kRelu = 8,         ///< cvt
  kFlush = 16,       ///< cvt: subnormals become zero
  kToInteger = 32,   ///< cvt between floats: to a whole number
  kOrdered = 64,     ///< memory: volatile, acquire, release or relaxed: no race
  kUnaligned = 128,  ///< barrier: not every lane of the warp has to take part
};

/// Where control may leave a straight line.
enum class Flow : std::uint8_t {
  straight,
  sync,     ///< waits for lanes of its warp: ends a line while the warp is divergent
  control,  ///< sets the program counter
};

/// What is known of an instruction and not needed to run it.
struct InstructionFacts {
  std::string key;  ///< of the handler: "add.f32", "ld", ...
  Flow flow = Flow::straight;
  InstructionClass kind = InstructionClass::other;
  FlopType flop_type = FlopType::f32;
  std::uint32_t flops = 0;  ///< a lane, or a warp
  bool flops_per_warp = false;
  bool synthetic = false;  ///< not in the PTX: not counted
  int place = -1;          ///< in ptx::Module::places
  int ptx_line = 0;
  std::string_view text;
  std::string refusal;  ///< why it is not modelled; empty where it is
};

/// What a block's start writes into registers.
enum class Special : std::uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  nwarpid,
  smid,
  nsmid,
  gridid,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt,
  dynamic_smem_size,
  total_smem_size,
  clusterid_x,
  clusterid_y,
  clusterid_z,
  nclusterid_x,
  nclusterid_y,
  nclusterid_z,
  cluster_ctaid_x,
  cluster_ctaid_y,
  cluster_ctaid_z,
  cluster_nctaid_x,
  cluster_nctaid_y,
  cluster_nctaid_z,
  cluster_ctarank,
  cluster_nctarank,
  is_explicit_cluster,
  envreg0,
  envreg1,  ///< of a cooperative launch: where its blocks meet, the address's high and low half
  envreg2,
  stack_base,  ///< of a thread's local memory: where the running subroutine's frame begins
  stack_top,   ///< and what lies beyond the last one
};

struct SpecialSlot {
  Special special = Special::tid_x;
  std::int32_t slot = -1;
  int bytes = 4;
};

/// A constant that is a kernel parameter: filled in at launch.
struct ParameterConstant {
  std::size_t constant = 0;  ///< byte offset in the constants
  std::size_t parameter = 0;
  int bytes = 4;       ///< of the parameter
  int lane_bytes = 4;  ///< of the constant, a lane
  bool sign = false;
};

/// Modes of shfl.
enum class Shuffle : std::uint8_t { up, down, butterfly, index };

/// The lane that lane `l` reads, and whether it lies within its segment; itself where it does not.
struct ShuffleSource {
  int lane = 0;
  bool inside = false;
};
constexpr ShuffleSource shuffle_source(Shuffle mode, int l, std::uint32_t by, std::uint32_t clamp_and_mask) {
  const int segment = static_cast<int>(clamp_and_mask >> 8 & 31u);
  const int clamp = static_cast<int>(clamp_and_mask & 31u);
  const int distance = static_cast<int>(by & 31u);
  const int last = (l & segment) | (clamp & ~segment);
  const int source = mode == Shuffle::up          ? l - distance
                     : mode == Shuffle::down      ? l + distance
                     : mode == Shuffle::butterfly ? (l ^ distance)
                                                  : ((l & segment) | (distance & ~segment));
  const bool inside = mode == Shuffle::up ? source >= last : source <= last;
  return {(inside ? source : l) & 31, inside};
}

/// A call that is not inlined: into a function that may call itself. Offsets are within the frames of caller and
/// callee, which lie in the thread's local memory.
struct CallSite {
  struct Copy {
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    std::size_t bytes = 0;
  };
  struct Save {
    std::int32_t slot = -1;
    int bytes = 4;  ///< a lane; 0: a predicate
  };
  std::vector<Copy> arguments;  ///< from the caller's frame to the callee's
  std::vector<Copy> results;    ///< and back
  std::vector<Save> saves;      ///< what the caller still needs of registers that the callee may be using too
  std::uint64_t save_offset = 0;
  bool in_subroutine = false;   ///< the caller's frame is on the stack; else it is the kernel's, at 0
  std::size_t frame_bytes = 0;  ///< of the callee
};
/// A frame begins with where it returns to, the caller's frame and the top of the stack before the call.
inline constexpr std::uint64_t kFrameReturn = 0, kFrameCaller = 8, kFrameTop = 16, kFrameHeader = 32;
inline constexpr std::uint64_t kFrameAlignment = 16;

struct Program {
  KernelInfo info;
  std::string readable;           ///< the kernel's demangled name
  std::vector<Instruction> code;  ///< `run` is null: handlers are bound for an instruction set
  std::vector<InstructionFacts> facts;
  std::vector<std::int32_t> lists;
  std::vector<CallSite> calls;
  std::vector<std::byte> constants;
  std::vector<ParameterConstant> parameters;
  std::vector<SpecialSlot> specials;
  std::vector<std::uint32_t> line_end;  ///< first instruction after the straight line that starts at an index
  std::vector<std::uint32_t> sync_end;  ///< the same where sync instructions end a line too
  std::size_t register_bytes = 0;       ///< of a warp
  std::size_t local_bytes = 0;          ///< of a thread
  bool uses_stack = false;              ///< beyond local_bytes: subroutines, alloca
  std::size_t static_shared_bytes = 0;
  bool ordered = false;                 ///< the order of its blocks can be seen in the result
  bool global_atomics = false;          ///< there may be some
  std::uint32_t shared_cell_bytes = 4;  ///< of the narrowest access that may be to shared memory, at most 4
  std::uint32_t global_cell_bytes = 4;  ///< the same of global memory
  bool copies_asynchronously = false;
  bool named_barriers = false;  ///< barriers of a part of the block: races are tracked warp by warp
  /// Instructions that may touch registers of a matrix product under way: by index, the products' lists, a bit each.
  std::map<std::uint32_t, std::uint64_t> product_touches;
  /// By instruction: of a load from global memory, the bytes that a warp has outstanding at most in the straight line
  /// of code that it stands in; 0 for all others.
  std::vector<std::uint32_t> in_flight;
};

/// Addresses that the module's symbols have got.
struct SymbolTable {
  std::map<std::string, std::uint64_t, std::less<>> variables;
};

/// Lowers `kernel` of `module`. What is not modelled becomes an instruction that says so when it is reached.
/// Throws dsv2::Error when there is nothing to lower.
std::unique_ptr<Program> lower(const ptx::Module& module, const ptx::Function& kernel, const SymbolTable& symbols);

/// The registers, by number, that an instruction reads and writes.
struct RegisterUse {
  std::vector<std::int32_t> uses;
  std::vector<std::int32_t> definitions;
  bool moves = false;  ///< the one it defines is the one it uses
};

/// Where registers have been put.
struct RegisterAllocation {
  std::vector<std::int32_t> units;  ///< of each register: its first unit of 32 lanes x 4 bytes; -1: never used
  int unit_count = 0;
};

/// Packs registers by liveness: two that are never live at once may share a unit. `register_units` is how many each
/// takes, 0 for predicates, which only learn whether they are used. A result never shares with a source of the same
/// instruction, so that handlers may write before they have read all; but for moves from registers that end there.
RegisterAllocation allocate_registers(const std::vector<RegisterUse>& code, const std::vector<int>& register_units,
                                      const std::vector<std::vector<int>>& successors,
                                      const std::vector<int>& live_at_entry);

/// Whether a straight line of code begins at an instruction; one more entry than there are instructions.
std::vector<bool> block_leaders(const std::vector<std::vector<int>>& successors);

/// Fills Program::in_flight, as if ptxas had registers for all loads that it may issue together. Bulk copies, whose
/// size is not known before they run, are left out.
void find_bytes_in_flight(Program& program, const std::vector<RegisterUse>& uses,
                          const std::vector<std::vector<int>>& successors);

/// Registers that are live when control comes to each of `points`, instructions of `code`.
std::vector<std::vector<int>> live_registers(const std::vector<RegisterUse>& code, std::size_t registers,
                                             const std::vector<std::vector<int>>& successors,
                                             const std::vector<int>& points);

}  // namespace gpusim
