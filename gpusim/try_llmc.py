#!/usr/bin/env python3
"""Runs the programs of karpathy/llm.c's dev/cuda on gpusim: code that was written for GPUs, by others, unmodified.

usage: gpusim/try_llmc.py LLMC [--build build/release] [--checks LIST] [--only softmax_forward[:4]] [--jobs N] [--keep DIR]

LLMC is a checkout of https://github.com/karpathy/llm.c. Each program is copied into a temporary folder, where only the
numbers of its main() are made smaller (batch, length, vocabulary, repetitions of the benchmark: the table below), compiled
with nvcc for compute_80, linked with gpusim, and run for every kernel number that it knows. Each program holds its kernels
against a loop on the CPU and fails where they differ; gpusim's checks look on. cuBLAS is stood in for by the kernels in
try_llmc/ (it comes as machine code, which gpusim does not run). Left out: nccl_all_reduce (several GPUs) and what needs
cuDNN.

Prints a line for each kernel number: whether the program's own check passed, how many places gpusim's checks name, and
the first of them, or what the program said. Exit code 0 when every own check passed. Leaks are not looked for: most of the
programs leave the workspace of cuBLAS to the end of the process.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

LEFT_OUT = {"nccl_all_reduce": "several GPUs"}
# Kernel numbers of a program that the pattern below does not see, or that need what is left out.
KERNELS_WITHOUT_SWITCH = {"matmul_backward": [1], "permute": [1]}
NOT_RUN = {("attention_forward", 10): "cuDNN", ("attention_forward", 11): "cuDNN"}

# What is made smaller in main(), for every program and by program. Widths stay where kernels are made for them.
EVERYWHERE = [
    (r"\brepeat_times = \d+", "repeat_times = 1"),
    (r"\b((?:int|int64_t) B = )\d+;", r"\g<1>2;"),
    (r"\b((?:int|int64_t) T = )1024;", r"\g<1>64;"),
    (r"\b((?:int|int64_t) V = )50257;", r"\g<1>1025;"),
    (r"\bint C = 1600;", "int C = 768;"),
    (r"\bint OC = 768 \* 4;", "int OC = 768;"),
    (r"\blong num_parameters = 1048576;", "long num_parameters = 65536;"),
    (r"\bint L = 12;", "int L = 1;"),
]
SMALLER = {
    # Kernel 6 has a block for a row and no bound: with blocks of 512 and more it reaches past these rows, and is told so.
    "attention_backward": [(r"\bint B = 4;", "int B = 1;"), (r"\bint T = 64;", "int T = 256;"),
                           (r"\bint C = 768;", "int C = 192;"), (r"\bint NH = 12;", "int NH = 3;")],
    "attention_forward": [(r"\bint T = 64;", "int T = 128;")],
    # Kernel 2 has a thread a row and no bound: rows in multiples of the largest block.
    "fused_residual_forward": [(r"\bint T = 64;", "int T = 512;")],
    "matmul_forward": [(r"\bint C = 768;", "int C = 256;"), (r"\bint OC = 768;", "int OC = 256;")],
    "trimat_forward": [(r"\bint T = 64;", "int T = 256;"), (r"\bint B = 2;", "int B = 1;")],
    "permute": [(r"\bdim_1 = \d+", "dim_1 = 4")],
    "global_norm": [(r"\bint C = 768;", "int C = 256;")],
}
TIME_LIMIT_S = 900
CHECKS = "memory,initialised,shared_races,global_races,barriers,async_copies,streams"


def kernel_numbers(name, source):
    """The cases of the switch over kernel_num."""
    if name in KERNELS_WITHOUT_SWITCH:
        return KERNELS_WITHOUT_SWITCH[name]
    switch = re.search(r"switch \(kernel_num\) \{(.*?)\n    \}", source, re.S)
    return [int(n) for n in re.findall(r"case (\d+):", switch.group(1))] if switch else [1]


def made_smaller(name, source):
    start = source.rindex("int main(")
    head, body = source[:start], source[start:]
    for pattern, text in EVERYWHERE + SMALLER.get(name, []):
        body = re.sub(pattern, text, body)
    return head + body


def find_nvcc(root):
    places = [shutil.which("nvcc"), os.environ.get("CUDA_HOME", "") + "/bin/nvcc", "/usr/local/cuda/bin/nvcc",
              str(root / ".cache/cuda/bin/nvcc")]
    for place in places:
        if place and os.access(place, os.X_OK):
            return place
    sys.exit("try_llmc: no nvcc; scripts/cuda_compiler fetches one")


def run(command, limit, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          timeout=limit, **more)


def shortened(text):
    """Without the parameters of kernels and the folders of files."""
    text = re.sub(r"^([\w: <>,]*?)\([^:]*?\): ", r"\1: ", text)
    return re.sub(r"/\S*/", "", text)[:200]


class Trial:
    def __init__(self, arguments):
        self.root = Path(__file__).resolve().parent.parent
        self.build = Path(arguments.build) if arguments.build else self.root / "build/release"
        self.sources = Path(arguments.llmc) / "dev/cuda"
        self.checks = arguments.checks
        self.nvcc = find_nvcc(self.root)
        self.work = Path(arguments.keep or tempfile.mkdtemp(prefix="try_llmc."))
        self.work.mkdir(parents=True, exist_ok=True)
        self.dsv2 = self.build / "harness/dsv2"
        self.libraries = [self.build / f"gpusim/libdsv2_{n}.a" for n in ("gpusim_runtime", "gpusim")]
        for needed in [self.sources / "common.h", self.dsv2] + self.libraries:
            if not needed.exists():
                sys.exit(f"try_llmc: {needed} is not there")
        shutil.copy(self.sources / "common.h", self.work)

    def compile(self, name):
        """None, or why it could not be built."""
        source = made_smaller(name, (self.sources / f"{name}.cu").read_text())
        (self.work / f"{name}.cu").write_text(source)
        object_file = self.work / f"{name}.o"
        made = run([self.nvcc, "-O3", "--use_fast_math", "-std=c++17", "-lineinfo", "-cudart", "none", "-Xcompiler=-fopenmp",
                    "-gencode", "arch=compute_80,code=compute_80", f"-I{self.root / 'gpusim/try_llmc'}",
                    f"-I{self.work}", "-c", str(self.work / f"{name}.cu"), "-o", str(object_file)], TIME_LIMIT_S)
        if made.returncode == 0:
            made = run(["g++", str(object_file), "-o", str(self.work / name)] + [str(l) for l in self.libraries] +
                       ["-lzstd", "-fopenmp", "-lpthread"], TIME_LIMIT_S)
        if made.returncode == 0:
            return None
        errors = [line for line in made.stdout.splitlines() if "error" in line or "undefined" in line]
        return (errors or made.stdout.splitlines() or ["?"])[0]

    def outcome(self, name, number):
        """Whether the own check passed, how many places the findings name, and the first words of explanation."""
        report = self.work / f"{name}.{number}.json"
        report.unlink(missing_ok=True)
        try:
            done = run([str(self.dsv2), "sim", "--checks", self.checks, "--json", str(report), str(self.work / name),
                        str(number)], TIME_LIMIT_S, cwd=self.work)
        except subprocess.TimeoutExpired:
            return "time out", 0, f"longer than {TIME_LIMIT_S} s"
        lines = done.stdout.splitlines()
        told = [line[len("gpusim: "):] for line in lines if re.match(r"gpusim: .*\[.*\]", line) and "(warning)" not in line]
        findings = []
        if report.exists():
            findings = [f for f in json.loads(report.read_text())["findings"] if not f["warning"]]
        said = [line for line in lines if re.search(r"Mismatch|ERROR|Assertion|Invalid|only supported", line)]
        # A program that ends well has 1 for its findings alone.
        own = done.returncode == 0 or (done.returncode == 1 and findings and not said)
        return "passed" if own else "FAILED", len(findings), " | ".join((told[:1] + ([] if own else said[:1])) or
                                                                       ([] if own else lines[-1:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llmc", help="a checkout of karpathy/llm.c")
    parser.add_argument("--build", help="build folder (default: build/release of this checkout)")
    parser.add_argument("--checks", default=CHECKS, help=f"as of dsv2 sim (default {CHECKS})")
    parser.add_argument("--only", action="append", help="a program, or program:kernel; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time (default 2)")
    parser.add_argument("--keep", help="work in this folder and keep it")
    arguments = parser.parse_args()
    trial = Trial(arguments)
    only = [entry.partition(":")[::2] for entry in arguments.only or []]

    def wanted(name, number=None):
        return not only or any(n == name and (number is None or not k or int(k) == number) for n, k in only)

    results, lock = [], threading.Lock()

    def try_program(name):
        why = trial.compile(name)
        for number in kernel_numbers(name, (trial.sources / f"{name}.cu").read_text()):
            if not wanted(name, number) or (name, number) in NOT_RUN:
                continue
            status, found, said = ("not built", 0, why) if why else trial.outcome(name, number)
            with lock:
                results.append((status == "passed", found))
                print(f"{name:30} {number:3}  {status:9} {found:3}  {shortened(said)}", flush=True)

    print(f"{'program':30} {'kernel':>3} own check  findings")
    names = sorted(p.stem for p in trial.sources.glob("*.cu") if p.stem not in LEFT_OUT and wanted(p.stem))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(try_program, names))
    passed = sum(own for own, _ in results)
    clean = sum(own and found == 0 for own, found in results)
    print(f"\n{passed} of {len(results)} kernel numbers pass their own check, {clean} of them without a finding")
    for name, why in LEFT_OUT.items():
        print(f"left out: {name} ({why})")
    if not arguments.keep:
        shutil.rmtree(trial.work, ignore_errors=True)
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
