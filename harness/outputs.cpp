#include "harness/outputs.h"

#include <unistd.h>

#include <filesystem>
#include <iostream>

namespace dsv2::harness {
namespace {

namespace fs = std::filesystem;

struct Form {
  const char* flag;
  const char* help;
  std::string (*text)(const Json& report);
};

/// A new form is one more row; every command then has it.
constexpr Form kForms[] = {
    {"--json", "Write the report here (-: stdout)", dump},
    {"--junit", "As JUnit XML, for a CI's list of tests (-: stdout)", to_junit},
    {"--markdown", "As a summary for a pull request (-: stdout)", to_markdown},
    {"--csv", "As a table, one row a record (-: stdout)", to_csv},
};

/// Why no file can be made there; empty when nothing speaks against it.
std::string obstacle(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return "expected a file, found a folder";
  if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) return {};  // a device is asked when written to
  fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  while (!fs::exists(folder, ignored) && folder.has_parent_path()) folder = folder.parent_path();
  if (folder.empty()) folder = ".";
  if (!fs::is_directory(folder, ignored)) return folder.string() + " is no folder";
  if (::access(folder.c_str(), W_OK | X_OK) != 0) return "its folder cannot be written to";
  return {};
}

}  // namespace

OutputFlags::Output& OutputFlags::add(CLI::App& sub, Output output, const char* help) {
  Output& added = outputs_.emplace_back(std::move(output));
  sub.add_option(added.flag, added.path, help)->type_name("FILE");
  return added;
}

void OutputFlags::add_to(CLI::App& sub) {
  for (const Form& form : kForms) add(sub, {form.flag, form.text}, form.help);
  sub.parse_complete_callback([this] { validate(); });
}

void OutputFlags::add_other(CLI::App& sub, const char* flag, const char* help) { add(sub, {flag, nullptr}, help); }

void OutputFlags::validate() const {
  for (const Output& o : outputs_) {
    if (o.path.empty() || o.path == "-") continue;
    const std::string why = obstacle(o.path);
    DSV2_CHECK(why.empty(), o.flag, ": ", o.path, ": ", why);
  }
  for (auto a = outputs_.begin(); a != outputs_.end(); ++a)
    for (auto b = std::next(a); b != outputs_.end(); ++b)
      DSV2_CHECK(a->path.empty() || a->path != b->path, a->flag, " and ", b->flag, ": expected two places, found ",
                 a->path == "-" ? "stdout" : a->path, " for both");
}

std::ostream& OutputFlags::text() const {
  for (const Output& o : outputs_)
    if (o.path == "-") return std::cerr;
  return std::cout;
}

void OutputFlags::write(const Json& report) const {
  const Json valid = Json::parse(dump(report));  // whatever the bytes of names and paths were: UTF-8
  std::string first_error;
  for (const Output& o : outputs_) {
    if (!o.form || o.path.empty()) continue;
    try {
      write_output(o.path, o.form(valid));
    } catch (const Error& e) {
      if (first_error.empty()) first_error = e.what();
    }
  }
  if (!first_error.empty()) fail(first_error);
}

std::string OutputFlags::files() const {
  std::string all;
  for (const Output& o : outputs_)
    if (!o.path.empty() && o.path != "-") all += (all.empty() ? "report: " : ", ") + o.path;
  return all;
}

const OutputFlags::Output& OutputFlags::find(std::string_view flag) const {
  for (const Output& o : outputs_)
    if (o.flag == flag) return o;
  fail(flag, ": not an output of this command");
}

bool OutputFlags::wants(std::string_view flag) const { return !find(flag).path.empty(); }

void OutputFlags::write_other(std::string_view flag, std::string_view text) const {
  write_output(find(flag).path, text);
}

}  // namespace dsv2::harness
