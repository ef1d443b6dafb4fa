#include "harness/report.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <numeric>

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

}  // namespace

std::string_view name(Status s) {
  constexpr std::string_view kNames[] = {"passed", "failed", "skipped", "error"};
  return kNames[static_cast<std::size_t>(s)];
}

void Record::add(const Comparison& c) {
  ++compared;
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
  j["status"] = harness::name(status);
  j["reason"] = text_or_null(reason);
  j["coverage"] = text_or_null(coverage);
  j["compared"] = compared;
  j["budget_used"] = compared ? finite_or_null(budget_used) : Json(nullptr);
  j["worst"] = text_or_null(worst);
  j["ties"] = ties;
  j["rows_left_out"] = rows_left_out;
  j["failures"] = Json::array();
  for (const Comparison& c : failures) j["failures"].push_back(comparison_json(c));
  j["flops"] = value_or_null(flops);
  j["bytes"] =
      bytes ? Json{{"weights", bytes->weights}, {"kv", bytes->kv}, {"activations", bytes->activations}} : Json(nullptr);
  j["kv_bytes"] = value_or_null(kv_bytes);
  j["resident_memory_bytes"] = value_or_null(resident_memory_bytes);
  j["peak_memory_bytes"] = value_or_null(peak_memory_bytes);
  j["samples_ns"] = timed ? Json(samples_ns) : Json::array();
  j["median_ns"] = timed ? Json(median_ns()) : Json(nullptr);
  if (timed) {
    const Quartiles q = quartiles_ns();
    j["quartiles_ns"] = {q.min, q.lower, q.median, q.upper, q.max};
  } else {
    j["quartiles_ns"] = nullptr;
  }
  j["noise_floor"] = timed ? value_or_null(noise_floor) : Json(nullptr);
  j["waited_share"] = timed ? value_or_null(conditions.waited_share) : Json(nullptr);
  j["fork_join_ns"] = timed ? value_or_null(conditions.fork_join_ns) : Json(nullptr);
  j["prefill_tokens_per_s"] = rate("prefill");
  j["decode_tokens_per_s"] = rate("decode");
  j["gflop_s"] = timed && flops ? finite_or_null(*flops / median_ns()) : Json(nullptr);
  j["gb_s"] = timed && bytes ? finite_or_null(bytes->total() / median_ns()) : Json(nullptr);
  j["share_of_roof"] = timed ? value_or_null(share_of_roof) : Json(nullptr);
  j["roof"] = timed ? text_or_null(roof) : Json(nullptr);
  return j;
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
                  {"memory_bytes", m.memory_bytes},
                  {"read_bandwidth_gb_s", finite_or_null(limits.read_bandwidth_gb_s)},
                  {"peak_gflop_s",
                   {{"f32", finite_or_null(limits.peak_f32_gflop_s)},
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
  j["exit_code"] = static_cast<int>(exit_code());
  return j;
}

ExitCode Report::exit_code() const {
  const auto any = [&](Status s) {
    return std::any_of(records.begin(), records.end(), [&](const Record& r) { return r.status == s; });
  };
  if (any(Status::failed)) return ExitCode::wrong;
  if (any(Status::error)) return ExitCode::bad_input;
  return any(Status::passed) ? ExitCode::passed : ExitCode::nothing_checked;
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
