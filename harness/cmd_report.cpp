#include <CLI/CLI.hpp>
#include <iostream>

#include "harness/command.h"
#include "harness/report.h"
#include "harness/report_page.h"

namespace dsv2::harness {
namespace {

struct ReportFlags {
  std::vector<std::string> runs;
  std::string base, html;
};

void replace(std::string& page, std::string_view mark, std::string_view text) {
  const std::size_t at = page.find(mark);
  DSV2_CHECK(at != std::string::npos, "reports/report.html.in: expected ", mark, ", found none");
  page.replace(at, mark.size(), text);
}

/// JSON that may stand inside a <script> element: no "</script" and no "<!--" whatever the strings hold.
std::string script_text(const Json& json) {
  std::string text;
  for (const char c : json.dump()) {
    if (c == '<')
      text += "\\u003c";
    else
      text += c;
  }
  return text;
}

Json named(const std::string& file) { return {{"file", file}, {"report", read_report(file)}}; }

int run(const ReportFlags& flags) {
  Json data = {{"runs", Json::array()}, {"base", nullptr}};
  std::size_t records = 0;
  for (const std::string& file : flags.runs) {
    data["runs"].push_back(named(file));
    records += data["runs"].back()["report"]["records"].size();
  }
  if (!flags.base.empty()) data["base"] = named(flags.base);

  std::string page(report_template());
  replace(page, "@DATA@", script_text(data));  // last in the page first: what is filled in is not searched
  replace(page, "@CHART_JS@", chart_js());
  write_output(flags.html, page);
  if (chart_js().empty())
    std::cerr << "dsv2: charts are left out: built without Chart.js (scripts/deps installs libjs-chart.js)\n";
  if (flags.html != "-") std::cout << flags.html << ": " << records << " records\n";
  return static_cast<int>(ExitCode::passed);
}

}  // namespace

void add_report(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* sub = app.add_subcommand("report", "One HTML page of one or more reports; works from disk and offline");
  sub->add_option("run", flags->runs, "Reports that check or bench wrote with --json")->required();
  sub->add_option("--html", flags->html, "Write the page here (-: stdout)")->required();
  sub->add_option("--base", flags->base, "An earlier report, to compare with row by row");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
