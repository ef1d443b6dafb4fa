#!/usr/bin/env python3
"""What each check of gpusim costs on a program: its time of simulation by kernel, with one check on at a time.

    gpusim/check_costs.py [--rounds N] [--json F] PROGRAM [ARGUMENTS ...]

PROGRAM is linked with gpusim. All settings take turns, a round each; the table has medians, as multiples of the time
with no check. Kernels of less than a millisecond are left out. Exit codes: 0; 2 where the program cannot be run.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

SETTINGS = ["none", "memory", "initialised", "shared_races", "global_races", "barriers", "async_copies", "leaks",
            "streams", "all", "counts"]
LEAST_S = 1e-3


def cpu_model():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def simulate(command, setting):
    """{kernel: seconds a launch}."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        environment = {**os.environ, "GPUSIM_JSON": str(report),
                       "GPUSIM_CHECKS": "none" if setting == "counts" else setting,
                       "GPUSIM_COUNTS": "1" if setting == "counts" else "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not report.is_file():
            sys.exit(f"check_costs: {command[0]}: left no report: {done.stderr.strip().splitlines()[-1:]}")
        kernels = json.loads(report.read_text())["kernels"]
    return {kernel["name"]: kernel["simulation_s"] / kernel["launches"] for kernel in kernels}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if not args.command or not os.access(args.command[0], os.X_OK):
        print("check_costs: expected a program that is linked with gpusim", file=sys.stderr)
        return 2
    samples = {setting: {} for setting in SETTINGS}
    for _ in range(args.rounds):
        for setting in SETTINGS:
            for kernel, seconds in simulate(args.command, setting).items():
                samples[setting].setdefault(kernel, []).append(seconds)
    median = {setting: {kernel: statistics.median(times) for kernel, times in of.items()}
              for setting, of in samples.items()}
    kernels = [kernel for kernel, seconds in median["none"].items() if seconds >= LEAST_S]
    print("\t".join(["check", *(kernel.partition("(")[0] for kernel in kernels)]))
    for setting in SETTINGS:
        print("\t".join([setting, *(f"{median[setting][kernel] / median['none'][kernel]:.1f}" for kernel in kernels)]))
    if args.json:
        record = {"cpu": cpu_model(), "cores": os.cpu_count(), "rounds": args.rounds,
                  "seconds_a_launch": {kernel: {setting: median[setting][kernel] for setting in SETTINGS}
                                       for kernel in kernels}}
        pathlib.Path(args.json).write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
