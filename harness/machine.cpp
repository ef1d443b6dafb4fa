#include "harness/machine.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "harness/statistics.h"
#include "model/error.h"
#include "optimized/cpu/thread_team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dsv2::harness {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Keeps a value alive without storing it.
template <class T>
void keep(T& value) {
  asm volatile("" : "+m"(value) : : "memory");
}

std::int64_t status_line_kib(const char* key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key)) return std::atoll(line.c_str() + std::strlen(key));
  return 0;
}

// Twelve independent accumulators cover a latency of 4 at two issues a cycle with room to spare.
constexpr int kAccumulators = 12;
constexpr std::int64_t kRounds = 400000;

double fma_portable() {
  float a[kAccumulators] = {}, x = 1.0001f;
  keep(x);
  for (std::int64_t i = 0; i < kRounds; ++i)
    for (float& v : a) v = v * x + x;
  keep(a);
  return 2.0 * kAccumulators * static_cast<double>(kRounds);
}

#if defined(__x86_64__)
// Each returns the operations done: 2 per multiply-add and lane.
__attribute__((target("avx2,fma"))) double fma_avx2() {
  __m256 a[kAccumulators], x = _mm256_set1_ps(0.999f);
  for (auto& v : a) v = x;
  for (std::int64_t i = 0; i < kRounds; ++i)
#pragma GCC unroll 12
    for (auto& v : a) v = _mm256_fmadd_ps(v, x, x);
  keep(a);
  return 2.0 * 8 * kAccumulators * static_cast<double>(kRounds);
}
__attribute__((target("avx512f"))) double fma_avx512() {
  __m512 a[kAccumulators], x = _mm512_set1_ps(0.999f);
  for (auto& v : a) v = x;
  for (std::int64_t i = 0; i < kRounds; ++i)
#pragma GCC unroll 12
    for (auto& v : a) v = _mm512_fmadd_ps(v, x, x);
  keep(a);
  return 2.0 * 16 * kAccumulators * static_cast<double>(kRounds);
}
__attribute__((target("avx512f,avx512bf16"))) double dot_bf16_avx512() {
  __m512 a[kAccumulators];
  __m512i bits = _mm512_set1_epi32(0x3f7f3f7f);
  __m512bh x;
  std::memcpy(&x, &bits, sizeof x);
  for (auto& v : a) v = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < kRounds; ++i)
#pragma GCC unroll 12
    for (auto& v : a) v = _mm512_dpbf16_ps(v, x, x);
  keep(a);
  return 2.0 * 32 * kAccumulators * static_cast<double>(kRounds);
}
__attribute__((target("avx512f,avx512vnni"))) double dot_int8_avx512() {
  __m512i a[kAccumulators], x = _mm512_set1_epi8(1);
  for (auto& v : a) v = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < kRounds; ++i)
#pragma GCC unroll 12
    for (auto& v : a) v = _mm512_dpbusd_epi32(v, x, x);
  keep(a);
  return 2.0 * 64 * kAccumulators * static_cast<double>(kRounds);
}
__attribute__((target("avx2"))) double dot_int8_avx2() {
  __m256i a[kAccumulators], x = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  keep(x);
  for (auto& v : a) v = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < kRounds; ++i)
#pragma GCC unroll 12
    for (auto& v : a) v = _mm256_add_epi32(v, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_xor_si256(v, x), x), ones));
  keep(a);
  return 2.0 * 32 * kAccumulators * static_cast<double>(kRounds);
}
__attribute__((target("avx2"))) std::int64_t sum_avx2(const char* from, std::int64_t bytes) {
  __m256i s[4] = {};
  for (std::int64_t i = 0; i + 128 <= bytes; i += 128)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      s[j] = _mm256_add_epi64(s[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i) + j));
  keep(s);
  return _mm256_extract_epi64(s[0], 0);
}
#endif

std::int64_t sum_portable(const char* from, std::int64_t bytes) {
  std::int64_t sum[4] = {};
  const auto* words = reinterpret_cast<const std::int64_t*>(from);
  for (std::int64_t i = 0; i + 4 <= bytes / 8; i += 4)
    for (int j = 0; j < 4; ++j) sum[j] += words[i + j];
  return sum[0] + sum[1] + sum[2] + sum[3];
}

/// Best rate of all threads together, in operations per nanosecond.
double peak(double (*kernel)(), int threads) {
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    double operations = 0;
    const auto start = Clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : operations)
    operations += kernel();
    best = std::max(best, operations / seconds_since(start) * 1e-9);
  }
  return best;
}

double read_bandwidth(int threads) {
  constexpr std::int64_t kBytes = 512ll << 20;
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  const std::unique_ptr<char, Free> buffer(static_cast<char*>(std::aligned_alloc(2 << 20, kBytes)));
  if (!buffer) return 0;
  auto* sum = sum_portable;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) sum = sum_avx2;
