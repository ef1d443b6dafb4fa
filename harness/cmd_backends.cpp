#include <CLI/CLI.hpp>
#include <iostream>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/flags.h"
#include "harness/report.h"
#include "harness/table.h"
#include "optimized/cpu/backend.h"

namespace dsv2::harness {
namespace {

/// The dtypes that a backend takes for a plain model of either kind.
std::string supported_dtypes(const Backend& backend) {
  std::string list;
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8, DType::i4}) {
    Options options;
    options.dtype = dtype;
    if (backend.unsupported(Config::preset("tiny-mla"), options)) continue;
    list += (list.empty() ? "" : ", ") + std::string(name(dtype));
  }
  return list;
}

std::string isa_list() {
  std::string list;
  for (const cpu::IsaInfo& isa : cpu::isas())
    list += (list.empty() ? "" : ", ") + std::string(isa.name) + (isa.runs_here ? "" : " (not on this machine)");
  return list;
}

int run(const std::string& json_path) {
  Json rows = Json::array();
  Table table({"backend", "state", "dtypes", "what it is"});
  for (const Backend& b : backends()) {
    const auto why = b.unavailable();
    table.add({std::string(b.name), why ? *why : "available", supported_dtypes(b), std::string(b.description)});
    rows.push_back({{"name", b.name},
                    {"available", !why},
                    {"reason", why ? Json(*why) : Json(nullptr)},
                    {"dtypes", supported_dtypes(b)},
                    {"description", b.description}});
  }
  Json isas = Json::array();
  for (const cpu::IsaInfo& isa : cpu::isas()) isas.push_back({{"name", isa.name}, {"runs_here", isa.runs_here}});
  if (!json_path.empty())
    write_output(json_path,
                 Json{{"schema_version", kReportSchemaVersion}, {"backends", rows}, {"cpu_isas", isas}}.dump(1) + "\n");
  if (json_path == "-") return 0;
  table.print(std::cout);
  std::cout << "\ncpu instruction sets: " << isa_list() << '\n';
  return 0;
}

}  // namespace

void add_backends(CLI::App& app, ExitCode& code) {
  auto json = std::make_shared<std::string>();
  CLI::App* sub = app.add_subcommand("backends", "List the backends, and why one is not available");
  sub->add_option("--json", *json, "Write the list here (-: stdout)");
  sub->callback([json, &code] { code = static_cast<ExitCode>(run(*json)); });
}

}  // namespace dsv2::harness
