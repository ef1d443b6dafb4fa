#include "harness/report_view.h"

#include <algorithm>

namespace dsv2::harness {

std::string text_of(const Json& object, std::string_view key) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null() || it->is_structured()) return {};
  return it->is_string() ? it->get<std::string>() : it->dump();
}

std::optional<double> number_of(const Json& object, std::string_view key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number()) return std::nullopt;
  return it->get<double>();
}

const Json& child_of(const Json& object, std::string_view key) {
  static const Json nothing = Json::object();
  const auto it = object.find(key);
  return it == object.end() || !it->is_structured() ? nothing : *it;
}

std::string title_of(const Json& report) {
  const Json& argv = child_of(report, "argv");
  return argv.is_array() && argv.size() > 1 && argv[1].is_string() ? concat("dsv2 ", argv[1].get<std::string>())
                                                                   : "dsv2";
}

std::string verdict_of(const Json& report) {
  const auto code = number_of(report, "exit_code");
  return code == 0 ? "PASSED" : code == 1 ? "FAILED" : code == 2 ? "REFUSED" : code == 3 ? "SLOWER" : "NOTHING CHECKED";
}

std::string counts_of(const Json& report) {
  std::string text;
  const auto add = [&](const std::string& count, std::string_view what) {
    text += concat(text.empty() ? "" : ", ", count, " ", what);
  };
  for (const auto& [status, what] :
       {std::pair{"passed", "passed"}, {"failed", "failed"}, {"error", "refused"}, {"skipped", "skipped"}}) {
    const std::string count = text_of(child_of(report, "totals"), status);
    if (!count.empty() && (count != "0" || what == std::string_view("passed"))) add(count, what);
  }
  const Json& faults = child_of(report, "faults");
  if (!faults.empty()) {
    const auto good =
        std::count_if(faults.begin(), faults.end(), [](const Json& f) { return complaint_of_fault(f).empty(); });
    add(concat(good, " of ", faults.size()), "faults caught and located");
    add(text_of(report, "false_alarms"), "false alarms");
  }
  return text;
}

std::string title_of_record(const Json& record) {
  const std::string name = text_of(record, "name"), phase = text_of(record, "phase");
  const bool held = concat('/', name, '/').find(concat('/', phase, '/')) != std::string::npos;
  return phase.empty() || phase == "op" || held ? name : concat(name, ' ', phase);
}

std::string complaint_of_fault(const Json& fault) {
  const std::string caught_by = text_of(fault, "caught_by");
  if (caught_by.empty()) return "not caught";
  return text_of(fault, "located") == "true" ? "" : concat("caught by ", caught_by, ", which is not where it is");
}

}  // namespace dsv2::harness
