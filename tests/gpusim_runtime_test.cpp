// The host side of gpusim that needs no CUDA: fat binaries, device models, occupancy, the environment, streams and
// their races, the report.
#include <elf.h>
#include <gtest/gtest.h>
#include <zstd.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "gpusim/cubin.h"
#include "gpusim/device_model.h"
#include "gpusim/environment.h"
#include "gpusim/fatbin.h"
#include "gpusim/linked.h"
#include "gpusim/occupancy.h"
#include "gpusim/report.h"
#include "gpusim/streams.h"
#include "model/error.h"

namespace gpusim {
namespace {

using Names = std::vector<std::string>;

::testing::AssertionResult holds(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "\"" << text << "\" does not hold \"" << part << '"';
}

/// What `action` throws; fails the test when it throws nothing.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const dsv2::Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an error";
  return "";
}

// --- fat binaries ----------------------------------------------------------------------------------------------------

/// Builds containers as nvcc lays them out.
class ContainerBuilder {
 public:
  struct Entry {
    std::uint16_t kind = 1;
    std::uint32_t arch = 80;
    std::uint32_t flags = 0;
    std::string text = ".version 9.0\n.target sm_80\n";
    std::string name = "a.cu";
  };

  ContainerBuilder& add(const Entry& entry) {
    std::string payload = entry.text;
    if ((entry.flags & 0x8000) != 0) {
      std::string packed(ZSTD_compressBound(payload.size()), '\0');
      packed.resize(ZSTD_compress(packed.data(), packed.size(), payload.data(), payload.size(), 1));
      payload = packed;
    }
    const std::size_t compressed = payload.size();
    payload.resize((payload.size() + 8) / 8 * 8);
    std::string header(64, '\0');
    put<std::uint16_t>(header, 0, entry.kind);
    put<std::uint32_t>(header, 4, static_cast<std::uint32_t>(72));
    put<std::uint64_t>(header, 8, payload.size());
    put<std::uint32_t>(header, 16, static_cast<std::uint32_t>(compressed));
    put<std::uint16_t>(header, 26, 9);
    put<std::uint32_t>(header, 28, entry.arch);
    put<std::uint32_t>(header, 32, 64);
    put<std::uint32_t>(header, 36, static_cast<std::uint32_t>(entry.name.size()));
    put<std::uint32_t>(header, 40, entry.flags);
    put<std::uint64_t>(header, 56, entry.text.size());
    header += entry.name;
    header.resize(72);
    body_ += header + payload;
    return *this;
  }

  std::vector<std::byte> build() const {
    std::string out(16, '\0');
    put<std::uint32_t>(out, 0, 0xBA55ED50);
    put<std::uint16_t>(out, 4, 1);
    put<std::uint16_t>(out, 6, 16);
    put<std::uint64_t>(out, 8, body_.size());
    out += body_;
    std::vector<std::byte> bytes(out.size());
    std::memcpy(bytes.data(), out.data(), out.size());
    return bytes;
  }

