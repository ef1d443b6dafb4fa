#!/usr/bin/env python3
"""Makes a golden case (FORMAT.md) from a checkpoint, or from a small random model, by running the framework's own code.

    make_golden.py --model DIR --prompt 1,2,3 --out CASE          token ids, or text if DIR has a tokenizer
    make_golden.py --random tiny-mla --seed 7 --out CASE          see RANDOM below for the names
    options: --max-new-tokens N   --dtype float32|bfloat16   --code modeling_deepseekv2.py

Needs requirements.txt. The case holds: the full forward with every kind of output, the same prompt in pieces through a
cache, and a greedy generation; with --dtype bfloat16 also what the framework gives in bfloat16. Expected values are a
float64 run rounded to float32, tolerances the distance of a float32 run.

The default oracle is DeepseekV2ForCausalLM of the transformers library. Where that is none (QUIRKS 3 and 21) a
configuration is refused by name. DeepSeek-OCR's own code covers the rest: put its modeling_deepseekv2.py and
configuration_deepseek_v2.py into one folder, install transformers==4.46.3 instead, and give --code FILE.
"""
import argparse
import contextlib
import hashlib
import importlib
import json
import math
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

VISION = ("model.sam_model.", "model.vision_model.", "model.projector.", "model.image_newline", "model.view_seperator")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MARGIN = 3e-4  # FORMAT.md: of any expert choice

TINY = dict(
    architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", vocab_size=96, hidden_size=48,
    intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    use_mla=True, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12,
    n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, moe_layer_freq=1, first_k_dense_replace=1,
    topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, scoring_func="softmax",
    routed_scaling_factor=1.0, hidden_act="silu", max_position_embeddings=128, rms_norm_eps=1e-6,
    tie_word_embeddings=False, rope_theta=10000.0, rope_scaling=None, attention_bias=False, attention_dropout=0.0,
    bos_token_id=0, eos_token_id=1, pad_token_id=None)
YARN = dict(type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=32, beta_slow=1, mscale=1.0,
            mscale_all_dim=0.8)
RANDOM = {
    "tiny-mla": {},
    "tiny-mla-no-qlora": dict(q_lora_rank=None, attention_bias=True),
    "tiny-mla-linear": dict(rope_scaling=dict(type="linear", factor=2.0)),
    "tiny-mla-yarn": dict(rope_scaling=YARN, max_position_embeddings=64),
    "tiny-mla-groups": dict(topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=2.5),
    # These need --code.
    "tiny-mha": dict(use_mla=False, num_key_value_heads=2, q_lora_rank=None, kv_lora_rank=None, qk_nope_head_dim=0,
                     qk_rope_head_dim=0, v_head_dim=0),
    "tiny-noaux": dict(topk_method="noaux_tc", scoring_func="sigmoid", n_group=4, topk_group=2, norm_topk_prob=True,
                       routed_scaling_factor=2.5),
}


def refuse(*what):
    sys.exit("make_golden.py: " + " ".join(map(str, what)))


