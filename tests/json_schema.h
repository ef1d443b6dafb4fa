// JSON held against a schema of reports/.
#pragma once

#include <string>
#include <string_view>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validator.hpp>

#include "model/error.h"
#include "model/file.h"
#include "model/json.h"

namespace dsv2::testing {

/// What is wrong with `text` by reports/`schema_file`; empty when it is valid. Throws Error where it is not JSON (a
/// bare NaN).
inline std::string schema_complaints(const std::string& text, std::string_view schema_file) {
  using Adapter = valijson::adapters::NlohmannJsonAdapter;
  const std::string source_file = concat(DSV2_SOURCE_DIR "/reports/", schema_file);
  const nlohmann::json source = parse_json(read_text_file(source_file), source_file);
  valijson::Schema schema;
  valijson::SchemaParser().populateSchema(Adapter(source), schema);
  const nlohmann::json json = parse_json(text, "report");
  valijson::ValidationResults results;
  if (valijson::Validator().validate(schema, Adapter(json), &results)) return {};
  std::string all = "invalid";
  for (valijson::ValidationResults::Error error; results.popError(error);) {
    all += '\n';
    for (const std::string& part : error.context) all += part;
    all.append(": ").append(error.description);
  }
  return all;
}

}  // namespace dsv2::testing
