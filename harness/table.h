// Text for people: aligned tables, numbers with units, a line of progress.
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace dsv2::harness {

/// Columns as wide as their widest cell; cells that look like numbers are set right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void add(std::vector<std::string> row);  ///< missing cells are empty
  void print(std::ostream& out) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string percent(double share);                    ///< "12.3 %"
std::string fixed(double value, int digits);          ///< "12.30"
std::string si(double value, std::string_view unit);  ///< "1.18 GFLOP", "61.4 kB": powers of ten, three digits

std::string duration(double ns);  ///< "12.3 us": three digits

/// One line on stderr that rewrites itself, at most ten times a second, when stderr is a terminal; else nothing.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what);
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  template <class Count>
  void show(Count done, Count total, std::string_view detail) {
    show_counts(static_cast<std::int64_t>(done), static_cast<std::int64_t>(total), detail);
  }
  void clear();

 private:
  void show_counts(std::int64_t done, std::int64_t total, std::string_view detail);

  std::string what_;
  bool terminal_, shown_ = false;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace dsv2::harness
