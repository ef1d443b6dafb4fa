// What a run leaves for other tools: its report as JSON, JUnit XML, Markdown and CSV.
#pragma once

#include <CLI/CLI.hpp>
#include <deque>
#include <iosfwd>
#include <string>
#include <string_view>

#include "harness/json.h"
#include "harness/report.h"

namespace dsv2::harness {

/// Each takes a report as Report::to_json() or read_report() give it. What a report lacks is left out.
///
/// JUnit XML as GitHub, GitLab and Jenkins read it: a suite per backend and dtype, a test per record; the first
/// divergence is the message of its failure, the others stand below. A planted fault that was missed is a failed test.
std::string to_junit(const Json& report);
/// For a pull request or a job's summary: the verdict, what failed, how fast, the rest folded away. At most 50 rows of
/// a table are written, so that it fits where comments are limited.
std::string to_markdown(const Json& report);
/// RFC 4180: one header, one row a record (and a planted fault), the same columns in every run; empty where a value
/// does not apply. Build and machine are repeated in each row, so that files of many runs can be joined.
std::string to_csv(const Json& report);

/// --json, --junit, --markdown, --csv: where a command's report goes, and in which forms.
class OutputFlags {
 public:
  OutputFlags() = default;
  OutputFlags(const OutputFlags&) = delete;
  OutputFlags& operator=(const OutputFlags&) = delete;

  /// Adds the flags. Parsing fails where two of them name one file or both stdout, or a file that cannot be made.
  void add_to(CLI::App& sub);
  /// For tables and messages: stdout, or stderr where a report goes to stdout.
  std::ostream& text() const;
  /// Every form that was asked for. One that cannot be written does not keep the others from it; then throws its Error.
  void write(const Json& report) const;
  /// "report: a.json, b.xml"; empty when no file is written.
  std::string files() const;

  /// A flag of one command for a file that is not made of the report; held to the same rules.
  void add_other(CLI::App& sub, const char* flag, const char* help);
  bool wants(std::string_view flag) const;  ///< was it given?
  void write_other(std::string_view flag, std::string_view text) const;

 private:
  struct Output {
    std::string flag;
    std::string (*form)(const Json& report);  ///< null: written with write_other()
    std::string path = {};
  };
  Output& add(CLI::App& sub, Output output, const char* help);
  const Output& find(std::string_view flag) const;
  void validate() const;

  std::deque<Output> outputs_;  ///< the parser holds references to the paths
};

}  // namespace dsv2::harness
