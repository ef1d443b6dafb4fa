// From the syntax tree to a Program: calls inlined, operands placed, what an instruction is worth noted.
#include <cxxabi.h>
#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>

#include "gpusim/binding.h"
#include "gpusim/mbarrier.h"
#include "gpusim/program.h"
#include "gpusim/video.h"
#include "gpusim/wgmma.h"
#include "model/error.h"

namespace gpusim {
namespace {

using ptx::Operand;
using ptx::Space;
using Kind = ptx::Operand::Kind;

/// What is not modelled, thrown within the lowering of one instruction and kept with it.
struct Refusal {
  std::string why;
};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw Refusal{dsv2::concat(parts...)};
}

std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

std::string demangle(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

/// A register's bytes a lane for a value of `type`; narrow values take 4, predicates 0.
int lane_bytes(std::string_view type) {
  const int bytes = ptx::type_bytes(type);
  if (bytes < 0) refuse("unknown type .", type);
  return bytes == 0 ? 0 : std::max(4, bytes);
}

/// Operands of arithmetic that are not all of the instruction's type, the result first:
/// t: the type, w: twice as wide, u: 32 bits, p: predicate, i: a number for `immediate`.
constexpr std::pair<std::string_view, std::string_view> kOperandShapes[] = {
    {"shl", "ttu"},       {"shr", "ttu"},   {"bfe", "ttuu"},  {"bfi", "tttuu"}, {"mul.wide", "wtt"},
    {"mad.wide", "wttw"}, {"selp", "tttp"}, {"popc", "ut"},   {"clz", "ut"},    {"bfind", "ut"},
    {"lop3", "ttttii"},   {"testp", "pt"},  {"dp4a", "uuuu"}, {"dp2a", "uuuu"}, {"sad", "tttt"},
    {"shf", "tttu"},      {"prmt", "tttt"}, {"fns", "uuuu"},  {"bmsk", "tuu"},  {"szext", "ttu"},
};

/// FLOPs a lane of floating-point arithmetic; min, max, neg, abs and comparisons are none, as profilers have it.
constexpr std::pair<std::string_view, int> kFlops[] = {
    {"add", 1},   {"sub", 1},  {"mul", 1}, {"fma", 2}, {"mad", 2}, {"div", 1}, {"rcp", 1},
    {"rsqrt", 1}, {"sqrt", 1}, {"ex2", 1}, {"lg2", 1}, {"sin", 1}, {"cos", 1}, {"tanh", 1},
};

constexpr std::string_view kSpecialFunctions[] = {"div", "rcp", "rsqrt", "sqrt", "ex2", "lg2", "sin", "cos", "tanh"};

/// Modifiers that change nothing here: approximations are computed at least as precisely as asked for.
constexpr std::string_view kIgnoredModifiers[] = {"rn", "approx", "full", "uni"};

constexpr std::pair<std::string_view, Special> kSpecialNames[] = {
    {"%tid.x", Special::tid_x},
    {"%tid.y", Special::tid_y},
    {"%tid.z", Special::tid_z},
    {"%ntid.x", Special::ntid_x},
    {"%ntid.y", Special::ntid_y},
    {"%ntid.z", Special::ntid_z},
    {"%ctaid.x", Special::ctaid_x},
    {"%ctaid.y", Special::ctaid_y},
    {"%ctaid.z", Special::ctaid_z},
    {"%nctaid.x", Special::nctaid_x},
    {"%nctaid.y", Special::nctaid_y},
    {"%nctaid.z", Special::nctaid_z},
    {"%laneid", Special::laneid},
    {"%warpid", Special::warpid},
    {"%nwarpid", Special::nwarpid},
    {"%smid", Special::smid},
    {"%nsmid", Special::nsmid},
    {"%gridid", Special::gridid},
    {"%lanemask_eq", Special::lanemask_eq},
    {"%lanemask_le", Special::lanemask_le},
    {"%lanemask_lt", Special::lanemask_lt},
    {"%lanemask_ge", Special::lanemask_ge},
    {"%lanemask_gt", Special::lanemask_gt},
    {"%dynamic_smem_size", Special::dynamic_smem_size},
    {"%total_smem_size", Special::total_smem_size},
    {"%clusterid.x", Special::clusterid_x},
    {"%clusterid.y", Special::clusterid_y},
    {"%clusterid.z", Special::clusterid_z},
    {"%nclusterid.x", Special::nclusterid_x},
    {"%nclusterid.y", Special::nclusterid_y},
    {"%nclusterid.z", Special::nclusterid_z},
    {"%cluster_ctaid.x", Special::cluster_ctaid_x},
    {"%cluster_ctaid.y", Special::cluster_ctaid_y},
    {"%cluster_ctaid.z", Special::cluster_ctaid_z},
    {"%cluster_nctaid.x", Special::cluster_nctaid_x},
    {"%cluster_nctaid.y", Special::cluster_nctaid_y},
    {"%cluster_nctaid.z", Special::cluster_nctaid_z},
    {"%cluster_ctarank", Special::cluster_ctarank},
    {"%cluster_nctarank", Special::cluster_nctarank},
    {"%is_explicit_cluster", Special::is_explicit_cluster},
    {"%envreg0", Special::envreg0},
    {"%envreg1", Special::envreg1},
    {"%envreg2", Special::envreg2},
};

bool is_float_type(std::string_view type) {
  constexpr std::string_view kFloats[] = {"f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "f32x2"};
  return std::find(std::begin(kFloats), std::end(kFloats), type) != std::end(kFloats);
}

InstructionClass arithmetic_class(std::string_view head, std::string_view type) {
  if (head == "cvt") return InstructionClass::convert;
  if (head == "mov" || head == "cvta" || head == "selp" || head == "slct") return InstructionClass::move;
  if (!is_float_type(type)) return InstructionClass::integer;
  if (std::find(std::begin(kSpecialFunctions), std::end(kSpecialFunctions), head) != std::end(kSpecialFunctions)) {
    return InstructionClass::special;
  }
  if (type == "f32" || type == "f32x2") return InstructionClass::f32;
  return type == "f64" ? InstructionClass::f64 : InstructionClass::f16;
}

FlopType flop_type(std::string_view type) {
  if (type == "f64") return FlopType::f64;
  if (type == "f16" || type == "f16x2") return FlopType::f16;
  if (type == "bf16" || type == "bf16x2") return FlopType::bf16;
  return FlopType::f32;
}

class Lowering {
 public:
  Lowering(const ptx::Module& module, const ptx::Function& kernel, const SymbolTable& symbols)
      : module_(module), symbols_(symbols), program_(std::make_unique<Program>()), kernel_(kernel) {}

  std::unique_ptr<Program> run() {
    describe_kernel();
    collect_address_taken();
    find_recursion();
    lower_function(kernel_, nullptr);
    if (program_->code.empty() || falls_through(program_->code.size() - 1)) emit_exit();
    for (std::size_t i = 0; i < subroutines_.size(); ++i) lower_subroutine(subroutines_[i]);
    for (std::size_t i = 0; i < call_subroutines_.size(); ++i)
      code(call_instructions_[i]).target = call_subroutines_[i]->entry;
    finish_shared();
    allocate();
    refuse_unknown(*program_);
    find_lines();
    find_narrow_accesses();
    report_refusals();
    program_->local_bytes = align_up(local_bytes_, 16);
    program_->uses_stack = stack_top_ >= 0;
    program_->info.local_bytes = program_->local_bytes;
    return std::move(program_);
  }

 private:
  /// How finely races have to be told apart.
  void find_narrow_accesses() {
    for (std::size_t i = 0; i < program_->code.size(); ++i) {
      const std::string& key = program_->facts[i].key;
      const Instruction& in = program_->code[i];
      const bool accesses = key.starts_with("ld") || key.starts_with("st") || key.starts_with("atom") ||
                            key.starts_with("red") || key.starts_with("wmma.load") || key.starts_with("wmma.store");
      if (!accesses || in.bytes == 0) continue;
      const auto note = [&](std::uint32_t& cell) { cell = std::min<std::uint32_t>(cell, in.bytes); };
      if (in.space == ptx::Space::shared || in.space == ptx::Space::generic) note(program_->shared_cell_bytes);
      if (in.space == ptx::Space::global || in.space == ptx::Space::generic) note(program_->global_cell_bytes);
    }
  }

  /// A function that may call itself: its code stands once, its variables on the thread's stack.
  struct Subroutine {
    const ptx::Function* function = nullptr;
    int entry = -1;
    int first_register = 0;  ///< its registers, those of what it inlines, and what is made up for them
    int last_register = 0;
    std::uint64_t local_bytes = 0;  ///< of its frame, without what calls save
    std::uint64_t save_bytes = 0;
    std::vector<std::uint64_t> variables = {};  ///< offsets in its frame
    std::vector<int> return_sites = {};         ///< where its calls go on
  };

  /// One inlined instance of a function.
  struct Frame {
    const ptx::Function* function = nullptr;
    Frame* caller = nullptr;
    int first_register = 0;                                ///< its registers' numbers follow on
    std::vector<std::uint64_t> variables = {};             ///< addresses within their spaces
    std::vector<int> starts = {};                          ///< index in the code of each PTX instruction
    std::vector<std::pair<int, int>> jumps = {};           ///< instruction, PTX target
    std::vector<int> returns = {};                         ///< instructions that go to the end
    std::vector<std::optional<std::uint64_t>> known = {};  ///< registers that only ever hold one number
    std::uint64_t local_top = 0;
    int carry = -1;                    ///< predicate register of the condition code
    Subroutine* subroutine = nullptr;  ///< within which it stands, and whose frame holds its variables
  };

  struct Address {
    Space space = Space::generic;
    std::uint64_t value = 0;
    bool dynamic_shared = false;
    bool on_stack = false;  ///< relative to the subroutine's frame
  };

  // ---- the kernel as a whole
  /// Whether control can go on to the instruction after `index`.
  bool falls_through(std::size_t index) const {
    constexpr std::string_view kLeaving[] = {"bra", "brx", "exit", "trap", "unsupported", "bad_call", "call", "return"};
    const std::string& key = program_->facts[index].key;
    return program_->code[index].guard >= 0 ||
           std::find(std::begin(kLeaving), std::end(kLeaving), key) == std::end(kLeaving);
  }

  void describe_kernel() {
    KernelInfo& info = program_->info;
    info.name = kernel_.name;
    program_->readable = demangle(kernel_.name);
    std::size_t offset = 0;
    for (const int index : kernel_.parameters) {
      const ptx::Variable& parameter = kernel_.variables[static_cast<std::size_t>(index)];
      offset = align_up(offset, parameter.alignment);
      info.parameter_offsets.push_back(offset);
      info.parameter_sizes.push_back(parameter.bytes);
      offset += parameter.bytes;
    }
    info.parameter_bytes = offset;
    if (kernel_.max_threads > 0) info.max_threads = kernel_.max_threads;
    info.cluster = {kernel_.cluster[0], kernel_.cluster[1], kernel_.cluster[2]};
  }

  /// Functions that an indirect call can reach.
  void collect_address_taken() {
    for (const auto& [name, variable] : module_.variables) {
      for (const ptx::Relocation& relocation : variable.relocations) note_function(relocation.symbol);
    }
    for (const auto& function : module_.functions) {
      for (const ptx::Instruction& instruction : function->code) {
        if (instruction.opcode[0] == "mov" && instruction.operands.size() == 2)
          note_function(instruction.operands[1].name);
      }
    }
  }

  /// Functions that can come to call themselves, directly or through others or pointers.
  void find_recursion() {
    std::vector<std::set<std::int32_t>> callees(module_.functions.size());
    for (std::size_t i = 0; i < callees.size(); ++i) {
      for (const ptx::Instruction& instruction : module_.functions[i]->code) {
        if (instruction.opcode[0] != "call" || instruction.operands.empty()) continue;
        const bool has_result = instruction.operands[0].kind == Kind::list && instruction.operands.size() > 1;
        const Operand& callee = instruction.operands[has_result ? 1 : 0];
        const auto found = module_.function_index.find(callee.name);
        if (callee.kind == Kind::reg) callees[i].insert(address_taken_.begin(), address_taken_.end());
        if (callee.kind != Kind::reg && found != module_.function_index.end()) callees[i].insert(found->second);
      }
    }
    for (std::size_t i = 0; i < callees.size(); ++i) {
      std::set<std::int32_t> reached = callees[i];
      std::vector<std::int32_t> open(reached.begin(), reached.end());
      while (!open.empty()) {
        const auto next = static_cast<std::size_t>(open.back());
        open.pop_back();
        for (const std::int32_t callee : callees[next]) {
          if (reached.insert(callee).second) open.push_back(callee);
        }
      }
      if (reached.contains(static_cast<std::int32_t>(i))) recursive_.insert(module_.functions[i].get());
    }
  }

  void note_function(const std::string& name) {
    const auto found = module_.function_index.find(name);
    if (found != module_.function_index.end()) address_taken_.insert(found->second);
  }

  void emit_exit() {
    const int index = begin("exit", Flow::control);
    program_->facts[static_cast<std::size_t>(index)].synthetic = true;
  }

  void report_refusals() {
    for (const InstructionFacts& facts : program_->facts) {
      if (facts.refusal.empty()) continue;
      program_->info.unsupported.push_back(place_text(facts) + facts.refusal + " [" + std::string(facts.text) + "]");
    }
  }

  std::string place_text(const InstructionFacts& facts) const {
    if (facts.place < 0) return dsv2::concat("PTX line ", facts.ptx_line, ": ");
    const ptx::Place& place = module_.places[static_cast<std::size_t>(facts.place)];
    const auto file = module_.files.find(place.file);
    return dsv2::concat(file == module_.files.end() ? "?" : file->second, ":", place.line, ": ");
  }

  // ---- functions
  void lower_function(const ptx::Function& function, Frame* caller) {
    Frame frame{.function = &function, .caller = caller, .first_register = static_cast<int>(register_bytes_.size())};
    for (const ptx::Register& reg : function.registers) register_bytes_.push_back(reg.bytes);
    frame.carry = new_register(0);
    frame.known = known_numbers(function);
    frame.local_top = caller == nullptr ? 0 : caller->local_top;
    frame.subroutine = caller == nullptr ? nullptr : caller->subroutine;
    place_variables(frame);
    if (caller != nullptr) pass_arguments(frame);
    lower_body(frame);
  }

  // ---- functions that call themselves
  bool is_subroutine(const ptx::Function& function) const {
    constexpr std::size_t kLongCode = 200'000;  // functions that are inlined everywhere may grow beyond all bounds
    return recursive_.contains(&function) || program_->code.size() > kLongCode;
  }

  Subroutine& subroutine_of(const ptx::Function& function) {
    for (Subroutine& known : subroutines_) {
      if (known.function == &function) return known;
    }
    Subroutine& made = subroutines_.emplace_back();
    made.function = &function;
    made.local_bytes = kFrameHeader;
    for (const ptx::Variable& variable : function.variables) {
      const bool in_frame = variable.space == Space::local || variable.space == Space::param;
      if (in_frame) made.local_bytes = align_up(made.local_bytes, std::max<std::uint64_t>(variable.alignment, 8));
      made.variables.push_back(in_frame ? made.local_bytes : 0);
      if (in_frame) made.local_bytes += variable.bytes;
    }
    return made;
  }

  void lower_subroutine(Subroutine& subroutine) {
    const ptx::Function& function = *subroutine.function;
    subroutine.entry = static_cast<int>(program_->code.size());
    subroutine.first_register = static_cast<int>(register_bytes_.size());
    Frame frame{.function = &function, .first_register = subroutine.first_register};
    for (const ptx::Register& reg : function.registers) register_bytes_.push_back(reg.bytes);
    frame.carry = new_register(0);
    frame.known = known_numbers(function);
    frame.subroutine = &subroutine;
    frame.variables = subroutine.variables;
    for (std::size_t i = 0; i < function.variables.size(); ++i) {
      const ptx::Variable& variable = function.variables[i];
      if (variable.space == Space::shared && !variable.unsized)
        frame.variables[i] = place_shared(variable, dsv2::concat(function.name, ":", i));
    }
    frame.local_top = subroutine.local_bytes;
    lower_body(frame);
    begin("nop");  // what jumps to the end of the function ends here
    facts().synthetic = true;
    emit_return(&subroutine);
    subroutine.last_register = static_cast<int>(register_bytes_.size());
  }

  /// The registers that hold a thread's frame and the top of its stack.
  int stack_register(Special special) {
    const auto [entry, fresh] = special_registers_.try_emplace({special, 8}, 0);
    if (fresh) entry->second = new_register(8);
    return entry->second;
  }
  int stack_base() { return stack_base_ >= 0 ? stack_base_ : stack_base_ = stack_register(Special::stack_base); }
  int stack_top() { return stack_top_ >= 0 ? stack_top_ : stack_top_ = stack_register(Special::stack_top); }

  /// d: the frame's register, a: the stack's top; both are read and written.
  void use_stack() {
    now().d = use(stack_base());
    define(stack_base_);
    now().a = use(stack_top());
    define(stack_top_);
  }

  void emit_return(Subroutine* subroutine) {
    const int index = begin("return", Flow::control);
    facts().kind = InstructionClass::branch;
    use_stack();
    returns_.emplace_back(index, subroutine);
  }

  void call_subroutine(const ptx::Function& function) {
    Subroutine& callee = subroutine_of(function);
    CallSite site;
    site.in_subroutine = frame_->subroutine != nullptr;
    for (std::size_t i = 0; i < function.parameters.size(); ++i) {
      const auto parameter = static_cast<std::size_t>(function.parameters[i]);
      site.arguments.push_back({call_arguments_[i], callee.variables[parameter], function.variables[parameter].bytes});
    }
    if (call_result_ && !function.results.empty()) {
      const auto result = static_cast<std::size_t>(function.results[0]);
      site.results.push_back({callee.variables[result], *call_result_, function.variables[result].bytes});
    }
    const auto number = static_cast<std::int64_t>(program_->calls.size());
    program_->calls.push_back(std::move(site));
    call_instructions_.push_back(begin("call", Flow::control));
    facts().kind = InstructionClass::branch;
    now().immediate = number;
    use_stack();
    call_subroutines_.push_back(&callee);
    call_frames_.push_back(frame_->subroutine);
    const int back = begin("call.back");
    facts().synthetic = true;
    now().immediate = number;
    now().a = use(stack_base());
    now().b = use(stack_top());
    callee.return_sites.push_back(back);
  }

  /// Calls within subroutines save what lives on beyond them: another activation uses the same registers.
  void save_registers(const std::vector<std::vector<int>>& successors) {
    std::vector<int> points;
    for (const int index : call_instructions_) points.push_back(index + 2);
    const auto live = live_registers(uses_, register_bytes_.size(), successors, points);
    for (std::size_t i = 0; i < points.size(); ++i) {
      Subroutine* const within = call_frames_[i];
      if (within == nullptr) continue;
      CallSite& site = program_->calls[i];
      std::uint64_t bytes = 0;
      for (const int reg : live[i]) {
        if (reg < within->first_register || reg >= within->last_register || reg == stack_base_ || reg == stack_top_)
          continue;
        const int width = register_bytes_[static_cast<std::size_t>(reg)];
        site.saves.push_back({reg * 2, width});
        bytes += static_cast<std::uint64_t>(std::max(8, width));
        uses_[static_cast<std::size_t>(call_instructions_[i])].uses.push_back(reg);
        uses_[static_cast<std::size_t>(call_instructions_[i]) + 1].definitions.push_back(reg);
      }
      within->save_bytes = std::max(within->save_bytes, bytes);
    }
    for (std::size_t i = 0; i < points.size(); ++i) {
      CallSite& site = program_->calls[i];
      if (call_frames_[i] != nullptr) site.save_offset = align_up(call_frames_[i]->local_bytes, kFrameAlignment);
      const Subroutine& callee = *call_subroutines_[i];
      site.frame_bytes = align_up(callee.local_bytes, kFrameAlignment) + callee.save_bytes;
    }
  }

  /// alloca: from the top of the thread's stack.
  void allocate_on_stack() {
    start("alloca");
    facts().kind = InstructionClass::integer;
    now().a = use(stack_top());
    now().b = source(operand(1), lane_bytes(current_->type()), current_->type());
    now().immediate = static_cast<std::int64_t>(operand_count() > 2 ? operand(2).bits : 8);
    now().bytes = static_cast<std::uint8_t>(lane_bytes(current_->type()));
    define(stack_top_);
    now().d = destination(operand(0), lane_bytes(current_->type()));
  }
  void save_stack() {
    start("mov.b64");
    now().a = use(stack_top());
    now().d = destination(operand(0), 8);
  }
  void restore_stack() {
    start("mov.b64");
    now().a = source(operand(0), 8);
    now().d = define(stack_top());
  }

  /// The compiler moves numbers into registers where the text could name them: uses of such registers read the number.
  static std::vector<std::optional<std::uint64_t>> known_numbers(const ptx::Function& function) {
    std::vector<int> writes(function.registers.size(), 0);
    std::vector<std::optional<std::uint64_t>> known(function.registers.size());
    const auto note = [&](const Operand& operand) {
      if (operand.reg >= 0) ++writes[static_cast<std::size_t>(operand.reg)];
      if (operand.second >= 0) ++writes[static_cast<std::size_t>(operand.second)];
    };
    for (const ptx::Instruction& instruction : function.code) {
      if (instruction.operands.empty()) continue;
      // What is written stands first; where nothing is, counting a use as a write only loses a number.
      const Operand& first = instruction.operands[0];
      note(first);
      for (const Operand& element : first.elements) note(element);
      const bool is_number = instruction.opcode[0] == "mov" && instruction.guard < 0 && first.kind == Kind::reg &&
                             instruction.operands.size() == 2 && instruction.operands[1].kind == Kind::integer;
      if (is_number) known[static_cast<std::size_t>(first.reg)] = instruction.operands[1].bits;
    }
    for (std::size_t i = 0; i < known.size(); ++i) {
      if (writes[i] != 1 || function.registers[i].bytes == 0) known[i].reset();
    }
    return known;
  }
  std::optional<std::uint64_t> number_of(const Operand& operand) const {
    if (operand.kind == Kind::integer) return operand.bits;
    if (operand.kind != Kind::reg) return std::nullopt;
    return frame_->known[static_cast<std::size_t>(operand.reg)];
  }

  void lower_body(Frame& frame) {
    Frame* const outer = frame_;
    frame_ = &frame;
    for (const ptx::Instruction& instruction : frame.function->code) {
      frame.starts.push_back(static_cast<int>(program_->code.size()));
      lower_instruction(instruction);
    }
    const int end = static_cast<int>(program_->code.size());
    frame.starts.push_back(end);
    for (const auto& [index, target] : frame.jumps) code(index).target = frame.starts[static_cast<std::size_t>(target)];
    for (const int index : frame.returns) code(index).target = end;
    for (auto& [list, targets] : jump_lists_) {
      for (std::size_t i = 0; i < targets.size(); ++i) {
        program_->lists[list + i] = frame.starts[static_cast<std::size_t>(targets[i])];
      }
    }
    jump_lists_.clear();
    if (frame.subroutine == nullptr) {
      local_bytes_ = std::max(local_bytes_, frame.local_top);
    } else {
      frame.subroutine->local_bytes = std::max(frame.subroutine->local_bytes, frame.local_top);
    }
    frame_ = outer;
  }

  void place_variables(Frame& frame) {
    const auto& variables = frame.function->variables;
    frame.variables.assign(variables.size(), 0);
    for (std::size_t i = 0; i < variables.size(); ++i) {
      const ptx::Variable& variable = variables[i];
      if (variable.space == Space::shared) {
        if (!variable.unsized) frame.variables[i] = place_shared(variable, dsv2::concat(frame.function->name, ":", i));
      } else if (variable.space == Space::local || variable.space == Space::param) {
        const std::uint64_t alignment = std::max<std::uint64_t>(variable.alignment, 8);
        frame.variables[i] = align_up(frame.local_top, alignment);
        frame.local_top = frame.variables[i] + variable.bytes;
      }
    }
    if (frame.function->entry && frame.caller == nullptr) {
      for (std::size_t i = 0; i < frame.function->parameters.size(); ++i) {
        frame.variables[static_cast<std::size_t>(frame.function->parameters[i])] = program_->info.parameter_offsets[i];
      }
    }
    if (frame.subroutine == nullptr) local_bytes_ = std::max(local_bytes_, frame.local_top);
  }

  /// Arguments and results are the caller's own variables: nothing is copied.
  void pass_arguments(Frame& frame) {
    const ptx::Function& function = *frame.function;
    for (std::size_t i = 0; i < function.parameters.size(); ++i) {
      frame.variables[static_cast<std::size_t>(function.parameters[i])] = call_arguments_[i];
    }
    if (call_result_ && !function.results.empty()) {
      frame.variables[static_cast<std::size_t>(function.results[0])] = *call_result_;
    }
  }

  std::uint64_t place_shared(const ptx::Variable& variable, const std::string& key) {
    const auto [entry, fresh] = shared_.try_emplace(key, 0);
    if (fresh) {
      shared_top_ = align_up(shared_top_, variable.alignment);
      entry->second = shared_top_;
      shared_top_ += variable.bytes;
    }
    return entry->second;
  }

  /// Dynamic shared memory follows the static: addresses of it were kept relative to it.
  void finish_shared() {
    const std::uint64_t dynamic = align_up(shared_top_, dynamic_alignment_);
    program_->static_shared_bytes = uses_dynamic_ ? dynamic - kSharedBase : shared_top_ - kSharedBase;
    program_->info.static_shared_bytes = program_->static_shared_bytes;
    for (const auto& [offset, bytes] : dynamic_constants_) {
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        std::uint64_t value = 0;
        std::byte* at = &program_->constants[offset + static_cast<std::size_t>(lane * bytes)];
        std::memcpy(&value, at, static_cast<std::size_t>(bytes));
        value += dynamic;
        std::memcpy(at, &value, static_cast<std::size_t>(bytes));
      }
    }
  }

  // ---- emitting
  Instruction& code(int index) { return program_->code[static_cast<std::size_t>(index)]; }

  int begin(std::string key, Flow flow = Flow::straight) {
    const int index = static_cast<int>(program_->code.size());
    program_->code.emplace_back();
    uses_.emplace_back();
    InstructionFacts facts;
    facts.key = std::move(key);
    facts.flow = flow;
    if (current_ != nullptr) {
      facts.place = current_->place;
      facts.ptx_line = current_->line;
      facts.text = current_->text;
    }
    program_->facts.push_back(std::move(facts));
    return index;
  }
  Instruction& now() { return program_->code.back(); }
  InstructionFacts& facts() { return program_->facts.back(); }

  int new_register(int bytes) {
    register_bytes_.push_back(bytes);
    return static_cast<int>(register_bytes_.size()) - 1;
  }
  std::int32_t use(int reg) {
    uses_.back().uses.push_back(reg);
    return reg * 2;
  }
  std::int32_t define(int reg) {
    uses_.back().definitions.push_back(reg);
    if (now().guard >= 0) uses_.back().uses.push_back(reg);  // lanes whose guard is false keep their value
    return reg * 2;
  }
  int number(const Operand& operand) const { return frame_->first_register + operand.reg; }
  int bytes_of(const Operand& operand) const { return register_bytes_[static_cast<std::size_t>(number(operand))]; }

  void lower_instruction(const ptx::Instruction& instruction) {
    current_ = &instruction;
    const std::size_t before = program_->code.size();
    try {
      dispatch(instruction);
    } catch (const Refusal& refusal) {
      program_->code.resize(before);
      program_->facts.resize(before);
      uses_.resize(before);
      list_sizes_.erase(list_sizes_.lower_bound(before), list_sizes_.end());
      begin("unsupported", Flow::control);
      set_guard(instruction);
      facts().refusal = refusal.why;
    }
    current_ = nullptr;
  }

  void set_guard(const ptx::Instruction& instruction) {
    if (instruction.guard < 0) return;
    now().guard = use(frame_->first_register + instruction.guard);
    now().guard_negated = instruction.guard_negated;
  }

  /// A new record for the current instruction, with its guard.
  void start(std::string key, Flow flow = Flow::straight) {
    begin(std::move(key), flow);
    set_guard(*current_);
  }

  // ---- constants
  /// A slot with `bits` in every lane.
  std::int32_t constant(std::uint64_t bits, int bytes) {
    if (bytes == 4) bits &= 0xffffffffu;
    const auto [entry, fresh] = constants_.try_emplace({bits, bytes}, 0);
    if (fresh) entry->second = new_constant(bits, bytes);
    return entry->second;
  }
  std::int32_t new_constant(std::uint64_t bits, int bytes) {
    const std::size_t offset = program_->constants.size();
    program_->constants.resize(offset + static_cast<std::size_t>(bytes * kWarpLanes));
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      std::memcpy(&program_->constants[offset + static_cast<std::size_t>(lane * bytes)], &bits,
                  std::min<std::size_t>(8, static_cast<std::size_t>(bytes)));
    }
    return static_cast<std::int32_t>(offset) | 1;
  }
  std::int32_t dynamic_constant(std::uint64_t offset, int bytes) {
    const std::int32_t slot = new_constant(offset, bytes);
    dynamic_constants_.emplace_back(static_cast<std::size_t>(slot & ~1), bytes);
    return slot;
  }
  std::int32_t address_constant(const Address& address, int bytes) {
    return address.dynamic_shared ? dynamic_constant(address.value, bytes) : constant(address.value, bytes);
  }

  static std::uint64_t literal_bits(const Operand& operand, std::string_view type) {
    if (operand.kind == Kind::integer) {
      if (type == "f32")
        return std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int64_t>(operand.bits)));
      if (type == "f64")
        return std::bit_cast<std::uint64_t>(static_cast<double>(static_cast<std::int64_t>(operand.bits)));
      return operand.bits;
    }
    if (operand.kind == Kind::f64 && type == "f32") {
      return std::bit_cast<std::uint32_t>(static_cast<float>(std::bit_cast<double>(operand.bits)));
    }
    if (operand.kind == Kind::f32 && type == "f64") {
      return std::bit_cast<std::uint64_t>(
          static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(operand.bits))));
    }
    return operand.bits;
  }

  // ---- operands
  /// A source of `bytes` a lane, whose literals are of `type`.
  std::int32_t source(const Operand& operand, int bytes, std::string_view type = "b32") {
    switch (operand.kind) {
      case Kind::reg:
        if (bytes_of(operand) != bytes)
          refuse("operand of ", bytes_of(operand), " bytes where ", bytes, " are expected");
        if (const auto known = number_of(operand); known && bytes <= 8) return constant(*known, bytes);
        return use(number(operand));
      case Kind::special:
        return special(operand.name, bytes);
      case Kind::integer:
      case Kind::f32:
      case Kind::f64:
        return constant(literal_bits(operand, type), bytes);
      case Kind::symbol: {
        Address address = symbol(operand);
        if (address.on_stack) refuse("address of a variable of a recursive function");
        address.value += static_cast<std::uint64_t>(operand.offset);
        return address_constant(address, bytes);
      }
      default:
        refuse("operand form");
    }
  }
  std::int32_t source_predicate(const Operand& operand) {
    if (operand.kind == Kind::integer) return constant(operand.bits != 0 ? 0xffffffffu : 0u, 4);
    return source(operand, 0);
  }
  std::int32_t destination(const Operand& operand, int bytes) {
    if (operand.kind == Kind::wildcard) return define(new_register(bytes));
    if (operand.kind != Kind::reg) refuse("destination that is no register");
    if (bytes_of(operand) != bytes) {
      refuse("destination of ", bytes_of(operand), " bytes where ", bytes, " are expected");
    }
    return define(number(operand));
  }
  /// The same; -1 for `_`.
  std::int32_t optional_destination(const Operand& operand, int bytes) {
    return operand.kind == Kind::wildcard ? -1 : destination(operand, bytes);
  }
  std::int32_t second_destination(const Operand& operand) {
    return operand.second < 0 ? -1 : define(frame_->first_register + operand.second);
  }

  std::int32_t special(const std::string& name, int bytes) {
    for (const auto& [known, special] : kSpecialNames) {
      if (name != known) continue;
      const auto [entry, fresh] = special_registers_.try_emplace({special, bytes}, 0);
      if (fresh) entry->second = new_register(bytes);
      return use(entry->second);
    }
    refuse("special register ", name);
  }

  Address symbol(const Operand& operand) {
    if (operand.variable >= 0) return function_variable(static_cast<std::size_t>(operand.variable));
    if (const auto found = module_.variables.find(operand.name); found != module_.variables.end()) {
      const ptx::Variable& variable = found->second;
      if (variable.space == Space::shared) return shared_symbol(variable, variable.name);
      const auto address = symbols_.variables.find(operand.name);
      if (address == symbols_.variables.end()) refuse("variable ", operand.name, " has no address");
      return {.space = variable.space, .value = address->second};
    }
    if (const auto found = module_.function_index.find(operand.name); found != module_.function_index.end()) {
      return {.space = Space::generic, .value = kFunctionWindow | static_cast<std::uint64_t>(found->second)};
    }
    refuse("unknown name ", operand.name);
  }

  Address function_variable(std::size_t index) {
    const ptx::Variable& variable = frame_->function->variables[index];
    if (variable.space == Space::shared && variable.unsized) return shared_symbol(variable, variable.name);
    if (variable.space == Space::global || variable.space == Space::constant) {
      const auto address = symbols_.variables.find(frame_->function->name + "::" + variable.name);
      if (address == symbols_.variables.end()) refuse("variable ", variable.name, " has no address");
      return {.space = variable.space, .value = address->second};
    }
    Space space = variable.space;
    if (space == Space::param && !is_kernel_parameter(index)) space = Space::local;
    return {.space = space,
            .value = frame_->variables[index],
            .on_stack = space == Space::local && frame_->subroutine != nullptr};
  }

  bool is_kernel_parameter(std::size_t index) const {
    if (frame_->caller != nullptr || frame_->subroutine != nullptr) return false;
    const auto& parameters = frame_->function->parameters;
    return std::find(parameters.begin(), parameters.end(), static_cast<int>(index)) != parameters.end();
  }

  Address shared_symbol(const ptx::Variable& variable, const std::string& key) {
    if (!variable.unsized) return {.space = Space::shared, .value = place_shared(variable, key)};
    uses_dynamic_ = true;
    dynamic_alignment_ = std::max<std::uint64_t>(dynamic_alignment_, variable.alignment);
    return {.space = Space::shared, .value = 0, .dynamic_shared = true};
  }

  /// [base + offset]: fills a, immediate, address_bytes; the space too where the base's is better known.
  void address(const Operand& operand) {
    if (operand.kind != Kind::address) refuse("expected an address");
    const Operand& base = operand.elements[0];
    Instruction& out = now();
    out.immediate = operand.offset;
    if (base.kind == Kind::reg) {
      out.address_bytes = static_cast<std::uint8_t>(bytes_of(base));
      out.a = use(number(base));
    } else if (base.kind == Kind::symbol) {
      const Address at = symbol(base);
      out.address_bytes = 8;
      if (at.on_stack) {
        now().a = use(stack_base());
        now().immediate += static_cast<std::int64_t>(at.value);
        now().space = Space::local;
        return;
      }
      out.a = address_constant(at, 8);
      out.space = at.space == Space::constant ? Space::global : at.space;
    } else if (base.kind == Kind::integer) {
      out.address_bytes = 8;
      out.a = constant(base.bits, 8);
    } else {
      refuse("form of address");
    }
  }

  /// The data registers of a load or store: one, or the elements of a vector.
  std::span<const Operand> data(const Operand& operand) {
    if (operand.kind == Kind::vector) return operand.elements;
    return {&operand, 1};
  }
  void set_list(const std::vector<std::int32_t>& slots) {
    now().list = static_cast<std::int32_t>(program_->lists.size());
    program_->lists.insert(program_->lists.end(), slots.begin(), slots.end());
    list_sizes_[program_->code.size() - 1].push_back({static_cast<std::size_t>(now().list), slots.size()});
  }

  // ---- instructions
  using Method = void (Lowering::*)();
  void dispatch(const ptx::Instruction& instruction) {
    static const std::unordered_map<std::string_view, Method> kMethods = {
        {"ld", &Lowering::load},
        {"ldu", &Lowering::load},
        {"st", &Lowering::store},
        {"atom", &Lowering::atomic},
        {"red", &Lowering::atomic},
        {"bra", &Lowering::branch},
        {"brx", &Lowering::indexed_branch},
        {"call", &Lowering::call},
        {"ret", &Lowering::ret},
        {"exit", &Lowering::exit},
        {"alloca", &Lowering::allocate_on_stack},
        {"stacksave", &Lowering::save_stack},
        {"stackrestore", &Lowering::restore_stack},
        {"trap", &Lowering::trap},
        {"brkpt", &Lowering::nothing},
        {"bar", &Lowering::barrier},
        {"barrier", &Lowering::barrier},
        {"shfl", &Lowering::shuffle},
        {"vote", &Lowering::vote},
        {"match", &Lowering::match},
        {"redux", &Lowering::redux},
        {"elect", &Lowering::elect},
        {"activemask", &Lowering::activemask},
        {"mov", &Lowering::move},
        {"cvta", &Lowering::convert_address},
        {"isspacep", &Lowering::is_space},
        {"setp", &Lowering::compare},
        {"set", &Lowering::set},
        {"cvt", &Lowering::convert},
        {"slct", &Lowering::select_by_sign},
        {"addc", &Lowering::with_carry},
        {"subc", &Lowering::with_carry},
        {"madc", &Lowering::with_carry},
        {"ldmatrix", &Lowering::load_matrix},
        {"stmatrix", &Lowering::store_matrix},
        {"mma", &Lowering::mma},
        {"wmma", &Lowering::wmma},
        {"cp", &Lowering::copy},
        {"mbarrier", &Lowering::mbarrier},
        {"wgmma", &Lowering::warpgroup_product},
        {"getctarank", &Lowering::block_rank},
        {"mapa", &Lowering::map_address},
        {"membar", &Lowering::fence},
        {"fence", &Lowering::fence},
        {"prefetch", &Lowering::nothing},
        {"prefetchu", &Lowering::nothing},
        {"discard", &Lowering::nothing},
        {"applypriority", &Lowering::nothing},
        {"createpolicy", &Lowering::create_policy},
        {"griddepcontrol", &Lowering::nothing},
        {"setmaxnreg", &Lowering::nothing},
        {"pmevent", &Lowering::nothing},
        {"nanosleep", &Lowering::nanosleep},
        {"min", &Lowering::extreme},
        {"max", &Lowering::extreme},
        {"prmt", &Lowering::permute},
        {"lop3", &Lowering::logic3},
        {"multimem", &Lowering::not_modelled},
        {"tex", &Lowering::not_modelled},
        {"tld4", &Lowering::not_modelled},
        {"txq", &Lowering::not_modelled},
        {"suld", &Lowering::not_modelled},
        {"sust", &Lowering::not_modelled},
        {"sured", &Lowering::not_modelled},
        {"suq", &Lowering::not_modelled},
        {"istypep", &Lowering::not_modelled},
        {"tcgen05", &Lowering::not_modelled},
    };
    if (is_video(instruction.opcode[0])) return video();
    if (instruction.opcode.size() > 1 && instruction.has("cc")) return with_carry();
    const auto method = kMethods.find(instruction.opcode[0]);
    if (method != kMethods.end()) return (this->*method->second)();
    arithmetic();
  }

  const Operand& operand(std::size_t index) const {
    if (index >= current_->operands.size()) refuse("too few operands");
    return current_->operands[index];
  }
  std::size_t operand_count() const { return current_->operands.size(); }
  std::string_view head() const { return current_->opcode[0]; }
  std::string_view modifier(std::size_t index) const {
    return index < current_->opcode.size() ? current_->opcode[index] : std::string_view();
  }
  bool has(std::string_view name) const { return current_->has(name); }

  /// The opcode without what changes nothing here.
  std::string arithmetic_key() const {
    std::string key;
    for (const std::string_view part : current_->opcode) {
      if (std::find(std::begin(kIgnoredModifiers), std::end(kIgnoredModifiers), part) != std::end(kIgnoredModifiers))
        continue;
      if (!key.empty()) key += '.';
      key += part;
    }
    return key;
  }

  std::string_view operand_shape() const {
    const std::string two = dsv2::concat(head(), ".", modifier(1));
    for (const auto& [name, shape] : kOperandShapes) {
      if (name == head() || name == two) return shape;
    }
    return "ttttt";
  }

  void note_arithmetic(std::string_view type) {
    facts().kind = arithmetic_class(head(), type);
    if (!is_float_type(type)) return;
    for (const auto& [name, flops] : kFlops) {
      if (name == head()) facts().flops = static_cast<std::uint32_t>(type.ends_with("x2") ? 2 * flops : flops);
    }
    facts().flop_type = flop_type(type);
  }

  void not_modelled() { refuse(current_->text.substr(0, current_->text.find_first_of(" \t"))); }

  void arithmetic() { arithmetic(arithmetic_key(), current_->type()); }
  void arithmetic(std::string key, std::string_view type) {
    const int bytes = lane_bytes(type);
    const std::string_view shape = operand_shape();
    start(std::move(key));
    note_arithmetic(type);
    std::int32_t* const fields[] = {&now().d, &now().a, &now().b, &now().c, &now().e};
    std::array<std::int32_t, 5> slots = {-1, -1, -1, -1, -1};
    if (operand_count() > shape.size()) refuse("too many operands");
    for (std::size_t i = operand_count(); i-- > 0;) {
      const Operand& at = operand(i);
      if (shape[i] == 'i') {
        now().immediate = static_cast<std::int64_t>(at.bits);
        continue;
      }
      const int width = shape[i] == 'w' ? std::max(4, 2 * ptx::type_bytes(type)) : shape[i] == 'u' ? 4 : bytes;
      if (shape[i] == 'p' || bytes == 0) {
        slots[i] = i == 0 ? destination(at, 0) : source_predicate(at);
      } else {
        slots[i] = i == 0 ? destination(at, width) : source(at, width, type);
      }
      if (i == 0 && at.second >= 0) refuse("two results");
    }
    for (std::size_t i = 0; i < slots.size(); ++i) *fields[i] = slots[i];
  }

  /// Of three operands they are operations of their own; `.relu` stands on either side of the type.
  void extreme() {
    const auto& parts = current_->opcode;
    const std::string_view type = parts.back() == "relu" ? parts[parts.size() - 2] : parts.back();
    std::string key = dsv2::concat(head(), operand_count() == 4 ? "3" : "");
    for (std::size_t i = 1; i < parts.size(); ++i) {
      if (parts[i] != type) key += dsv2::concat(".", parts[i]);
    }
    arithmetic(dsv2::concat(key, ".", type), type);
  }

  /// The mode of prmt follows its type.
  void permute() { arithmetic(arithmetic_key(), "b32"); }

  /// lop3, with a predicate that is set where the result is not zero.
  void logic3() {
    constexpr std::string_view kOperators[] = {"and", "or", "xor"};
    const auto combines = std::find(std::begin(kOperators), std::end(kOperators), modifier(1));
    if (combines == std::end(kOperators)) return arithmetic();
    start("lop3.predicate");
    facts().kind = InstructionClass::integer;
    now().mode = static_cast<std::uint8_t>(combines - std::begin(kOperators) + 1);
    now().a = source(operand(1), 4);
    now().b = source(operand(2), 4);
    now().c = source(operand(3), 4);
    now().immediate = static_cast<std::int64_t>(operand(4).bits);
    now().e = source_predicate(operand(5));
    if (operand(5).negated) now().flags |= kNegated;
    now().d = optional_destination(operand(0), 4);
    now().d2 = second_destination(operand(0));
    if (now().d2 < 0) refuse("lop3 without its predicate");
  }

  /// cvt.pack.sat.TO.FROM: the bits of TO, twice, and the low bits of a third operand above them.
  void convert_pack() {
    const std::string_view to = modifier(3);
    int bits = 0;
    for (const int width : {2, 4, 8, 16}) {
      if (to.substr(1) == std::to_string(width)) bits = width;
    }
    if (bits == 0) refuse("type of cvt.pack");
    start(dsv2::concat("cvt.pack.", modifier(4)));
    facts().kind = InstructionClass::convert;
    now().mode = static_cast<std::uint8_t>(bits);
    if (to[0] == 's') now().flags |= kSigned;
    now().a = source(operand(1), 4);
    now().b = source(operand(2), 4);
    if (operand_count() > 3) now().c = source(operand(3), 4);
    now().d = destination(operand(0), 4);
  }

  // ---- video instructions
  static constexpr std::pair<std::string_view, VideoOp> kVideoOps[] = {
      {"vadd", VideoOp::add},     {"vsub", VideoOp::subtract},   {"vabsdiff", VideoOp::difference},
      {"vmin", VideoOp::minimum}, {"vmax", VideoOp::maximum},    {"vavrg", VideoOp::average},
      {"vset", VideoOp::set},     {"vshl", VideoOp::shift_left}, {"vshr", VideoOp::shift_right},
      {"vmad", VideoOp::mad},
  };
  static std::string_view without_parts(std::string_view name) {
    return name.ends_with('2') || name.ends_with('4') ? name.substr(0, name.size() - 1) : name;
  }
  static bool is_video(std::string_view name) {
    return std::any_of(std::begin(kVideoOps), std::end(kVideoOps),
                       [&](const auto& entry) { return entry.first == without_parts(name); });
  }

  /// "b2" or "h1" as a part of a word; 0 is all of it.
  static std::uint8_t video_part(std::string_view selector) {
    if (selector.empty()) return 0;
    const int number = selector.size() == 2 ? selector[1] - '0' : -1;
    const bool is_byte = selector[0] == 'b';
    if (number < 0 || number > (is_byte ? 3 : 1)) refuse("selector .", selector);
    return static_cast<std::uint8_t>(number + (is_byte ? kVideoByte : kVideoHalf));
  }
  static std::uint8_t video_mask(std::string_view selector, int parts) {
    if (selector.empty()) return static_cast<std::uint8_t>((1 << parts) - 1);
    std::uint8_t mask = 0;
    for (const char digit : selector.substr(1)) mask |= static_cast<std::uint8_t>(1 << (digit - '0'));
    return mask;
  }

  VideoOperation video_operation() {
    VideoOperation result;
    for (const auto& [name, op] : kVideoOps) {
      if (name == without_parts(head())) result.op = op;
    }
    if (without_parts(head()) != head()) result.parts = static_cast<std::uint8_t>(head().back() - '0');
    const bool sets = result.op == VideoOp::set;  // has no type of its result
    const auto is_signed = [this](std::size_t i) {
      if (modifier(i) != "s32" && modifier(i) != "u32") refuse("type .", modifier(i), " of ", head());
      return modifier(i) == "s32";
    };
    result.d_signed = !sets && is_signed(1);
    result.a_signed = is_signed(sets ? 1 : 2);
    result.b_signed = is_signed(sets ? 2 : 3);
    result.saturates = has("sat");
    result.wraps = has("wrap");
    result.plus_one = has("po");
    result.shift = has("shr7") ? 7 : has("shr15") ? 15 : 0;
    result.second = has("add")   ? VideoSecond::add
                    : has("min") ? VideoSecond::minimum
                    : has("max") ? VideoSecond::maximum
                                 : VideoSecond::none;
    constexpr std::pair<std::string_view, VideoCompare> kComparisons[] = {
        {"eq", VideoCompare::eq}, {"ne", VideoCompare::ne}, {"lt", VideoCompare::lt},
        {"le", VideoCompare::le}, {"gt", VideoCompare::gt}, {"ge", VideoCompare::ge}};
    for (const auto& [name, compare] : kComparisons) {
      if (has(name)) result.compare = compare;
    }
    return result;
  }

  void video() {
    VideoOperation operation = video_operation();
    const std::string_view d = operand(0).selector;
    const std::string_view a = operand(1).selector;
    const std::string_view b = operand(2).selector;
    if (operation.parts > 1) {
      const bool plain = (a.empty() || a == "h10" || a == "b3210") && (b.empty() || b == "h32" || b == "b7654");
      if (!plain || operand_count() != 4) refuse("selectors of ", head());
      operation.mask = video_mask(d, operation.parts);
    } else {
      operation.d_part = video_part(d);
      operation.a_part = video_part(a);
      operation.b_part = video_part(b);
    }
    if (operation.d_part != 0 && operand_count() < 4) refuse("a part of ", head(), " without what it is merged with");
    operation.negates_product = operand(1).negated != operand(2).negated;
    operation.negates_c = operand_count() > 3 && operand(3).negated;
    start("video");
    facts().kind = InstructionClass::integer;
    now().a = source(operand(1), 4);
    now().b = source(operand(2), 4);
    if (operand_count() > 3) now().c = source(operand(3), 4);
    now().d = destination(operand(0), 4);
    now().immediate = pack_video(operation);
  }

  void compare() {
    const std::string_view type = current_->type();
    const int bytes = lane_bytes(type);
    const bool flush = has("ftz");
    start(dsv2::concat("setp.", modifier(1), flush ? ".ftz." : ".", type));
    note_arithmetic(type);
    now().a = source(operand(1), bytes, type);
    now().b = source(operand(2), bytes, type);
    now().mode = boolean_operator();
    if (now().mode != 0) {
      now().c = source_predicate(operand(3));
      if (operand(3).negated) now().flags |= kNegated;
    }
    now().d = optional_destination(operand(0), 0);
    now().d2 = second_destination(operand(0));
  }

  std::uint8_t boolean_operator() const {
    constexpr std::string_view kOperators[] = {"and", "or", "xor"};
    if (operand_count() < 4) return 0;
    for (std::uint8_t i = 0; i < 3; ++i) {
      if (modifier(2) == kOperators[i]) return static_cast<std::uint8_t>(i + 1);
    }
    refuse("boolean operator");
  }

  void set() {
    const std::string_view type = current_->type();
    const std::string_view result = modifier(current_->opcode.size() - 2);
    if (operand_count() > 3) refuse("set with a boolean operator");
    start(dsv2::concat("set.", modifier(1), has("ftz") ? ".ftz." : ".", type));
    note_arithmetic(type);
    now().a = source(operand(1), lane_bytes(type), type);
    now().b = source(operand(2), lane_bytes(type), type);
    now().d = destination(operand(0), lane_bytes(result));
    // What true is: 1.0 in the result's type, or all ones.
    constexpr std::pair<std::string_view, std::int64_t> kTrue[] = {
        {"f32", 0x3f800000}, {"f16x2", 0x3c00}, {"f16", 0x3c00}, {"bf16x2", 0x3f80},
        {"bf16", 0x3f80},    {"u16", 0xffff},   {"s16", 0xffff}};
    now().immediate = type.ends_with("x2") ? 0xffff : 0xffffffff;
    for (const auto& [name, value] : kTrue) {
      if (name == result) now().immediate = value;
    }
  }

  void select_by_sign() {
    const std::string_view type = modifier(current_->opcode.size() - 2);
    start(dsv2::concat("slct.b", 8 * lane_bytes(type), ".", current_->type()));
    facts().kind = InstructionClass::move;
    now().a = source(operand(1), lane_bytes(type), type);
    now().b = source(operand(2), lane_bytes(type), type);
    now().c = source(operand(3), lane_bytes(current_->type()), current_->type());
    now().d = destination(operand(0), lane_bytes(type));
  }

  /// add.cc, addc, sub.cc, subc, mad.cc, madc: the condition code is a predicate register of the function.
  void with_carry() {
    const std::string_view type = current_->type();
    const int bytes = lane_bytes(type);
    const bool reads = head().back() == 'c';
    const std::string_view base = head().substr(0, 3);
    start(dsv2::concat("carry.", base, base == "mad" ? dsv2::concat(".", modifier(1)) : std::string(),
                       base == "mad" && has("hi") && type[0] == 's' ? ".s" : ".b", 8 * bytes));
    facts().kind = InstructionClass::integer;
    now().mode = static_cast<std::uint8_t>((reads ? 1 : 0) | (has("cc") ? 2 : 0));
    now().a = source(operand(1), bytes, type);
    now().b = source(operand(2), bytes, type);
    if (base == "mad") now().c = source(operand(3), bytes, type);
    now().e = use(frame_->carry);
    define(frame_->carry);
    now().d = destination(operand(0), bytes);
  }

  void convert() {
    if (has("pack")) return convert_pack();
    const std::string_view to = modifier(current_->opcode.size() - 2);
    const std::string_view from = current_->type();
    const bool packs = to.ends_with("x2") && from == "f32";
    if (has("scaled::n2::ue8m0")) refuse("scaled conversion");
    const auto width = [&](const Operand& o, std::string_view type) {
      return o.kind == Kind::reg ? std::max(bytes_of(o), lane_bytes(type)) : lane_bytes(type);
    };
    // A wider register may hold the source, whose low part is meant, and take the result, which is extended.
    const bool from_wider = !packs && width(operand(1), from) > lane_bytes(from);
    const bool to_wider = width(operand(0), to) > lane_bytes(to);
    std::int32_t low = -1;
    if (from_wider) {
      low = new_register(4);
      resize("cvt.u32.u64", 8);
      now().a = source(operand(1), 8, "u64");
      now().d = define(low);
    }
    start(dsv2::concat("cvt.", to, ".", from));
    facts().kind = InstructionClass::convert;
    set_conversion(to, from);
    if (packs) {
      now().a = source(operand(1), 4, "f32");
      now().b = source(operand(2), 4, "f32");
    } else {
      now().register_bytes = static_cast<std::uint8_t>(lane_bytes(from));
      now().a = from_wider ? use(low) : source(operand(1), lane_bytes(from), from);
    }
    if (!to_wider) {
      now().d = destination(operand(0), lane_bytes(to));
      return;
    }
    const std::int32_t narrow = new_register(4);
    now().d = define(narrow);
    resize(to.front() == 's' ? "cvt.s64.s32" : "cvt.u64.u32", 4);
    now().a = use(narrow);
    now().d = destination(operand(0), 8);
  }

  /// Begins a conversion between integers that no instruction of the program stands for.
  void resize(std::string key, int source_bytes) {
    start(std::move(key));
    facts().kind = InstructionClass::convert;
    facts().synthetic = true;
    now().register_bytes = static_cast<std::uint8_t>(source_bytes);
  }

  void set_conversion(std::string_view to, std::string_view from) {
    constexpr std::pair<std::string_view, Rounding> kRoundings[] = {
        {"rn", Rounding::nearest}, {"rz", Rounding::zero},     {"rm", Rounding::down},
        {"rp", Rounding::up},      {"rni", Rounding::nearest}, {"rzi", Rounding::zero},
        {"rmi", Rounding::down},   {"rpi", Rounding::up},      {"rna", Rounding::nearest_away},
    };
    for (const auto& [name, rounding] : kRoundings) {
      if (!has(name)) continue;
      now().mode = static_cast<std::uint8_t>(rounding);
      if (name.size() == 3 && name.ends_with('i') && is_float_type(to) && is_float_type(from))
        now().flags |= kToInteger;
    }
    if (has("rs")) refuse("stochastic rounding");
    if (has("sat") || has("satfinite")) now().flags |= kSaturate;
    if (has("relu")) now().flags |= kRelu;
    if (has("ftz")) now().flags |= kFlush;
  }

  // ---- moves and addresses
  void move() {
    const Operand& to = operand(0);
    const Operand& from = operand(1);
    const std::string_view type = current_->type();
    if (to.kind == Kind::vector || from.kind == Kind::vector) return pack();
    const int bytes = lane_bytes(type);
    if (from.kind == Kind::symbol && bytes == 8) {
      if (const Address at = symbol(from); at.on_stack) return stack_address(to, at, from.offset);
    }
    if (from.kind == Kind::special && is_clock(from.name)) return read_clock(to, from.name, bytes);
    start(bytes == 0 ? std::string("mov.pred") : dsv2::concat("mov.b", 8 * bytes));
    facts().kind = InstructionClass::move;
    if (bytes == 0) {
      now().a = source_predicate(from);
    } else if (from.kind == Kind::reg && bytes_of(from) != bytes) {
      refuse("mov between registers of different sizes");
    } else {
      now().a = source(from, bytes, type);
    }
    now().d = destination(to, bytes);
  }

  /// The address of a variable in a subroutine's frame.
  void stack_address(const Operand& to, const Address& at, std::int64_t offset) {
    start("add.u64");
    facts().kind = InstructionClass::move;
    now().a = use(stack_base());
    now().b = constant(at.value + static_cast<std::uint64_t>(offset), 8);
    now().d = destination(to, 8);
  }

  static bool is_clock(std::string_view name) { return name.starts_with("%clock") || name.starts_with("%globaltimer"); }
  void read_clock(const Operand& to, std::string_view name, int bytes) {
    start(dsv2::concat("clock.b", 8 * bytes));
    facts().kind = InstructionClass::move;
    now().mode = name == "%clock_hi" || name == "%globaltimer_hi" ? 1 : 0;
    now().flags = name.starts_with("%globaltimer") ? 1 : 0;
    now().d = destination(to, bytes);
    program_->ordered = true;
  }

  /// mov {a, b}, c and mov c, {a, b}.
  void pack() {
    const bool unpacks = operand(0).kind == Kind::vector;
    const Operand& vector = operand(unpacks ? 0 : 1);
    const Operand& whole = operand(unpacks ? 1 : 0);
    const int total = ptx::type_bytes(current_->type());
    const int count = static_cast<int>(vector.elements.size());
    const int each = total / std::max(1, count);
    if (each < 1 || each * count != total) refuse("mov of an uneven vector");
    start(unpacks ? "unpack" : "pack");
    facts().kind = InstructionClass::move;
    now().bytes = static_cast<std::uint8_t>(each);
    now().elements = static_cast<std::uint8_t>(count);
    now().register_bytes = static_cast<std::uint8_t>(std::max(4, total));
    std::vector<std::int32_t> slots;
    if (unpacks) now().a = source(whole, std::max(4, total));
    for (const Operand& element : vector.elements) {
      slots.push_back(unpacks ? optional_destination(element, std::max(4, each)) : source(element, std::max(4, each)));
    }
    if (!unpacks) now().d = destination(whole, std::max(4, total));
    set_list(slots);
  }

  std::optional<Space> named_space() const {
    for (const std::string_view part : current_->opcode) {
      if (part == "global") return Space::global;
      if (part == "const") return Space::constant;
      if (part == "shared" || part == "shared::cta" || part == "shared::cluster") return Space::shared;
      if (part == "local") return Space::local;
      if (part == "param" || part == "param::entry" || part == "param::func") return Space::param;
    }
    return std::nullopt;
  }

  static std::uint64_t window_of(Space space) {
    if (space == Space::shared) return kSharedWindow;
    if (space == Space::local) return kLocalWindow;
    return space == Space::param ? kParamWindow : 0;
  }

  void convert_address() {
    const bool to_space = modifier(1) == "to";
    Space space = named_space().value_or(Space::generic);
    const int bytes = lane_bytes(current_->type());
    if (bytes != 8) refuse("32-bit cvta");
    if (operand(1).kind == Kind::symbol) {
      if (const Address at = symbol(operand(1)); at.on_stack) {
        stack_address(operand(0), at, operand(1).offset);
        start("cvta");
        facts().kind = InstructionClass::move;
        now().a = use(number(operand(0)));
        now().immediate = static_cast<std::int64_t>(window_of(Space::local));
        now().d = destination(operand(0), 8);
        return;
      }
    }
    start(window_of(space) == 0 ? "mov.b64" : to_space ? "cvta.to" : "cvta");
    facts().kind = InstructionClass::move;
    const Operand& from = operand(1);
    if (from.kind == Kind::symbol) {
      Address at = symbol(from);
      at.value += static_cast<std::uint64_t>(from.offset);
      now().a = address_constant(at, 8);
      if (at.space == Space::local && space == Space::param) space = Space::local;  // of a called function
    } else {
      now().a = source(from, 8);
    }
    now().immediate = static_cast<std::int64_t>(window_of(space));
    now().d = destination(operand(0), 8);
  }

  void is_space() {
    const Space space = named_space().value_or(Space::generic);
    start(space == Space::global || space == Space::constant ? "isspacep.global" : "isspacep");
    facts().kind = InstructionClass::integer;
    now().a = source(operand(1), 8);
    now().immediate = static_cast<std::int64_t>(window_of(space) >> kWindowShift);
    now().d = destination(operand(0), 0);
  }

  // ---- memory
  static InstructionClass memory_class(Space space, bool loads) {
    switch (space) {
      case Space::shared:
        return loads ? InstructionClass::shared_load : InstructionClass::shared_store;
      case Space::local:
        return InstructionClass::local;
      case Space::constant:
      case Space::param:
        return InstructionClass::constant;
      default:
        return loads ? InstructionClass::global_load : InstructionClass::global_store;
    }
  }

  void set_space(bool loads) {
    const Space space = named_space().value_or(Space::generic);
    facts().kind = memory_class(space, loads);
    now().space = space == Space::constant ? Space::global : space;
  }

  bool is_ordered_access() const {
    return has("volatile") || has("acquire") || has("release") || has("relaxed") || has("mmio");
  }

  /// Reads or writes that blocks may synchronise with.
  void note_ordered_access() {
    if (!is_ordered_access()) return;
    now().flags |= kOrdered;
    if (has("release")) now().flags |= kReleases;
    if (now().space == Space::global || now().space == Space::generic) program_->ordered = true;
  }

  /// The width of the registers that hold what a load or store moves, `bytes` an element.
  template <class Elements>
  int set_data_register(const Elements& elements, int bytes) {
    int width = std::max(4, bytes);
    for (const Operand& element : elements) {
      if (element.kind == Kind::reg) width = bytes_of(element);
    }
    if (width < bytes || (width > 8 && width != bytes)) refuse("register of another size");
    now().register_bytes = static_cast<std::uint8_t>(width);
    return width;
  }

  void load() {
    const std::string_view type = current_->type();
    const int bytes = ptx::type_bytes(type);
    if (bytes <= 0) refuse("type .", type);
    start("ld");
    set_space(true);
    address(operand(1));
    now().bytes = static_cast<std::uint8_t>(bytes);
    if (type[0] == 's') now().flags |= kSigned;
    note_ordered_access();
    const auto elements = data(operand(0));
    now().elements = static_cast<std::uint8_t>(elements.size());
    const int width = set_data_register(elements, bytes);
    std::vector<std::int32_t> slots;
    for (const Operand& element : elements) slots.push_back(optional_destination(element, width));
    if (now().space == Space::param && operand(1).elements[0].kind == Kind::symbol) {
      facts().key = "ld.parameter";
      for (std::size_t i = 0; i < elements.size(); ++i) slots.push_back(parameter_constant(i));
    }
    set_list(slots);
  }

  std::int32_t parameter_constant(std::size_t element) {
    const Instruction& in = now();
    const std::uint64_t base = symbol(operand(1).elements[0]).value;
    const std::uint64_t offset = base + static_cast<std::uint64_t>(in.immediate) + element * in.bytes;
    if (offset + in.bytes > align_up(program_->info.parameter_bytes, 8)) refuse("parameter out of bounds");
    const auto key = std::make_tuple(offset, in.bytes, in.register_bytes, (in.flags & kSigned) != 0);
    const auto [entry, fresh] = parameter_constants_.try_emplace(key, 0);
    if (fresh) {
      entry->second = new_constant(0, in.register_bytes);
      program_->parameters.push_back({.constant = static_cast<std::size_t>(entry->second & ~1),
                                      .parameter = offset,
                                      .bytes = in.bytes,
                                      .lane_bytes = in.register_bytes,
                                      .sign = (in.flags & kSigned) != 0});
    }
    return entry->second;
  }

  void store() {
    const std::string_view type = current_->type();
    const int bytes = ptx::type_bytes(type);
    if (has("async")) return value_async();
    if (has("bulk")) return not_modelled();
    if (bytes <= 0) refuse("type .", type);
    start("st");
    set_space(false);
    address(operand(0));
    now().bytes = static_cast<std::uint8_t>(bytes);
    note_ordered_access();
    const auto elements = data(operand(1));
    now().elements = static_cast<std::uint8_t>(elements.size());
    const int width = set_data_register(elements, bytes);
    std::vector<std::int32_t> slots;
    for (const Operand& element : elements) slots.push_back(source(element, width, type));
    set_list(slots);
  }

  std::string_view atomic_operation() const {
    constexpr std::string_view kOperations[] = {"add", "exch", "cas", "min", "max", "inc", "dec", "and", "or", "xor"};
    for (const std::string_view name : kOperations) {
      if (has(name)) return name;
    }
    refuse("atomic operation");
  }

  /// Vectors may name their operation behind the type.
  std::string_view atomic_type() const {
    const auto& parts = current_->opcode;
    const auto found =
        std::find_if(parts.rbegin(), parts.rend(), [](std::string_view part) { return ptx::type_bytes(part) > 0; });
    if (found == parts.rend()) refuse("type of ", head());
    return *found;
  }

  void atomic() {
    const bool returns = head() == "atom";
    const std::string_view type = atomic_type();
    const int bytes = ptx::type_bytes(type);
    if (has("async")) return value_async();
    if (bytes <= 0) refuse("type .", type);
    const std::string_view operation = atomic_operation();
    const std::size_t first = returns ? 1 : 0;
    const auto values = data(operand(first + 1));
    start(dsv2::concat("atom.", operation, ".", type));
    set_space(false);
    facts().kind = InstructionClass::atomic;
    address(operand(first));
    now().bytes = static_cast<std::uint8_t>(bytes);
    now().register_bytes = static_cast<std::uint8_t>(std::max(4, bytes));
    now().elements = static_cast<std::uint8_t>(values.size());
    const int width = std::max(4, bytes);
    std::vector<std::int32_t> slots;
    for (const Operand& value : values) slots.push_back(source(value, width, type));
    if (operation == "cas") now().c = source(operand(first + 2), width, type);
    if ((has("release") || has("acq_rel")) && !has("cta")) now().flags |= kReleases;
    bool used = false;
    if (returns) {
      for (const Operand& result : data(operand(0))) {
        slots.push_back(optional_destination(result, width));
        used |= slots.back() >= 0;
      }
    } else {
      slots.insert(slots.end(), values.size(), -1);
    }
    set_list(slots);
    const bool commutes =
        operation != "exch" && operation != "cas" && operation != "inc" && operation != "dec" && !is_float_type(type);
    if (now().space != Space::shared && now().space != Space::local) {
      program_->global_atomics = true;
      program_->ordered |= used || !commutes;
    }
    if (is_float_type(type) && operation == "add") {
      facts().flops = type.ends_with("x2") ? 2 : 1;
      facts().flop_type = flop_type(type);
    }
  }

  // ---- control
  void branch() {
    start("bra", Flow::control);
    facts().kind = InstructionClass::branch;
    frame_->jumps.emplace_back(static_cast<int>(program_->code.size()) - 1, operand(0).target);
  }

  void indexed_branch() {
    const auto targets = frame_->function->branch_targets.find(operand(1).name);
    if (targets == frame_->function->branch_targets.end()) refuse("brx.idx without its list of targets");
    start("brx", Flow::control);
    facts().kind = InstructionClass::branch;
    now().a = source(operand(0), 4);
    now().immediate = static_cast<std::int64_t>(targets->second.size());
    now().list = static_cast<std::int32_t>(program_->lists.size());
    jump_lists_.emplace_back(program_->lists.size(), targets->second);
    program_->lists.resize(program_->lists.size() + targets->second.size());
  }

  void ret() {
    if (frame_->caller == nullptr && frame_->subroutine == nullptr) return exit();
    start("bra", Flow::control);
    facts().kind = InstructionClass::branch;
    frame_->returns.push_back(static_cast<int>(program_->code.size()) - 1);
  }
  void exit() {
    start("exit", Flow::control);
    facts().kind = InstructionClass::branch;
  }
  void trap() { start("trap", Flow::control); }
  void nothing() { start("nop"); }
  /// Between blocks a fence of the device or the system counts; the proxies are one here.
  void nanosleep() { start("yield", Flow::control); }
  void create_policy() {
    start("nop");
    if (operand(0).kind == Kind::reg) now().d = define(number(operand(0)));
  }

  /// call (result), function, (arguments): the function's code follows in place.
  void call() {
    std::size_t next = 0;
    call_result_.reset();
    call_arguments_.clear();
    if (operand(next).kind == Kind::list) {
      if (!operand(0).elements.empty()) call_result_ = symbol(operand(0).elements[0]).value;
      ++next;
    }
    const Operand& callee = operand(next++);
    if (next < operand_count() && operand(next).kind == Kind::list) {
      for (const Operand& argument : operand(next).elements) call_arguments_.push_back(symbol(argument).value);
      ++next;
    }
    if (callee.kind == Kind::reg) return indirect_call(callee);
    const ptx::Function* function = module_.function(callee.name);
    if (function == nullptr) refuse("call of an unknown function ", callee.name);
    if (!function->defined) return builtin_call(*function);
    check_call(*function);
    const int skip = guarded_skip();
    begin("nop");
    facts().kind = InstructionClass::branch;
    inline_function(*function);
    if (skip >= 0) code(skip).target = static_cast<int>(program_->code.size());
  }

  void check_call(const ptx::Function& function) const {
    if (program_->code.size() > 4'000'000) refuse("inlined code too long");
    if (call_arguments_.size() != function.parameters.size()) refuse("a call with another number of arguments");
  }

  /// Lanes whose guard is false go round an inlined call. The branch, or -1.
  int guarded_skip() {
    if (current_->guard < 0) return -1;
    start("bra", Flow::control);
    facts().synthetic = true;
    now().guard_negated = !now().guard_negated;
    return static_cast<int>(program_->code.size()) - 1;
  }

  static bool allocates_on_stack(const ptx::Function& function) {
    return std::any_of(function.code.begin(), function.code.end(),
                       [](const ptx::Instruction& instruction) { return instruction.opcode[0] == "alloca"; });
  }

  /// The function's code in place of the call, or a call where it may call itself.
  void inline_function(const ptx::Function& function) {
    if (is_subroutine(function)) return call_subroutine(function);
    const bool allocates = allocates_on_stack(function);
    const int top = allocates ? new_register(8) : -1;
    if (allocates) {
      begin("mov.b64");
      facts().synthetic = true;
      now().a = use(stack_top());
      now().d = define(top);
    }
    inline_code(function);
    if (allocates) {
      begin("mov.b64");
      facts().synthetic = true;
      now().a = use(top);
      now().d = define(stack_top());
    }
  }

  void inline_code(const ptx::Function& function) {
    const ptx::Instruction* const call = current_;
    Frame* const frame = frame_;
    const auto lists = std::exchange(jump_lists_, {});
    lower_function(function, frame);
    jump_lists_ = lists;
    current_ = call;
    frame_ = frame;
  }

  /// Compares the address with those of the functions that it can be.
  void indirect_call(const Operand& callee) {
    const std::vector<std::int32_t> candidates(address_taken_.begin(), address_taken_.end());
    std::vector<int> ends;
    const int skip = guarded_skip();
    begin("nop");
    facts().kind = InstructionClass::branch;
    const auto arguments = call_arguments_;
    const auto result = call_result_;
    for (const std::int32_t index : candidates) {
      const ptx::Function& function = *module_.functions[static_cast<std::size_t>(index)];
      if (!function.defined || function.entry || function.parameters.size() != arguments.size() ||
          function.results.empty() == result.has_value()) {
        continue;
      }
      call_arguments_ = arguments;
      check_call(function);
      const int predicate = new_register(0);
      begin("setp.ne.u64");
      facts().synthetic = true;
      now().a = source(callee, 8);
      now().b = constant(kFunctionWindow | static_cast<std::uint64_t>(index), 8);
      now().d = define(predicate);
      const int other = begin("bra", Flow::control);
      facts().synthetic = true;
      now().guard = use(predicate);
      call_result_ = result;
      inline_function(function);
      ends.push_back(begin("bra", Flow::control));
      facts().synthetic = true;
      code(other).target = static_cast<int>(program_->code.size());
    }
    begin("bad_call", Flow::control);
    facts().synthetic = true;
    for (const int index : ends) code(index).target = static_cast<int>(program_->code.size());
    if (skip >= 0) code(skip).target = static_cast<int>(program_->code.size());
  }

  /// malloc and free of the device: their argument and result lie in local memory.
  void heap_call(const ptx::Function& function) {
    const bool allocates = function.name == "malloc";
    if (call_arguments_.size() != 1 || call_result_.has_value() != allocates)
      refuse("form of the call of ", function.name);
    start(function.name);
    facts().kind = InstructionClass::other;
    now().immediate = static_cast<std::int64_t>(call_arguments_[0]);
    if (allocates) now().target = static_cast<std::int32_t>(*call_result_);
    if (frame_->subroutine != nullptr) now().a = use(stack_base());
    program_->ordered = true;  // addresses tell who came first
  }

  void builtin_call(const ptx::Function& function) {
    if (function.name == "malloc" || function.name == "free") return heap_call(function);
    if (function.name != "vprintf" && function.name != "__assertfail") {
      refuse("call of the external function ", function.name);
    }
    start(function.name == "vprintf" ? "printf" : "assert",
          function.name == "vprintf" ? Flow::straight : Flow::control);
    facts().kind = InstructionClass::branch;
    if (call_arguments_.size() < 2) refuse("call of ", function.name, " with too few arguments");
    now().immediate = static_cast<std::int64_t>(call_arguments_[0]);  // local addresses
    now().target = static_cast<std::int32_t>(call_arguments_[1]);
    if (frame_->subroutine != nullptr) now().a = use(stack_base());
    if (function.name == "vprintf") program_->ordered = true;  // lines come out in one order
    if (function.name == "__assertfail" && call_arguments_.size() > 2)
      now().c = static_cast<std::int32_t>(call_arguments_[2]);
    if (function.name == "vprintf" && call_result_) now().c = static_cast<std::int32_t>(*call_result_);
  }

  // ---- the warp and the block
  std::int32_t full_mask() { return constant(0xffffffffu, 4); }

  void barrier() {
    if (modifier(1) == "warp") {
      start("bar.warp", Flow::sync);
      facts().kind = InstructionClass::barrier;
      now().e = source(operand(0), 4);
      return;
    }
    if (modifier(1) == "cluster") return cluster_barrier();
    const bool reduces = has("red");
    const bool arrives = has("arrive");
    std::string key = reduces ? dsv2::concat("bar.red.", has("popc")  ? "popc"
                                                         : has("and") ? "and"
                                                                      : "or")
                              : std::string(arrives ? "bar.arrive" : "bar.sync");
    start(std::move(key), Flow::control);
    facts().kind = InstructionClass::barrier;
    if (head() == "barrier" && !has("aligned")) now().flags |= kUnaligned;
    std::size_t next = reduces ? 1 : 0;
    const std::size_t last = operand_count() - (reduces ? 1 : 0);
    now().a = next < last ? source(operand(next++), 4) : constant(0, 4);
    if (next < last) now().b = source(operand(next++), 4);
    if (reduces) {
      now().c = source_predicate(operand(last));
      if (operand(last).negated) now().flags |= kNegated;
      now().d = destination(operand(0), has("popc") ? 4 : 0);
    }
    const bool is_whole = now().b < 0 && !arrives;
    const bool is_zero = (operand_count() == 0 || operand(reduces ? 1 : 0).kind == Kind::integer);
    if (!is_whole || !is_zero) program_->named_barriers = true;
  }

  void cluster_barrier() {
    const bool arrives = has("arrive");
    start(arrives ? "cluster.arrive" : "cluster.wait", Flow::control);
    facts().kind = InstructionClass::barrier;
    if (!has("aligned")) now().flags |= kUnaligned;
  }

  void map_address() {
    const int bytes = lane_bytes(current_->type());
    start(dsv2::concat("mapa.b", 8 * bytes));
    facts().kind = InstructionClass::integer;
    now().a = source(operand(1), bytes);
    now().b = source(operand(2), 4);
    now().d = destination(operand(0), bytes);
  }

  void shuffle() {
    constexpr std::string_view kModes[] = {"up", "down", "bfly", "idx"};
    if (!has("sync")) refuse("shfl without .sync");
    start("shfl", Flow::sync);
    facts().kind = InstructionClass::shuffle;
    const auto mode = std::find(std::begin(kModes), std::end(kModes), modifier(2));
    if (mode == std::end(kModes)) refuse("mode of shfl");
    now().mode = static_cast<std::uint8_t>(mode - std::begin(kModes));
    now().a = source(operand(1), 4);
    if (const auto by = number_of(operand(2)), clamp = number_of(operand(3)); by && clamp) {
      fix_shuffle(static_cast<Shuffle>(now().mode), *by, *clamp);
    } else {
      now().b = source(operand(2), 4);
      now().c = source(operand(3), 4);
    }
    now().e = source(operand(4), 4);
    now().d = optional_destination(operand(0), 4);
    now().d2 = second_destination(operand(0));
  }

  /// Who reads whom is known: a table of lanes among the constants.
  void fix_shuffle(Shuffle mode, std::uint64_t by, std::uint64_t clamp) {
    facts().key = "shfl.fixed";
    now().b = new_constant(0, 4);
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const auto [from, inside] =
          shuffle_source(mode, lane, static_cast<std::uint32_t>(by), static_cast<std::uint32_t>(clamp));
      const auto source_lane = static_cast<std::uint32_t>(from);
      const std::size_t at =
          static_cast<std::size_t>(now().b & ~1) + sizeof source_lane * static_cast<std::size_t>(lane);
      std::memcpy(&program_->constants[at], &source_lane, sizeof source_lane);
      now().immediate |= static_cast<std::int64_t>(inside) << lane;
    }
  }

  void vote() {
    constexpr std::string_view kModes[] = {"all", "any", "uni", "ballot"};
    if (!has("sync")) refuse("vote without .sync");
    start("vote", Flow::sync);
    facts().kind = InstructionClass::vote;
    const auto mode = std::find(std::begin(kModes), std::end(kModes), modifier(2));
    if (mode == std::end(kModes)) refuse("mode of vote");
    now().mode = static_cast<std::uint8_t>(mode - std::begin(kModes));
    now().a = source_predicate(operand(1));
    if (operand(1).negated) now().flags |= kNegated;
    now().e = source(operand(2), 4);
    now().d = destination(operand(0), has("ballot") ? 4 : 0);
  }

  void match() {
    const int bytes = lane_bytes(current_->type());
    start(dsv2::concat("match.", has("all") ? "all" : "any"), Flow::sync);
    facts().kind = InstructionClass::vote;
    now().bytes = static_cast<std::uint8_t>(bytes);
    now().a = source(operand(1), bytes);
    now().e = source(operand(2), 4);
    now().d = destination(operand(0), 4);
    now().d2 = second_destination(operand(0));
  }

  void redux() {
    start(dsv2::concat("redux.", atomic_operation(), ".", current_->type()), Flow::sync);
    facts().kind = InstructionClass::shuffle;
    now().a = source(operand(1), 4);
    now().e = source(operand(2), 4);
    now().d = destination(operand(0), 4);
  }

  void elect() {
    start("elect", Flow::sync);
    facts().kind = InstructionClass::vote;
    now().e = source(operand(1), 4);
    now().d = optional_destination(operand(0), 4);
    now().d2 = second_destination(operand(0));
  }

  void activemask() {
    start("activemask");
    facts().kind = InstructionClass::vote;
    now().d = destination(operand(0), 4);
  }

  // ---- matrices
  void load_matrix() { matrix_access(true); }
  void store_matrix() { matrix_access(false); }
  void matrix_access(bool loads) {
    if (!has("m8n8") || !has("b16")) refuse("shape or type of ", head());
    start(loads ? "ldmatrix" : "stmatrix", Flow::sync);
    facts().kind = loads ? InstructionClass::shared_load : InstructionClass::shared_store;
    now().space = named_space().value_or(Space::generic);
    address(operand(loads ? 1 : 0));
    now().bytes = 16;
    now().mode = has("trans") ? 1 : 0;
    now().e = full_mask();
    const auto elements = data(operand(loads ? 0 : 1));
    now().elements = static_cast<std::uint8_t>(elements.size());
    std::vector<std::int32_t> slots;
    for (const Operand& element : elements) slots.push_back(loads ? destination(element, 4) : source(element, 4));
    set_list(slots);
  }

  struct Shape {
    int m = 0, n = 0, k = 0;
  };
  Shape shape() const {
    for (const std::string_view part : current_->opcode) {
      Shape result;
      if (std::sscanf(std::string(part).c_str(), "m%dn%dk%d", &result.m, &result.n, &result.k) == 3) return result;
    }
    refuse("shape of ", head());
  }

  static FlopType tensor_type(std::string_view type) {
    if (type == "bf16") return FlopType::tensor_bf16;
    if (type == "f16") return FlopType::tensor_f16;
    if (type == "tf32") return FlopType::tensor_tf32;
    if (type == "f64") return FlopType::tensor_f64;
    if (type == "s8" || type == "u8") return FlopType::tensor_int8;
    if (type == "s4" || type == "u4" || type == "b1") return FlopType::tensor_int4;
    if (type == "e4m3" || type == "e5m2") return FlopType::tensor_fp8;
    refuse("type .", type, " of a matrix");
  }

  /// d, a, b, c as lists, one after the other; how many each has stands before them.
  void matrix_operands(std::string_view d_type, std::string_view a_type, std::string_view c_type) {
    std::vector<std::int32_t> counts;
    std::vector<std::int32_t> slots;
    const std::string_view types[] = {d_type, a_type, a_type, c_type};
    for (const std::size_t i : {1u, 2u, 3u, 0u}) {
      const int width = types[i] == "f64" ? 8 : 4;
      const auto elements = data(operand(i));
      counts.push_back(static_cast<std::int32_t>(elements.size()));
      for (const Operand& element : elements)
        slots.push_back(i == 0 ? destination(element, width) : source(element, width));
    }
    // Order in the list: a, b, c, d.
    set_list(slots);
    now().elements = static_cast<std::uint8_t>(counts[0]);
    now().bytes = static_cast<std::uint8_t>(counts[1]);
    now().register_bytes = static_cast<std::uint8_t>(counts[2]);
    now().flags = static_cast<std::uint8_t>(counts[3]);
  }

  void note_tensor(const Shape& size, std::string_view type) {
    facts().kind = InstructionClass::tensor;
    facts().flop_type = tensor_type(type);
    facts().flops = static_cast<std::uint32_t>(2 * size.m * size.n * size.k);
    facts().flops_per_warp = true;
  }

  /// Bits 0 and 1 of `mode`, of sums of integers: they wrap, saturate, or count bits that differ or agree.
  std::uint8_t integer_sum() const {
    return static_cast<std::uint8_t>(has("satfinite") ? 1 : has("xor") ? 2 : has("and") ? 3 : 0);
  }

  void mma() {
    const bool is_sparse = has("sp") || has("sp::ordered_metadata");
    const auto& parts = current_->opcode;
    if (!has("sync") || has("block_scale")) refuse("form of mma");
    // The types follow the layouts and what may stand between: .kind::... asks for other fragments.
    std::size_t first = 0;
    for (std::size_t i = 1; i < parts.size(); ++i) {
      if (parts[i].starts_with("kind::")) refuse("mma of .", parts[i]);
      if (parts[i] == "row" || parts[i] == "col" || parts[i] == "satfinite") first = i + 1;
    }
    if (first == 0 || first + 4 > parts.size()) refuse("form of mma");
    const std::string_view d = parts[first], a = parts[first + 1], b = parts[first + 2], c = parts[first + 3];
    const Shape size = shape();
    const bool is_binary = has("xor") || has("and");
    start(dsv2::concat(is_sparse ? "mma.sp" : "mma", ".m", size.m, "n", size.n, "k", size.k, ".", d, ".", a, ".", b,
                       ".", c,
                       !is_binary   ? ""
                       : has("xor") ? ".xor"
                                    : ".and"),
          Flow::sync);
    note_tensor(size, a);
    now().mode = integer_sum();
    const bool is_quad = size.m == 8 && a == "f16";
    if (is_quad) {  // four products by eight lanes each, in any layout
      const auto layout = std::find(parts.begin(), parts.end(), "m8n8k4") - parts.begin();
      now().mode = static_cast<std::uint8_t>((modifier(static_cast<std::size_t>(layout) + 1) == "col" ? 1 : 0) |
                                             (modifier(static_cast<std::size_t>(layout) + 2) == "col" ? 2 : 0));
      facts().flops *= 4;
    } else if (!has("row") || !has("col")) {
      refuse("layout of mma");
    }
    now().e = full_mask();
    if (is_sparse) {
      facts().flops /= 2;  // what is multiplied: half of A is zero
      now().c = source(operand(4), 4);
      now().immediate = static_cast<std::int64_t>(number_of(operand(5)).value_or(0));
    }
    matrix_operands(d, a, c);
  }

  void wmma() {
    if (modifier(1) == "mma") return wmma_multiply();
    const bool loads = modifier(1) == "load";
    const Shape size = shape();
    const std::string_view type = current_->type();
    const std::string_view part = has("a") ? "a" : has("b") ? "b" : loads ? "c" : "d";
    const bool column = has("col");
    start(dsv2::concat("wmma.", modifier(1), ".", part, ".m", size.m, "n", size.n, "k", size.k, ".",
                       column ? "col" : "row", ".", type),
          Flow::sync);
    set_space(loads);
    address(operand(loads ? 1 : 0));
    now().e = full_mask();
    const auto elements = data(operand(loads ? 0 : 1));
    const int width = type == "f64" ? 8 : 4;
    now().elements = static_cast<std::uint8_t>(elements.size());
    now().bytes = static_cast<std::uint8_t>(std::max(0, ptx::type_bytes(type)));
    if (operand_count() > 2) now().b = source(operand(2), 4);
    std::vector<std::int32_t> slots;
    for (const Operand& element : elements)
      slots.push_back(loads ? destination(element, width) : source(element, width));
    set_list(slots);
  }

  void wmma_multiply() {
    const auto& parts = current_->opcode;
    const Shape size = shape();
    if (!has("sync")) refuse("form of wmma");
    // The types are the last but for these: .d.c of f16, .d.a.b.c of the others.
    std::size_t end = parts.size();
    while (parts[end - 1] == "satfinite" || parts[end - 1] == "rn") --end;
    const std::string_view c = parts[end - 1];
    std::string_view a = "f16";
    for (const std::string_view candidate : {"bf16", "tf32", "s8", "u8", "s4", "u4", "b1", "f64"}) {
      if (has(candidate)) a = candidate;
    }
    const std::string_view result = parts[end - (a == "f16" ? 2 : 4)];
    start(dsv2::concat("wmma.mma.m", size.m, "n", size.n, "k", size.k, ".", result, ".", a, ".", c), Flow::sync);
    note_tensor(size, a);
    now().mode = integer_sum();
    now().e = full_mask();
    matrix_operands(result, a, c);
  }

  // ---- asynchronous copies
  void copy_async() {
    if (modifier(1) != "async") refuse("form of cp");
    if (has("commit_group")) return async_group("cp.commit");
    if (has("wait_group")) return async_group("cp.wait");
    if (has("wait_all")) return async_group("cp.wait_all");
    start("cp.async");
    program_->copies_asynchronously = true;
    facts().kind = InstructionClass::async_copy;
    now().space = Space::shared;
    address(operand(0));
    now().space = Space::shared;
    now().bytes = static_cast<std::uint8_t>(operand(2).bits);
    const Operand& from = operand(1);
    if (from.elements[0].kind == Kind::symbol) {
      now().c = address_constant(symbol(from.elements[0]), 8);
    } else {
      now().c = source(from.elements[0], 8);
    }
    now().target = static_cast<std::int32_t>(from.offset);
    const std::size_t extra = operand_count() - (has("L2::cache_hint") ? 1 : 0);
    if (extra > 3) {  // how many bytes are read, the rest is zero; or whether to ignore the source
      const Operand& size = operand(3);
      if (size.kind == Kind::reg && bytes_of(size) == 0) {
        now().d2 = source_predicate(size);
        now().mode = 1;
      } else if (number_of(size) != std::uint64_t{now().bytes}) {
        now().b = source(size, 4);
      }
    }
  }
  void async_group(std::string key) {
    start(std::move(key));
    facts().kind = InstructionClass::async_copy;
    if (operand_count() > 0) now().immediate = static_cast<std::int64_t>(operand(0).bits);
  }

  // ---- mbarriers and bulk copies
  /// What an address within brackets is, once its offset has been added to the base: a register, or a constant.
  struct ResolvedAddress {
    int reg = -1;
    Operand base;
  };
  /// To be called before the instruction that uses it is begun.
  ResolvedAddress resolve(const Operand& operand) {
    if (operand.kind != Kind::address) refuse("expected an address");
    ResolvedAddress result{.reg = -1, .base = operand.elements[0]};
    if (operand.offset == 0) return result;
    if (result.base.kind != Kind::reg) {
      result.base.offset += operand.offset;
      return result;
    }
    const int bytes = bytes_of(result.base);
    result.reg = new_register(bytes);
    begin(dsv2::concat("add.u", 8 * bytes));
    facts().synthetic = true;
    now().a = source(result.base, bytes);
    now().b = constant(static_cast<std::uint64_t>(operand.offset), bytes);
    now().d = define(result.reg);
    return result;
  }
  /// Its slot, and whether that holds 8 bytes a lane.
  std::pair<std::int32_t, bool> place(const ResolvedAddress& address) {
    if (address.reg >= 0) return {use(address.reg), register_bytes_[static_cast<std::size_t>(address.reg)] == 8};
    const int bytes = address.base.kind == Kind::reg ? bytes_of(address.base) : 8;
    if (address.base.kind == Kind::integer)
      return {constant(address.base.bits + static_cast<std::uint64_t>(address.base.offset), 8), true};
    return {source(address.base, bytes), bytes == 8};
  }

  void tracks_by_warps() {
    program_->named_barriers = true;
    program_->copies_asynchronously = true;
  }

  void mbarrier() {
    tracks_by_warps();
    const std::string_view operation = modifier(1);
    const bool waits = operation == "test_wait" || operation == "try_wait";
    const bool counts =
        operation == "arrive" || operation == "arrive_drop" || operation == "expect_tx" || operation == "complete_tx";
    if (operation == "pending_count") {
      start("mbarrier.pending_count");
      facts().kind = InstructionClass::integer;
      now().a = source(operand(1), 8);
      now().d = destination(operand(0), 4);
      return;
    }
    if (!waits && !counts && operation != "init" && operation != "inval") refuse("form of mbarrier");
    start(counts ? std::string("mbarrier.arrive") : dsv2::concat("mbarrier.", operation),
          waits ? Flow::control : Flow::straight);
    facts().kind = InstructionClass::barrier;
    now().space = Space::shared;
    const bool has_result = waits || operation.starts_with("arrive");
    address(operand(has_result ? 1 : 0));
    now().mode = mbarrier_mode(operation);
    const std::size_t next = has_result ? 2 : 1;
    if (waits) {
      now().c = source(operand(2), has("parity") ? 4 : 8);
      now().d = destination(operand(0), 0);
    } else {
      if (operand_count() > next) now().b = source(operand(next), 4);
      if (has_result) now().d = optional_destination(operand(0), 8);
    }
  }

  std::uint8_t mbarrier_mode(std::string_view operation) const {
    int mode = 0;
    if (has("parity")) mode |= kMbarrierParity;
    if (has("relaxed")) mode |= kMbarrierRelaxed;
    if (has("expect_tx")) mode |= kMbarrierExpects;
    if (operation == "arrive_drop") mode |= kMbarrierDrops;
    if (has("noComplete")) mode |= kMbarrierIncomplete;
    if (has("noinc")) mode |= kMbarrierNoIncrement;
    if (operation.ends_with("_tx")) mode |= kMbarrierNoArrival;
    return static_cast<std::uint8_t>(mode);
  }

  /// fence.proxy.async is what the checks know; what the others order is ordered here anyway.
  void fence() {
    if (modifier(1) == "proxy") {
      start(has("async") && !has("global") ? "fence.proxy" : "nop");
    } else {
      const bool within_block = has("cta") || modifier(1) == "mbarrier_init";
      start(within_block ? "nop" : "fence");
    }
    facts().kind = InstructionClass::barrier;
  }

  void block_rank() {
    start("getctarank");
    facts().kind = InstructionClass::integer;
    now().a = source(operand(1), operand(1).kind == Kind::reg ? bytes_of(operand(1)) : 8);
    now().address_bytes = static_cast<std::uint8_t>(operand(1).kind == Kind::reg ? bytes_of(operand(1)) : 8);
    now().d = destination(operand(0), 4);
  }

  void copy() {
    if (has("mbarrier")) {
      tracks_by_warps();
      start("cp.async.mbarrier");
      facts().kind = InstructionClass::async_copy;
      now().space = Space::shared;
      address(operand(0));
      now().mode = mbarrier_mode("");
      return;
    }
    if (!has("bulk")) return copy_async();
    tracks_by_warps();
    if (has("commit_group") || has("wait_group")) return async_group(has("commit_group") ? "bulk.commit" : "bulk.wait");
    has("tensor") ? copy_tensor() : copy_bulk();
  }

  /// Where a bulk copy's bytes go; nothing where it is a prefetch.
  enum class Direction { load, shared, store, prefetch };
  Direction direction() const {
    if (has("prefetch")) return Direction::prefetch;
    const std::string_view first = modifier(head() == "cp" && modifier(1) == "reduce" ? 4 : 3);
    const std::string_view to = has("tensor") ? modifier(modifier(1) == "reduce" ? 6 : 5) : first;
    if (to == "global") return Direction::store;
    return has("global") ? Direction::load : Direction::shared;
  }

  void set_reduction() {
    if (modifier(1) != "reduce" && head() != "red") return;
    constexpr std::pair<std::string_view, Reduction> kOperations[] = {
        {"add", Reduction::add}, {"min", Reduction::min},      {"max", Reduction::max},    {"inc", Reduction::inc},
        {"dec", Reduction::dec}, {"and", Reduction::and_bits}, {"or", Reduction::or_bits}, {"xor", Reduction::xor_bits},
    };
    for (const auto& [name, reduction] : kOperations) {
      if (has(name)) now().mode = static_cast<std::uint8_t>(reduction);
    }
    if (now().mode == 0) refuse("operation of ", head());
    if (!has("tensor")) now().bytes = static_cast<std::uint8_t>(reduction_type(current_->type()));
    const bool sums_floats = has("f32") || has("f64") || has("f16") || has("bf16");
    if (sums_floats || has("tensor")) program_->ordered = true;
  }
  static ReductionType reduction_type(std::string_view type) {
    constexpr std::pair<std::string_view, ReductionType> kTypes[] = {
        {"u32", ReductionType::u32},   {"b32", ReductionType::u32}, {"s32", ReductionType::s32},
        {"u64", ReductionType::u64},   {"b64", ReductionType::u64}, {"s64", ReductionType::s64},
        {"f16", ReductionType::f16},   {"f32", ReductionType::f32}, {"f64", ReductionType::f64},
        {"bf16", ReductionType::bf16},
    };
    for (const auto& [name, reduction] : kTypes) {
      if (name == type) return reduction;
    }
    refuse("type .", type, " of a reduction");
  }

  /// The list of a bulk copy: its mbarrier, the mask of blocks, and what else there is.
  void set_bulk_list(std::int32_t barrier, std::size_t mask_at, const std::vector<std::int32_t>& rest) {
    std::vector<std::int32_t> slots = {barrier, -1};
    if (has("multicast::cluster")) slots[1] = source(operand(mask_at), 4);
    slots.insert(slots.end(), rest.begin(), rest.end());
    set_list(slots);
  }

  void set_bulk_addresses(const ResolvedAddress* barrier, const ResolvedAddress& other) {
    const auto [slot, wide] = place(other);
    now().c = slot;
    if (wide) now().flags |= 2;
    if (barrier == nullptr) return;
    const auto [barrier_slot, barrier_wide] = place(*barrier);
    barrier_slot_ = barrier_slot;
    if (barrier_wide) now().flags |= 1;
  }

  void copy_bulk() {
    if (has("cp_mask")) refuse("cp.async.bulk with a mask of bytes");
    constexpr std::string_view kKeys[] = {"bulk.load", "bulk.shared", "bulk.store", "bulk.prefetch"};
    const Direction to = direction();
    const bool signals = to == Direction::load || to == Direction::shared;
    const std::size_t shared = to == Direction::store ? 1 : 0;
    const ResolvedAddress other = resolve(operand(to == Direction::prefetch ? 0 : 1 - shared));
    const ResolvedAddress barrier = signals ? resolve(operand(3)) : ResolvedAddress{};
    start(std::string(kKeys[static_cast<std::size_t>(to)]));
    facts().kind = InstructionClass::async_copy;
    now().space = Space::shared;
    if (to != Direction::prefetch) address(operand(shared));
    now().space = Space::shared;
    now().target = 0;
    set_bulk_addresses(signals ? &barrier : nullptr, other);
    now().b = source(operand(to == Direction::prefetch ? 1 : 2), 4);
    set_reduction();
    set_bulk_list(signals ? barrier_slot_ : -1, 4, {});
  }

  void copy_tensor() {
    for (const std::string_view mode : {"im2col", "im2col_no_offs", "im2col::w", "im2col::w::128", "im2col_no_offs::w",
                                        "im2col_no_offs::w::128", "tile::gather4", "tile::scatter4"}) {
      if (has(mode)) refuse("tensor copies in mode .", mode);
    }
    constexpr std::string_view kKeys[] = {"tensor.load", "tensor.shared", "tensor.store", "tensor.prefetch"};
    const Direction to = direction();
    const bool loads = to == Direction::load;
    const Operand& tensor = operand(loads ? 1 : 0);
    if (tensor.kind != Kind::address || tensor.elements.size() != 2) refuse("form of a tensor's coordinates");
    const auto coordinates = data(tensor.elements[1]);
    const ResolvedAddress map = resolve(tensor);
    const ResolvedAddress barrier = loads ? resolve(operand(2)) : ResolvedAddress{};
    start(std::string(kKeys[static_cast<std::size_t>(to)]));
    facts().kind = InstructionClass::async_copy;
    now().space = Space::shared;
    if (to != Direction::prefetch) address(operand(loads ? 0 : 1));
    now().space = Space::shared;
    now().target = 0;
    set_bulk_addresses(loads ? &barrier : nullptr, map);
    now().elements = static_cast<std::uint8_t>(coordinates.size());
    set_reduction();
    std::vector<std::int32_t> slots;
    for (const Operand& coordinate : coordinates) slots.push_back(source(coordinate, 4));
    set_bulk_list(loads ? barrier_slot_ : -1, 3, slots);
  }

  /// st.async and red.async: values into a block's shared memory, of which its mbarrier is told.
  void value_async() {
    if (!has("mbarrier::complete_tx::bytes")) refuse("form of ", head(), ".async");
    tracks_by_warps();
    const int bytes = ptx::type_bytes(current_->type());
    const auto values = data(operand(1));
    if (bytes < 4) refuse("type .", current_->type(), " of ", head(), ".async");
    const ResolvedAddress barrier = resolve(operand(2));
    start("st.async");
    facts().kind = InstructionClass::async_copy;
    now().space = Space::shared;
    address(operand(0));
    now().space = Space::shared;
    set_reduction();
    now().elements = static_cast<std::uint8_t>(values.size());
    now().register_bytes = static_cast<std::uint8_t>(bytes);
    const auto [slot, wide] = place(barrier);
    if (wide) now().flags |= 1;
    std::vector<std::int32_t> slots;
    for (const Operand& value : values) slots.push_back(source(value, bytes, current_->type()));
    set_bulk_list(slot, 0, slots);
  }

  // ---- products of warpgroups
  void warpgroup_product() {
    program_->copies_asynchronously = true;
    program_->named_barriers = true;
    const std::string_view operation = modifier(1);
    if (operation == "commit_group" || operation == "wait_group" || operation == "fence") {
      start(operation == "commit_group" ? "wgmma.commit"
            : operation == "wait_group" ? "wgmma.wait"
                                        : "wgmma.fence",
            operation == "wait_group" ? Flow::control : Flow::sync);
      facts().kind = InstructionClass::tensor;
      now().e = full_mask();
      if (operand_count() > 0) now().immediate = static_cast<std::int64_t>(operand(0).bits);
      return;
    }
    if (operation != "mma_async" || has("sp") || has("b1")) refuse("form of wgmma");
    const Shape size = shape();
    const auto& parts = current_->opcode;
    // Its types follow the shape, and what saturates may stand before or behind them.
    std::vector<std::string_view> types;
    for (const std::string_view part : parts) {
      if (ptx::type_bytes(part) > 0) types.push_back(part);
    }
    if (types.size() != 3) refuse("types of wgmma");
    start(dsv2::concat("wgmma.mma.", types[0], ".", types[1], ".", types[2]), Flow::sync);
    now().e = full_mask();
    const int depth = static_cast<int>(kWgmmaDepthBytes) / ptx::type_bytes(types[1]);
    if (size.m != 64 || size.k != depth || size.n % 8 != 0 || size.n < 8 || size.n > 256) refuse("shape of wgmma");
    note_tensor({.m = kWgmmaRows, .n = size.n, .k = size.k}, types[1]);
    now().immediate = size.n;
    product_operands(types[0] == "f16" ? size.n / 4 : size.n / 2, types[1]);
  }

  void product_operands(int sums, std::string_view type) {
    const auto results = data(operand(0));
    if (static_cast<int>(results.size()) != sums) refuse("number of wgmma's results");
    const bool in_registers = operand(1).kind == Kind::vector;
    const auto rows = data(operand(1));
    if (in_registers && rows.size() != 4) refuse("number of wgmma's registers of A");
    std::vector<std::int32_t> slots;
    for (const Operand& result : results) {
      source(result, 4);
      slots.push_back(destination(result, 4));
    }
    now().elements = static_cast<std::uint8_t>(results.size());
    if (in_registers) {
      for (const Operand& row : rows) slots.push_back(source(row, 4));
    } else {
      now().a = source(operand(1), 8);
    }
    set_list(slots);
    now().b = source(operand(2), 8);
    now().c = source_predicate(operand(3));
    now().mode = product_mode(in_registers, type);
  }

  std::uint8_t product_mode(bool in_registers, std::string_view type) const {
    const auto number = [&](std::size_t index) {
      if (index >= operand_count()) return std::int64_t{0};
      const auto value = number_of(operand(index));
      if (!value) refuse("operand ", index, " of wgmma, which is no number");
      return static_cast<std::int64_t>(static_cast<std::int32_t>(*value));
    };
    int mode = has("satfinite") ? kWgmmaSaturate : 0;
    if (tensor_type(type) == FlopType::tensor_int8) return static_cast<std::uint8_t>(mode);
    if (number(4) * number(5) == -1) mode |= kWgmmaNegate;
    std::size_t next = 6;
    if (!in_registers && number(next++) == 1) mode |= kWgmmaTransposeA;
    if (number(next) == 1) mode |= kWgmmaTransposeB;
    if ((mode & (kWgmmaTransposeA | kWgmmaTransposeB)) != 0 && type != "bf16" && type != "f16") {
      refuse("wgmma of transposed .", type);
    }
    return static_cast<std::uint8_t>(mode);
  }

  // ---- after the code is known
  void allocate() {
    const std::size_t count = program_->code.size();
    std::vector<std::vector<int>> successors(count);
    for (std::size_t i = 0; i < count; ++i) {
      add_successors(i, successors[i]);
      uses_[i].moves = program_->facts[i].key.starts_with("mov.b") && program_->code[i].guard < 0;
    }
    save_registers(successors);
    std::vector<int> units;
    for (const int bytes : register_bytes_) units.push_back(bytes / 4);
    std::vector<int> live_at_entry;
    for (const auto& [special, reg] : special_registers_) live_at_entry.push_back(reg);
    find_product_hazards(*program_, uses_, successors);
    find_bytes_in_flight(*program_, uses_, successors);
    const RegisterAllocation allocation = allocate_registers(uses_, units, successors, live_at_entry);

    // Predicates first, one word each; the lanes' registers behind them.
    std::vector<std::int32_t> slots(register_bytes_.size(), -1);
    std::int32_t predicate_bytes = 0;
    for (std::size_t reg = 0; reg < slots.size(); ++reg) {
      if (register_bytes_[reg] != 0 || allocation.units[reg] < 0) continue;
      slots[reg] = predicate_bytes;
      predicate_bytes += 4;
    }
    predicate_bytes = static_cast<std::int32_t>(align_up(static_cast<std::uint64_t>(predicate_bytes), 64));
    constexpr std::int32_t kUnitBytes = 4 * kWarpLanes;
    for (std::size_t reg = 0; reg < slots.size(); ++reg) {
      if (register_bytes_[reg] != 0 && allocation.units[reg] >= 0)
        slots[reg] = predicate_bytes + allocation.units[reg] * kUnitBytes;
    }
    program_->register_bytes =
        static_cast<std::size_t>(predicate_bytes) + static_cast<std::size_t>(allocation.unit_count) * kUnitBytes;
    program_->info.registers = std::max(1, allocation.unit_count);
    rewrite(slots);
    for (const auto& [special, reg] : special_registers_) {
      const std::int32_t slot = slots[static_cast<std::size_t>(reg)];
      if (slot >= 0) program_->specials.push_back({special.first, slot, special.second});
    }
  }

  void add_successors(std::size_t index, std::vector<int>& successors) const {
    const Instruction& in = program_->code[index];
    const std::string& key = program_->facts[index].key;
    if (key == "brx") {
      for (std::int64_t i = 0; i < in.immediate; ++i)
        successors.push_back(program_->lists[static_cast<std::size_t>(in.list + i)]);
    } else if (key == "bra" || key == "call") {
      successors.push_back(in.target);
    } else if (key == "return") {
      for (const auto& [at, subroutine] : returns_) {
        if (at == static_cast<int>(index))
          successors.insert(successors.end(), subroutine->return_sites.begin(), subroutine->return_sites.end());
      }
    }
    if (falls_through(index)) successors.push_back(static_cast<int>(index) + 1);
  }

  void rewrite(const std::vector<std::int32_t>& slots) {
    const auto first_constant = static_cast<std::int32_t>(program_->register_bytes);
    const auto place = [&slots, first_constant](std::int32_t& field) {
      if (field < 0) return;
      field = (field & 1) == 0 ? slots[static_cast<std::size_t>(field / 2)] : first_constant + (field & ~1);
    };
    for (CallSite& site : program_->calls) {
      for (CallSite::Save& save : site.saves) place(save.slot);
    }
    for (std::size_t i = 0; i < program_->code.size(); ++i) {
      Instruction& in = program_->code[i];
      const std::string& key = program_->facts[i].key;
      for (std::int32_t* field : {&in.d, &in.d2, &in.a, &in.b, &in.e, &in.guard}) place(*field);
      if (key != "printf" && key != "assert") place(in.c);
      if (uses_[i].moves && in.d == in.a) program_->facts[i].key = "nop";
      const auto lists = list_sizes_.find(i);
      if (lists == list_sizes_.end()) continue;
      for (const auto& [begin, size] : lists->second) {
        for (std::size_t at = begin; at < begin + size; ++at) place(program_->lists[at]);
      }
    }
  }

  void find_lines() {
    const std::size_t count = program_->code.size();
    program_->line_end.assign(count, 0);
    program_->sync_end.assign(count, 0);
    for (std::size_t i = count; i-- > 0;) {
      const Flow flow = program_->facts[i].flow;
      const auto next = static_cast<std::uint32_t>(i + 1);
      program_->line_end[i] = flow == Flow::control || next == count ? next : program_->line_end[i + 1];
      program_->sync_end[i] = flow != Flow::straight || next == count ? next : program_->sync_end[i + 1];
    }
  }

  const ptx::Module& module_;
  const SymbolTable& symbols_;
  std::unique_ptr<Program> program_;
  const ptx::Function& kernel_;

  Frame* frame_ = nullptr;
  const ptx::Instruction* current_ = nullptr;
  std::vector<int> register_bytes_;
  std::vector<RegisterUse> uses_;
  std::map<std::size_t, std::vector<std::pair<std::size_t, std::size_t>>> list_sizes_;  ///< of operand slots
  std::vector<std::pair<std::size_t, std::vector<int>>> jump_lists_;
  std::map<std::pair<std::uint64_t, int>, std::int32_t> constants_;
  std::map<std::tuple<std::uint64_t, std::uint8_t, std::uint8_t, bool>, std::int32_t> parameter_constants_;
  std::map<std::pair<Special, int>, int> special_registers_;
  std::set<std::int32_t> address_taken_;
  std::set<const ptx::Function*> recursive_;
  std::deque<Subroutine> subroutines_;
  int stack_base_ = -1;
  int stack_top_ = -1;
  // Of each entry of Program::calls: its instruction, whom it calls, and the subroutine that it stands in.
  std::vector<int> call_instructions_;
  std::vector<Subroutine*> call_subroutines_;
  std::vector<Subroutine*> call_frames_;
  std::vector<std::pair<int, Subroutine*>> returns_;
  std::vector<std::uint64_t> call_arguments_;
  std::optional<std::uint64_t> call_result_;
  std::int32_t barrier_slot_ = -1;  ///< of the bulk copy that is lowered

  std::map<std::string, std::uint64_t> shared_;
  std::uint64_t shared_top_ = kSharedBase;
  std::uint64_t dynamic_alignment_ = 16;
  bool uses_dynamic_ = false;
  std::vector<std::pair<std::size_t, int>> dynamic_constants_;
  std::uint64_t local_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Program> lower(const ptx::Module& module, const ptx::Function& kernel, const SymbolTable& symbols) {
  DSV2_CHECK(kernel.defined, "kernel ", kernel.name, " is declared and not defined");
  return Lowering(module, kernel, symbols).run();
}

}  // namespace gpusim
