#include "harness/run_op.h"

#include <algorithm>
#include <cfenv>
#include <cstring>
#include <limits>
#include <map>
#include <ostream>

#include "harness/backend_fault.h"
#include "harness/backends.h"
#include "harness/flags.h"
#include "harness/generate.h"
#include "harness/modelled.h"
#include "harness/op_memory.h"
#include "harness/output_watch.h"
#include "harness/table.h"
#include "reference/backend.h"

namespace dsv2::harness {
namespace {

/// Backends that return logits in host memory leave the choice to the harness.
const OpKernel kArgmax{"argmax",
                       [](const OpProblem&, const Options&) -> std::optional<std::string> { return std::nullopt; },
                       [](const OpProblem& p, const Options&, OpMemory& memory) -> std::function<void()> {
                         const Tensor& logits = p["logits"];
                         auto* ids = static_cast<std::int64_t*>(memory.output("ids", DType::i64));
                         return [&logits, ids] {
                           const std::vector<std::int64_t> chosen =
                               argmax_last({logits.dtype(), {logits.dim(0), 1, logits.dim(1)}, logits.data()});
                           std::copy(chosen.begin(), chosen.end(), ids);
                         };
                       }};

/// Inputs that live longer than a call: matrices, biases and cached rows.
bool is_stored(std::string_view input) {
  for (const std::string_view name : {"weight", "bias", "gate_proj", "up_proj", "down_proj", "k1", "k2", "v"})
    if (input == name) return true;
  return input.starts_with("cached_") || input.ends_with("_scales");
}

/// Every step is volatile: calls that change the environment do not keep arithmetic in its place.
bool flushes_denormals() {
  const volatile float smallest = std::numeric_limits<float>::min(), least = std::numeric_limits<float>::denorm_min();
  const volatile float result = smallest * 0.5f, input = least * 0x1p100f;
  return result == 0 || input == 0;
}

}  // namespace

const OpKernel* find_op(const Backend& backend, std::string_view op) {
  for (const OpKernel& kernel : backend.ops())
    if (kernel.op == op) return &kernel;
  return op == kArgmax.op ? &kArgmax : nullptr;
}

Options op_options(const OpCase& c, const Backend& backend, Options given) {
  given.dtype = c.dtype;
  given.kv_dtype = c.kv_dtype;
  if (backend.name == reference::backend().name) given.accumulate = DType::f32;
  return given;
}

OpRun::OpRun(const OpCase& op_case, std::uint64_t seed)
    : case_(op_case),
      seed_(seed),
      problem_(draw(op_case, seed)),
      inputs_(inputs()),
      judge_(std::make_unique<OpJudge>(case_, problem_)) {}

/// FNV-1a over 64-bit words of every input: enough to see that one was written to.
std::uint64_t OpRun::inputs() const {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const auto& [name, tensor] : problem_.in) {
    const auto* bytes = static_cast<const char*>(tensor.data());
    const std::int64_t size = tensor.view().bytes();
    for (std::int64_t i = 0; i < size; i += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes + i, static_cast<std::size_t>(std::min<std::int64_t>(8, size - i)));
      hash = (hash ^ word) * 0x100000001b3u;
    }
  }
  return hash;
}

Record OpRun::on(const Backend& backend, const Options& given, const TimeOp& time) {
  const OpCase& c = case_;
  Record r;
  r.name = c.name();
  r.op = c.op;
  r.phase = "op";
  r.backend = backend.name;
  r.dtype = dsv2::name(c.dtype);
  if (has_cache(c)) r.kv_dtype = dsv2::name(c.kv_dtype);
  r.batch = c.batch;
  r.prompt = c.tokens;
  r.depth = c.past;
  r.seed = seed_;
  const Options options = op_options(c, backend, given);
  if (const auto why = why_not(backend)) {
    r.reason = *why;
    return r;
  }
  const OpKernel* kernel = find_op(backend, c.op);
  if (!kernel) {
    r.reason = concat(backend.name, " does not compute ", c.op, " alone");
    return r;
  }
  if (const auto why = kernel->unsupported(problem_, options)) {
    r.reason = *why;
    return r;
  }
  try {
    PoisonedMemory memory(problem_);
    const std::function<void()> run = kernel->prepare(problem_, options, memory);
    const auto check = [&](int pattern) {
      memory.poison(pattern);
      std::fenv_t environment;
      std::fegetenv(&environment);
      run();
      const bool flushes = flushes_denormals();
      std::fesetenv(&environment);  // or the judge, and the cases to come, would flush as well
      if (flushes) fail_record(r, "floating-point environment", "denormal numbers are 0 after the run");
      const OpJudge::Verdict verdict = judge_->judge(memory.outputs());
      for (const Comparison& comparison : verdict.comparisons) r.add(comparison);
      r.ties += verdict.ties;
      if (const auto overrun = memory.overrun()) fail_record(r, "guard", *overrun);
      if (inputs() != inputs_) fail_record(r, "inputs", "one was written to");
    };
    check(0);
    const auto first = memory.take_outputs();
    std::string before, after;
    if (time && r.status == Status::passed) {
      if (!backend.simulated) {
        time_op(run, memory, time, r);
      } else {
        memory.restart();
        before = backend.profile();
        run();
        after = backend.profile();
      }
    }
    check(1);
    for (const auto& [name, view] : memory.outputs()) {
      const Comparison again = compare_bits(name, view, first.at(name).view());
      if (!again.passed)
        fail_record(r, name, concat(describe(again), ": depends on what was in memory before, or on the run"));
    }
    r.coverage = "every output element, twice, against the reference in double";
    if (time && backend.simulated) r.coverage += "; simulated: not timed";
    if (judge_->framework_error() > 0)
      r.coverage += concat("; the framework's own bf16 error is ", judge_->framework_error());
    const OpCost price = op_cost(c, problem_);
    r.flops = price.flops;
    r.bytes = price.bytes;
    if (!after.empty()) r.modelled = modelled(before, after, price.bytes);
    r.tokens = static_cast<double>(c.batch * c.tokens);
  } catch (const Error& e) {
    book_error(r, e);
  }
  book_findings(r, backend.findings);
  return r;
}

