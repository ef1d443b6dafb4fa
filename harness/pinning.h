// Threads that stay where they are: one thread, one core.
#pragma once

namespace dsv2::harness {

/// Binds each of the first `threads` threads to a core: OpenMP's, and through it those of every ThreadTeam
/// (optimized/cpu/thread_team.h), which follow. The OpenMP runtime reads its settings (OMP_PROC_BIND, OMP_PLACES) as it
/// starts, so a process without them sets them and executes itself again, in place; settings that the user made are
/// kept. To be called before anything was printed or started. Throws Error naming --pin where there are fewer cores
/// than threads, or the runtime does not bind.
void pin_threads(int threads);

/// Did the OpenMP runtime bind the threads of this process?
bool threads_are_pinned();

}  // namespace dsv2::harness
