#include <CLI/CLI.hpp>
#include <iostream>
#include <new>
#include <string>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/interrupt.h"
#include "harness/version.h"

int main(int argc, char** argv) {
  using dsv2::harness::ExitCode;
  dsv2::harness::clean_up_when_interrupted();
  CLI::App app{"The DeepSeek-V2 decoder, checked and measured"};
  app.name("dsv2");
  app.set_version_flag("--version", dsv2::harness::version_line());
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& e) { return "dsv2: " + std::string(e.what()) + '\n'; });
  app.get_formatter()->column_width(36);
  ExitCode code = ExitCode::passed;
  dsv2::harness::add_check(app, code);
  dsv2::harness::add_bench(app, code);
  dsv2::harness::add_compare(app, code);
  dsv2::harness::add_report(app, code);
  dsv2::harness::add_cost(app, code);
  dsv2::harness::add_init(app, code);
  dsv2::harness::add_quantize(app, code);
  dsv2::harness::add_quality(app, code);
  dsv2::harness::add_inspect(app, code);
  dsv2::harness::add_generate(app, code);
  dsv2::harness::add_read(app, code);
  dsv2::harness::add_dump(app, code);
  dsv2::harness::add_backends(app, code);
  dsv2::harness::add_selftest(app, code);
  dsv2::harness::add_sim(app, code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : static_cast<int>(ExitCode::bad_input);
  } catch (const std::bad_alloc&) {
    std::cerr << "dsv2: not enough memory\n";
    return static_cast<int>(ExitCode::bad_input);
  } catch (const dsv2::harness::Unavailable& e) {
    std::cerr << "dsv2: " << e.what() << '\n';
    return static_cast<int>(ExitCode::nothing_checked);
  } catch (const dsv2::BackendFault& e) {
    std::cerr << "dsv2: " << e.what() << '\n';
    return static_cast<int>(ExitCode::wrong);
  } catch (const std::exception& e) {
    std::cerr << "dsv2: " << e.what() << '\n';
    return static_cast<int>(ExitCode::bad_input);
  }
  return static_cast<int>(code);
}
