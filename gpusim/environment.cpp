#include "gpusim/environment.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>

#include "model/error.h"

namespace gpusim {
namespace {

constexpr std::array kCheckNames = {
    CheckName{"memory", &Checks::memory, "bounds, alignment and use after free"},
    CheckName{"initialised", &Checks::initialised, "uninitialised global and shared memory"},
    CheckName{"shared_races", &Checks::shared_races, "shared memory between barriers"},
    CheckName{"global_races", &Checks::global_races, "global memory between blocks"},
    CheckName{"barriers", &Checks::barriers, "divergent and mismatched barriers, masks of shuffles"},
    CheckName{"async_copies", &Checks::async_copies, "cp.async and bulk copies consumed before their wait"},
    CheckName{"leaks", &Checks::leaks, "device memory that is never freed"},
    CheckName{"streams", &Checks::streams, "work delayed to the synchronisation that orders it"},
};

constexpr std::array<std::string_view, 3> kIsas = {"portable", "avx2", "avx512"};

std::uint64_t parse_count(const char* name, std::string_view text, std::uint64_t largest) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  DSV2_CHECK(error == std::errc() && end == text.data() + text.size() && value <= largest, name,
             ": expected an integer from 0 to ", largest, ", found \"", text, "\"");
  return value;
}

bool parse_switch(const char* name, std::string_view text) {
  DSV2_CHECK(text == "0" || text == "1", name, ": expected 0 or 1, found \"", text, "\"");
  return text == "1";
}

std::string known_device(const char* name, std::string_view text) {
  try {
    return std::string(device_model(text).name);
  } catch (const dsv2::Error& e) {
    dsv2::fail(name, ": ", e.what());
  }
}

Checks all_checks() {
  Checks checks;
  for (const CheckName& check : kCheckNames) checks.*(check.flag) = true;
  return checks;
}

std::string list_of_checks() {
  std::string names;
  for (const CheckName& check : kCheckNames) names.append(", ").append(check.name);
  return names;
}

}  // namespace

std::span<const CheckName> check_names() { return kCheckNames; }

Checks parse_checks(std::string_view text) {
  Checks checks;
  if (text == "none") return checks;
  if (text == "all") return all_checks();
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string_view name = text.substr(at, comma - at);
    const auto* known = std::find_if(kCheckNames.begin(), kCheckNames.end(),
                                     [&](const CheckName& check) { return check.name == name; });
    DSV2_CHECK(known != kCheckNames.end(), "checks: expected all, none, or some of", list_of_checks().substr(1),
               ", found \"", name, "\"");
    checks.*(known->flag) = true;
    at = comma + 1;
  }
  return checks;
}

bool any(const Checks& checks) {
  return std::any_of(kCheckNames.begin(), kCheckNames.end(),
                     [&](const CheckName& check) { return checks.*(check.flag); });
}

Environment read_environment(const std::function<const char*(const char*)>& get) {
  Environment out;
  out.settings.checks = all_checks();
  // An empty variable is one that is not set.
  const auto with = [&](const char* name, const auto& use) {
    const char* text = get(name);
    if (text != nullptr && *text != '\0') use(name, std::string_view(text));
  };
  with("GPUSIM_DEVICE", [&](const char* name, std::string_view text) { out.device = known_device(name, text); });
  with("GPUSIM_CHECKS", [&](const char* name, std::string_view text) {
    try {
      out.settings.checks = parse_checks(text);
    } catch (const dsv2::Error& e) {
      dsv2::fail(name, ": ", e.what());
    }
  });
  with("GPUSIM_COUNTS",
       [&](const char* name, std::string_view text) { out.settings.counts = parse_switch(name, text); });
  with("GPUSIM_LINES", [&](const char* name, std::string_view text) { out.lines = parse_switch(name, text); });
  with("GPUSIM_THREADS", [&](const char* name, std::string_view text) {
    out.settings.threads = static_cast<int>(parse_count(name, text, 4096));
  });
  with("GPUSIM_BUDGET", [&](const char* name, std::string_view text) {
    out.settings.instruction_budget = parse_count(name, text, INT64_MAX);
  });
  with("GPUSIM_ISA", [&](const char* name, std::string_view text) {
    DSV2_CHECK(std::find(kIsas.begin(), kIsas.end(), text) != kIsas.end(), name,
               ": expected portable, avx2 or avx512, found \"", text, "\"");
    out.settings.isa = text;
  });
  with("GPUSIM_JSON", [&](const char*, std::string_view text) { out.json = text; });
  with("GPUSIM_QUIET", [&](const char* name, std::string_view text) { out.quiet = parse_switch(name, text); });
  if (out.lines) out.settings.counts = true;
  return out;
}

}  // namespace gpusim