 private:
  template <class T>
  static void put(std::string& into, std::size_t at, T value) {
    std::memcpy(into.data() + at, &value, sizeof value);
  }
  std::string body_;
};

TEST(FatBinary, ReadsRawAndCompressedText) {
  const std::string text(5000, 'x');
  const auto bytes = ContainerBuilder()
                         .add({.arch = 80, .flags = 0, .text = "raw"})
                         .add({.arch = 90, .flags = 0x8000, .text = text, .name = "dir/b.cu"})
                         .build();
  const FatBinary binary = read_fat_binary(bytes);
  ASSERT_EQ(binary.ptx.size(), 2u);
  EXPECT_EQ(binary.ptx[0].text(), "raw");
  EXPECT_EQ(binary.ptx[0].source, "a.cu");
  EXPECT_EQ(binary.ptx[1].text(), text);
  EXPECT_EQ(binary.ptx[1].source, "dir/b.cu");
  EXPECT_EQ(binary.ptx[1].isa_major, 9);
}

TEST(FatBinary, ChoosesTheHighestThatTheDeviceRuns) {
  const auto bytes = ContainerBuilder()
                         .add({.arch = 80})
                         .add({.arch = 90})
                         .add({.arch = 90, .flags = 0x100000})
                         .add({.arch = 100})
                         .add({.kind = 2, .arch = 90})
                         .build();
  const FatBinary binary = read_fat_binary(bytes);
  const auto chosen = [&](const char* device) { return binary.choose(device_model(device)); };
  EXPECT_EQ(chosen("a100"), &binary.ptx[0]);
  EXPECT_EQ(chosen("rtx4090"), &binary.ptx[0]);
  EXPECT_EQ(chosen("h100"), &binary.ptx[2]);     // compute_90a is the H100's own
  EXPECT_EQ(chosen("rtx5090"), &binary.ptx[1]);  // and nobody else's
  EXPECT_EQ(binary.describe(), "PTX of compute_80, compute_90, compute_90a, compute_100; machine code of sm_90");
}

TEST(FatBinary, ChoosesTheNearestMachineCode) {
  const auto capability = [](const char* device, std::vector<std::uint32_t> there) {
    ContainerBuilder builder;
    for (const std::uint32_t arch : there) builder.add({.kind = 2, .arch = arch});
    const auto bytes = builder.build();
    const FatBinary binary = read_fat_binary(bytes);
    const MachineCode* code = binary.nearest_machine_code(device_model(device));
    return code == nullptr ? 0 : code->capability;
  };
  EXPECT_EQ(capability("h100", {}), 0);
  EXPECT_EQ(capability("h100", {80}), 80);
  EXPECT_EQ(capability("h100", {120, 80, 86}), 86);
  EXPECT_EQ(capability("h100", {80, 90, 100}), 90);
  EXPECT_EQ(capability("a100", {90}), 90);
}

/// An image with .symtab, .nv.info and names, as ptxas lays them out.
std::vector<std::byte> cubin(const std::string& kernel, std::uint32_t registers, std::uint32_t stack) {
  const std::string strings = std::string("\0", 1) + kernel + '\0';
  const std::string names = std::string("\0.strtab\0.symtab\0.nv.info\0", 27);
  std::string out(sizeof(Elf64_Ehdr), '\0');
  std::vector<Elf64_Shdr> sections(4);
  const auto add = [&](std::size_t index, std::uint32_t name, std::uint32_t link, const std::string& body) {
    sections[index].sh_name = name;
    sections[index].sh_link = link;
    sections[index].sh_offset = out.size();
    sections[index].sh_size = body.size();
    out += body;
  };
  std::vector<Elf64_Sym> symbols(2);
  symbols[1].st_name = 1;
  const std::uint32_t info[] = {0x00082f04, 1, registers, 0x00000103, 0x00081104, 1, stack};
  add(1, 1, 0, names + strings);
  add(2, 9, 1, {reinterpret_cast<const char*>(symbols.data()), sizeof(Elf64_Sym) * 2});
  add(3, 17, 2, {reinterpret_cast<const char*>(info), sizeof info});
  for (Elf64_Sym& symbol : symbols) symbol.st_name += static_cast<std::uint32_t>(names.size());
  std::memcpy(out.data() + sections[2].sh_offset, symbols.data(), sizeof(Elf64_Sym) * 2);
  Elf64_Ehdr header = {};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_shoff = out.size();
  header.e_shnum = 4;
  header.e_shstrndx = 1;
  std::memcpy(out.data(), &header, sizeof header);
  out.append(reinterpret_cast<const char*>(sections.data()), sizeof(Elf64_Shdr) * 4);
  std::vector<std::byte> bytes(out.size());
  std::memcpy(bytes.data(), out.data(), out.size());
  return bytes;
}

TEST(Cubin, SaysRegistersAndStackOfEachKernel) {
  const CompiledKernels kernels = read_cubin(cubin("_Z3addPfi", 40, 16), 86);
  ASSERT_EQ(kernels.size(), 1u);
  EXPECT_EQ(kernels.at("_Z3addPfi").registers, 40);
  EXPECT_EQ(kernels.at("_Z3addPfi").stack_bytes, 16u);
  EXPECT_EQ(kernels.at("_Z3addPfi").capability, 86);
}

TEST(Cubin, EveryTruncationIsAnError) {
  const auto whole = cubin("_Z3addPfi", 40, 0);
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_THROW(read_cubin(std::span(whole).first(size), 80), dsv2::Error) << size;
}

TEST(FatBinary, WithoutPtxThereIsNothingToChoose) {
  const auto bytes = ContainerBuilder().add({.kind = 2, .arch = 86}).build();
  const FatBinary binary = read_fat_binary(bytes);
  EXPECT_EQ(binary.choose(device_model("h100")), nullptr);
  EXPECT_EQ(binary.describe(), "no PTX; machine code of sm_86");
}

TEST(FatBinary, RefusesLz4ByName) {
  const auto bytes = ContainerBuilder().add({.flags = 0x2000}).build();
  EXPECT_TRUE(holds(error_of([&] { read_fat_binary(bytes); }), "LZ4"));
}

TEST(FatBinary, EveryTruncationIsAnError) {
  const auto bytes = ContainerBuilder().add({.flags = 0x8000}).add({.arch = 90}).build();
  EXPECT_EQ(read_fat_binary(bytes).ptx.size(), 2u);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<std::byte> part(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_TRUE(holds(error_of([&] { read_fat_binary(part); }), "truncated")) << size;
  }
}

TEST(FatBinary, NoByteThatChangesMakesItReadOutside) {
  // Under the address sanitizer this is what fails; without it, that nothing but an Error is thrown.
  const auto bytes = ContainerBuilder().add({.flags = 0x8000}).add({.arch = 90}).build();
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (const int value : {0, 1, 0x7f, 0x80, 0xff}) {
      auto changed = bytes;
      changed[at] = static_cast<std::byte>(value);
      try {
        for (const PtxImage& image : read_fat_binary(changed).ptx) static_cast<void>(image.text());
      } catch (const dsv2::Error&) {
      }
    }
}

TEST(FatBinary, BrokenCompressionIsAnError) {
  auto bytes = ContainerBuilder().add({.flags = 0x8000, .text = std::string(3000, 'y')}).build();
  bytes[16 + 72 + 6] ^= std::byte{0xff};
  const FatBinary binary = read_fat_binary(bytes);
  EXPECT_TRUE(holds(error_of([&] { static_cast<void>(binary.ptx.at(0).text()); }), "fat binary"));
}

// --- device models and occupancy -------------------------------------------------------------------------------------

TEST(DeviceModels, AreKnownByName) {
  EXPECT_EQ(device_models().size(), 5u);
  EXPECT_EQ(device_model("a100").multiprocessors, 108);
  EXPECT_EQ(device_model("h200").bandwidth_gb_s, 4800);
  EXPECT_TRUE(holds(error_of([] { device_model("v100"); }), "a100, h100, h200, rtx4090, rtx5090"));
}

TEST(DeviceModels, PeaksFollowFromClocksAndUnits) {
  // f32: multiprocessors x 128 lanes x 2 x clock (the A100 has 64 lanes), to the rounding of the data sheets.
  for (const DeviceModel& device : device_models()) {
    const int lanes = device.capability == 80 ? 64 : 128;
    const double peak = 2.0 * device.multiprocessors * lanes * device.clock_khz * 1e3 / 1e12;
    EXPECT_NEAR(device.f32_tflop_s, peak, 0.01 * peak) << device.name;
    EXPECT_EQ(device.shared_per_multiprocessor, device.shared_per_block_optin + kReservedSharedBytes) << device.name;
  }
}

struct Resident {
  const char* device;
  int threads;
  int registers;
  std::size_t static_shared, dynamic_shared;
  int blocks;  // by hand, from the limits of the programming guide
};

TEST(Occupancy, FollowsTheLimits) {
  const Resident cases[] = {
      {"h100", 256, 32, 0, 0, 8},              // threads: 2048 / 256
      {"h100", 32, 16, 0, 0, 32},              // blocks
      {"h100", 1024, 64, 0, 0, 1},             // registers: 65536 / (64 x 1024)
      {"h100", 256, 255, 0, 0, 1},             // 8 warps of 8192 registers: 2 warps a quarter
      {"h100", 128, 32, 0, 100 * 1024, 2},     // shared: 228 / (100 + 1)
      {"h100", 128, 32, 1024, 226 * 1024, 1},  // all that a block may have
      {"h100", 128, 32, 1024, 227 * 1024, 0},  // a byte more than that
      {"a100", 128, 32, 0, 80 * 1024, 2},      // 164 / 81
      {"rtx4090", 1024, 32, 0, 0, 1},          // 1536 / 1024
      {"rtx4090", 512, 40, 0, 0, 3},           // 1536 / 512
  };
  for (const Resident& c : cases) {
    KernelInfo kernel;
    kernel.registers = c.registers;
    kernel.static_shared_bytes = c.static_shared;
    EXPECT_EQ(resident_blocks(device_model(c.device), kernel, c.threads, c.dynamic_shared), c.blocks)
        << c.device << ' ' << c.threads << ' ' << c.registers << ' ' << c.dynamic_shared;
  }
}

TEST(Occupancy, WhatItLeavesToABlockFits) {
  KernelInfo kernel;
  kernel.registers = 32;
  kernel.static_shared_bytes = 300;
  for (const DeviceModel& device : device_models())
    for (const int blocks : {1, 2, 3, 8}) {
      const std::size_t bytes = dynamic_shared_for(device, kernel, 128, blocks);
      ASSERT_GT(bytes, 0u);
      EXPECT_GE(resident_blocks(device, kernel, 128, bytes), blocks) << device.name;
      if (blocks > 1) {
        EXPECT_LT(resident_blocks(device, kernel, 128, bytes + 256), blocks) << device.name;
      }
    }
  EXPECT_EQ(dynamic_shared_for(device_model("h100"), kernel, 1024, 3), 0u);
}

TEST(Occupancy, BoundsOfTheKernelCount) {
  KernelInfo kernel;
  kernel.max_threads = 128;
  EXPECT_EQ(resident_blocks(device_model("h100"), kernel, 256, 0), 0);
}

// --- environment -----------------------------------------------------------------------------------------------------

Environment read(std::map<std::string, std::string> variables) {
  return read_environment([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(EnvironmentTest, DefaultsToAllChecksAndNoCounts) {
  const Environment environment = read({});
  EXPECT_EQ(environment.device, "h100");
  EXPECT_TRUE(environment.settings.checks.memory && environment.settings.checks.streams);
  EXPECT_FALSE(environment.settings.counts);
}

TEST(EnvironmentTest, ReadsEveryVariable) {
  const Environment environment = read({{"GPUSIM_DEVICE", "a100"},
                                        {"GPUSIM_CHECKS", "memory,leaks"},
                                        {"GPUSIM_LINES", "1"},
                                        {"GPUSIM_THREADS", "3"},
                                        {"GPUSIM_BUDGET", "1000"},
                                        {"GPUSIM_ISA", "portable"},
                                        {"GPUSIM_JSON", "out.json"}});
  EXPECT_EQ(environment.device, "a100");
  EXPECT_TRUE(environment.settings.checks.memory && environment.settings.checks.leaks);
  EXPECT_FALSE(environment.settings.checks.initialised || environment.settings.checks.streams);
  EXPECT_TRUE(environment.settings.counts);  // lines need them
  EXPECT_EQ(environment.settings.threads, 3);
  EXPECT_EQ(environment.settings.instruction_budget, 1000u);
  EXPECT_EQ(environment.settings.isa, "portable");
  EXPECT_EQ(environment.json, "out.json");
}

TEST(EnvironmentTest, ABadValueIsOneLineThatNamesTheVariable) {
  const std::pair<const char*, const char*> bad[] = {
      {"GPUSIM_DEVICE", "gtx"},        {"GPUSIM_CHECKS", "memory,"},
      {"GPUSIM_CHECKS", "everything"}, {"GPUSIM_COUNTS", "yes"},
      {"GPUSIM_LINES", "2"},           {"GPUSIM_THREADS", "-1"},
      {"GPUSIM_BUDGET", "1e9"},        {"GPUSIM_BUDGET", "99999999999999999999"},
      {"GPUSIM_ISA", "sse"},
  };
  for (const auto& [name, value] : bad) {
    const std::string message = error_of([&] { read({{name, value}}); });
    EXPECT_TRUE(holds(message, name));
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

// --- streams ---------------------------------------------------------------------------------------------------------

/// Streams whose operations write down their names when they run.
class Streams : public ::testing::Test {
 protected:
  Scheduler make(bool delayed) {
    return Scheduler(delayed, [this](const Finding& finding) { races.push_back(finding.message); });
  }
  Operation write(const std::string& what, std::uint64_t at, std::uint64_t bytes) {
    return {what, [this, what](Accesses&) { ran.push_back(what); }, {{}, {{at, bytes}}}};
  }
  Operation read(const std::string& what, std::uint64_t at, std::uint64_t bytes) {
    return {what, [this, what](Accesses&) { ran.push_back(what); }, {{{at, bytes}}, {}}};
  }
  std::vector<std::string> ran, races;
};

TEST_F(Streams, NotDelayedRunsAtOnce) {
  Scheduler scheduler = make(false);
  scheduler.submit(Scheduler::kLegacy, write("a", 0, 1));
  EXPECT_EQ(ran, Names({"a"}));
}

TEST_F(Streams, DelayedRunsOnlyWhatAWaitNeeds) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  const TaskPtr first = scheduler.submit(one, write("first", 0, 8));
  scheduler.submit(one, write("second", 0, 8));
  scheduler.submit(two, write("unneeded", 100, 8));
  EXPECT_TRUE(ran.empty());
  scheduler.wait(first);
  EXPECT_EQ(ran, Names({"first"}));
  scheduler.wait_stream(one);
  EXPECT_EQ(ran, Names({"first", "second"}));
  scheduler.wait_all();
  EXPECT_EQ(ran, Names({"first", "second", "unneeded"}));
  EXPECT_TRUE(races.empty());
}

TEST_F(Streams, AnEventOrdersTwoStreams) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  const TaskPtr produced = scheduler.submit(one, write("produce", 0, 64));
  scheduler.submit(two, read("consume", 32, 64), std::vector{produced});
  scheduler.wait_stream(two);
  EXPECT_EQ(ran, Names({"produce", "consume"}));
  EXPECT_TRUE(races.empty());
}

TEST_F(Streams, WithoutOneTheyRaceAndBothAreNamed) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "stream 1"), two = scheduler.add_stream(false, "stream 2");
  scheduler.submit(one, write("produce", 0, 64));
  scheduler.submit(two, read("consume", 32, 64));
  scheduler.wait_all();
  ASSERT_EQ(races.size(), 1u);
  EXPECT_TRUE(holds(races[0], "produce in stream 1"));
  EXPECT_TRUE(holds(races[0], "consume in stream 2"));
}

TEST_F(Streams, ReadersDoNotRaceAndApartBytesDoNot) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  scheduler.submit(one, read("a", 0, 64));
  scheduler.submit(two, read("b", 0, 64));
  scheduler.submit(one, write("c", 64, 64));
  scheduler.submit(two, write("d", 128, 64));
  scheduler.wait_all();
  EXPECT_TRUE(races.empty());
}

TEST_F(Streams, AtomicsDoNotRaceWithEachOther) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  const auto atomic = [](const char* what) { return Operation{what, {}, {{}, {}, {{0, 4}}}}; };
  scheduler.submit(one, atomic("a"));
  scheduler.submit(two, atomic("b"));
  scheduler.wait_all();
  EXPECT_TRUE(races.empty());
  scheduler.submit(one, atomic("c"));
  scheduler.submit(two, read("d", 0, 4));
  scheduler.wait_all();
  EXPECT_EQ(races.size(), 1u);
}

