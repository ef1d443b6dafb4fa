// Ctrl-C and its like leave nothing half-written behind.
#pragma once

namespace dsv2::harness {

/// From now on SIGINT, SIGTERM and SIGHUP first remove what is temporary (model/file.h), then end the process as they
/// always do: the shell sees the signal. One that was ignored before, as under nohup, stays ignored. Call it once.
void clean_up_when_interrupted();

}  // namespace dsv2::harness
