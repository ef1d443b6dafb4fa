// Modules and launches: variables are placed when a module is loaded, kernels are lowered when they are first asked
// for, handlers are bound when they first run.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include "gpusim/binding.h"
#include "gpusim/block_touches.h"
#include "gpusim/interpreter.h"
#include "gpusim/machine.h"
#include "gpusim/race.h"
#include "model/error.h"

namespace gpusim {
namespace {

/// A kernel, lowered; and bound, for each instruction set and with instruments or without.
struct Kernel {
  std::unique_ptr<Program> program;
  std::map<std::pair<std::string, bool>, std::unique_ptr<BoundProgram>> bound;
};

class LoadedModule final : public Module {
 public:
  LoadedModule(std::unique_ptr<ptx::Module> tree, DeviceMemory& memory, CompiledKernels compiled = {})
      : tree_(std::move(tree)), memory_(memory), compiled_(std::move(compiled)) {
    for (const auto& [name, variable] : tree_->variables) place(name, variable);
    for (const auto& function : tree_->functions) {
      for (const ptx::Variable& variable : function->variables) place(function->name + "::" + variable.name, variable);
    }
    for (const auto& [name, variable] : tree_->variables) relocate(name, variable);
    for (const auto& function : tree_->functions) {
      for (const ptx::Variable& variable : function->variables)
        relocate(function->name + "::" + variable.name, variable);
    }
  }

  std::vector<std::string> kernels() const override {
    std::vector<std::string> names;
    for (const auto& function : tree_->functions) {
      if (function->entry && function->defined) names.push_back(function->name);
    }
    return names;
  }

  const KernelInfo* kernel(std::string_view name) override {
    const std::lock_guard lock(mutex_);
    const Kernel* const found = lowered(name);
    return found == nullptr ? nullptr : &found->program->info;
  }

  const ModuleVariable* variable(std::string_view name) const override {
    const auto found = variables_.find(name);
    return found == variables_.end() ? nullptr : &found->second;
  }

  const BoundProgram& bound(std::string_view name, const std::string& isa, bool instrumented) {
    const std::lock_guard lock(mutex_);
    Kernel* const found = lowered(name);
    DSV2_CHECK(found != nullptr, "gpusim: the module has no kernel ", name);
    auto& entry = found->bound[{isa, instrumented}];
    if (entry == nullptr) entry = std::make_unique<BoundProgram>(bind_handlers(*found->program, isa, instrumented));
    return *entry;
  }

  const ptx::Module& tree() const { return *tree_; }

 private:
  void place(const std::string& name, const ptx::Variable& variable) {
    if (variable.space != ptx::Space::global && variable.space != ptx::Space::constant) return;
    if (variable.external) return;  // no module defines it: who uses it is told so
    const std::size_t bytes = variable.bytes;
    const std::uint64_t address = memory_.allocate_variable(bytes, name);
    DSV2_CHECK(address != 0, "gpusim: no device memory left for ", name, ", ", bytes, " bytes");
    variables_[name] = {.name = name, .address = address, .bytes = bytes};
    symbols_.variables[name] = address;
    std::memset(reinterpret_cast<void*>(address), 0, bytes);
    if (!variable.initial.empty())
      std::memcpy(reinterpret_cast<void*>(address), variable.initial.data(), variable.initial.size());
  }

  void relocate(const std::string& name, const ptx::Variable& variable) {
    const auto at = symbols_.variables.find(name);
    if (at == symbols_.variables.end()) return;
    for (const ptx::Relocation& relocation : variable.relocations) {
      const std::uint64_t value =
          (address_of(relocation.symbol, name) + static_cast<std::uint64_t>(relocation.offset)) >> relocation.shift;
      std::memcpy(reinterpret_cast<void*>(at->second + relocation.at), &value,
                  static_cast<std::size_t>(relocation.bytes));
    }
  }

  std::uint64_t address_of(const std::string& symbol, const std::string& wanted_by) const {
    if (const auto found = symbols_.variables.find(symbol); found != symbols_.variables.end()) return found->second;
    const auto function = tree_->function_index.find(symbol);
    DSV2_CHECK(function != tree_->function_index.end(), "PTX: the initialiser of ", wanted_by, " names ", symbol,
               ", which there is not");
    return kFunctionWindow | static_cast<std::uint64_t>(function->second);
  }