void OpRun::time_op(const std::function<void()>& run, PoisonedMemory& memory, const TimeOp& time, Record& record) {
  // Two sets of activations take turns in the same memory; matrices and cached rows stay.
  std::map<std::string, Tensor, std::less<>> sets[2];
  {
    OpProblem other = draw(case_, seed_ + 1);
    for (const auto& [name, tensor] : problem_.in) {
      if (is_stored(name)) continue;
      sets[0].emplace(name, tensor.clone());
      sets[1].emplace(name, std::move(other.in.find(name)->second));
    }
  }
  const auto use = [&](std::size_t set) {
    for (const auto& [name, tensor] : sets[set])
      std::memcpy(problem_.in.find(name)->second.data(), tensor.data(),
                  static_cast<std::size_t>(tensor.view().bytes()));
    memory.restart();
  };
  OutputWatch watch;
  time({.prepare = [&](std::int64_t iteration) { use(static_cast<std::size_t>(iteration % 2)); },
        .run = run,
        .inspect =
            [&](std::int64_t) {
              if (case_.fill == Fill::zeros) return true;  // all inputs are the same
              const auto why =
                  watch.see(problem_.in.find(sets[0].begin()->first)->second.view(), memory.outputs().begin()->second);
              if (why) fail_record(record, "timed output", *why);
              return !why;
            }},
       record);
  use(0);
}

std::vector<OpCase> chosen_cases(const OpChoice& choice) {
  for (const std::string& op : choice.ops)
    if (op != "all") require_op(op, "--op");
  std::vector<DType> dtypes;
  for (const std::string& text : choice.dtypes) dtypes.push_back(parse_dtype_flag(text, "--dtype"));
  std::vector<OpCase> cases = op_cases();
  std::erase_if(cases, [&](const OpCase& c) {
    const bool op = std::any_of(choice.ops.begin(), choice.ops.end(),
                                [&](const std::string& name) { return name == "all" || name == c.op; });
    const bool dtype = dtypes.empty() || std::find(dtypes.begin(), dtypes.end(), c.dtype) != dtypes.end();
    return !op || !dtype || (choice.wanted && !choice.wanted(c.name()));
  });
  return cases;
}

void print_op_table(const std::vector<Record>& records, bool verbose, std::ostream& out) {
  if (records.empty()) return;
  // Rows that share op, place, backend and dtypes: the first two parts of a name say op and place.
  const auto key_of = [&](const Record& r) {
    std::size_t end = r.name.find('/', r.name.find('/') + 1);
    return concat(verbose ? r.name : r.name.substr(0, end), '|', r.backend, '|', r.dtype, '|', r.kv_dtype);
  };
  struct Line {
    const Record* first;
    std::int64_t cases = 0, passed = 0, skipped = 0, ties = 0;
    const Record* worst = nullptr;
  };
  std::vector<Line> lines;
  std::map<std::string, std::size_t> at;
  for (const Record& r : records) {
    const auto [it, fresh] = at.emplace(key_of(r), lines.size());
    if (fresh) lines.push_back({.first = &r});
    Line& line = lines[it->second];
    ++line.cases;
    line.passed += r.status == Status::passed;
    line.skipped += r.status == Status::skipped;
    line.ties += r.ties;
    if (r.compared && (!line.worst || r.budget_used > line.worst->budget_used)) line.worst = &r;
  }
  Table table({"op", "backend", "dtype", "kv", "status", "cases", "ties", "budget", "worst"});
  for (const Line& line : lines) {
    const std::string& name = line.first->name;
    const std::size_t end = name.find('/', name.find('/') + 1);
    const bool all = line.passed == line.cases;
    table.add({verbose ? name : name.substr(0, end), line.first->backend, line.first->dtype, line.first->kv_dtype,
               all                                        ? "passed"
               : line.skipped == line.cases               ? "skipped"
               : line.passed + line.skipped == line.cases ? "passed, some skipped"
                                                          : "FAILED",
               all ? std::to_string(line.cases) : concat(line.passed, " of ", line.cases),
               line.ties ? std::to_string(line.ties) : "", line.worst ? percent(line.worst->budget_used) : "",
               line.worst ? concat(line.worst->name.substr(verbose ? 0 : end + 1), " ", line.worst->worst) : ""});
  }
  table.print(out);
  for (const Record& r : records) {
    if (r.status == Status::passed) continue;
    out << '\n' << name(r.status) << ": " << r.name << " on " << r.backend << "\n  " << r.reason << '\n';
    if (r.status != Status::skipped)
      out << "  again: dsv2 check --op " << r.op << " --backend " << r.backend << " --seed " << *r.seed
          << " --filter '^" << r.name << "$'\n";
  }
}

}  // namespace dsv2::harness
