#!/usr/bin/env python3
"""Times llama.cpp on one GGUF, as llama-bench does, and prints one JSON object.

    llama_worker.py --model F.gguf --threads 2 --prompt 512 --depth 512,4096 --generate 32 --repetitions 3
                    --variant load=mmap,repack=1,fa=1,kv=f16@prefill,512 [--variant ...]
    llama_worker.py --model F.gguf --logits 1,2,3 --out F.f32      the last logits, to be compared

A variant: load=mmap|none and repack=0|1 as llama.cpp's --mmap and --repack, fa=0|1 flash attention, kv the type of the
cache. Variants that agree in the first two share the loaded model; each has a context of its own.

Prefill: an empty cache, random ids, one llama_decode of each 512 ids, logits of the last. Decode: the cache is
filled to the depth once, then `generate` single steps from there, each timed; the steps are taken out again before the
next repetition. One prefill and one step before each are not counted.
"""
import ctypes
import itertools
import json
import random
import sys
import time

import llama_cpp

from worker import parse_args, settings

UBATCH = 512
KV_TYPES = {"f16": 1, "bf16": 30, "q8_0": 8}  # enum ggml_type
LOAD_MODES = {"none": llama_cpp.LLAMA_LOAD_MODE_NONE, "mmap": llama_cpp.LLAMA_LOAD_MODE_MMAP}
LOG = []


@llama_cpp.llama_log_callback
def keep_log(_level, text, _data):
    LOG.append(text.decode(errors="replace"))
    del LOG[:-50]


class Model:
    def __init__(self, path, load="mmap", repack=True):
        params = llama_cpp.llama_model_default_params()
        params.load_mode = LOAD_MODES[load]
        params.use_extra_bufts = repack
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise SystemExit(f"{path}: llama.cpp cannot load it: {''.join(LOG)}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))

    def close(self):
        llama_cpp.llama_model_free(self.handle)

    def describe(self):
        text = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.handle, text, len(text))
        return {
            "description": text.value.decode(),
            "bytes": llama_cpp.llama_model_size(self.handle),
            "parameters": llama_cpp.llama_model_n_params(self.handle),
        }


class Context:
    """A cache for `capacity` tokens of one sequence."""

    def __init__(self, model, capacity, threads, variant):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = capacity
        params.n_batch = params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(variant["fa"])
        params.type_k = params.type_v = KV_TYPES[variant["kv"]]
        params.no_perf = True
        self.handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RuntimeError("".join(LOG[-3:]).strip())
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._vocab = model.vocab

    def ids(self, n):
        return (llama_cpp.llama_token * n)(*(random.randrange(self._vocab) for _ in range(n)))

    def forward(self, ids):
        """Appends `ids`."""
        for at in range(0, len(ids), UBATCH):
            piece = (llama_cpp.llama_token * min(UBATCH, len(ids) - at)).from_buffer(ids, at * 4)
            code = llama_cpp.llama_decode(self.handle, llama_cpp.llama_batch_get_one(piece, len(piece)))
            if code != 0:
                raise RuntimeError(f"llama_decode failed with {code}: {''.join(LOG[-3:]).strip()}")
        llama_cpp.llama_synchronize(self.handle)

    def truncate(self, length):
        if length == 0:
            llama_cpp.llama_memory_clear(self._memory, False)
        elif not llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise RuntimeError(f"the cache cannot be cut to {length} tokens")

    def last_logits(self):
        return llama_cpp.llama_get_logits_ith(self.handle, -1)[: self._vocab]

    def close(self):
        llama_cpp.llama_free(self.handle)


def timed(context, ids):
    start = time.perf_counter_ns()
    context.forward(ids)
    return time.perf_counter_ns() - start


def prefill(context, tokens, repetitions):
    samples = []
    for _ in range(1 + repetitions):
        context.truncate(0)
        samples.append(timed(context, context.ids(tokens)))
    return samples[1:]


def decode(context, depth, generate, repetitions):
    """The cache holds `depth` tokens before and after."""
    samples = []
    context.forward(context.ids(1))
    for _ in range(repetitions):
        context.truncate(depth)
        samples += [timed(context, context.ids(1)) for _ in range(generate)]
    context.truncate(depth)
    return samples


def measure(model, args, plan):
    capacity = max([args.prompt] + [d + args.generate for d in plan.depths]) + 1
    context = Context(model, capacity, args.threads, settings(plan.name))
    rows = []
    if plan.prefill:
        samples = prefill(context, args.prompt, args.repetitions)
        rows.append({"what": "prefill", "depth": 0, "tokens": args.prompt, "samples_ns": samples})
    context.truncate(0)
    filled = 0
    for depth in plan.depths:
        if depth > filled:
            context.forward(context.ids(depth - filled))
        filled = depth
        samples = decode(context, depth, args.generate, args.repetitions)
        rows.append({"what": "decode", "depth": depth, "tokens": 1, "samples_ns": samples})
    context.close()
    return rows


def main():
    args = parse_args(__doc__)
    random.seed(args.seed)
    llama_cpp.llama_log_set(keep_log, None)
    llama_cpp.llama_backend_init()
    result = {
        "version": f"llama-cpp-python {llama_cpp.__version__}",
        "system": llama_cpp.llama_print_system_info().decode().strip(),
        "variants": [],
    }
    if args.logits:
        model = Model(args.model)
        context = Context(model, len(args.logits), args.threads, {"fa": "0", "kv": "f16"})
        context.forward((llama_cpp.llama_token * len(args.logits))(*args.logits))
        args.out.write_bytes(bytes((ctypes.c_float * model.vocab)(*context.last_logits())))
        context.close()
        model.close()

    def loading(plan):
        return settings(plan.name)["load"], settings(plan.name)["repack"] == "1"

    for (load, repack), plans in itertools.groupby(sorted(args.plans, key=loading), key=loading):
        model = Model(args.model, load, repack)
        result["model"] = model.describe()
        for plan in plans:
            entry = {"variant": plan.name, "rows": [], "error": None}
            try:
                entry["rows"] = measure(model, args, plan)
            except RuntimeError as error:
                entry["error"] = str(error)
            result["variants"].append(entry)
        model.close()
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
