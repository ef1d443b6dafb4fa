// A simulated device for tests: load PTX, put arrays on the device, launch.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "gpusim/launch.h"

namespace gpusim {

inline std::string read_text(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The line of `path` that ends in "FAULT <name>".
inline int line_of_fault(const std::string& path, const std::string& name) {
  std::istringstream lines(read_text(path));
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.ends_with("FAULT " + name)) return number;
  }
  ADD_FAILURE() << path << " has no FAULT " << name;
  return 0;
}

class Simulated {
 public:
  explicit Simulated(const std::string& ptx, Checks checks = Checks::all()) : memory_(std::size_t{1} << 32, true) {
    settings.checks = checks;
    model_.multiprocessors = 108;
    module_ = Module::load(ptx, memory_);
  }

  /// An array on the device that holds `values`.
  template <class T>
  T* put(const std::vector<T>& values) {
    const std::uint64_t address = memory_.allocate(values.size() * sizeof(T), "cudaMalloc", Byte::initialised);
    std::memcpy(reinterpret_cast<void*>(address), values.data(), values.size() * sizeof(T));
    return reinterpret_cast<T*>(address);
  }
  /// One that nobody has written.
  template <class T>
  T* fresh(std::size_t count) {
    return reinterpret_cast<T*>(memory_.allocate(count * sizeof(T), "cudaMalloc"));
  }

  template <class... Arguments>
  LaunchResult run(const std::string& kernel, Dim3 grid, Dim3 block, Arguments... arguments) {
    const KernelInfo* const info = module_->kernel(kernel);
    EXPECT_NE(info, nullptr) << kernel;
    std::vector<std::byte> parameters(info->parameter_bytes);
    std::size_t index = 0;
    [[maybe_unused]] const auto place = [&](const auto& argument) {
      ASSERT_EQ(info->parameter_sizes.at(index), sizeof argument);
      std::memcpy(&parameters[info->parameter_offsets[index++]], &argument, sizeof argument);
    };
    (place(arguments), ...);
    LaunchConfig config;
    config.grid = grid;
    config.block = block;
    config.dynamic_shared_bytes = dynamic_shared_bytes;
    config.cooperative = cooperative;
    config.cluster = cluster;
    config.parameters = parameters;
    return launch(*module_, kernel, config, memory_, model_, settings);
  }

  Module& module() { return *module_; }
  DeviceMemory& memory() { return memory_; }

  Settings settings;
  std::size_t dynamic_shared_bytes = 0;
  bool cooperative = false;
  Dim3 cluster;

 private:
  DeviceMemory memory_;
  DeviceModel model_;
  std::unique_ptr<Module> module_;
};

/// All findings in one text, for messages of failed expectations.
inline std::string text_of(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) text += to_string(finding) + "\n";
  return text;
}

/// Instruction sets that this host can run.
inline std::vector<std::string> available_isas() {
  std::vector<std::string> result = {"portable"};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) result.emplace_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    result.emplace_back("avx512");
  }
#endif
  return result;
}

}  // namespace gpusim
