// Markdown as GitHub and GitLab show it in a comment or a job's summary.
#include <algorithm>
#include <array>
#include <cctype>
#include <functional>
#include <iomanip>
#include <span>

#include "harness/outputs.h"
#include "harness/report_view.h"
#include "harness/table.h"

namespace dsv2::harness {
namespace {

constexpr std::size_t kRows = 50;  ///< of a table: a comment on GitHub holds 65536 characters

/// Text that stays text in a cell of a table: no markup, no tag, no second line.
std::string plain(std::string_view text) {
  std::string out;
  const auto word = [&](std::size_t i) { return i < text.size() && std::isalnum(static_cast<unsigned char>(text[i])); };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += ' ';
    else if (c == '<')
      out += "&lt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '@')  // would call somebody
      out += "&#64;";
    else if (std::string_view("\\`*[|~#").find(c) != std::string_view::npos ||
             (c == '_' && !(i > 0 && word(i - 1) && word(i + 1))))
      out += {'\\', c};
    else
      out += c;
  }
  return out;
}

std::string shortened(std::string text, std::size_t most = 200) {
  if (text.size() <= most) return text;
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0) == 0x80) --most;  // not within a character
  return text.substr(0, most) + "…";
}

struct Column {
  std::string_view title;
  bool number;
  std::function<std::string(const Json&)> of;
};

/// Without the columns that are empty in every row.
std::string table(std::span<const Column> columns, const std::vector<const Json*>& rows, std::string_view where_more) {
  const std::size_t shown = std::min(rows.size(), kRows);
  std::vector<std::vector<std::string>> cells;
  for (const Column& c : columns) {
    std::vector<std::string> column;
    for (std::size_t i = 0; i < shown; ++i) column.push_back(plain(shortened(c.of(*rows[i]))));
    cells.push_back(std::move(column));
  }
  const auto used = [&](std::size_t c) {
    return std::any_of(cells[c].begin(), cells[c].end(), [](const std::string& s) { return !s.empty(); });
  };
  std::string head = "|", rule = "|", body;
  for (std::size_t c = 0; c < columns.size(); ++c) {
    if (!used(c)) continue;
    head += concat(' ', columns[c].title, " |");
    rule += columns[c].number ? "---:|" : "---|";
  }
  for (std::size_t i = 0; i < shown; ++i) {
    body += '|';
    for (std::size_t c = 0; c < columns.size(); ++c)
      if (used(c)) body += " " + cells[c][i] + " |";
    body += '\n';
  }
  std::string text = head + "\n" + rule + "\n" + body;
  if (rows.size() > shown) text += concat("\nand ", rows.size() - shown, " more, ", where_more, ".\n");
  return text;
}

std::function<std::string(const Json&)> value(std::string_view key) {
  return [key](const Json& r) { return text_of(r, key); };
}
std::function<std::string(const Json&)> number(std::string_view key, int digits, double scale = 1) {
  return [=](const Json& r) {
    const auto x = number_of(r, key);
    return x ? fixed(*x * scale, digits) : "";
  };
}
std::string share(const Json& r, std::string_view key) {
  const auto x = number_of(r, key);
  return x ? percent(*x) : "";
}
std::string bytes(const Json& r, std::string_view key) {
  const auto x = number_of(r, key);
  return x ? si(*x, "B") : "";
}
std::string budget(const Json& r) {
  const auto compared = number_of(r, "compared");
  if (!number_of(r, "budget_used") && text_of(r, "status") == "failed" && compared && *compared > 0) return "inf";
  return share(r, "budget_used");
}
std::string variant(const Json& r) {
  const std::string dtype = text_of(r, "dtype"), kv = text_of(r, "kv_dtype");
  return kv.empty() || kv == dtype ? dtype : dtype + ", KV " + kv;
}

/// Of a failed record the first divergence; of others why.
std::string failures_table(const std::vector<const Json*>& records) {
  const auto first = [](const Json& r) -> const Json& {
    const Json& all = child_of(r, "failures");
    return all.empty() ? child_of(r, "") : all[0];
  };
  const auto number_or_inf = [first](std::string_view key) {
    return [=](const Json& r) -> std::string {
      const Json& f = first(r);
      if (f.empty()) return "";
      const auto x = number_of(f, key);
      return x ? concat(std::setprecision(9), *x) : "not finite";  // what tells two float32 apart
    };
  };
  const std::array columns = {
      Column{"record", false, title_of_record},
      Column{"backend", false, value("backend")},
      Column{"dtype", false, variant},
      Column{"status", false, value("status")},
      Column{"first divergence", false, [=](const Json& r) { return text_of(first(r), "tensor"); }},
      Column{"index", false, [=](const Json& r) { return first(r).empty() ? "" : child_of(first(r), "index").dump(); }},
      Column{"got", true, number_or_inf("got")},
      Column{"expected", true, number_or_inf("expected")},
      Column{"× bound", true, number_or_inf("budget_used")},
      Column{"tensors after it", true,
             [](const Json& r) {
               const std::size_t n = child_of(r, "failures").size();
               return n > 1 ? std::to_string(n - 1) : "";
             }},
      Column{"why", false, [=](const Json& r) { return first(r).empty() ? text_of(r, "reason") : ""; }},
  };
  return table(columns, records, "in the report");
}