#endif
  const std::int64_t part = kBytes / threads / 4096 * 4096;
  double best = 0;
#pragma omp parallel num_threads(threads)
  std::memset(buffer.get() + omp_get_thread_num() * part, 1, static_cast<std::size_t>(part));
  for (int pass = 0; pass < 5; ++pass) {
    std::int64_t total = 0;
    const auto start = Clock::now();
#pragma omp parallel num_threads(threads) reduction(+ : total)
    total += sum(buffer.get() + omp_get_thread_num() * part, part);
    keep(total);
    best = std::max(best, static_cast<double>(part * threads) / seconds_since(start) * 1e-9);
  }
  return best;
}

/// The first word of a file of /sys; nullopt when there is no such file.
std::optional<std::string> word_of(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string word;
  if (!(in >> word)) return std::nullopt;
  return word;
}

/// "32768K", "1M", "64" as bytes.
std::int64_t parse_size(const std::string& text) {
  const std::int64_t n = std::atoll(text.c_str());
  return text.ends_with('K') ? n << 10 : text.ends_with('M') ? n << 20 : text.ends_with('G') ? n << 30 : n;
}

void describe_caches(const std::vector<int>& cpus, Machine& m) {
  std::set<std::pair<std::string, std::string>> counted;  // (level and type, the CPUs that share it)
  std::int64_t last_level = 0;
  for (const int cpu : cpus) {
    const std::filesystem::path caches = concat("/sys/devices/system/cpu/cpu", cpu, "/cache");
    for (int i = 0;; ++i) {
      const auto cache = caches / concat("index", i);
      const auto level = word_of(cache / "level"), type = word_of(cache / "type"), size = word_of(cache / "size");
      if (!level || !type || !size) break;
      if (*type == "Instruction") continue;
      if (!counted.insert({*level + *type, word_of(cache / "shared_cpu_list").value_or(std::to_string(cpu))}).second)
        continue;
      m.cache_bytes = m.cache_bytes.value_or(0) + parse_size(*size);
      const std::int64_t n = std::atoll(level->c_str());
      if (n > last_level) m.last_level_cache_bytes = 0;
      last_level = std::max(last_level, n);
      if (n == last_level) *m.last_level_cache_bytes += parse_size(*size);
    }
  }
}

void describe_clocks(const std::vector<int>& cpus, Machine& m) {
  const auto raise = [](std::optional<double>& to, double mhz) { to = std::max(to.value_or(0), mhz); };
  for (const int cpu : cpus) {
    const std::filesystem::path folder = concat("/sys/devices/system/cpu/cpu", cpu, "/cpufreq");
    if (const auto khz = word_of(folder / "scaling_cur_freq")) raise(m.clock_mhz, std::atof(khz->c_str()) * 1e-3);
    if (const auto khz = word_of(folder / "cpuinfo_max_freq")) raise(m.max_clock_mhz, std::atof(khz->c_str()) * 1e-3);
    if (!m.governor) m.governor = word_of(folder / "scaling_governor");
  }
  if (m.clock_mhz) return;
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("cpu MHz")) raise(m.clock_mhz, std::atof(line.c_str() + line.find(':') + 1));
}

/// Median time of an op of no work on a team of `threads`, in nanoseconds.
double fork_join(int threads) {
  constexpr int kRegions = 400;
  constexpr double kSeconds = 0.02;
  std::vector<double> samples;
  cpu::ThreadTeam team(threads);
  const auto start = Clock::now();
  while (samples.size() < kRegions && (samples.size() < 3 || seconds_since(start) < kSeconds)) {
    const auto fork = Clock::now();
    team.run(threads, 1, cpu::Split::even, [](cpu::Range) { asm volatile("" ::: "memory"); });
    samples.push_back(seconds_since(fork) * 1e9);
  }
  return median(std::move(samples));
}

Machine describe_machine() {
  Machine m;
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) {
      m.cpu = line.substr(line.find(':') + 2);
      break;
    }
  m.cores = omp_get_num_procs();  // unlike the affinity of this thread, the same when OpenMP binds it to one core
  std::vector<int> cpus;
  if (omp_get_num_places() > 0) {
    for (int place = 0; place < omp_get_num_places(); ++place) {
      std::vector<int> ids(static_cast<std::size_t>(omp_get_place_num_procs(place)));
      omp_get_place_proc_ids(place, ids.data());
      cpus.insert(cpus.end(), ids.begin(), ids.end());
    }
  } else if (cpu_set_t set; sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  describe_caches(cpus, m);
  describe_clocks(cpus, m);
  if (const auto active = word_of("/sys/devices/system/cpu/smt/active")) m.smt = *active == "1";
  if (double load = 0; ::getloadavg(&load, 1) == 1) m.load_average = load;
  m.memory_bytes = static_cast<std::int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGE_SIZE);
  m.isa = "portable";
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) m.isa = "avx2";
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) m.isa = "avx512";
  if (m.isa == "avx512" && __builtin_cpu_supports("avx512vnni")) m.isa += "+vnni";
  if (m.isa.starts_with("avx512") && __builtin_cpu_supports("avx512bf16")) m.isa += "+bf16";
