#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "harness/backends.h"
#include "harness/command.h"
#include "harness/flags.h"
#include "harness/ocr.h"
#include "harness/report.h"
#include "harness/statistics.h"
#include "harness/table.h"

namespace dsv2::harness {
namespace {

struct ReadFlags {
  std::vector<std::string> pictures;
  std::string model, dtype = "f32", json;
  BackendFlags backend;
  std::int64_t max_new_tokens = 0;
};

Json token_json(const OcrProcessor& processor, const ReadToken& token) {
  return {{"id", token.id},
          {"text", processor.token(token.id)},
          {"log_probability", finite_or_null(token.log_probability)},
          {"second", processor.token(token.second)},
          {"margin", finite_or_null(token.margin)}};
}

Json line_json(const OcrProcessor& processor, const std::string& file, const Picture& picture, const ReadLine& line) {
  Json j = {{"file", file}, {"width", picture.width}, {"height", picture.height}, {"text", line.text}};
  j["tokens"] = Json::array(), j["close"] = Json::array();
  for (std::size_t i = 0; i < line.tokens.size(); ++i) {
    j["tokens"].push_back(token_json(processor, line.tokens[i]));
    if (!(line.tokens[i].margin >= kCloseMargin)) j["close"].push_back(i);
  }
  j["prefill_ns"] = line.prefill_ns;
  j["step_ns"] = line.step_ns;
  return j;
}

void print_speed(const std::vector<ReadLine>& lines, std::int64_t prompt, std::ostream& out) {
  std::vector<double> prefill, steps;
  for (const ReadLine& line : lines) {
    prefill.push_back(static_cast<double>(line.prefill_ns));
    steps.insert(steps.end(), line.step_ns.begin(), line.step_ns.end());
  }
  const double first = median(prefill);
  out << lines.size() << (lines.size() == 1 ? " picture" : " pictures") << ": prefill " << prompt << " tokens in "
      << duration(first) << " (" << fixed(static_cast<double>(prompt) / first * 1e9, 0) << " tokens/s)";
  if (!steps.empty())
    out << ", decode " << steps.size() << " steps at " << fixed(1e9 / median(steps), 0) << " tokens/s (medians)";
  out << '\n';
}

int run(const ReadFlags& flags) {
  const std::string model = flags.model.empty() ? default_golden_folder() + "/tiny_ocr/mha" : flags.model;
  const Config config = Config::load(model);
  const OcrProcessor processor(model, config);
  const auto chosen = flags.backend.backends();
  DSV2_CHECK(chosen.size() == 1, "--backend: expected one to read with, found ", chosen.size());
  const Backend& backend = *chosen.front();
  const Options options = flags.backend.options(flags.dtype);
  require_runs(backend, config, options);
  const std::vector<std::filesystem::path> files = picture_files(flags.pictures);
  const auto decoder = backend.create(config, load_weights(model, config, options.dtype), options);

  const std::int64_t most = flags.max_new_tokens ? flags.max_new_tokens : processor.max_new_tokens();
  const bool data = flags.json == "-", alone = files.size() == 1;
  std::vector<ReadLine> lines;
  Json rows = Json::array();
  {
    ProgressLine progress("read");
    for (std::size_t i = 0; i < files.size(); ++i) {
      if (!alone) progress.show(i, files.size(), files[i].filename().string());
      const std::string file = files[i].string();
      const Picture picture = processor.fitted(read_png(file), file);
      const Picture* one[] = {&picture};
      const auto stream = [&](std::int64_t id) {
        const std::int64_t ids[] = {id};
        if (alone && !data) std::cout << processor.text(ids) << std::flush;
      };
      lines.push_back(read_pictures(*decoder, processor, one, most, stream).front());
      rows.push_back(line_json(processor, file, picture, lines.back()));
      if (data) continue;
      progress.clear();
      if (!alone) std::cout << file << '\t' << lines.back().text;
      std::cout << std::endl;
    }
  }
  print_speed(lines, processor.prompt_tokens(), std::cerr);
  if (!flags.json.empty())
    write_output(flags.json, dump({{"schema_version", kReportSchemaVersion},
                                   {"argv", command_line()},
                                   {"model", model},
                                   {"backend", backend.name},
                                   {"dtype", flags.dtype},
                                   {"close_margin", kCloseMargin},
                                   {"pictures", rows}}));
  return 0;
}

}  // namespace

void add_read(CLI::App& app, ExitCode& code) {
  auto flags = std::make_shared<ReadFlags>();
  CLI::App* sub = app.add_subcommand("read", "Read pictures of a line of text");
  sub->add_option(
         "picture", flags->pictures,
         concat("PNG files, or folders of them: one line of dark text on light each, of any kind of PNG with at "
                "most ",
                kMostPixels >> 20, " Mi pixels"))
      ->required();
  sub->add_option("--model", flags->model, "Checkpoint that reads (default: golden/tiny_ocr/mha)");
  flags->backend.add_to(*sub, "cpu");
  sub->add_option("--dtype", flags->dtype, "Of matrices and their arithmetic: f32, bf16, int8, int4 (default f32)");
  sub->add_option("--max-new-tokens", flags->max_new_tokens, "At most this many (default: the checkpoint's)")
      ->check(CLI::PositiveNumber);
  sub->add_option("--json", flags->json,
                  "Write each token with its log-probability, and where two readings were close, here (-: stdout)");
  sub->callback([flags, &code] { code = static_cast<ExitCode>(run(*flags)); });
}

}  // namespace dsv2::harness
