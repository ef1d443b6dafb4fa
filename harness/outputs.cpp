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

void OutputFlags::add_to(CLI::App& sub) {
  static_assert(std::size(harness::kForms) == OutputFlags::kForms);
  for (std::size_t i = 0; i < kForms; ++i)
    sub.add_option(harness::kForms[i].flag, paths_[i], harness::kForms[i].help)->type_name("FILE");
  sub.parse_complete_callback([this] { validate(); });
}

void OutputFlags::validate() const {
  for (std::size_t i = 0; i < kForms; ++i) {
    const std::string& path = paths_[i];
    const char* flag = harness::kForms[i].flag;
    if (path.empty() || path == "-") continue;
    const std::string why = obstacle(path);
    DSV2_CHECK(why.empty(), flag, ": ", path, ": ", why);
  }
  for (std::size_t i = 0; i < kForms; ++i)
    for (std::size_t j = i + 1; j < kForms; ++j)
      DSV2_CHECK(paths_[i].empty() || paths_[i] != paths_[j], harness::kForms[i].flag, " and ", harness::kForms[j].flag,
                 ": expected two places, found ", paths_[i] == "-" ? "stdout" : paths_[i], " for both");
}

std::ostream& OutputFlags::text() const {
  for (const std::string& path : paths_)
    if (path == "-") return std::cerr;
  return std::cout;
}

void OutputFlags::write(const Json& report) const {
  const Json valid = Json::parse(dump(report));  // whatever the bytes of names and paths were: UTF-8
  std::string first_error;
  for (std::size_t i = 0; i < kForms; ++i) {
    if (paths_[i].empty()) continue;
    try {
      write_output(paths_[i], harness::kForms[i].text(valid));
    } catch (const Error& e) {
      if (first_error.empty()) first_error = e.what();
    }
  }
  if (!first_error.empty()) fail(first_error);
}

std::string OutputFlags::files() const {
  std::string all;
  for (const std::string& path : paths_)
    if (!path.empty() && path != "-") all += (all.empty() ? "report: " : ", ") + path;
  return all;
}

}  // namespace dsv2::harness
