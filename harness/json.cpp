#include "harness/json.h"

#include <cmath>
#include <fstream>
#include <iostream>

#include "model/file.h"
#include "model/json.h"

namespace dsv2::harness {

Json read_json(const std::filesystem::path& file) { return parse_json(read_text_file(file), file.string()); }

Json finite_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

std::string dump(const Json& json) { return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"; }

void write_output(const std::filesystem::path& path, std::string_view text) {
  if (path == "-") {
    std::cout << text << std::flush;
    DSV2_CHECK(std::cout.good(), "stdout: cannot be written");
    return;
  }
  std::error_code none;
  const auto kind = std::filesystem::status(path, none).type();
  DSV2_CHECK(kind != std::filesystem::file_type::directory, path.string(), ": expected a file, found a folder");
  if (kind != std::filesystem::file_type::regular && kind != std::filesystem::file_type::not_found) {
    std::ofstream device(path);  // /dev/null, a FIFO, a shell's >(...): nothing to replace
    device << text << std::flush;
    DSV2_CHECK(device.good(), path.string(), ": cannot be written");
    return;
  }
  if (path.has_parent_path()) {
    std::error_code error;
    std::filesystem::create_directories(path.parent_path(), error);
    DSV2_CHECK(!error, path.string(), ": its folder cannot be made: ", error.message());
  }
  write_text_file(path, text);
}

}  // namespace dsv2::harness