TEST_F(Streams, AWriteAfterAnotherStreamsReadRaces) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  scheduler.submit(one, read("reader", 0, 64));
  scheduler.submit(two, write("writer", 63, 1));
  scheduler.wait_all();
  EXPECT_EQ(races.size(), 1u);
}

TEST_F(Streams, TheHostOrdersByWaiting) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  scheduler.submit(one, write("first", 0, 64));
  scheduler.wait_stream(one);
  scheduler.submit(two, write("second", 0, 64));
  scheduler.wait_all();
  EXPECT_TRUE(races.empty());
}

TEST_F(Streams, WaitingForAnotherStreamDoesNotOrder) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  scheduler.submit(one, write("first", 0, 64));
  scheduler.submit(two, write("other", 1000, 64));
  scheduler.wait_stream(two);
  scheduler.submit(two, write("second", 0, 64));
  scheduler.wait_all();
  EXPECT_EQ(races.size(), 1u);
}

TEST_F(Streams, TheLegacyDefaultStreamOrdersBlockingStreamsAlone) {
  Scheduler scheduler = make(true);
  const auto blocking = scheduler.add_stream(true, "blocking"), free = scheduler.add_stream(false, "free");
  scheduler.submit(blocking, write("a", 0, 64));
  scheduler.submit(Scheduler::kLegacy, write("b", 0, 64));
  scheduler.submit(blocking, write("c", 0, 64));
  scheduler.wait_all();
  EXPECT_TRUE(races.empty());
  EXPECT_EQ(ran, Names({"a", "b", "c"}));
  scheduler.submit(free, write("d", 0, 64));
  scheduler.submit(Scheduler::kLegacy, write("e", 0, 64));
  scheduler.wait_all();
  EXPECT_EQ(races.size(), 1u);
}

