# Sourced by the scripts: the root of the checkout, how to speak, how many jobs to run, and the build of a preset.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# One job per processor, and per 1.5 GB of free memory: the largest Eigen files take about that.
job_count() {
  local cpus memory
  cpus=$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
  memory=$(awk '/^MemAvailable/ {print int($2 / 1500000)}' /proc/meminfo 2>/dev/null || true)
  : "${memory:=$cpus}"
  ((memory >= 1)) || memory=1
  echo $((cpus < memory ? cpus : memory))
}

# The path of the system's nvcc; fails where there is none.
system_nvcc() {
  local nvcc
  for nvcc in "$(command -v nvcc || true)" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    [[ ! -x $nvcc ]] || { echo "$nvcc" && return; }
  done
  return 1
}

# configure PRESET: build/PRESET, quietly unless something goes wrong. DSV2_CMAKE_ARGS holds further options for CMake.
configure() {
  local preset=$1 log=$root/build/$1.log
  mkdir -p "$root/build"
  say "configure build/$preset"
  # shellcheck disable=SC2086  # several options in one variable
  (cd "$root" && cmake --preset "$preset" ${DSV2_CMAKE_ARGS:-}) >"$log" 2>&1 || {
    tail -n 40 "$log" >&2
    die "configuring failed (whole log: $log). After a change of compiler or system: rm -r $root/build/$preset"
  }
}

# build PRESET [TARGET...]: configures and builds (default: all of it), quietly again. Only what changed is built.
build() {
  local preset=$1 log=$root/build/$1.log
  shift
  configure "$preset"
  say "build ${*:-everything} in build/$preset with $(job_count) jobs"
  cmake --build "$root/build/$preset" --parallel "$(job_count)" ${1:+--target "$@"} >>"$log" 2>&1 || {
    grep -E -A 5 'error|Error|Killed' "$log" | head -n 60 >&2 || tail -n 40 "$log" >&2
    die "building failed (whole log: $log)$(! grep -q Killed "$log" || echo '; a compiler was killed: too little memory')"
  }
}
