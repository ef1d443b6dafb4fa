// JUnit XML: what Jenkins' plugin defined and GitHub's and GitLab's readers take.
#include <algorithm>
#include <cstdint>
#include <map>

#include "harness/outputs.h"
#include "harness/report_view.h"
#include "harness/table.h"

namespace dsv2::harness {
namespace {

/// Text for XML 1.0. A parser makes a line end of a bare CR, and spaces of line ends and tabs in an attribute, so there
/// they are escaped. Characters that XML cannot hold, not even escaped, become U+FFFD. The text is valid UTF-8.
std::string escaped(std::string_view text, bool in_attribute = false) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\r' || (in_attribute && (c == '\n' || c == '\t')))
      out += concat("&#", static_cast<int>(c), ";");
    else if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t')
      out += "\uFFFD";
    else if (text.substr(i, 3) == "\uFFFE" || text.substr(i, 3) == "\uFFFF")
      out += "\uFFFD", i += 2;
    else
      out += c;
  }
  return out;
}

std::string attribute(std::string_view name, std::string_view value) {
  return concat(' ', name, "=\"", escaped(value, true), '"');
}

struct Suite {
  std::int64_t tests = 0, failures = 0, errors = 0, skipped = 0;
  double seconds = 0;
  std::string cases;

  std::string counts() const {
    return concat(attribute("tests", std::to_string(tests)), attribute("failures", std::to_string(failures)),
                  attribute("errors", std::to_string(errors)), attribute("skipped", std::to_string(skipped)),
                  attribute("time", fixed(seconds, 6)));
  }
  void add(const std::string& group, const std::string& name, double time, const std::string& inside) {
    ++tests;
    seconds += time;
    cases += concat("    <testcase", attribute("classname", group), attribute("name", name),
                    attribute("time", fixed(time, 6)), inside.empty() ? "/>\n" : ">\n" + inside + "    </testcase>\n");
  }
};

std::string outcome(std::string_view element, std::string_view message, std::string_view type, std::string_view body) {
  return concat("      <", element, attribute("message", message), type.empty() ? "" : attribute("type", type), ">",
                escaped(body), "</", element, ">\n");
}

/// First divergence with its rule, then what came after it.
std::string divergences(const Json& record) {
  constexpr std::size_t kShown = 50;
  const Json& failures = child_of(record, "failures");
  std::string text;
  for (std::size_t i = 0; i < std::min(failures.size(), kShown); ++i) {
    text += (i == 0 ? "first divergence: " : "then: ") + text_of(failures[i], "message") + "\n";
    if (i == 0) text += "bound: " + text_of(failures[i], "rule") + "\n";
  }
  if (failures.size() > kShown) text += concat("and ", failures.size() - kShown, " more\n");
  return text;
}

/// What a passed test has to say: how near the bound, how fast.
std::string facts(const Json& record) {
  std::string text;
  if (const auto budget = number_of(record, "budget_used"))
    text += concat(text_of(record, "compared"), " tensors compared, ", percent(*budget),
                   " of the error budget used by ", text_of(record, "worst"), "\n");
  if (const auto ns = number_of(record, "median_ns")) text += concat("median ", fixed(*ns * 1e-6, 3), " ms\n");
  for (const char* phase : {"prefill", "decode"})
    if (const auto speed = number_of(record, std::string(phase) + "_tokens_per_s"))
      text += concat(phase, " ", fixed(*speed, 2), " tokens/s\n");
  if (const auto share = number_of(record, "share_of_roof"))
    text += concat(percent(*share), " of the roof: ", text_of(record, "roof"), "\n");
  return text;
}