TEST_F(Streams, PollingMakesProgressAndEnds) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one");
  scheduler.submit(one, write("a", 0, 1));
  const TaskPtr last = scheduler.submit(one, write("b", 0, 1));
  EXPECT_FALSE(scheduler.poll(last));
  EXPECT_EQ(ran, Names({"a"}));
  EXPECT_FALSE(scheduler.poll(last));
  EXPECT_TRUE(scheduler.poll(last));
}

TEST_F(Streams, KnowsWhatIsPendingOnARange) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "stream 1");
  scheduler.submit(one, write("copy", 100, 50));
  EXPECT_EQ(scheduler.pending_on({149, 10}), Names({"copy in stream 1"}));
  EXPECT_TRUE(scheduler.pending_on({150, 10}).empty());
  scheduler.wait_all();
  EXPECT_TRUE(scheduler.pending_on({149, 10}).empty());
  EXPECT_TRUE(scheduler.written_since({149, 10}, 0));
  EXPECT_FALSE(scheduler.written_since({149, 10}, scheduler.operations_done()));
}

TEST_F(Streams, ForgottenMemoryDoesNotRace) {
  Scheduler scheduler = make(true);
  const auto one = scheduler.add_stream(false, "one"), two = scheduler.add_stream(false, "two");
  const TaskPtr first = scheduler.submit(one, write("first", 0, 64));
  scheduler.submit(two, write("other", 500, 1));
  scheduler.wait_stream(two);  // the host knows nothing of the first
  scheduler.poll(first);
  scheduler.forget({0, 64});
  scheduler.submit(two, write("second", 0, 64));
  scheduler.wait_all();
  EXPECT_TRUE(races.empty());
}

