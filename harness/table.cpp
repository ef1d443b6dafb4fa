#include "harness/table.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <iostream>

namespace dsv2::harness {

void Table::add(std::vector<std::string> row) {
  row.resize(rows_.front().size());
  rows_.push_back(std::move(row));
}

void Table::print(std::ostream& out) const {
  std::vector<std::size_t> width(rows_.front().size());
  for (const auto& row : rows_)
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (std::size_t i = 0; i < width.size(); ++i) {
      const std::string& cell = rows_[r][i];
      const std::string pad(width[i] - cell.size(), ' ');
      const bool right =
          r > 0 && !cell.empty() && (std::isdigit(static_cast<unsigned char>(cell[0])) || cell[0] == '-');
      line += (i ? "  " : "") + (right ? pad + cell : cell + pad);
    }
    out << line.substr(0, line.find_last_not_of(' ') + 1) << '\n';
    if (r > 0) continue;
    std::size_t total = 2 * (width.size() - 1);
    for (const std::size_t w : width) total += w;
    out << std::string(total, '-') << '\n';
  }
}

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string percent(double share) { return std::isfinite(share) ? fixed(100 * share, 1) + " %" : "inf"; }

std::string duration(double ns) {
  constexpr std::string_view kUnits[] = {" ns", " us", " ms", " s"};
  std::size_t unit = 0;
  for (; ns >= 999.5 && unit + 1 < std::size(kUnits); ++unit) ns /= 1000;
  return fixed(ns, ns < 9.995 ? 2 : ns < 99.95 ? 1 : 0).append(kUnits[unit]);
}

std::string si(double value, std::string_view unit) {
  constexpr std::array<std::string_view, 6> kPrefixes = {"", "k", "M", "G", "T", "P"};
  std::size_t prefix = 0;
  while (std::fabs(value) >= 1000 && prefix + 1 < kPrefixes.size()) value /= 1000, ++prefix;
  const int digits = prefix == 0 && value == std::floor(value) ? 0
                     : std::fabs(value) < 10                   ? 3
                     : std::fabs(value) < 100                  ? 2
                                                               : 1;
  return fixed(value, digits) + " " + std::string(kPrefixes[prefix]) + std::string(unit);
}

ProgressLine::ProgressLine(std::string what) : what_(std::move(what)), terminal_(::isatty(STDERR_FILENO) == 1) {}

void ProgressLine::show_counts(std::int64_t done, std::int64_t total, std::string_view detail) {
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || (shown_ && now - last_ < std::chrono::milliseconds(100))) return;
  last_ = now;
  shown_ = true;
  std::cerr << "\r\033[K" << what_ << ": " << done << " of " << total << ' ' << detail << std::flush;
}

void ProgressLine::clear() {
  if (shown_) std::cerr << "\r\033[K" << std::flush;
  shown_ = false;
}

}  // namespace dsv2::harness