  Kernel* lowered(std::string_view name) {
    const auto found = kernels_.find(name);
    if (found != kernels_.end()) return &found->second;
    const ptx::Function* const function = tree_->function(name);
    if (function == nullptr || !function->entry || !function->defined) return nullptr;
    Kernel made;
    made.program = lower(*tree_, *function, symbols_);
    if (const auto known = compiled_.find(name); known != compiled_.end()) {
      KernelInfo& info = made.program->info;
      info.machine_code = known->second.capability;
      info.registers = known->second.registers;
      info.stack_bytes = known->second.stack_bytes;
    }
    return &kernels_.emplace(std::string(name), std::move(made)).first->second;
  }

  std::unique_ptr<ptx::Module> tree_;
  DeviceMemory& memory_;
  std::map<std::string, ModuleVariable, std::less<>> variables_;
  SymbolTable symbols_;
  std::map<std::string, Kernel, std::less<>> kernels_;
  CompiledKernels compiled_;
  std::mutex mutex_;
};

/// Blocks whose storage a host thread keeps beyond what a launch needs.
constexpr std::size_t kKeptBlocks = 16;
/// Of cooperative_groups: its size and the count of arrivals.
constexpr std::size_t kWorkspaceBytes = 8;

/// A bit for each `unit` bytes of the arena.
SparseTable<std::uint64_t> table_of_bits(bool wanted, std::uint64_t unit) {
  return SparseTable<std::uint64_t>(wanted ? DeviceMemory::kArenaBytes / unit / 64 : 0);
}

constexpr std::size_t kSectors = DeviceMemory::kArenaBytes / 32;

/// Cells of global memory for the race check, kept from launch to launch: fresh pages cost more than the check.
struct RaceTable {
  explicit RaceTable(std::uint32_t width) : cell_bytes(width) {}
  std::uint32_t cell_bytes;
  SparseTable<GlobalCell> cells{DeviceMemory::kArenaBytes / cell_bytes};
  std::uint64_t next_number = 1;  ///< numbers below are those of earlier launches' blocks
};

/// Tables that no launch uses now.
class RaceTables {
 public:
  static std::unique_ptr<RaceTable> take(std::uint64_t blocks, std::uint32_t cell_bytes) {
    constexpr std::uint64_t kNumbers = std::uint64_t{1} << 31;  // the top bit is a flag
    DSV2_CHECK(blocks < kNumbers / 2, "gpusim: too many blocks for the check of races between them");
    const std::lock_guard lock(mutex_);
    std::erase_if(free_, [&](const auto& table) { return table->next_number + blocks + 1 >= kNumbers; });
    const auto found =
        std::find_if(free_.begin(), free_.end(), [&](const auto& table) { return table->cell_bytes == cell_bytes; });
    if (found == free_.end()) return std::make_unique<RaceTable>(cell_bytes);
    std::unique_ptr<RaceTable> table = std::move(*found);
    free_.erase(found);
    return table;
  }
  static void give_back(std::unique_ptr<RaceTable> table) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(table));
  }

 private:
  static inline std::mutex mutex_;
  static inline std::vector<std::unique_ptr<RaceTable>> free_;
};

/// Tables of what host threads touch, those that no launch uses now.
class TouchTables {
 public:
  static std::unique_ptr<BlockTouches> take(std::uint64_t blocks) {
    const std::lock_guard lock(mutex_);
    while (!free_.empty()) {
      std::unique_ptr<BlockTouches> table = std::move(free_.back());
      free_.pop_back();
      if (table->start(blocks)) return table;
    }
    auto table = std::make_unique<BlockTouches>();
    DSV2_CHECK(table->start(blocks), "gpusim: too many blocks for the check of races between them");
    return table;
  }
  static void give_back(std::unique_ptr<BlockTouches> table) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(table));
  }

 private:
  static inline std::mutex mutex_;
  static inline std::vector<std::unique_ptr<BlockTouches>> free_;
};

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
#else
constexpr bool kThreadSanitizer = false;
#endif

