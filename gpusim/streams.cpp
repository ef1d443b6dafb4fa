#include "gpusim/streams.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "model/error.h"

namespace gpusim {

class Task {
 public:
  std::uint64_t id = 0;
  Scheduler::Stream stream = 0;
  std::uint64_t sequence = 0;  // within the stream, from 1
  Operation operation;
  std::shared_ptr<const std::string> label;
  std::vector<TaskPtr> after;        // dropped once done
  std::vector<std::uint64_t> clock;  // empty unless delayed
  bool done = false;
};

Scheduler::Scheduler(bool delayed, std::function<void(Finding)> report)
    : delayed_(delayed), report_(std::move(report)), streams_{{.name = "the default stream"}} {}

Scheduler::Stream Scheduler::add_stream(bool blocking, std::string name) {
  streams_.push_back({.name = std::move(name), .blocking = blocking});
  return static_cast<Stream>(streams_.size()) - 1;
}

void Scheduler::remove_stream(Stream stream) { streams_.at(static_cast<std::size_t>(stream)).alive = false; }

TaskPtr Scheduler::last(Stream stream) const { return streams_.at(static_cast<std::size_t>(stream)).tail; }

void Scheduler::join(Clock& into, const Clock& other) {
  if (into.size() < other.size()) into.resize(other.size());
  for (std::size_t i = 0; i < other.size(); ++i) into[i] = std::max(into[i], other[i]);
}

TaskPtr Scheduler::submit(Stream stream, Operation operation, std::span<const TaskPtr> after) {
  StreamState& state = streams_.at(static_cast<std::size_t>(stream));
  auto task = std::make_shared<Task>();
  task->id = ++submitted_;
  task->stream = stream;
  task->sequence = ++state.submitted;
  task->operation = std::move(operation);
  if (!delayed_) {
    run_one(*task);
    state.tail = std::move(task);
    return state.tail;
  }

  task->label = std::make_shared<const std::string>(task->operation.what + " in " + state.name);
  task->clock = host_;
  const auto depend_on = [&](const TaskPtr& earlier) {
    if (earlier == nullptr) return;
    join(task->clock, earlier->clock);
    if (!earlier->done) task->after.push_back(earlier);
  };
  depend_on(state.tail);
  for (const TaskPtr& earlier : after) depend_on(earlier);
  if (stream == kLegacy) {
    for (const StreamState& other : streams_)
      if (other.blocking) depend_on(other.tail);
  } else if (state.blocking) {
    depend_on(streams_[kLegacy].tail);
  }
  if (task->clock.size() <= static_cast<std::size_t>(stream)) task->clock.resize(static_cast<std::size_t>(stream) + 1);
  task->clock[static_cast<std::size_t>(stream)] = task->sequence;
  pending_.emplace(task->id, task);
  state.tail = task;
  return task;
}

void Scheduler::run_one(Task& task) {
  Accesses accesses = std::move(task.operation.accesses);
  if (task.operation.run) task.operation.run(accesses);
  task.operation.run = nullptr;  // what it captured may go
  task.done = true;
  ++operations_done_;
  if (!delayed_) return;
  task.after.clear();
  pending_.erase(task.id);
  note_accesses(task, accesses);
}

// An operation is submitted after all that it depends on, so that their order of submission is one to run them in.
void Scheduler::run_with_ancestors(const TaskPtr& task, bool only_first) {
  if (task == nullptr || task->done) return;
  std::map<std::uint64_t, TaskPtr> needed = {{task->id, task}};
  std::vector<TaskPtr> open = {task};
  while (!open.empty()) {
    const TaskPtr current = open.back();
    open.pop_back();
    for (const TaskPtr& earlier : current->after)
      if (!earlier->done && needed.emplace(earlier->id, earlier).second) open.push_back(earlier);
  }
  for (const auto& [id, next] : needed) {
    if (!next->done) run_one(*next);
    if (only_first) return;
  }
}

void Scheduler::wait(const TaskPtr& task) {
  if (task == nullptr) return;
  run_with_ancestors(task, false);
  join(host_, task->clock);
  prune();
}

void Scheduler::wait_stream(Stream stream) {
  // Waiting for the legacy default stream is waiting for what blocks it, too.
  if (stream == kLegacy && delayed_) {
    for (const StreamState& other : streams_)
      if (other.blocking) wait(TaskPtr(other.tail));
    return;
  }
  wait(last(stream));
}

void Scheduler::wait_all() {
  while (!pending_.empty()) run_with_ancestors(TaskPtr(pending_.rbegin()->second), false);
  for (const StreamState& stream : streams_)
    if (stream.tail != nullptr) join(host_, stream.tail->clock);
  prune();
}

bool Scheduler::poll(const TaskPtr& task) {
  if (task == nullptr) return true;
  if (!task->done) {
    run_with_ancestors(task, true);
    return false;
  }
  join(host_, task->clock);
  return true;
}

bool Scheduler::poll_stream(Stream stream) {
  if (stream == kLegacy && delayed_) {
    for (const StreamState& other : streams_)
      if (other.blocking && !poll(TaskPtr(other.tail))) return false;
    return true;
  }
  return poll(last(stream));
}

std::vector<std::string> Scheduler::pending_on(MemoryRange range) const {
  const auto touches = [&](const std::vector<MemoryRange>& ranges) {
    return std::any_of(ranges.begin(), ranges.end(), [&](const MemoryRange& other) {
      return other.address < range.address + range.bytes && range.address < other.address + other.bytes;
    });
  };
  std::vector<std::string> out;
  for (const auto& [id, task] : pending_) {
    const Accesses& accesses = task->operation.accesses;
    if (touches(accesses.reads) || touches(accesses.writes)) out.push_back(*task->label);
  }
  return out;
}

Scheduler::Pieces::iterator Scheduler::split(std::uint64_t at) {
  auto piece = pieces_.upper_bound(at);
  if (piece == pieces_.begin()) return piece;
  --piece;
  if (piece->first == at) return piece;
  if (piece->second.end <= at) return std::next(piece);
  Piece rest = piece->second;
  piece->second.end = at;
  return pieces_.emplace(at, std::move(rest)).first;
}

void Scheduler::forget(MemoryRange range) {
  if (range.bytes == 0) return;
  const auto first = split(range.address);
  const auto last = split(range.address + range.bytes);
  // The second split may have cut the piece that `first` names, never moved it.
  pieces_.erase(first, last);
}

bool Scheduler::written_since(MemoryRange range, std::uint64_t stamp) const {
  auto piece = pieces_.upper_bound(range.address);
  if (piece != pieces_.begin()) --piece;
  for (; piece != pieces_.end() && piece->first < range.address + range.bytes; ++piece)
    if (piece->second.end > range.address && piece->second.writer.stream >= 0 && piece->second.writer.done_at > stamp)
      return true;
  return false;
}

bool Scheduler::is_before_host(const Mark& mark) const {
  const auto stream = static_cast<std::size_t>(mark.stream);
  return mark.stream < 0 || (stream < host_.size() && host_[stream] >= mark.sequence);
}

// What the host has waited for comes before all that it will submit: once nothing is pending, nobody asks for it again.
void Scheduler::prune() {
  constexpr std::size_t kWorthIt = 1 << 16;
  if (pieces_.size() < kWorthIt || !pending_.empty()) return;
  std::erase_if(pieces_, [this](const auto& entry) {
    const Piece& piece = entry.second;
    return is_before_host(piece.writer) && std::all_of(piece.readers.begin(), piece.readers.end(),
                                                       [this](const Mark& reader) { return is_before_host(reader); });
  });
}

void Scheduler::note_accesses(const Task& task, const Accesses& accesses) {
  bool told = false;  // one report for a pair of operations is enough
  for (const MemoryRange& range : accesses.reads) note(task, range, Touch::read, told);
  for (const MemoryRange& range : accesses.writes) note(task, range, Touch::write, told);
  for (const MemoryRange& range : accesses.atomics) note(task, range, Touch::atomic, told);
}

void Scheduler::note(const Task& task, MemoryRange range, Touch touch, bool& told) {
  if (range.bytes == 0) return;
  const std::uint64_t end = range.address + range.bytes;
  const auto ordered = [&](const Mark& mark) {
    const auto stream = static_cast<std::size_t>(mark.stream);
    return mark.stream < 0 || mark.stream == task.stream ||
           (stream < task.clock.size() && task.clock[stream] >= mark.sequence);
  };
  const Mark mine = {task.stream, task.sequence, operations_done_, touch == Touch::atomic, task.label};
  split(end);
  auto piece = split(range.address);
  for (std::uint64_t at = range.address; at < end;) {
    if (piece == pieces_.end() || piece->first > at) {  // nobody touched it yet
      const std::uint64_t gap_end = piece == pieces_.end() ? end : std::min(end, piece->first);
      piece = pieces_.emplace_hint(piece, at, Piece{.end = gap_end, .writer = {}, .readers = {}});
    }
    Piece& now = piece->second;
    if (!told && !ordered(now.writer) && !(mine.atomic && now.writer.atomic)) {
      tell_race(task, now.writer, at, now.end,
                touch == Touch::read ? "write and read the same bytes" : "write the same bytes");
      told = true;
    }
    if (touch != Touch::read) {
      for (const Mark& reader : now.readers)
        if (!told && !ordered(reader)) {
          tell_race(task, reader, at, now.end, "read and write the same bytes");
          told = true;
        }
      now.readers.clear();
      now.writer = mine;
    } else {
      // Of readers in one stream the last stands for all.
      std::erase_if(now.readers, [&](const Mark& reader) { return reader.stream == task.stream; });
      now.readers.push_back(mine);
    }
    at = now.end;
    ++piece;
  }
}

void Scheduler::tell_race(const Task& task, const Mark& earlier, std::uint64_t from, std::uint64_t to,
                          const char* how) {
  Finding finding;
  finding.kind = FindingKind::stream_race;
  finding.message = dsv2::concat(*earlier.what, " and ", *task.label, " ", how, ", ", to - from, " from 0x", std::hex,
                                 from, ", and no event, stream or synchronisation orders them");
  report_(std::move(finding));
}

}  // namespace gpusim
