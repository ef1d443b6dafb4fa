// What a backend's code does wrong beside wrong numbers: it breaks, or the checks of its simulator find something.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "harness/report.h"
#include "model/decoder.h"
#include "model/error.h"

namespace dsv2::harness {

/// Books what is no comparison of tensors: the record fails for `reason`.
void fail_record(Record& record, std::string what, const std::string& reason);

/// Books what `record`'s work threw. A BackendFault fails it, and its backend is lost from then on; what else there is
/// says that the input was refused.
void book_error(Record& record, const Error& error);
/// Fails `record` for what the simulator found since the last call; as its first failures, since numbers may be wrong
/// for that reason.
void book_findings(Record& record, const decltype(Backend::findings)& findings);

/// Why a backend cannot run any more: a record of this process in which it broke. nullopt: none did.
std::optional<std::string> lost(std::string_view backend);

}  // namespace dsv2::harness
