#include "gpusim/finding.h"

#include <array>
#include <cstddef>
#include <sstream>

namespace gpusim {
namespace {

constexpr std::array<std::string_view, static_cast<std::size_t>(FindingKind::missing_fence) + 1> kNames = {
    "out-of-bounds",
    "use-after-free",
    "misaligned",
    "uninitialised",
    "shared-race",
    "shared-race-in-warp",
    "global-race",
    "stream-race",
    "divergent-barrier",
    "async-copy-not-waited",
    "bad-shuffle",
    "deadlock",
    "instruction-budget",
    "unsupported",
    "trap",
    "leak",
    "invalid-argument",
    "mbarrier-misuse",
    "bulk-copy-misuse",
    "missing-fence",
};

std::ostream& operator<<(std::ostream& out, const Dim3& at) {
  return out << '(' << at.x << ',' << at.y << ',' << at.z << ')';
}

void write_place(std::ostream& out, const SourcePlace& place) {
  if (!place.file.empty()) out << place.file << ':' << place.line;
}

}  // namespace

std::string_view name_of(FindingKind kind) { return kNames[static_cast<std::size_t>(kind)]; }

std::string to_string(const Finding& finding) {
  std::ostringstream out;
  if (!finding.kernel.empty()) out << finding.kernel << ": ";
  if (!finding.place.file.empty()) {
    write_place(out, finding.place);
    out << ": ";
  }
  out << name_of(finding.kind) << (finding.warning ? " (warning): " : ": ") << finding.message;
  if (!finding.other.file.empty() || !finding.other.ptx.empty()) {
    out << ", meets ";
    write_place(out, finding.other);
    if (!finding.other.ptx.empty()) out << " [" << finding.other.ptx << ']';
  }
  if (!finding.kernel.empty()) out << " block " << finding.block << " thread " << finding.thread;
  if (!finding.place.ptx.empty()) out << " [" << finding.place.ptx << ']';
  if (finding.times > 1) out << " (" << finding.times << " times)";
  return out.str();
}

}  // namespace gpusim
