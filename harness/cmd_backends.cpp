#include <CLI/CLI.hpp>
#include <iostream>
#include <set>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/flags.h"
#include "harness/report.h"
#include "harness/run_op.h"
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

/// The dtypes in which a backend computes an op of the table of op cases: "f32, bf16, f32-on-bf16"; empty: not alone.
std::string supported(const Backend& backend, std::string_view op, const std::vector<OpCase>& cases) {
  const OpKernel* kernel = find_op(backend, op);
  std::string list;
  std::set<std::string> seen;
  for (const OpCase& c : cases) {
    if (!kernel || c.op != op || c.tokens > 1) continue;
    std::string word(name(c.dtype));
    if (c.stored != c.dtype) word += concat("-on-", name(c.stored));
    if (has_cache(c)) word = concat("kv ", name(c.kv_dtype));
    if (!seen.insert(word).second || kernel->unsupported(draw(c, 1), op_options(c, backend, {}))) continue;
    list += (list.empty() ? "" : ", ") + word;
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
  std::vector<OpCase> cases = op_cases();
  std::erase_if(cases, has_real_widths);
  Json ops = Json::array();
  std::vector<std::string> heads = {"op"};
  for (const Backend& b : backends()) heads.emplace_back(b.name);
  Table matrix(heads);
  for (const std::string_view op : op_names()) {
    std::vector<std::string> row = {std::string(op)};
    Json line = {{"op", op}};
    for (const Backend& b : backends()) {
      row.push_back(supported(b, op, cases));
      line[std::string(b.name)] = row.back();
    }
    matrix.add(row);
    ops.push_back(line);
  }
  Json isas = Json::array();
  for (const cpu::IsaInfo& isa : cpu::isas()) isas.push_back({{"name", isa.name}, {"runs_here", isa.runs_here}});
  if (!json_path.empty())
    write_output(
        json_path,
        Json{{"schema_version", kReportSchemaVersion}, {"backends", rows}, {"ops", ops}, {"cpu_isas", isas}}.dump(1) +
            "\n");
  if (json_path == "-") return 0;
  table.print(std::cout);
  std::cout << "\nops alone (check --op, bench --op):\n";
  matrix.print(std::cout);
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
