#include "harness/backend_fault.h"

#include <map>
#include <utility>
#include <vector>

namespace dsv2::harness {
namespace {

std::map<std::string, std::string, std::less<>>& lost_in() {
  static std::map<std::string, std::string, std::less<>> records;  // by backend
  return records;
}

}  // namespace

void fail_record(Record& record, std::string what, const std::string& reason) {
  Comparison c;
  c.name = std::move(what);
  c.passed = false;
  c.reason = reason;
  record.add(c);
}

void book_error(Record& record, const Error& error) {
  if (dynamic_cast<const BackendFault*>(&error)) {
    fail_record(record, "run", error.what());
    lost_in().emplace(record.backend, record.name);
    return;
  }
  record.status = Status::error;
  record.reason = error.what();
}

void book_findings(Record& record, const decltype(Backend::findings)& findings) {
  if (!findings) return;
  const std::vector<std::string> lines = findings();
  if (lines.empty()) return;
  std::vector<Comparison> others = std::exchange(record.failures, {});
  for (const std::string& line : lines) fail_record(record, "simulator", line);
  record.failures.insert(record.failures.end(), others.begin(), others.end());
}

std::optional<std::string> lost(std::string_view backend) {
  const auto found = lost_in().find(backend);
  if (found == lost_in().end()) return std::nullopt;
  return concat("not run: ", backend, " broke in ", found->second);
}

}  // namespace dsv2::harness