#endif
  return m;
}

}  // namespace

const Machine& machine() {
  static const Machine m = describe_machine();
  return m;
}

MachineLimits measure_limits(int threads) {
  MachineLimits limits;
  limits.read_bandwidth_gb_s = read_bandwidth(threads);
  limits.peak_f32_gflop_s = peak(fma_portable, threads);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    limits.peak_f32_gflop_s = std::max(limits.peak_f32_gflop_s, peak(fma_avx2, threads));
  if (__builtin_cpu_supports("avx2")) limits.peak_int8_gflop_s = peak(dot_int8_avx2, threads);
  if (__builtin_cpu_supports("avx512f")) {
    limits.peak_f32_gflop_s = std::max(limits.peak_f32_gflop_s, peak(fma_avx512, threads));
    if (__builtin_cpu_supports("avx512bf16")) limits.peak_bf16_gflop_s = peak(dot_bf16_avx512, threads);
    if (__builtin_cpu_supports("avx512vnni"))
      limits.peak_int8_gflop_s = std::max(*limits.peak_int8_gflop_s, peak(dot_int8_avx512, threads));
  }
#endif
  reset_peak_memory();  // the buffers above are no part of what is measured next
  return limits;
}

MachineLimits best_of(const MachineLimits& a, const MachineLimits& b) {
  return {.read_bandwidth_gb_s = std::max(a.read_bandwidth_gb_s, b.read_bandwidth_gb_s),
          .peak_f32_gflop_s = std::max(a.peak_f32_gflop_s, b.peak_f32_gflop_s),
          .peak_bf16_gflop_s = std::max(a.peak_bf16_gflop_s, b.peak_bf16_gflop_s),  // nullopt is the least
          .peak_int8_gflop_s = std::max(a.peak_int8_gflop_s, b.peak_int8_gflop_s)};
}

void flush_caches(int threads) {
  constexpr std::size_t kLine = 64;
  static std::vector<unsigned char> buffer(
      static_cast<std::size_t>(2 * machine().cache_bytes.value_or(std::int64_t{128} << 20)));
  const std::size_t part = buffer.size() / static_cast<std::size_t>(threads);
  // Not OpenMP's threads: they would spin for milliseconds beside the run that follows.
  cpu::ThreadTeam(threads).run(threads, 1, cpu::Split::even, [&](cpu::Range members) {
    for (std::size_t t = static_cast<std::size_t>(members.begin); t < static_cast<std::size_t>(members.end); ++t)
      for (std::size_t i = 0; i < part; i += kLine) ++buffer[t * part + i];
  });
}

std::int64_t resident_memory_bytes() { return status_line_kib("VmRSS:") * 1024; }
std::int64_t peak_memory_bytes() { return status_line_kib("VmHWM:") * 1024; }

Watch::CoreTime Watch::core_time() {
  CoreTime time;
  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    std::int64_t ran = 0, waited = 0;
    if (!(std::ifstream(task.path() / "schedstat") >> ran >> waited)) continue;
    time.ran_ns += ran;
    time.waited_ns += waited;
  }
  std::string cpu;
  std::int64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0;
  std::ifstream stat("/proc/stat");
  if (time.ran_ns > 0 && stat >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal)
    time.waited_ns += steal * (1'000'000'000 / ::sysconf(_SC_CLK_TCK));
  return time;
}

Watch::Watch(int threads) : threads_(threads) {
  if (threads > 1) fork_join_ns_ = fork_join(threads);
  start_ = core_time();
}

Conditions Watch::finish() const {
  Conditions seen;
  const CoreTime now = core_time();
  const double ran = static_cast<double>(now.ran_ns - start_.ran_ns),
               waited = std::max(0.0, static_cast<double>(now.waited_ns - start_.waited_ns));
  if (ran > 0) seen.waited_share = waited / (ran + waited);
  if (threads_ > 1) seen.fork_join_ns = {fork_join_ns_, fork_join(threads_)};
  return seen;
}

void reset_peak_memory() { std::ofstream("/proc/self/clear_refs") << '5'; }

std::optional<std::int64_t> allocator_bytes() {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
  const auto m = mallinfo2();
  return static_cast<std::int64_t>(m.arena + m.hblkhd);
#else
  return std::nullopt;
#endif
}

}  // namespace dsv2::harness