/// One launch from its configuration to its result.
class LaunchRun {
 public:
  LaunchRun(LoadedModule& module, std::string_view kernel, const LaunchConfig& config, DeviceMemory& memory,
            const DeviceModel& device, const Settings& settings)
      : loads_(settings.counts ? kSectors / 64 : 0),
        stores_(settings.counts ? kSectors / 64 : 0),
        bytes_{table_of_bits(settings.touched, 1), table_of_bits(settings.touched, 1),
               table_of_bits(settings.touched, 1)},
        pages_{table_of_bits(settings.touched, kTouchedPage), table_of_bits(settings.touched, kTouchedPage),
               table_of_bits(settings.touched, kTouchedPage)},
        start_(std::chrono::steady_clock::now()) {
    launch_.bound = &module.bound(kernel, settings.isa, is_instrumented(settings));
    launch_.module = &module.tree();
    launch_.config = config;
    launch_.config.cluster = {std::max(1u, config.cluster.x), std::max(1u, config.cluster.y),
                              std::max(1u, config.cluster.z)};
    launch_.memory = &memory;
    launch_.device = &device;
    launch_.settings = settings;
    launch_.sector_bits[0] = loads_.data();
    launch_.sector_bits[1] = stores_.data();
    for (int kind = 0; kind < 3; ++kind) {
      launch_.byte_bits[kind] = bytes_[kind].data();
      launch_.page_bits[kind] = pages_[kind].data();
    }
    launch_.order = &order_;
    // A frame here also holds what ptxas would keep in registers: the stack is larger than what was asked for.
    constexpr std::size_t kStackFactor = 16;
    launch_.local_bytes = program().local_bytes + (program().uses_stack ? kStackFactor * config.stack_bytes : 0);
    set_parameters(config.parameters);
    launch_.shared_bytes = program().static_shared_bytes + config.dynamic_shared_bytes;
    if (config.cooperative) {
      launch_.workspace = memory.allocate(kWorkspaceBytes, "workspace of a cooperative launch", Byte::initialised);
      DSV2_CHECK(launch_.workspace != 0, "gpusim: no device memory left for a cooperative launch");
      std::memset(reinterpret_cast<void*>(launch_.workspace), 0, kWorkspaceBytes);
    }
  }
  ~LaunchRun() {
    if (races_ != nullptr) RaceTables::give_back(std::move(races_));
    if (launch_.workspace != 0) launch_.memory->release(launch_.workspace);
  }
  LaunchRun(const LaunchRun&) = delete;
  LaunchRun& operator=(const LaunchRun&) = delete;

  LaunchResult run() {
    if (!launch_.settings.checks.global_races) {
      run_blocks_on(thread_count());
    } else if (blocks_may_order_themselves() || !run_without_races()) {
      watch_order();
      run_blocks_on(1);
    }
    return result();
  }

 private:
  const Program& program() const { return *launch_.bound->program; }

  static bool is_instrumented(const Settings& settings) {
    const Checks& checks = settings.checks;
    return settings.counts || settings.touched || checks.any_global() || checks.shared_races || checks.global_races ||
           checks.async_copies;
  }

  void set_parameters(std::span<const std::byte> parameters) {
    const Program& from = program();
    DSV2_CHECK(parameters.size() >= from.info.parameter_bytes, "gpusim: kernel ", from.readable, " takes ",
               from.info.parameter_bytes, " bytes of parameters, ", parameters.size(), " were given");
    launch_.parameters.assign(parameters.begin(), parameters.end());
    launch_.parameters.resize(from.info.parameter_bytes + 16);
    launch_.constants.resize(from.constants.size());
    if (!from.constants.empty()) std::memcpy(launch_.constants.data(), from.constants.data(), from.constants.size());
    for (const ParameterConstant& constant : from.parameters) fill(constant);
  }