// --- report ----------------------------------------------------------------------------------------------------------

Finding out_of_bounds(const std::string& kernel, int line) {
  Finding finding;
  finding.kind = FindingKind::out_of_bounds;
  finding.kernel = kernel;
  finding.place = {"k.cu", line, "ld.global.f32"};
  finding.message = "4 bytes past the end";
  return finding;
}

LaunchResult counted_launch() {
  LaunchResult result;
  result.counts.warp_instructions = 100;
  result.counts.thread_instructions = 1600;
  result.counts.flops[static_cast<std::size_t>(FlopType::f32)] = 66'900'000;  // a microsecond of an H100
  result.counts.global_load_sectors = result.counts.global_ideal_sectors = 50;
  result.counts.distinct_load_sectors = 50;
  result.lines.push_back({{"k.cu", 7, ""}, result.counts});
  return result;
}

KernelInfo kernel_named(const char* name) {
  KernelInfo kernel;
  kernel.name = name;
  kernel.registers = 64;
  kernel.machine_code = 80;
  return kernel;
}

TEST(ReportTest, AddsLaunchesOfAKernelUp) {
  Environment environment;
  environment.settings.counts = true;
  Report report(device_model("h100"), environment);
  LaunchConfig config;
  config.grid = {4, 1, 1};
  config.block = {64, 2, 1};
  report.add(kernel_named("_Z3addPfi"), config, counted_launch());
  report.add(kernel_named("_Z3addPfi"), config, counted_launch());
  const KernelRecord& kernel = report.kernels().at("add(float*, int)");
  EXPECT_EQ(kernel.launches, 2u);
  EXPECT_EQ(kernel.blocks, 8u);
  EXPECT_EQ(kernel.threads, 1024u);
  EXPECT_EQ(kernel.counts.warp_instructions, 200u);
  EXPECT_EQ(kernel.lines.at({"k.cu", 7}).global_load_sectors, 100u);
  EXPECT_FALSE(report.fired());
  std::ostringstream text;
  report.write_text(text);
  EXPECT_TRUE(holds(text.str(), "add(float*, int): 2 launches, 8 blocks"));
  EXPECT_TRUE(holds(text.str(), "50.0 % of lanes active"));
  EXPECT_TRUE(holds(text.str(), "f32 133.8 M (133800000)"));
  EXPECT_TRUE(holds(text.str(), "no less than  2 us on h100, by arithmetic"));
}

