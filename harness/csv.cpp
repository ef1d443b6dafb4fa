// CSV as RFC 4180 has it.
#include <cstdint>

#include "harness/outputs.h"
#include "harness/report_view.h"

namespace dsv2::harness {
namespace {

enum class Of : std::uint8_t { record, report };

struct Column {
  const char* title;
  Of of;
  const char* pointer;  ///< RFC 6901; of an array its length is written
};

/// What happened, what it cost, how fast, where: as one reads a table from the left.
constexpr Column kColumns[] = {
    {"name", Of::record, "/name"},
    {"op", Of::record, "/op"},
    {"phase", Of::record, "/phase"},
    {"backend", Of::record, "/backend"},
    {"dtype", Of::record, "/dtype"},
    {"kv_dtype", Of::record, "/kv_dtype"},
    {"batch", Of::record, "/batch"},
    {"prompt", Of::record, "/prompt"},
    {"depth", Of::record, "/depth"},
    {"seed", Of::record, "/seed"},
    {"status", Of::record, "/status"},
    {"reason", Of::record, "/reason"},
    {"compared", Of::record, "/compared"},
    {"failures", Of::record, "/failures"},
    {"budget_used", Of::record, "/budget_used"},
    {"worst", Of::record, "/worst"},
    {"flops", Of::record, "/flops"},
    {"bytes_weights", Of::record, "/bytes/weights"},
    {"bytes_kv", Of::record, "/bytes/kv"},
    {"bytes_activations", Of::record, "/bytes/activations"},
    {"kv_bytes", Of::record, "/kv_bytes"},
    {"predicted_memory_bytes", Of::record, "/predicted_memory_bytes/total"},
    {"resident_memory_bytes", Of::record, "/resident_memory_bytes"},
    {"peak_memory_bytes", Of::record, "/peak_memory_bytes"},
    {"samples", Of::record, "/samples_ns"},
    {"min_ns", Of::record, "/quartiles_ns/0"},
    {"lower_quartile_ns", Of::record, "/quartiles_ns/1"},
    {"median_ns", Of::record, "/median_ns"},
    {"upper_quartile_ns", Of::record, "/quartiles_ns/3"},
    {"max_ns", Of::record, "/quartiles_ns/4"},
    {"noise_floor", Of::record, "/noise_floor"},
    {"prefill_tokens_per_s", Of::record, "/prefill_tokens_per_s"},
    {"decode_tokens_per_s", Of::record, "/decode_tokens_per_s"},
    {"gflop_s", Of::record, "/gflop_s"},
    {"gb_s", Of::record, "/gb_s"},
    {"share_of_roof", Of::record, "/share_of_roof"},
    {"roof", Of::record, "/roof"},
    {"model", Of::report, "/model/name"},
    {"cpu", Of::report, "/machine/cpu"},
    {"isa", Of::report, "/machine/isa"},
    {"threads", Of::report, "/machine/threads"},
    {"read_bandwidth_gb_s", Of::report, "/machine/read_bandwidth_gb_s"},
    {"peak_f32_gflop_s", Of::report, "/machine/peak_gflop_s/f32"},
    {"git_sha", Of::report, "/tool/git_sha"},
    {"git_dirty", Of::report, "/tool/git_dirty"},
    {"time", Of::report, "/time"},
};

std::string cell(const Json& from, const char* pointer) {
  const Json::json_pointer at(pointer);
  if (!from.contains(at)) return {};
  const Json& value = from.at(at);
  if (value.is_array()) return std::to_string(value.size());
  if (value.is_null() || value.is_object()) return {};
  if (!value.is_string()) return value.dump();
  auto text = value.get<std::string>();
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

std::string row(const Json& record, const Json& report) {
  std::string line;
  for (const Column& c : kColumns) {
    if (&c != kColumns) line += ',';
    line += cell(c.of == Of::record ? record : report, c.pointer);
  }
  return line + "\r\n";
}

/// A planted fault has the status of the gate that was to catch it.
Json as_record(const Json& fault) {
  Json record;
  const std::string complaint = complaint_of_fault(fault);
  record["name"] = "fault: " + text_of(fault, "name");
  record["op"] = text_of(fault, "op");
  record["dtype"] = text_of(fault, "dtype");
  record["status"] = complaint.empty() ? "passed" : "failed";
  record["reason"] = complaint;
  record["worst"] = text_of(fault, "caught_by");
  return record;
}

}  // namespace

std::string to_csv(const Json& report) {
  std::string text;
  for (const Column& c : kColumns) {
    if (&c != kColumns) text += ',';
    text += c.title;
  }
  text += "\r\n";
  for (const Json& record : child_of(report, "records")) text += row(record, report);
  for (const Json& fault : child_of(report, "faults")) text += row(as_record(fault), report);
  return text;
}

}  // namespace dsv2::harness
