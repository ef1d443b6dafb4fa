// The subcommands of dsv2: each lives in cmd_<name>.cpp and adds itself to the application.
#pragma once

#include <cstdint>

namespace CLI {
class App;
}

namespace dsv2::harness {

/// What `dsv2` returns to the shell.
enum class ExitCode : std::uint8_t {
  passed = 0,
  wrong = 1,      ///< a comparison failed
  bad_input = 2,  ///< usage, unknown name, broken file, not enough memory; an Error that reaches main() gives this
  slower = 3,     ///< compare: slower than allowed
  nothing_checked = 4,  ///< no case, no backend that runs here, nothing to compare
};

/// Each adds its subcommand to `app`; the callback of the chosen one does the work and sets `code`.
void add_backends(CLI::App& app, ExitCode& code);
void add_bench(CLI::App& app, ExitCode& code);
void add_check(CLI::App& app, ExitCode& code);
void add_compare(CLI::App& app, ExitCode& code);
void add_cost(CLI::App& app, ExitCode& code);
void add_dump(CLI::App& app, ExitCode& code);
void add_generate(CLI::App& app, ExitCode& code);
void add_init(CLI::App& app, ExitCode& code);
void add_inspect(CLI::App& app, ExitCode& code);
void add_quality(CLI::App& app, ExitCode& code);
void add_quantize(CLI::App& app, ExitCode& code);
void add_read(CLI::App& app, ExitCode& code);
void add_selftest(CLI::App& app, ExitCode& code);
void add_report(CLI::App& app, ExitCode& code);
void add_sim(CLI::App& app, ExitCode& code);

}  // namespace dsv2::harness