TEST(ReportTest, TellsLaunchesApartThatTakeOtherTimes) {
  Environment environment;
  environment.settings.counts = true;
  Report report(device_model("h100"), environment);
  LaunchConfig config;
  config.grid = {132 * 20, 1, 1};
  config.block = {128, 1, 1};
  LaunchResult result = counted_launch();
  result.warp_bytes_in_flight = 2048;
  report.add(kernel_named("k"), config, result);
  report.add(kernel_named("k"), config, result);
  config.grid = {3, 1, 1};
  report.add(kernel_named("k"), config, result);
  const auto kernel = nlohmann::json::parse(report.json())["kernels"].at(0);
  EXPECT_EQ(kernel["registers"], 64);
  EXPECT_EQ(kernel["machine_code"], 80);
  ASSERT_EQ(kernel["shapes"].size(), 2u);
  const auto &few = kernel["shapes"].at(0), &many = kernel["shapes"].at(1);
  EXPECT_EQ(many["launches"], 2);
  EXPECT_EQ(many["distinct_bytes"], 50 * 32);
  EXPECT_EQ(many["other_flops"], 66'900'000);
  EXPECT_EQ(many["resident_blocks"], 8);  // 64 registers x 128 threads: 8 of 65536
  EXPECT_EQ(many["occupancy"], 0.5);
  EXPECT_EQ(many["bytes_in_flight"], 2048.0 * 4 * 8 * 132);
  EXPECT_EQ(few["launches"], 1);
  EXPECT_EQ(few["bytes_in_flight"], 2048.0 * 4 * 3);  // no more blocks than there are
}

