// Reading a report that is JSON, for those who write it in another form. Nothing here throws for a key that is missing.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "harness/json.h"

namespace dsv2::harness {

/// The value under `key` as text, numbers as JSON writes them; empty where it is missing, null, or an object or array.
std::string text_of(const Json& object, std::string_view key);
std::optional<double> number_of(const Json& object, std::string_view key);
/// The object or array under `key`; an empty one where there is none.
const Json& child_of(const Json& object, std::string_view key);

/// "dsv2 check": the command that wrote it.
std::string title_of(const Json& report);
/// "PASSED", "FAILED", "REFUSED", "NOTHING CHECKED", from its exit code.
std::string verdict_of(const Json& report);
/// "6 passed, 1 failed", and if there are any the faults caught and the false alarms.
std::string counts_of(const Json& report);
/// The record's name, with its phase where the name does not hold it.
std::string title_of_record(const Json& record);
/// What is wrong with a planted fault's row; empty when it was caught and blamed on its op.
std::string complaint_of_fault(const Json& fault);

}  // namespace dsv2::harness