def library_is_no_oracle(c):
    """Why the transformers library computes something else than the original for this configuration, or None."""
    get, rope = c.get, c.get("rope_scaling") or {}
    reasons = {
        "use_mla false: the library knows only MLA": get("use_mla") is False,
        "norm_topk_prob true: the library ignores it": get("norm_topk_prob", False),
        "moe_layer_freq other than 1: the library ignores it": get("moe_layer_freq", 1) != 1,
        "scoring_func other than softmax: the library ignores it": get("scoring_func", "softmax") != "softmax",
        "topk_method other than greedy and group_limited_greedy: the library fails":
            get("topk_method") not in ("greedy", "group_limited_greedy"),
        "n_routed_experts null: the library wants experts": get("n_routed_experts") is None,
        "n_shared_experts null or 0: the library wants some": not get("n_shared_experts"),
        "rope_scaling without a known type": bool(rope) and rope.get("type") not in ("linear", "yarn", "dynamic"),
        "rope_scaling mscale without mscale_all_dim, or the other way round: the library has other defaults":
            rope.get("type") == "yarn" and bool(rope.get("mscale")) != bool(rope.get("mscale_all_dim")),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def language_config(folder):
    config = json.loads((folder / "config.json").read_text())
    if config.get("architectures", ["DeepseekV2ForCausalLM"])[0].endswith("SequenceClassification"):
        refuse(f"{folder}: architectures {config['architectures']}: only causal language models are run")
    c = config.get("language_config", config)
    if (c.get("rope_scaling") or {}).get("type") == "dynamic":
        refuse(f"{folder}: rope_scaling type dynamic: both codes keep its base from call to call (QUIRKS 13)")
    return c


def model_class(code, c, folder):
    """-> (config, model class, what to call it in the provenance)"""
    if code is None:
        reason = library_is_no_oracle(c)
        if reason:
            refuse(f"{folder}: {reason}. Use --code (see the top of this file)")
        from transformers import DeepseekV2Config, DeepseekV2ForCausalLM
        # MLA has one latent for all heads; the library would repeat expanded heads.
        keys = {**c, "num_key_value_heads": c["num_attention_heads"]}
        return DeepseekV2Config(**keys), DeepseekV2ForCausalLM, "transformers DeepseekV2ForCausalLM"
    sys.path.insert(0, str(code.resolve().parent.parent))
    package = code.resolve().parent.name
    module = importlib.import_module(f"{package}.{code.stem}")
    config = importlib.import_module(f"{package}.configuration_deepseek_v2").DeepseekV2Config(**c)
    sha = hashlib.sha256(code.read_bytes()).hexdigest()
    return config, module.DeepseekV2ForCausalLM, f"{code.name}, sha256 {sha}"


class Widen(TorchFunctionMode):
    """What the code computes "in float32 at least" is computed in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        wide = lambda x: torch.float64 if x is torch.float32 else x
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


@contextlib.contextmanager
def widened():
    torch.set_default_dtype(torch.float64)
    try:
        with Widen():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def load(folder, dtype, config, cls):
    eager = dict(config=config, attn_implementation="eager")
    if hasattr(transformers, "DeepseekV2ForCausalLM") and cls is transformers.DeepseekV2ForCausalLM:
        eager["experts_implementation"] = "eager"
    stored = torch.float32 if dtype == torch.float64 else dtype
    model = cls.from_pretrained(folder, torch_dtype=stored, **eager).eval()
    if dtype == torch.float64:  # made anew, so that its tables are float64 too
        with widened():
            wide = cls(model.config).eval()
        wide.load_state_dict(model.state_dict())
        model = wide
    assert model.dtype == dtype and model.config._attn_implementation == "eager"
    return model


def draw(folder, c, config, cls, seed):
    """A random checkpoint: the names and shapes that the code itself saves, redrawn in the order of their names."""
    cls(config).save_pretrained(folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(seed)
    for name in sorted(tensors):
        shape = tensors[name].shape
        x = torch.randn(shape, generator=generator)
        if "layernorm" in name or name == "model.norm.weight":
            x = 1 + 0.1 * x
        elif len(shape) == 1:
            x = 0.05 * x
        elif "embed_tokens" not in name:
            x = x * (2.0 if "gate.weight" in name else 1.0) / math.sqrt(shape[-1])
        tensors[name] = x
    for file in folder.iterdir():
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(c, indent=1) + "\n")


def copy_checkpoint(source, folder, dtype):
    """The language tensors as one file of one dtype; -> that dtype"""
    files = sorted(source.glob("model*.safetensors"))
    if not files:
        refuse(f"{source}: no model*.safetensors")
    tensors = {}
    for file in files:
        tensors.update({k: v for k, v in load_file(file).items() if not k.startswith(VISION)})
    found = {str(t.dtype).removeprefix("torch.") for t in tensors.values()}
    if dtype is None:
        dtype = found.pop()
        if found or dtype not in DTYPES:
            refuse(f"{source}: weights of several dtypes, or of {dtype}: choose with --dtype")
    tensors = {k: v.to(DTYPES[dtype]).contiguous() for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if source != folder:
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return dtype


class Runner:
    """One model in one dtype, and what its routers did in the last call."""

    def __init__(self, model, c):
        self.model, self.c, self.routed = model, c, {}
        self.precision = widened if model.dtype == torch.float64 else contextlib.nullcontext
        for i, layer in enumerate(model.model.layers):
            gate = getattr(layer.mlp, "gate", None)
            if gate is not None:
                gate.register_forward_hook(lambda gate, args, out, i=i: self.route(i, gate, args[0], out))

    def route(self, i, gate, hidden, out):
        # (logits, weights, ids) or (ids, weights, loss), by version
        ids = next(t for t in out if t is not None and not t.is_floating_point())
        chosen = [t for t in out if t is not None and t.is_floating_point()][-1]
        logits = linear(hidden.reshape(-1, hidden.shape[-1]).float(), gate.weight.float())
        weights = torch.zeros_like(logits).scatter(1, ids, chosen.to(logits.dtype))
        bias = getattr(gate, "e_score_correction_bias", None)
        self.routed[i] = dict(router_logits=logits, router_weights=weights, router_topk_idx=ids.sort(-1).values)
        self.margin = min(self.margin, routing_margin(self.c, logits, bias))

    def call(self, ids, past=None, everything=False):
        """-> {name: tensor} with indexed kinds as kind.i"""
        self.routed, self.margin = {}, math.inf
        seen = 0 if past is None else past.get_seq_length()
        asked = dict(output_hidden_states=everything, output_attentions=everything, use_cache=past is not None)
        with torch.no_grad(), self.precision():
            mask = torch.ones(ids.shape[0], seen + ids.shape[1], dtype=torch.long)  # QUIRKS 5
            out = self.model(input_ids=ids, attention_mask=mask, past_key_values=past, **asked)
        result = {"logits": out.logits}
        if everything:
            result["last_hidden_state"] = out.hidden_states[-1]
            for kind in ("hidden_states", "attentions"):
                result.update({f"{kind}.{i}": t for i, t in enumerate(getattr(out, kind))})
            for i, kinds in self.routed.items():
                result.update({f"{kind}.{i}": t for kind, t in kinds.items()})
        return result

    def cache(self, past):
        """-> {"0.k_pe": tensor, ...} in the original's layout (QUIRKS 3)"""
        result = {}
        for i in range(self.c["num_hidden_layers"]):
            if hasattr(past, "layers"):  # the library: latent as keys, interleaved k_pe as values
                latent, k_pe = past.layers[i].keys, past.layers[i].values
                rows = (torch.cat((k_pe[..., 0::2], k_pe[..., 1::2]), -1), latent)
            else:
                rows = past[i]
            result.update({f"{i}.{part}": t for part, t in zip(parts(self.c), rows)})
        return result


def parts(c):
    return ("k_pe", "compressed_kv") if c.get("use_mla", True) else ("key", "value")


def routing_margin(c, logits, bias):
    """Smallest distance of a choice (of groups, of experts) from a tie."""
    scores = logits.double().softmax(-1) if c.get("scoring_func", "softmax") == "softmax" else logits.double().sigmoid()
    method, k = c["topk_method"], c["num_experts_per_tok"]
    gap = lambda x, n: (x[:, n - 1] - x[:, n]).min().item() if n < x.shape[1] else math.inf
    descending = lambda x: x.sort(-1, descending=True).values
    if method == "noaux_tc":
        scores = scores + bias.double()
    if method == "greedy":
        return gap(descending(scores), k)
    groups = descending(scores.view(len(scores), c["n_group"], -1))
    groups = groups[..., :2].sum(-1) if method == "noaux_tc" else groups[..., 0]
    order = groups.sort(-1, descending=True)
    keep = torch.zeros_like(groups).scatter(1, order.indices[:, :c["topk_group"]], 1.0)
    inside = scores * keep.repeat_interleave(scores.shape[1] // c["n_group"], 1)
    return min(gap(order.values, c["topk_group"]), gap(descending(inside), k))


def execute(runner, ids, steps, new_tokens):
    """Every expected tensor of the case, under its name; and the two margins."""
    t = {f"full.{kind}": x for kind, x in runner.call(ids, everything=True).items()}
    margin, gap = runner.margin, math.inf
    past, at = transformers.DynamicCache(), 0
    for name, length in steps:
        t[f"{name}.logits"] = runner.call(ids[:, at:at + length], past)["logits"]
        at += length
    t.update({f"{name}.cache.{k}": x.clone() for k, x in runner.cache(past).items()})
    if new_tokens:
        past, feed, chosen, logits = transformers.DynamicCache(), ids, [], []
        for _ in range(new_tokens):
            logits.append(runner.call(feed, past)["logits"][:, -1])
            margin = min(margin, runner.margin)
            best = logits[-1].topk(2).values
            gap = min(gap, (best[:, 0] - best[:, 1]).min().item())
            feed = logits[-1].argmax(-1, keepdim=True)
            chosen.append(feed)
        t["greedy.ids"], t["greedy.logits"] = torch.cat(chosen, 1), torch.stack(logits, 1)
        t.update({f"greedy.cache.{k}": x for k, x in runner.cache(past).items()})
    return t, margin, gap


def stored(x):
    return (x.float() if x.is_floating_point() else x.long()).clone().contiguous()


def describe(c, steps, new_tokens, moe_layers, bf16):
    """The calls and generations of case.json."""
    kinds = ["logits", "last_hidden_state", "hidden_states", "attentions"]
    kinds += ["router_logits", "router_weights", "router_topk_idx"] if moe_layers else []
    pattern = lambda prefix: {k: f"{prefix}.{k}" + ("" if k in kinds[:2] else ".{i}") for k in kinds}
    cache_after = lambda name: {part: f"{name}.cache.{{i}}.{part}" for part in parts(c)}
    calls = [{"id": "full", "cache": None, "inputs": {"input_ids": "input_ids"}, "outputs": pattern("full")}]
    if bf16:
        calls[0]["outputs_bf16"] = pattern("bf16.full")
    at = 0
    for name, length in steps:
        piece = {"tensor": "input_ids", "from": at, "to": at + length}
        calls.append({"id": name, "cache": "a", "inputs": {"input_ids": piece}, "outputs": {"logits": f"{name}.logits"}})
        at += length
    calls[-1]["cache_after"] = cache_after(steps[-1][0])
    generate = [{"id": "greedy", "inputs": {"input_ids": "input_ids"}, "max_new_tokens": new_tokens,
                 "eos_token_id": None, "ids": "greedy.ids", "logits": "greedy.logits",
                 "cache_after": cache_after("greedy")}] if new_tokens else []
    return calls, generate


def prompt_ids(text, folder, c):
    try:
        ids = [int(word) for word in text.split(",")]
    except ValueError:
        ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    wrong = [i for i in ids if not 0 <= i < c["vocab_size"]]
    if wrong or not ids:
        refuse(f"--prompt: expected ids 0..{c['vocab_size'] - 1}, found {wrong[:3] or 'none'}")
    return torch.tensor([ids])


def make(a, c, config, cls, code):
    if a.random:
        draw(a.out, c, config, cls, a.seed)
    dtype = copy_checkpoint(a.model or a.out, a.out, a.dtype)
    if a.prompt:
        ids = prompt_ids(a.prompt, a.model or a.out, c)
    else:
        ids = torch.randint(c["vocab_size"], (1, 12), generator=torch.Generator().manual_seed(a.seed))

    length = ids.shape[1]
    steps = [("prefill", length - 3), ("chunk", 2), ("step", 1)] if length > 3 else [("prefill", length)]
    golden, margin, gap = execute(Runner(load(a.out, torch.float64, config, cls), c), ids, steps, a.max_new_tokens)
    golden = {name: stored(x) for name, x in golden.items()}
    single, _, _ = execute(Runner(load(a.out, torch.float32, config, cls), c), ids, steps, a.max_new_tokens)
    tolerance = {}
    for name, x in golden.items():
        if x.is_floating_point():
            tolerance[name] = float(f"{(single[name].double() - x.double()).abs().max().item():.4g}")
        elif not torch.equal(single[name], x):
            refuse(f"{name}: float32 and float64 choose differently, so nothing after it can be compared."
                   " Take another prompt or seed")
    moe_layers = sorted(int(n.rsplit(".", 1)[1]) for n in golden if n.startswith("full.router_logits."))

    bf16 = {}
    if dtype == "bfloat16":
        half = Runner(load(a.out, torch.bfloat16, config, cls), c).call(ids, everything=True)
        exact = golden["full.logits"].double()
        moved = {i: half[f"router_topk_idx.{i}"] != golden[f"full.router_topk_idx.{i}"] for i in moe_layers}
        error = (half["logits"].double() - exact).norm() / exact.norm()
        bf16 = {"bf16": {"rel_l2_logits": {"full": float(f"{error:.4g}")},
                         "tokens_with_changed_experts": {str(i): int(m.any(-1).sum()) for i, m in moved.items()}}}
        golden.update({f"bf16.full.{kind}": stored(x) for kind, x in half.items()})
    golden["input_ids"] = ids

    infinite = [name for name, x in golden.items() if not torch.isfinite(x).all()]
    if infinite:
        refuse(f"{infinite[0]}: not finite")
    if a.random and not (margin > MARGIN and gap > MARGIN):
        refuse(f"--seed {a.seed}: routing margin {margin:.2g}, greedy gap {gap:.2g}, below {MARGIN}. Take another seed")
    if not margin > MARGIN:
        print(f"note: routing margin {margin:.2g} is below FORMAT.md's {MARGIN}: a choice of experts may be ambiguous")
    save_file(golden, a.out / "golden.safetensors")
    calls, generate = describe(c, steps, a.max_new_tokens, moe_layers, bool(bf16))
    rounded = lambda x: None if x == math.inf else float(f"{x:.4g}")
    origin = {"weight_seed": a.seed} if a.random else {"checkpoint": a.model.resolve().name}
    case = {
        "format": "dsv2-golden/1", "name": a.out.resolve().name,
        "description": (f"{a.random} with seed {a.seed}" if a.random else a.model.resolve().name) +
                       f": full forward, {', '.join(n for n, _ in steps)} with a cache, {a.max_new_tokens} greedy tokens",
        "head": "causal_lm",
        "provenance": {"code": f"{code}; eager attention, eval, CPU", "transformers": transformers.__version__,
                       "torch": torch.__version__.split("+")[0],
                       "precision": "float64 run with float32 up-casts widened, rounded to float32; integers int64",
                       **origin},
        "config": "config.json", "weights": {"file": "model.safetensors", "dtype": dtype},
        "tensors": "golden.safetensors", "moe_layers": moe_layers, "min_routing_margin": rounded(margin),
        "calls": calls, "generate": generate,
        **({"min_greedy_logit_gap": rounded(gap)} if generate else {}), **bf16, "tolerance": tolerance,
    }
    (a.out / "case.json").write_text(json.dumps(case, indent=1) + "\n")
    for file in a.out.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    print(f"{a.out}: {len(golden)} tensors, routing margin {margin:.2g}, greedy gap {gap:.2g}")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = a.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=pathlib.Path, metavar="DIR")
    source.add_argument("--random", choices=RANDOM)
    a.add_argument("--seed", type=int, default=1, help="of the random weights and prompt")
    a.add_argument("--prompt", help="token ids with commas between them, or text; default with --random: 12 random ids")
    a.add_argument("--out", type=pathlib.Path, required=True, metavar="CASE", help="a folder that does not exist yet")
    a.add_argument("--max-new-tokens", type=int, default=6, metavar="N")
    a.add_argument("--dtype", choices=DTYPES, help="of the case's weights; default: as stored, random: float32")
    a.add_argument("--code", type=pathlib.Path, metavar="FILE", help="DeepSeek-OCR's modeling_deepseekv2.py")
    a = a.parse_args()
    if a.out.exists():
        refuse(f"--out {a.out}: exists already")
    if a.model and not a.prompt:
        refuse("--prompt: expected with --model")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    c = {**TINY, **RANDOM[a.random]} if a.random else language_config(a.model)
    if c.get("topk_method", "gready") == "gready":
        c["topk_method"] = "greedy"  # QUIRKS 6
    c.setdefault("num_key_value_heads", c["num_attention_heads"])
    config, cls, code = model_class(a.code, c, a.model or a.random)
    a.out.mkdir(parents=True)
    try:
        make(a, c, config, cls, code)
    except BaseException:
        shutil.rmtree(a.out)
        raise


if __name__ == "__main__":
    main()