TEST(ReportTest, LeastTimeIsThatOfMemoryOrArithmetic) {
  Counts counts;
  counts.distinct_load_sectors = 1'000'000;  // 32 MB
  const LeastTime least = least_time(device_model("a100"), counts);
  EXPECT_NEAR(least.memory_us, 32e6 / 2039e9 * 1e6, 1e-9);
  EXPECT_EQ(least.compute_us, 0);
  counts.flops[static_cast<std::size_t>(FlopType::tensor_bf16)] = 312'000'000'000;
  EXPECT_NEAR(least_time(device_model("a100"), counts).compute_us, 1000, 1e-9);
}

TEST(ReportTest, MergesFindingsOfAPlace) {
  Environment environment;
  Report report(device_model("h100"), environment);
  report.add(out_of_bounds("k", 3));
  report.add(out_of_bounds("k", 3));
  report.add(out_of_bounds("k", 4));
  ASSERT_EQ(report.findings().size(), 2u);
  EXPECT_EQ(report.findings()[0].times, 2u);
  EXPECT_TRUE(report.fired());
}

TEST(ReportTest, AWarningDoesNotFire) {
  Environment environment;
  Report report(device_model("h100"), environment);
  Finding warning = out_of_bounds("k", 3);
  warning.warning = true;
  report.add(warning);
  EXPECT_FALSE(report.fired());
}