std::string speed_table(const std::vector<const Json*>& records) {
  const std::array columns = {
      Column{"record", false, title_of_record},
      Column{"backend", false, value("backend")},
      Column{"dtype", false, variant},
      Column{"batch", true, value("batch")},
      Column{"prompt", true, value("prompt")},
      Column{"depth", true, value("depth")},
      Column{"tokens/s", true,
             [](const Json& r) {
               const auto x = number_of(r, text_of(r, "phase") + "_tokens_per_s");
               return x ? fixed(*x, 2) : "";
             }},
      Column{"median ms", true, number("median_ns", 3, 1e-6)},
      Column{"GFLOP/s", true, number("gflop_s", 1)},
      Column{"GB/s", true, number("gb_s", 1)},
      Column{"of roof", true, [](const Json& r) { return share(r, "share_of_roof"); }},
      Column{"KV", true, [](const Json& r) { return bytes(r, "kv_bytes"); }},
      Column{"peak memory", true, [](const Json& r) { return bytes(r, "peak_memory_bytes"); }},
      Column{"budget", true, budget},
  };
  return table(columns, records, "in the report");
}

std::string all_table(const std::vector<const Json*>& records) {
  const std::array columns = {
      Column{"record", false, title_of_record},
      Column{"backend", false, value("backend")},
      Column{"dtype", false, variant},
      Column{"status", false, value("status")},
      Column{"tensors", true, value("compared")},
      Column{"budget", true, budget},
      Column{"worst", false, value("worst")},
  };
  return table(columns, records, "in the report");
}

std::string faults_table(const std::vector<const Json*>& faults) {
  const std::array columns = {
      Column{"fault", false, value("name")},
      Column{"op", false, value("op")},
      Column{"dtype", false, value("dtype")},
      Column{"outcome", false,
             [](const Json& f) {
               const std::string complaint = complaint_of_fault(f);
               return complaint.empty() ? "caught by " + text_of(f, "caught_by") : complaint;
             }},
  };
  return table(columns, faults, "in the report");
}

std::string folded(std::string_view title, const std::string& inside) {
  return concat("<details><summary>", title, "</summary>\n\n", inside, "\n</details>\n\n");
}

std::string machine_line(const Json& report) {
  const Json &machine = child_of(report, "machine"), &peaks = child_of(machine, "peak_gflop_s");
  std::string line = plain(
      concat(text_of(machine, "cpu"), ", ", text_of(machine, "isa"), ", ", text_of(machine, "threads"), " threads"));
  if (const auto bandwidth = number_of(machine, "read_bandwidth_gb_s"))
    line += concat(", reads ", fixed(*bandwidth, 1), " GB/s");
  for (const auto& [dtype, peak] : peaks.items())
    if (peak.is_number()) line += concat(", ", dtype, " peak ", fixed(peak.get<double>(), 0), " GFLOP/s");
  return line;
}

}  // namespace

std::string to_markdown(const Json& report) {
  std::vector<const Json*> all, bad, timed, faults, missed;
  for (const Json& r : child_of(report, "records")) {
    all.push_back(&r);
    if (text_of(r, "status") != "passed") bad.push_back(&r);
    // check runs each call once, cold: its samples are no measurement
    if (number_of(r, "median_ns") && number_of(r, "share_of_roof")) timed.push_back(&r);
  }
  for (const Json& f : child_of(report, "faults")) {
    faults.push_back(&f);
    if (!complaint_of_fault(f).empty()) missed.push_back(&f);
  }
  const std::string model = text_of(child_of(report, "model"), "name");
  std::string text = concat("## ", verdict_of(report), ": ", plain(title_of(report)),
                            model.empty() ? "" : ", " + plain(model), "\n\n", counts_of(report), "\n\n");
  if (!bad.empty()) text += "### Not passed\n\n" + failures_table(bad) + "\n";
  if (!missed.empty()) text += "### Planted faults that the gate missed\n\n" + faults_table(missed) + "\n";
  if (!timed.empty()) text += "### Performance\n\n" + speed_table(timed) + "\n";
  text += machine_line(report) + "\n\n";
  if (!all.empty()) text += folded(concat("All ", all.size(), " records"), all_table(all));
  if (!faults.empty()) text += folded(concat("All ", faults.size(), " planted faults"), faults_table(faults));
  std::string command;
  for (const Json& word : child_of(report, "argv"))
    if (word.is_string()) command += (command.empty() ? "" : " ") + word.get<std::string>();
  const Json& tool = child_of(report, "tool");
  std::string build = concat("* command: ", plain(command), "\n* ", plain(text_of(tool, "version")), "\n* ",
                             plain(text_of(tool, "compiler")), ", ", plain(text_of(tool, "build_type")), ": ",
                             plain(text_of(tool, "compile_flags")), "\n* ", text_of(report, "time"), "\n");
  if (const std::string seed = text_of(report, "seed"); !seed.empty()) build += "* seed " + seed + "\n";
  text += folded("Command and build", build);
  return text;
}

}  // namespace dsv2::harness
