// Streams of the simulated device: work queued, ordered, run, and watched for what nothing orders.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpusim/finding.h"
#include "gpusim/launch.h"

namespace gpusim {

/// Device or pinned host memory that an operation touches.
struct Accesses {
  std::vector<MemoryRange> reads, writes;
  std::vector<MemoryRange> atomics = {};  ///< these do not race with each other
};

/// One entry of a stream: a copy, a launch, an event record, a callback.
struct Operation {
  std::string what;                    ///< "cudaMemcpyAsync of 4096 bytes to the device": what a message calls it
  std::function<void(Accesses&)> run;  ///< does it, and adds accesses that are known only then (kernels); may be empty
  Accesses accesses;                   ///< those that are known beforehand
};

/// An operation in a stream. Handed out to wait for; opaque otherwise.
class Task;
using TaskPtr = std::shared_ptr<Task>;

/// Orders the operations of all streams as CUDA does: within a stream by submission, across streams by `after`
/// (events), and with the legacy default stream, which waits for the blocking streams and they for it.
///
/// Not delayed: an operation runs when it is submitted, which is one of the orders that CUDA allows.
/// Delayed: it runs when a wait needs it and not before, and after it only what it depends on: the latest moment that
/// the program's synchronisation allows, so that a missing one shows as wrong data. Then every operation has a vector
/// clock too, and two that touch the same bytes (one writing) with no order between them are reported.
///
/// Not thread-safe: the runtime holds its lock.
class Scheduler {
 public:
  using Stream = int;
  static constexpr Stream kLegacy = 0;

  Scheduler(bool delayed, std::function<void(Finding)> report);

  /// A stream; a blocking one orders itself with the legacy default stream. `name` is for messages.
  Stream add_stream(bool blocking, std::string name);
  /// What was submitted to it still runs; nothing may be submitted any more.
  void remove_stream(Stream stream);

  TaskPtr submit(Stream stream, Operation operation, std::span<const TaskPtr> after = {});

  /// The host waits: runs what is needed, and what the host does from now on comes after it. Null: nothing to wait for.
  void wait(const TaskPtr& task);
  void wait_stream(Stream stream);
  void wait_all();
  /// Whether it is done, as a query tells. Each query that finds work to do does one operation of it and answers no, so
  /// that a loop of queries ends.
  bool poll(const TaskPtr& task);
  bool poll_stream(Stream stream);
  /// The last operation of a stream; null when none was submitted.
  TaskPtr last(Stream stream) const;

  bool delayed() const { return delayed_; }
  /// Whether a stream was made beside the default one: what has one stream alone cannot race.
  bool has_streams() const { return streams_.size() > 1; }
  /// What is submitted, not done, and known to touch `range`.
  std::vector<std::string> pending_on(MemoryRange range) const;
  /// Forgets who touched a range: it has been freed.
  void forget(MemoryRange range);
  /// Operations done so far; for written_since.
  std::uint64_t operations_done() const { return operations_done_; }
  /// Whether an operation that was the `stamp`-th or a later one wrote into `range`. False unless delayed.
  bool written_since(MemoryRange range, std::uint64_t stamp) const;

 private:
  using Clock = std::vector<std::uint64_t>;  // by stream: how many of its operations come before
  struct StreamState {
    std::string name;
    bool blocking = true;
    bool alive = true;
    std::uint64_t submitted = 0;
    TaskPtr tail = nullptr;
  };
  struct Mark {  // an operation that touched a piece of memory
    Stream stream = -1;
    std::uint64_t sequence = 0;
    std::uint64_t done_at = 0;
    bool atomic = false;
    std::shared_ptr<const std::string> what;
  };
  struct Piece {  // of memory whose bytes were all touched by the same operations
    std::uint64_t end = 0;
    Mark writer;
    std::vector<Mark> readers;
  };
  using Pieces = std::map<std::uint64_t, Piece>;

  static void join(Clock& into, const Clock& other);
  void run_with_ancestors(const TaskPtr& task, bool only_first);
  void run_one(Task& task);
  void note_accesses(const Task& task, const Accesses& accesses);
  enum class Touch : std::uint8_t { read, write, atomic };
  void note(const Task& task, MemoryRange range, Touch touch, bool& told);
  void tell_race(const Task& task, const Mark& earlier, std::uint64_t from, std::uint64_t to, const char* how);
  Pieces::iterator split(std::uint64_t at);
  bool is_before_host(const Mark& mark) const;
  void prune();

  bool delayed_;
  std::function<void(Finding)> report_;
  std::vector<StreamState> streams_;
  Clock host_;
  std::map<std::uint64_t, TaskPtr> pending_;  // by submission
  std::uint64_t submitted_ = 0;
  std::uint64_t operations_done_ = 0;
  Pieces pieces_;
};

}  // namespace gpusim