  void fill(const ParameterConstant& constant) {
    std::byte value[16] = {};
    const auto bytes = static_cast<std::size_t>(constant.bytes);
    const auto lane_bytes = static_cast<std::size_t>(constant.lane_bytes);
    std::memcpy(value, &launch_.parameters[constant.parameter], bytes);
    const bool negative = constant.sign && (std::to_integer<int>(value[bytes - 1]) & 0x80) != 0;
    if (negative) std::fill(value + bytes, value + sizeof value, std::byte{0xff});
    for (std::size_t lane = 0; lane < kWarpLanes; ++lane) {
      std::memcpy(launch_.constants.data() + constant.constant + lane * lane_bytes, value, lane_bytes);
    }
  }

  void run_blocks_on(std::size_t threads) {
    launch_.parallel = threads > 1;
    machines_.resize(threads);
    for (Machine& machine : machines_) prepare(machine);
    for (std::size_t i = 0; i < touches_.size(); ++i) machines_[i].touches = touches_[i].get();
    std::vector<std::thread> others;
    for (std::size_t i = 1; i < threads; ++i) others.emplace_back([this, i] { run_machine(machines_[i]); });
    run_machine(machines_[0]);
    for (std::thread& thread : others) thread.join();
  }

  // ---- races between blocks: first all cores tell whether there are any; only where there are, the launch is undone
  // and its blocks run in order, so that what is said does not depend on the cores.

  bool blocks_may_order_themselves() const {
    return program().ordered || program().global_atomics || launch_.config.cooperative ||
           launch_.config.cluster.count() > 1;
  }

