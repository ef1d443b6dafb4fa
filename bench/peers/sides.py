"""Who is measured: dsv2 and its peers. Each measurement is a process of its own, which loads, warms up and exits."""
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from rows import tokens_per_s
from shapes import SHAPES

HERE = pathlib.Path(__file__).resolve().parent
CHECKED_IDS = "11,503,7,1024,99,2048,30000,5,77,12345,640,8,31999,256,1,4097"


class Failure(Exception):
    """What a user can do something about, in one line."""


def say(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


def call(command, log=None, env=None, **kwargs):
    """Runs a command of set-up; Failure with the last line of what it said when it fails."""
    result = subprocess.run([str(c) for c in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, errors="replace", check=False, **kwargs)
    if log:
        log.write_text(result.stdout)
    if result.returncode != 0:
        last = (result.stdout.strip().splitlines() or ["no output"])[-1]
        raise Failure(f"{pathlib.Path(command[0]).name} {command[1]}: exit code {result.returncode}: {last}"
                      + (f" (whole log: {log})" if log else ""))
    return result.stdout


def cpu_ns():
    """(all that this machine's processors worked, how many there are), since it started."""
    words = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(w) for w in words[:8])
    return (user + nice + system + irq + softirq + steal) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Watch:
    """What the machine did beside a measurement."""

    def __init__(self):
        self._load, self._start, self._all, self._own = os.getloadavg()[0], time.monotonic(), cpu_ns(), self._used()

    @staticmethod
    def _used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def finish(self):
        """Seconds taken, the load average before, and the processors that others kept busy meanwhile."""
        seconds = time.monotonic() - self._start
        others = ((cpu_ns() - self._all) * 1e-9 - (self._used() - self._own)) / seconds
        return {"seconds": seconds, "load_average_before": self._load, "processors_busy_elsewhere": max(0.0, others)}


def child_json(command, env=None):
    """Runs a measurement and reads the JSON on its stdout. (JSON or None, why it failed or None)."""
    process = subprocess.Popen([str(c) for c in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, errors="replace")
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        return json.loads(out), None
    except ValueError:
        last = (err.strip().splitlines() or ["no output"])[-1]
        code = process.returncode
        return None, f"{signal.Signals(-code).name}" if code < 0 else f"exit code {code}: {last}"


class Job:
    """One shape at one precision; its rows are ("prefill", 0) and ("decode", depth)."""

    def __init__(self, shape, dtype, kv_dtype, options):
        self.shape, self.dtype, self.kv_dtype, self.options = shape, dtype, kv_dtype, options
        self.keys = ([("prefill", 0)] if options.prompt else []) + [("decode", d) for d in options.depth]

    def __str__(self):
        return f"{self.shape} {self.dtype} kv {self.kv_dtype}"


class Models:
    """Checkpoints of random weights, and what is made from them, in the cache folder; made once."""

    SIZES = {"BF16": 1.01, "Q8_0": 0.55, "Q4_0": 0.3}  # of the checkpoint's

    def __init__(self, cache, dsv2, seed):
        self._cache, self._dsv2, self._seed = cache / "models", dsv2, seed

    def folder(self, shape):
        """The bf16 checkpoint of a shape."""
        source = SHAPES[shape]
        key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:8]
        folder = self._cache / f"{shape}-{key}-seed{self._seed}"
        if not folder.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            config = self._cache / f"{folder.name}.config.json"
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            of = ["--preset", source]
            if isinstance(source, dict):
                config.write_text(json.dumps(source, indent=2))
                of = ["--config", config]
            say(f"draw the weights of {shape}")
            call([self._dsv2, "init", *of, "--seed", self._seed, "--dtype", "bf16", "--out", part])
            part.rename(folder)
        return folder

    def gguf(self, shape, kind, python):
        """As BF16, Q8_0 or Q4_0."""
        folder = self.folder(shape)
        path = folder.with_name(f"{folder.name}-{kind}.gguf")
        if not path.exists():
            say(f"write {path.name}")
            needed = sum(file.stat().st_size for file in folder.iterdir()) * self.SIZES[kind]
            room = shutil.disk_usage(self._cache).free
            if not needed < room:
                raise Failure(f"{path}: expected room for {needed * 1e-9:.1f} GB, found {room * 1e-9:.1f} GB")
            script = [python, HERE / "make_gguf.py"]
            if kind == "BF16":
                call([*script, "convert", folder, path])
            else:
                call([*script, "quantise", self.gguf(shape, "BF16", python), path, kind])
        return path


class Ours:
    """`dsv2 bench`: checked before and after timing by itself."""

    name = "dsv2"

    def __init__(self, dsv2, models):
        self._dsv2, self._models = dsv2, models
        self.limits, self.machine, self.version, self.wrong = [], None, None, []

    def measure(self, job, round_number):
        """({row: tokens/s}, reason for rows without, {further facts})."""
        o = job.options
        command = [self._dsv2, "bench", "--model", self._models.folder(job.shape), "--backend", "cpu", "--dtype",
                   job.dtype, "--kv-dtype", job.kv_dtype, "--threads", o.threads, "--prompt", o.prompt, "--depth",
                   ",".join(map(str, o.depth)) or "0", "--generate", o.generate if o.depth else 0, "--repetitions",
                   o.repetitions, "--seed", round_number + 1, "--json", "-"]
        report, error = child_json(command)
        if report is None:
            return {}, error, {}
        machine = report["machine"]
        limits = {"read_bandwidth_gb_s": machine["read_bandwidth_gb_s"],
                  **{f"peak_{k}_gflop_s": v for k, v in machine["peak_gflop_s"].items()}}
        self.limits.append(limits)
        self.machine, self.version = machine, report["tool"]
        speeds, reasons = {}, set()
        for record in report["records"]:
            key = (record["phase"], record["depth"])
            if record["status"] == "passed":
                speeds[key] = record["prefill_tokens_per_s"] or record["decode_tokens_per_s"]
            else:
                reasons.add(f"{record['status']}: {record['reason'] or record['failures']}")
                if record["status"] == "failed":
                    self.wrong.append(record["name"])
        samples = {record["name"]: record["samples_ns"] for record in report["records"]}
        return speeds, "; ".join(sorted(reasons)) or None, {"limits": limits, "samples_ns": samples}

    def cost(self, job, key):
        """(FLOP, bytes) of one prefill or step; None where dsv2 has no figure."""
        what, depth = key
        tokens, context = (job.options.prompt, job.options.prompt) if what == "prefill" else (1, depth + 1)
        report, _ = child_json([self._dsv2, "cost", "--model", self._models.folder(job.shape), "--tokens", tokens,
                                "--context", context, "--dtype", job.dtype, "--kv-dtype", job.kv_dtype, "--causal",
                                "--logits", "last", "--json", "-"])
        return (report["flops"], report["bytes"]["total"]) if report else None

    def reference_logits(self, shape):
        """Of the last position after CHECKED_IDS, by the plain reference from the stored weights."""
        with tempfile.TemporaryDirectory() as out:
            path = pathlib.Path(out) / "taps.safetensors"
            folder = self._models.folder(shape)
            call([self._dsv2, "dump", "--model", folder, "--prompt-ids", CHECKED_IDS, "--out", path])
            data = path.read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        entry = json.loads(data[8 : 8 + size])["logits"]
        vocab, end = entry["shape"][-1], 8 + size + entry["data_offsets"][1]
        return struct.unpack_from(f"<{vocab}d", data, end - 8 * vocab)


class Peer:
    """A peer in a virtual environment of its own; the worker script does the timing."""

    environment = {}

    def __init__(self, cache, models, requirements, worker, build_env=None, pip_flags=()):
        self._models, self._worker = models, worker
        pins = (HERE / requirements).read_bytes()
        flags = [line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
        key = hashlib.sha256(pins + flags[0].encode() + repr(build_env).encode()).hexdigest()[:8]
        self._venv, self._requirements = cache / f"{pathlib.Path(requirements).stem}-{key}", HERE / requirements
        self._build_env, self._pip_flags = build_env or {}, pip_flags
        self.facts = {"pins": [line for line in pins.decode().splitlines() if not line.startswith("#")],
                      "build": self._build_env, "environment": self.environment}

    @property
    def python(self):
        return self._venv / "bin" / "python"

    def install(self):
        done = self._venv / "installed"
        if done.exists():
            return
        say(f"install {self.name} into {self._venv} (once; minutes)")
        self._venv.parent.mkdir(parents=True, exist_ok=True)
        try:
            call([sys.executable, "-m", "venv", "--clear", self._venv])
        except Failure as failure:
            raise Failure(f"{sys.executable} makes no virtual environment "
                          "(Debian: apt-get install python3-venv)") from failure
        env = os.environ | self._build_env
        log = self._venv / "install.log"
        call([self.python, "-m", "pip", "install", *self._pip_flags, "-r", self._requirements], log=log, env=env)
        done.touch()

    def run(self, model, *flags):
        return child_json([self.python, HERE / self._worker, "--model", model, *flags],
                          env=os.environ | self.environment)

    def logits(self, shape, model):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "logits.f32"
            result, error = self.run(model, "--logits", CHECKED_IDS, "--out", path)
            if result is None:
                raise Failure(f"{self.name} on {shape}: {error}")
            data = path.read_bytes()
        return struct.unpack(f"<{len(data) // 4}f", data)

    def variants(self, job, plans, round_number, repetitions, generate, of=statistics.median):
        """{variant: {row: tokens/s}} of plans {variant: rows}, from the median or other statistic `of` the samples; why
        some fail; {further facts}."""
        o = job.options
        flags = ["--threads", o.threads, "--prompt", o.prompt, "--depth", ",".join(map(str, o.depth)), "--generate",
                 generate, "--repetitions", repetitions, "--seed", round_number + 1]
        for name, keys in plans.items():
            rows = ",".join("prefill" if what == "prefill" else str(depth) for what, depth in keys)
            flags += ["--variant", f"{name}@{rows}"]
        result, error = self.run(self.model(job), *flags)
        if result is None:
            return {}, error, {}
        self.facts |= {"version": result["version"], "system": result["system"]}
        speeds, errors = {}, []
        for entry in result["variants"]:
            if entry["error"]:
                errors.append(f"{entry['variant']}: {entry['error']}")
            speeds[entry["variant"]] = {(row["what"], row["depth"]): tokens_per_s(row["tokens"], of(row["samples_ns"]))
                                        for row in entry["rows"]}
        return speeds, "; ".join(errors) or None, {"model": result["model"], "variants": result["variants"]}


class LlamaCpp(Peer):
    name = "llama.cpp"
    KINDS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
    KV = {"bf16": ("f16",), "int8": ("q8_0", "f16")}  # the smaller cache is not the faster one: it may choose
    # glibc then asks for huge pages, as dsv2 does for its weights; it matters with load=none and for repacked weights.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

    def __init__(self, cache, models):
        # Its default build is Release with OpenMP, llamafile's matrix kernels and repacking on.
        super().__init__(cache, models, "requirements.txt", "llama_worker.py",
                         build_env={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
                         pip_flags=("--no-cache-dir", "--no-binary", "llama-cpp-python"))

    def unsupported(self, job):
        if job.dtype not in self.KINDS or job.kv_dtype not in self.KV:
            return f"no counterpart of {job.dtype} with a cache of {job.kv_dtype}"
        return None

    def dtype(self, job, variant):
        return self.KINDS[job.dtype], variant.rpartition("kv=")[2] if variant else None

    def model(self, job):
        return self._models.gguf(job.shape, self.KINDS[job.dtype], self.python)

    def loadings(self, job):
        """Ways to hold the weights: the first thing to choose from."""
        repack = (1, 0) if job.dtype != "bf16" else (1,)
        return [f"load={load},repack={r},fa=1,kv=f16" for load in ("mmap", "none") for r in repack]

    def forms(self, job, loading):
        """Types of the cache, flash attention on and off (which a quantised cache needs): the second."""
        head = loading.partition(",fa=")[0]
        return [f"{head},fa={fa},kv={kv}" for kv in self.KV[job.kv_dtype] for fa in ((1, 0) if kv == "f16" else (1,))]


class Transformers(Peer):
    name = "transformers"

    def __init__(self, cache, models):
        super().__init__(cache, models, "requirements-transformers.txt", "torch_worker.py")

    def unsupported(self, job):
        if job.dtype != "bf16" or job.kv_dtype != "bf16":
            return "measured in bf16 alone"
        return None

    def dtype(self, job, variant):
        return "bfloat16", "bfloat16"

    def model(self, job):
        return self._models.folder(job.shape)

    def loadings(self, job):
        return ["experts=grouped_mm", "experts=eager"]

    def forms(self, job, loading):
        return [loading]


PEERS = {side.name: side for side in (LlamaCpp, Transformers)}