TEST(ReportTest, JsonHoldsKernelsAndFindings) {
  Environment environment;
  environment.settings.counts = true;
  Report report(device_model("a100"), environment);
  LaunchResult result = counted_launch();
  result.findings.push_back(out_of_bounds("add(float*, int)", 3));
  report.add(kernel_named("_Z3addPfi"), {}, result);
  const auto json = nlohmann::json::parse(report.json());
  EXPECT_EQ(json["schema"], "gpusim-report");
  EXPECT_EQ(json["version"], kReportVersion);
  EXPECT_EQ(json["device"]["name"], "a100");
  EXPECT_EQ(json["fired"], true);
  const auto& kernel = json["kernels"].at(0);
  EXPECT_EQ(kernel["name"], "add(float*, int)");
  EXPECT_EQ(kernel["counts"]["warp_instructions"], 100);
  EXPECT_EQ(kernel["counts"]["flops"]["f32"], 66'900'000);
  EXPECT_EQ(kernel["counts"]["warp_instructions_by_class"].size(), static_cast<std::size_t>(kInstructionClasses));
  EXPECT_EQ(kernel["lines"].at(0)["line"], 7);
  EXPECT_EQ(json["findings"].at(0)["kind"], "out-of-bounds");
  EXPECT_EQ(json["findings"].at(0)["place"]["line"], 3);
}

// --- programs --------------------------------------------------------------------------------------------------------

TEST(LinkedProgram, SaysWhatAFileIsInstead) {
  EXPECT_TRUE(holds(error_of([] { require_linked_program("/no/such/program"); }), "no such file"));
  EXPECT_TRUE(holds(error_of([] { require_linked_program("/etc/passwd"); }), "not an executable file"));
  EXPECT_TRUE(holds(error_of([] { require_linked_program("/proc/self/exe"); }), "not linked with gpusim"));
  EXPECT_TRUE(holds(error_of([] { require_linked_program(DSV2_SOURCE_DIR "/scripts/run"); }), "not a program"));
}

}  // namespace
}  // namespace gpusim