  /// False where blocks met; the launch has not happened then.
  bool run_without_races() {
    SavedPages saved(*launch_.memory);
    launch_.saved = &saved;
    // A thread sanitizer would take the kernel's races for ours.
    const std::size_t threads = kThreadSanitizer ? 1 : thread_count();
    for (std::size_t i = 0; i < threads; ++i) touches_.push_back(TouchTables::take(launch_.config.grid.count()));
    run_blocks_on(threads);
    bool met = launch_.blocks_met.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < threads && !met; ++i) {
      for (std::size_t j = 0; j < i && !met; ++j) met = BlockTouches::meet(*touches_[i], *touches_[j]);
    }
    for (auto& table : touches_) TouchTables::give_back(std::move(table));
    touches_.clear();
    launch_.saved = nullptr;
    if (met) undo(saved);
    return !met;
  }

  void undo(SavedPages& saved) {
    saved.restore();
    machines_.clear();
    launch_.next_block = 0;
    launch_.executed = 0;
    launch_.stop = false;
    for (auto* const table : {&loads_, &stores_}) table->clear();
    for (auto& table : bytes_) table.clear();
    for (auto& table : pages_) table.clear();
  }

  void watch_order() {
    const std::uint64_t blocks = launch_.config.grid.count();
    races_ = RaceTables::take(blocks, program().global_cell_bytes);
    launch_.global_cells = races_->cells.data();
    order_.base = static_cast<std::uint32_t>(races_->next_number);
    races_->next_number += blocks + 1;
    order_.epochs.assign(blocks, 0);
    order_.published.resize(blocks);
    order_.acquired.assign(blocks, 0);
  }

  /// One where the order of blocks shows, or where they wait for each other.
  std::size_t thread_count() const {
    const std::uint64_t blocks = launch_.config.grid.count();
    if (program().ordered || launch_.config.cooperative) return 1;
    const int asked = launch_.settings.threads;
    const std::size_t most =
        asked > 0 ? static_cast<std::size_t>(asked) : std::max(1u, std::thread::hardware_concurrency());
    return static_cast<std::size_t>(std::clamp<std::uint64_t>(blocks / blocks_at_once(), 1, most));
  }

  void prepare(Machine& machine) {
    const std::size_t count = program().code.size();
    machine.launch = &launch_;
    machine.program = &program();
    machine.code = launch_.bound->code.data();
    machine.arena_base = launch_.memory->base();
    machine.checks = launch_.settings.checks;
    machine.checks.async_copies &= program().copies_asynchronously;  // what cannot happen is not watched
    machine.counted = launch_.settings.counts;
    machine.touched = launch_.settings.touched;
    machine.observes = is_instrumented(launch_.settings);
    machine.parallel = launch_.parallel;
    machine.logs = machine.checks.shared_races && !program().named_barriers;
    machine.quick = !machine.counted && machine.logs == machine.checks.shared_races;
    if (!machine.counted) return;
    machine.warp_entries.assign(count + 1, 0);
    machine.lane_entries.assign(count + 1, 0);
    machine.guard_losses.assign(count, 0);
    machine.memory_counts.assign(count, {});
    machine.divergences.assign(count, 0);
  }

  std::uint64_t blocks_at_once() const {
    return launch_.config.cooperative ? launch_.config.grid.count() : launch_.config.cluster.count();
  }

  /// Takes blocks, or clusters of blocks, until there are no more.
  void run_machine(Machine& machine) {
    const std::uint64_t together = blocks_at_once();
    const std::uint64_t groups = launch_.config.grid.count() / together;
    // A host thread keeps the blocks' storage from launch to launch: fresh pages cost more than a small kernel runs.
    static thread_local std::vector<Block> blocks;
    if (blocks.size() < together || blocks.size() > together + kKeptBlocks) blocks = std::vector<Block>(together);
    std::vector<Block*> resident;
    for (std::uint64_t rank = 0; rank < together; ++rank) resident.push_back(&blocks[rank]);
    while (!machine.stop && !launch_.stop.load(std::memory_order_relaxed)) {
      const std::uint64_t group = launch_.next_block.fetch_add(1, std::memory_order_relaxed);
      if (group >= groups) break;
      for (std::uint64_t rank = 0; rank < together; ++rank)
        start_block(machine, blocks[rank], block_number(group, rank));
      if (launch_.config.cluster.count() > 1) {
        for (Block* const block : resident) block->cluster = resident;
      }
      run_blocks(machine, resident);
    }
  }

  /// The linear number of a cluster's block; of a block where there are no clusters.
  std::uint64_t block_number(std::uint64_t group, std::uint64_t rank) const {
    const Dim3 cluster = launch_.config.cluster;
    if (cluster.count() <= 1) return group * blocks_at_once() + rank;
    const Dim3 grid = launch_.config.grid;
    const std::uint64_t across = grid.x / cluster.x;
    const std::uint64_t down = grid.y / cluster.y;
    const std::uint64_t x = group % across * cluster.x + rank % cluster.x;
    const std::uint64_t y = group / across % down * cluster.y + rank / cluster.x % cluster.y;
    const std::uint64_t z = group / across / down * cluster.z + rank / cluster.x / cluster.y;
    return x + grid.x * (y + grid.y * z);
  }

  // ---- the result

  LaunchResult result() {
    LaunchResult result;
    for (const Machine& machine : machines_) {
      if (result.status == LaunchStatus::ok) result.status = machine.status;
    }
    collect_findings(result);
    if (launch_.settings.counts) collect_counts(result);
    if (launch_.settings.touched) {
      result.loaded = touched_ranges(0);
      result.stored = touched_ranges(1);
      result.atomics = touched_ranges(2);
    }
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    return result;
  }

  SourcePlace place(std::uint32_t at) const {
    const InstructionFacts& facts = program().facts[at];
    SourcePlace result{.file = {}, .line = 0, .ptx = std::string(facts.text)};
    std::replace_if(
        result.ptx.begin(), result.ptx.end(), [](char c) { return c == '\t' || c == '\n' || c == '\r'; }, ' ');
    if (facts.place < 0) return result;
    const ptx::Place& from = launch_.module->places[static_cast<std::size_t>(facts.place)];
    const auto file = launch_.module->files.find(from.file);
    if (file == launch_.module->files.end()) return result;
    result.file = file->second;
    result.line = from.line;
    return result;
  }

  void collect_findings(LaunchResult& result) const {
    std::map<std::pair<FindingKind, std::uint32_t>, FindingRecord> merged;
    for (const Machine& machine : machines_) {
      for (const auto& [key, found] : machine.findings) {
        const auto [entry, fresh] = merged.try_emplace(key, found);
        if (fresh) continue;
        const std::uint64_t times = entry->second.times + found.times;
        if (found.block < entry->second.block) entry->second = found;
        entry->second.times = times;
      }
    }
    for (const auto& [key, found] : merged) result.findings.push_back(finding(key.first, key.second, found));
    merge_by_place(result.findings);
  }

  Finding finding(FindingKind kind, std::uint32_t at, const FindingRecord& found) const {
    const Dim3 threads = launch_.config.block;
    Finding result{.kind = kind,
                   .warning = found.warning,
                   .kernel = program().readable,
                   .place = place(at),
                   .other = {},
                   .block = found.block_index,
                   .thread = {found.thread % threads.x, found.thread / threads.x % threads.y,
                              found.thread / threads.x / threads.y},
                   .times = found.times,
                   .message = found.message};
    if (found.other >= 0) result.other = place(static_cast<std::uint32_t>(found.other));
    return result;
  }

  /// One entry for each kind and line, the first instruction's: an unrolled loop is one place.
  static void merge_by_place(std::vector<Finding>& findings) {
    std::vector<Finding> merged;
    for (Finding& finding : findings) {
      const auto same = std::find_if(merged.begin(), merged.end(), [&](const Finding& other) {
        return other.kind == finding.kind && !finding.place.file.empty() && other.place.file == finding.place.file &&
               other.place.line == finding.place.line;
      });
      if (same == merged.end()) {
        merged.push_back(std::move(finding));
      } else {
        same->times += finding.times;
      }
    }
    findings = std::move(merged);
  }

  /// Counts of one instruction, over all machines.
  Counts instruction_counts(std::size_t at, std::uint64_t warps, std::uint64_t lanes) const {
    const InstructionFacts& facts = program().facts[at];
    Counts counts;
    for (const Machine& machine : machines_) lanes -= machine.guard_losses[at];
    counts.warp_instructions = warps;
    counts.thread_instructions = lanes;
    counts.by_class[static_cast<std::size_t>(facts.kind)] = warps;
    const std::uint64_t flops = facts.flops * (facts.flops_per_warp ? warps : lanes);
    counts.flops[static_cast<std::size_t>(facts.flop_type)] += flops;
    if (facts.key == "bra" || facts.key == "brx") counts.branches = warps;
    for (const Machine& machine : machines_) {
      counts.divergent_branches += machine.divergences[at];
      add_memory(counts, facts, machine.memory_counts[at]);
    }
    return counts;
  }

  static void add_memory(Counts& counts, const InstructionFacts& facts, const MemoryCounts& memory) {
    const bool loads = facts.key == "ld" || facts.key == "cp.async" || facts.key.starts_with("wmma.load") ||
                       facts.key == "bulk.load" || facts.key == "tensor.load";
    (loads ? counts.global_load_requests : counts.global_store_requests) += memory.global_requests;
    (loads ? counts.global_load_sectors : counts.global_store_sectors) += memory.global_sectors;
    (loads ? counts.global_load_bytes : counts.global_store_bytes) += memory.global_bytes;
    counts.global_ideal_sectors += memory.global_ideal;
    counts.shared_requests += memory.shared_requests;
    counts.shared_wavefronts += memory.shared_wavefronts;
    counts.shared_ideal_wavefronts += memory.shared_ideal;
    counts.atomics += memory.atomics;
  }

  void collect_counts(LaunchResult& result) const {
    std::map<std::pair<std::string, int>, Counts> lines;
    std::int64_t warps = 0;
    std::int64_t lanes = 0;
    double loaded = 0;
    for (std::size_t at = 0; at < program().code.size(); ++at) {
      for (const Machine& machine : machines_) {
        warps += machine.warp_entries[at];
        lanes += machine.lane_entries[at];
      }
      const InstructionFacts& facts = program().facts[at];
      if (warps == 0 || facts.synthetic) continue;
      const Counts counts =
          instruction_counts(at, static_cast<std::uint64_t>(warps), static_cast<std::uint64_t>(lanes));
      result.counts += counts;
      if (const std::uint32_t window = program().in_flight[at]; window != 0) {
        const auto bytes = static_cast<double>(counts.global_load_bytes);
        loaded += bytes;
        result.warp_bytes_in_flight += bytes * window;
      }
      const SourcePlace from = place(static_cast<std::uint32_t>(at));
      lines[{from.file, from.line}] += counts;
    }
    for (const auto& [key, counts] : lines) {
      result.lines.push_back({.place = {.file = key.first, .line = key.second, .ptx = {}}, .counts = counts});
    }
    if (loaded > 0) result.warp_bytes_in_flight /= loaded;
    for (const Machine& machine : machines_) result.counts.barriers += machine.barriers;
    result.counts.distinct_load_sectors = count_sectors(0);
    result.counts.distinct_store_sectors = count_sectors(1);
  }

  /// The bytes whose bits are set, as ranges.
  std::vector<MemoryRange> touched_ranges(int kind) const {
    const std::uint64_t base = launch_.memory->base();
    const std::uint64_t pages = (launch_.memory->end_of_use() - base) / kTouchedPage + 1;
    std::vector<MemoryRange> out;
    for (std::uint64_t page = 0; page < pages; ++page) {
      if (page % 64 == 0 && launch_.page_bits[kind][page / 64] == 0) {
        page += 63;
        continue;
      }
      if ((launch_.page_bits[kind][page / 64] >> (page % 64) & 1) == 0) continue;
      for (std::uint64_t word = page * kTouchedPage / 64; word < (page + 1) * kTouchedPage / 64; ++word)
        append_runs(launch_.byte_bits[kind][word], base + word * 64, out);
    }
    return out;
  }

  /// The runs of set bits in a word, the first of them continuing the last range where it ends there.
  static void append_runs(std::uint64_t bits, std::uint64_t address, std::vector<MemoryRange>& out) {
    for (std::uint64_t at = 0; at < 64 && bits >> at != 0;) {
      at += static_cast<std::uint64_t>(std::countr_zero(bits >> at));
      const auto run = static_cast<std::uint64_t>(std::countr_one(bits >> at));
      if (!out.empty() && out.back().address + out.back().bytes == address + at) {
        out.back().bytes += run;
      } else {
        out.push_back({address + at, run});
      }
      at += run;
    }
  }

  /// Bits set below the arena's end of use.
  std::uint64_t count_sectors(int kind) const {
    const std::uint64_t used = (launch_.memory->end_of_use() - launch_.memory->base()) / 32 / 64 + 1;
    std::uint64_t total = 0;
    for (std::uint64_t i = 0; i < used; ++i)
      total += static_cast<std::uint64_t>(std::popcount(launch_.sector_bits[kind][i]));
    return total;
  }

  Launch launch_;
  GlobalOrder order_;
  SparseTable<std::uint64_t> loads_;
  SparseTable<std::uint64_t> stores_;
  SparseTable<std::uint64_t> bytes_[3];
  SparseTable<std::uint64_t> pages_[3];
  std::unique_ptr<RaceTable> races_;
  std::vector<std::unique_ptr<BlockTouches>>
      touches_;  ///< of each machine, while blocks run that cannot order themselves
  std::vector<Machine> machines_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace

