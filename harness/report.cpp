#include "harness/report.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <numeric>

#include "harness/op_names.h"
#include "harness/version.h"

namespace dsv2::harness {
namespace {

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

template <class T>
Json value_or_null(const std::optional<T>& value) {
  if (!value) return nullptr;
  if constexpr (std::is_floating_point_v<T>) return finite_or_null(*value);
  return *value;
}

/// The larger share of a bound; what is not a number is the largest.
double worse(double a, double b) { return a >= b || std::isnan(a) ? a : b; }

/// Rounded up to a thousandth, which keeps reports small and 1.0001 above 1.
Json share_json(double share) { return finite_or_null(std::ceil(share * 1000) / 1000); }

Json budgets_json(const Record& r) {
  Json ops = Json::object(), layers = Json::object();
  for (const auto& [op, share] : r.budget_by_op) ops[op] = share_json(share);
  for (const auto& [layer, share] : r.budget_by_layer) layers[std::to_string(layer)] = share_json(share);
  return {{"by_op", std::move(ops)}, {"by_layer", std::move(layers)}};
}

Json op_json(const OpTime& o) {
  return {{"name", o.name},       {"op", text_or_null(o.op)}, {"count", o.count},
          {"time_ns", o.time_ns}, {"flops", o.flops},         {"bytes", bytes_json(o.bytes)}};
}

Json comparison_json(const Comparison& c) {
  return {{"tensor", c.name},
          {"index", c.worst},
          {"got", finite_or_null(c.got)},
          {"expected", finite_or_null(c.want)},
          {"bound", finite_or_null(c.bound)},
          {"budget_used", finite_or_null(c.budget_used)},
          {"relative_l2", finite_or_null(c.relative_l2)},
          {"outside", c.outside},
          {"compared", c.count},
          {"rule", c.rule},
          {"message", describe(c)}};
}

/// A limit; null where it was not measured.
Json measured(double limit) { return limit > 0 ? finite_or_null(limit) : Json(nullptr); }

Json sampling_json(const Sampling& s) {
  return {{"stopped", name(s.stopped)},
          {"cache", s.cold ? "cold" : "warm"},
          {"confidence", s.confidence},
          {"relative_error", finite_or_null(s.relative_error)},
          {"runs_per_sample", s.runs_per_sample},
          {"warm_up_runs", s.warm_up_runs},
          {"blocks", s.blocks}};
}

}  // namespace

Json bytes_json(const Bytes& bytes) {
  return {{"weights", bytes.weights}, {"kv", bytes.kv}, {"activations", bytes.activations}};
}

std::string_view name(Status s) {
  constexpr std::string_view kNames[] = {"passed", "failed", "skipped", "error"};
  return kNames[static_cast<std::size_t>(s)];
}

void Record::add(const Comparison& c) {
  ++compared;
  if (const OpName of = op_of_tensor(c.name); !of.op.empty()) {
    auto by = std::find_if(budget_by_op.begin(), budget_by_op.end(), [&](const auto& b) { return b.first == of.op; });
    if (by == budget_by_op.end()) by = budget_by_op.insert(by, {of.op, 0.0});
    by->second = worse(by->second, c.budget_used);
    if (of.layer) budget_by_layer[*of.layer] = worse(budget_by_layer[*of.layer], c.budget_used);
  }
  if (worst.empty() || c.budget_used > budget_used) {
    worst = c.name;
    budget_used = c.budget_used;
  }
  if (!c.passed) {
    status = Status::failed;
    if (failures.empty()) reason = describe(c);
    failures.push_back(c);
  } else if (status == Status::skipped && !c.zeros) {
    status = Status::passed;
    reason.clear();
  } else if (status == Status::skipped) {
    reason = "nothing but zeros is expected";
  }
}

double Record::median_ns() const { return quartiles_ns().median; }

Quartiles Record::quartiles_ns() const { return quartiles({samples_ns.begin(), samples_ns.end()}); }

Json Record::to_json() const {
  const bool timed = status == Status::passed && !samples_ns.empty();
  const auto rate = [&](std::string_view wanted) -> Json {
    return timed && tokens && phase == wanted ? finite_or_null(*tokens / median_ns() * 1e9) : Json(nullptr);
  };
  Json j;
  j["name"] = name;
  j["op"] = op;
  j["phase"] = text_or_null(phase);
  j["backend"] = backend;
  j["dtype"] = dtype;
  j["kv_dtype"] = text_or_null(kv_dtype);
  j["batch"] = value_or_null(batch);
  j["prompt"] = value_or_null(prompt);
  j["depth"] = value_or_null(depth);
  j["seed"] = value_or_null(seed);
  j["threads"] = value_or_null(threads);
  j["status"] = harness::name(status);
  j["reason"] = text_or_null(reason);
  j["coverage"] = text_or_null(coverage);
  if (!modelled.is_null()) j["modelled"] = modelled;
  if (!ocr.is_null()) j["ocr"] = ocr;
  j["compared"] = compared;
  j["budget_used"] = compared ? finite_or_null(budget_used) : Json(nullptr);
  j["worst"] = text_or_null(worst);
  j["ties"] = ties;
  j["rows_left_out"] = rows_left_out;
  j["loss_to_f32"] = loss_to_f32 ? finite_or_null(*loss_to_f32) : Json(nullptr);
  j["failures"] = Json::array();
  for (const Comparison& c : failures) j["failures"].push_back(comparison_json(c));
  for (const OpShare& s : bisect)
    j["bisect"].push_back({{"call", s.call},
                           {"layer", s.layer < 0 ? Json(nullptr) : Json(s.layer)},
                           {"op", s.op},
                           {"kernels", s.kernels},
                           {"passed", s.passed},
                           {"local", value_or_null(s.local)},
                           {"accumulated", value_or_null(s.accumulated)}});
  j["budgets"] = budgets_json(*this);
  j["flops"] = value_or_null(flops);
  j["bytes"] = bytes ? bytes_json(*bytes) : Json(nullptr);
  j["kv_bytes"] = value_or_null(kv_bytes);
  j["predicted_memory_bytes"] = predicted_memory ? predicted_memory->to_json() : Json(nullptr);
  j["resident_memory_bytes"] = value_or_null(resident_memory_bytes);
  j["peak_memory_bytes"] = value_or_null(peak_memory_bytes);
  j["allocator_peak_bytes"] = value_or_null(allocator_peak_bytes);
  j["samples_ns"] = timed ? Json(samples_ns) : Json::array();
  j["median_ns"] = timed ? Json(median_ns()) : Json(nullptr);
  if (timed) {
    const Quartiles q = quartiles_ns();
    j["quartiles_ns"] = {q.min, q.lower, q.median, q.upper, q.max};
  } else {
    j["quartiles_ns"] = nullptr;
  }
  j["sampling"] = timed && sampling ? sampling_json(*sampling) : Json(nullptr);
  j["noise_floor"] = timed ? value_or_null(noise_floor) : Json(nullptr);
  j["waited_share"] = timed ? value_or_null(conditions.waited_share) : Json(nullptr);
  j["fork_join_ns"] = timed ? value_or_null(conditions.fork_join_ns) : Json(nullptr);
  j["prefill_tokens_per_s"] = rate("prefill");
  j["decode_tokens_per_s"] = rate("decode");
  j["gflop_s"] = timed && flops ? finite_or_null(*flops / median_ns()) : Json(nullptr);
  j["gb_s"] = timed && bytes ? finite_or_null(bytes->total() / median_ns()) : Json(nullptr);
  j["share_of_roof"] = timed ? value_or_null(share_of_roof) : Json(nullptr);
  j["roof"] = timed ? text_or_null(roof) : Json(nullptr);
  j["ops"] = Json::array();
  if (timed)
    for (const OpTime& o : ops) j["ops"].push_back(op_json(o));
  return j;
}

bool GateTest::passed() const {
  return false_alarms == 0 &&
         std::all_of(faults.begin(), faults.end(), [](const FaultResult& f) { return f.caught_by && f.located; });
}

Json Report::to_json() const {
  Json j;
  j["schema_version"] = kReportSchemaVersion;
  j["tool"] = {{"name", "dsv2"},
               {"version", version_line()},
               {"git_sha", git_sha()},
               {"git_dirty", git_dirty()},
               {"compiler", compiler()},
               {"compile_flags", compile_flags()},
               {"build_type", build_type()}};
  j["argv"] = argv;
  j["time"] = timestamp();
  j["seed"] = value_or_null(seed);
  const Machine& m = machine();
  j["machine"] = {{"cpu", m.cpu},
                  {"isa", m.isa},
                  {"cores", m.cores},
                  {"threads", threads},
                  {"pinned", pinned},
                  {"smt", value_or_null(m.smt)},
                  {"clock_mhz", value_or_null(m.clock_mhz)},
                  {"max_clock_mhz", value_or_null(m.max_clock_mhz)},
                  {"governor", value_or_null(m.governor)},
                  {"load_average", value_or_null(m.load_average)},
                  {"memory_bytes", m.memory_bytes},
                  {"last_level_cache_bytes", value_or_null(m.last_level_cache_bytes)},
                  {"cache_bytes", value_or_null(m.cache_bytes)},
                  {"read_bandwidth_gb_s", measured(limits.read_bandwidth_gb_s)},
                  {"peak_gflop_s",
                   {{"f32", measured(limits.peak_f32_gflop_s)},
                    {"bf16", value_or_null(limits.peak_bf16_gflop_s)},
                    {"int8", value_or_null(limits.peak_int8_gflop_s)}}}};
  j["model"] = model;
  Json totals = {{"passed", 0}, {"failed", 0}, {"skipped", 0}, {"error", 0}}, rows = Json::array();
  for (const Record& r : records) {
    Json& count = totals[std::string(name(r.status))];
    count = count.get<int>() + 1;
    rows.push_back(r.to_json());
  }
  j["totals"] = totals;
  j["records"] = rows;
  if (gate_test) {
    j["faults"] = Json::array();
    for (const FaultResult& f : gate_test->faults)
      j["faults"].push_back({{"name", f.name},
                             {"op", f.op},
                             {"dtype", f.dtype},
                             {"caught_by", f.caught_by ? Json(f.caught_by->name) : Json(nullptr)},
                             {"located", f.located},
                             {"budget_used", f.caught_by ? finite_or_null(f.caught_by->budget_used) : Json(nullptr)},
                             {"op_case", value_or_null(f.op_case)}});
    j["seeds"] = gate_test->seeds;
    j["false_alarms"] = gate_test->false_alarms;
  }
  j["exit_code"] = static_cast<int>(exit_code());
  return j;
}

ExitCode Report::exit_code() const {
  const auto any = [&](Status s) {
    return std::any_of(records.begin(), records.end(), [&](const Record& r) { return r.status == s; });
  };
  if (any(Status::failed) || (gate_test && !gate_test->passed())) return ExitCode::wrong;
  if (any(Status::error)) return ExitCode::bad_input;
  return any(Status::passed) || gate_test ? ExitCode::passed : ExitCode::nothing_checked;
}

Json read_report(const std::filesystem::path& file) {
  Json report = read_json(file);
  const std::string source = file.string();
  DSV2_CHECK(report.is_object() && report.contains("schema_version") && report.contains("records"), source,
             ": expected a report of dsv2, found ", report.is_object() ? "no schema_version and records" : "no object");
  const int version = require<int>(report, "schema_version", source);
  DSV2_CHECK(version == kReportSchemaVersion, source, ": schema_version: expected ", kReportSchemaVersion, ", found ",
             version);
  require<std::vector<std::string>>(report, "argv", source);
  require<std::string>(report, "time", source);
  for (const std::string_view key : {"name", "version", "git_sha", "compiler", "compile_flags", "build_type"})
    require<std::string>(require<Json>(report, "tool", source), key, source + ": tool");
  const Json measured = require<Json>(report, "machine", source);
  for (const std::string_view key : {"cpu", "isa"}) require<std::string>(measured, key, source + ": machine");
  for (const std::string_view key : {"cores", "threads", "memory_bytes"})
    require<std::int64_t>(measured, key, source + ": machine");
  DSV2_CHECK(require<Json>(measured, "peak_gflop_s", source + ": machine").is_object(), source,
             ": machine: peak_gflop_s: expected an object");
  const Json& records = report["records"];
  DSV2_CHECK(records.is_array(), source, ": records: expected an array, found ", records.type_name());
  for (std::size_t i = 0; i < records.size(); ++i)
    for (const std::string_view key : {"name", "op", "backend", "dtype", "status"})
      require<std::string>(records[i], key, concat(source, ": records[", i, "]"));
  return report;
}

std::string timestamp() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace dsv2::harness
