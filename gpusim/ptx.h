// A PTX module as a syntax tree: names resolved, nothing executed. PTX ISA 8.x/9.0, the parts that nvcc and inline
// assembly emit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace gpusim::ptx {

enum class Space : std::uint8_t { generic, global, constant, shared, local, param };

/// Bytes of a value of type `name` ("u32", "f16x2", ...); 0 for `pred`, -1 where there is no such type.
int type_bytes(std::string_view name);

struct Operand {
  enum class Kind : std::uint8_t {
    none,
    reg,
    special,  ///< %tid.x, ...: `name`
    integer,
    f32,
    f64,
    symbol,    ///< variable of the function or module, function: `name`, `variable`
    label,     ///< `target`
    vector,    ///< {a, b}: `elements`
    list,      ///< (a, b) of a call
    address,   ///< [a+offset], [a, {x, y}]: `elements`, the base first
    wildcard,  ///< _
  };
  Kind kind = Kind::none;
  bool negated = false;       ///< !p, -r
  int reg = -1;               ///< in Function::registers
  int second = -1;            ///< q of p|q, -1 where absent or `_`
  std::uint64_t bits = 0;     ///< of a literal
  std::int64_t offset = 0;    ///< added to a symbol or address
  std::string name = {};      ///< of a symbol or special register
  std::string selector = {};  ///< a part of a register, of video instructions: "b0", "h1", ...
  int variable = -1;          ///< in Function::variables; -1: look the name up in the module
  int target = -1;            ///< index of an instruction
  std::vector<Operand> elements = {};
};

struct Instruction {
  int guard = -1;  ///< predicate register, -1: always
  bool guard_negated = false;
  std::vector<std::string_view> opcode;  ///< split at the dots: "ld", "global", "f32"
  std::vector<Operand> operands;
  int place = -1;  ///< in Module::places
  int line = 0;    ///< of the PTX text
  std::string_view text;

  bool has(std::string_view modifier) const;
  /// Its last modifier: the type, mostly.
  std::string_view type() const { return opcode.back(); }
};

struct Register {
  std::string_view name;
  int bytes = 4;  ///< 0: predicate; 8- and 16-bit values take 4
};

/// An initialiser's reference to the address of something: the `shift`-th bits upwards, `bytes` of them.
struct Relocation {
  std::size_t at = 0;
  std::string symbol = {};
  std::int64_t offset = 0;
  int shift = 0;
  int bytes = 8;
};

struct Variable {
  std::string name = {};
  Space space = Space::global;
  std::size_t bytes = 0;
  std::size_t alignment = 1;
  bool unsized = false;   ///< dynamic shared memory, or declared without an extent
  bool external = false;  ///< declared here, defined in another module
  bool internal = false;  ///< no other module sees it
  bool managed = false;
  std::vector<std::byte> initial = {};
  std::vector<Relocation> relocations = {};
};

struct Function {
  std::string name;
  bool entry = false;
  bool defined = false;
  bool internal = false;        ///< no other module sees it
  std::vector<int> parameters;  ///< in `variables`
  std::vector<int> results;
  std::vector<Variable> variables;
  std::vector<Register> registers;
  std::vector<Instruction> code;
  std::map<std::string, std::vector<int>, std::less<>> branch_targets;  ///< label lists of brx.idx
  std::map<std::string, std::vector<std::string>, std::less<>> call_targets;
  std::map<std::string, int, std::less<>> prototypes;  ///< .callprototype: how many parameters
  int max_threads = 0;
  std::array<unsigned, 3> cluster = {0, 0, 0};
};

/// Where an instruction comes from, as the line table says.
struct Place {
  int file = 0;  ///< in Module::files
  int line = 0;
};

struct Module {
  std::string text;                     ///< string_views point into it
  std::vector<std::string> more_texts;  ///< and into these, of modules that were linked in
  std::string version;
  std::string target;
  std::map<int, std::string> files;
  std::vector<Place> places;
  std::map<std::string, Variable, std::less<>> variables;
  std::vector<std::unique_ptr<Function>> functions;
  std::unordered_map<std::string, int> function_index;

  const Function* function(std::string_view name) const;
};

/// Throws dsv2::Error with the line of PTX that it does not understand.
std::unique_ptr<Module> parse(std::string_view text);

/// Modules of one program that were compiled apart, as one. There is at least one.
std::unique_ptr<Module> link(std::vector<std::unique_ptr<Module>> modules);

}  // namespace gpusim::ptx