Checks Checks::all() {
  return {.memory = true,
          .initialised = true,
          .shared_races = true,
          .global_races = true,
          .barriers = true,
          .async_copies = true,
          .leaks = true,
          .streams = true};
}

std::unique_ptr<Module> Module::load(std::string_view ptx, DeviceMemory& memory) {
  return std::make_unique<LoadedModule>(ptx::parse(ptx), memory);
}

std::unique_ptr<Module> Module::link(std::span<const std::string> texts, DeviceMemory& memory,
                                     CompiledKernels compiled) {
  std::vector<std::unique_ptr<ptx::Module>> trees;
  for (const std::string& text : texts) trees.push_back(ptx::parse(text));
  return std::make_unique<LoadedModule>(ptx::link(std::move(trees)), memory, std::move(compiled));
}

LaunchResult launch(Module& module, std::string_view kernel, const LaunchConfig& config, DeviceMemory& memory,
                    const DeviceModel& device, const Settings& settings) {
  auto* const loaded = dynamic_cast<LoadedModule*>(&module);
  DSV2_CHECK(loaded != nullptr, "gpusim: a module that Module::load did not make");
  DSV2_CHECK(config.grid.count() > 0 && config.block.count() > 0, "gpusim: an empty launch of ", kernel);
  return LaunchRun(*loaded, kernel, config, memory, device, settings).run();
}

}  // namespace gpusim
