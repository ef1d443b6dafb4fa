#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>

#include "gpusim/device_model.h"
#include "gpusim/environment.h"
#include "gpusim/linked.h"
#include "harness/command.h"
#include "model/error.h"

namespace dsv2::harness {
namespace {

struct SimFlags {
  std::string device, checks, json, threads, budget, isa;
  bool counts = false, lines = false;
};

/// As a shell finds a command: a name without a slash is looked for in PATH.
std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::filesystem::path file = std::filesystem::path(folder.empty() ? "." : folder) / name;
    if (access(file.c_str(), X_OK) == 0 && !std::filesystem::is_directory(file)) return file.string();
  }
  fail(name, ": not found in PATH; a program of this folder is ./", name);
}

void set(const char* name, const std::string& value) {
  if (!value.empty()) setenv(name, value.c_str(), 1);
}

/// Becomes the program: its exit code, 1 where it is 0 and a check fired, is the command's.
int run(const SimFlags& flags, const std::vector<std::string>& words) {
  DSV2_CHECK(!words.empty(), "sim: expected a program, found none");
  DSV2_CHECK(words.front().rfind('-', 0) != 0, "sim: unknown option ", words.front(),
             " (the program's own options come after its name)");
  const std::string program = find_program(words.front());
  gpusim::require_linked_program(program);
  set("GPUSIM_DEVICE", flags.device);
  set("GPUSIM_CHECKS", flags.checks);
  set("GPUSIM_THREADS", flags.threads);
  set("GPUSIM_BUDGET", flags.budget);
  set("GPUSIM_ISA", flags.isa);
  set("GPUSIM_COUNTS", flags.counts ? "1" : "");
  set("GPUSIM_LINES", flags.lines ? "1" : "");
  // The program may change its folder.
  if (!flags.json.empty()) set("GPUSIM_JSON", std::filesystem::absolute(flags.json).string());
  gpusim::read_environment([](const char* name) { return std::getenv(name); });  // a bad value is told here

  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  std::cout.flush();
  execv(program.c_str(), arguments.data());
  fail(program, ": cannot be run: ", std::strerror(errno));
}

std::string device_names() {
  std::string out;
  for (const gpusim::DeviceModel& model : gpusim::device_models())
    out.append(out.empty() ? "" : ", ").append(model.name);
  return out;
}

std::string check_list() {
  std::string out = "all, none, or a list with commas of";
  for (const gpusim::CheckName& check : gpusim::check_names()) out.append(" ").append(check.name);
  return out;
}

}  // namespace

void add_sim(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<SimFlags>();
  CLI::App* sub = app.add_subcommand("sim", "Run a CUDA program, linked with gpusim, on the simulated GPU");
  sub->add_option("--device", flags->device, device_names() + " (default h100)");
  sub->add_option("--checks", flags->checks, check_list() + " (default all)");
  sub->add_flag("--counts", flags->counts, "Count instructions, FLOPs, sectors, wavefronts");
  sub->add_flag("--lines", flags->lines, "Counts per source line; with --counts");
  sub->add_option("--json", flags->json, "Write the report to this file, too");
  sub->add_option("--threads", flags->threads, "Host cores to use (default 0: all)");
  sub->add_option("--budget", flags->budget, "Warp instructions that a launch may run (default 0: no limit)");
  sub->add_option("--isa", flags->isa, "portable, avx2 or avx512 (default: the best that this CPU has)");
  sub->prefix_command();
  sub->footer("dsv2 sim [OPTIONS] PROGRAM [ARGUMENTS]\nExit code: the program's; 1 where that is 0 and a check fired.");
  sub->callback([flags, sub, &code] { code = static_cast<ExitCode>(run(*flags, sub->remaining())); });
}

}  // namespace dsv2::harness