void add_record(Suite& suite, const std::string& group, const Json& record) {
  const std::string status = text_of(record, "status"), reason = text_of(record, "reason");
  double ns = 0;
  for (const Json& sample : child_of(record, "samples_ns")) ns += sample.is_number() ? sample.get<double>() : 0;
  std::string inside;
  if (status == "failed") {
    ++suite.failures;
    inside = outcome("failure", reason, "comparison", divergences(record));
  } else if (status == "error") {
    ++suite.errors;
    inside = outcome("error", reason, "refused", reason);
  } else if (status != "passed") {
    ++suite.skipped;
    inside = outcome("skipped", reason, "", "");
  }
  const std::string coverage = text_of(record, "coverage"),
                    said = (coverage.empty() ? "" : coverage + "\n") + facts(record);
  if (!said.empty()) inside += "      <system-out>" + escaped(said) + "</system-out>\n";
  suite.add(group, title_of_record(record), ns * 1e-9, inside);
}

std::string properties(const Json& report) {
  const Json &machine = child_of(report, "machine"), &tool = child_of(report, "tool");
  std::string command;
  for (const Json& word : child_of(report, "argv"))
    if (word.is_string()) command += (command.empty() ? "" : " ") + word.get<std::string>();
  std::string text = "    <properties>\n";
  for (const auto& [name, value] : {std::pair<const char*, std::string>{"command", command},
                                    {"version", text_of(tool, "version")},
                                    {"git_sha", text_of(tool, "git_sha")},
                                    {"git_dirty", text_of(tool, "git_dirty")},
                                    {"cpu", text_of(machine, "cpu")},
                                    {"isa", text_of(machine, "isa")},
                                    {"threads", text_of(machine, "threads")},
                                    {"seed", text_of(report, "seed")}})
    if (!value.empty()) text += concat("      <property", attribute("name", name), attribute("value", value), "/>\n");
  return text + "    </properties>\n";
}

}  // namespace

std::string to_junit(const Json& report) {
  std::vector<std::pair<std::string, Suite>> suites;  // in the order met
  const auto suite = [&](const std::string& name) -> Suite& {
    const auto it = std::find_if(suites.begin(), suites.end(), [&](const auto& s) { return s.first == name; });
    return it != suites.end() ? it->second : suites.emplace_back(name, Suite{}).second;
  };
  const auto group_of = [](std::string first, const std::string& dtype) {
    if (first.empty()) first = "input";  // refused before any backend saw it
    return dtype.empty() ? first : first + "." + dtype;
  };
  for (const Json& record : child_of(report, "records")) {
    const std::string group = group_of(text_of(record, "backend"), text_of(record, "dtype"));
    add_record(suite(group), group, record);
  }
  for (const Json& fault : child_of(report, "faults")) {
    const std::string group = group_of("faults", text_of(fault, "dtype")), complaint = complaint_of_fault(fault);
    Suite& s = suite(group);
    s.failures += !complaint.empty();
    s.add(group, text_of(fault, "op") + ": " + text_of(fault, "name"), 0,
          complaint.empty() ? "" : outcome("failure", complaint, "missed", complaint));
  }
  if (number_of(report, "exit_code") == static_cast<int>(ExitCode::nothing_checked)) {  // no test is not success
    Suite& s = suite("dsv2");
    ++s.errors;
    s.add("dsv2", "something is checked", 0, outcome("error", "nothing was checked", "nothing", ""));
  }
  Suite all;
  for (const auto& [name, s] : suites) {
    all.tests += s.tests;
    all.failures += s.failures;
    all.errors += s.errors;
    all.skipped += s.skipped;
    all.seconds += s.seconds;
  }
  std::string time = text_of(report, "time");
  if (time.ends_with('Z')) time.pop_back();  // the format has no time zone
  std::string xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
  xml += concat("<testsuites", attribute("name", title_of(report)), all.counts(), ">\n");
  for (const auto& [name, s] : suites)
    xml += concat("  <testsuite", attribute("name", name), s.counts(), attribute("timestamp", time), ">\n",
                  properties(report), s.cases, "  </testsuite>\n");
  return xml + "</testsuites>\n";
}

}  // namespace dsv2::harness
