#!/usr/bin/env python3
"""Times transformers on a checkpoint of `dsv2 init`, in bf16, and prints one JSON object; flags as llama_worker.py.

MLA: DeepseekV2ForCausalLM. Plain attention: the text model of deepseek_ocr2, which has the same layers as that of
DeepSeek-OCR, and the head as a linear layer on the last position. Both with torch's fused attention (sdpa). A variant
names how experts run: experts=eager|grouped_mm. Weights are those of the checkpoint.
"""
import json
import random
import sys
import time
import warnings

import torch
import transformers
from transformers import DynamicCache
from transformers.initialization import no_init_weights

from checkpoint import Checkpoint
from worker import parse_args, settings


def rope_parameters(config):
    scaling = dict(config["rope_scaling"] or {"type": "default"})
    scaling["rope_type"] = scaling.pop("type")
    return scaling | {"rope_theta": config["rope_theta"]}


def build(config, experts):
    """(class's name, module with random bf16 storage): decoder and head on the last position."""
    kept = ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
            "q_lora_rank", "num_attention_heads", "num_key_value_heads", "n_routed_experts", "n_shared_experts",
            "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor", "topk_method", "n_group", "topk_group",
            "hidden_act", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id")
    args = {k: config[k] for k in kept} | {"rope_parameters": rope_parameters(config), "pad_token_id": None}
    if config["use_mla"]:
        from transformers import DeepseekV2Config
        from transformers import DeepseekV2ForCausalLM as Model

        args |= {k: config[k] for k in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}
        settings = DeepseekV2Config(first_k_dense_replace=config["first_k_dense_replace"], **args)
    else:
        from transformers.models.deepseek_ocr2 import configuration_deepseek_ocr2, modeling_deepseek_ocr2

        Model = modeling_deepseek_ocr2.DeepseekOcr2TextModel
        dense = config["first_k_dense_replace"]
        kinds = ["dense"] * dense + ["sparse"] * (config["num_hidden_layers"] - dense)
        args["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        del args["q_lora_rank"]
        settings = configuration_deepseek_ocr2.DeepseekOcr2TextConfig(mlp_layer_types=kinds, **args)
    settings._attn_implementation = "sdpa"
    settings._experts_implementation = experts
    torch.set_default_dtype(torch.bfloat16)
    return Model(settings)


def load(model, checkpoint):
    """Copies every parameter; experts lie stacked, gate above up."""

    def tensor(name):
        array = checkpoint[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # read-only memory, which is only read
            return torch.from_numpy(array).view(torch.bfloat16) if array.itemsize == 2 else torch.from_numpy(array)

    prefix = "" if hasattr(model, "lm_head") else "model."
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = prefix + name
            stem, _, last = source.rpartition(".")
            if last in ("gate_up_proj", "down_proj"):  # of experts
                parts = ("gate", "up") if last == "gate_up_proj" else ("down",)
                for e in range(parameter.shape[0]):
                    parameter[e].copy_(torch.cat([tensor(f"{stem}.{e}.{p}_proj.weight") for p in parts]))
            else:
                parameter.copy_(tensor(source))


class Decoder:
    def __init__(self, folder, experts):
        checkpoint = Checkpoint(folder)
        self.vocab = checkpoint.config["vocab_size"]
        # Weights that torch would draw are overwritten: none are drawn.
        with no_init_weights():
            self.model = build(checkpoint.config, experts)
        self.head = None
        if not hasattr(self.model, "lm_head"):
            self.head = torch.nn.Linear(checkpoint.config["hidden_size"], self.vocab, bias=False)
        load(self.model, checkpoint)
        if self.head is not None:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.head.weight.copy_(torch.from_numpy(checkpoint["lm_head.weight"]).view(torch.bfloat16))
        self.model.eval()
        self.name = type(self.model).__name__ + ("" if self.head is None else " + Linear")

    def use(self, experts):
        self.model.config._experts_implementation = experts

    def ids(self, n):
        return torch.tensor([[random.randrange(self.vocab) for _ in range(n)]])

    def forward(self, ids, cache):
        """Appends `ids`; logits of the last."""
        if self.head is None:
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return self.head(out.last_hidden_state[0, -1])


def timed(decoder, ids, cache):
    start = time.perf_counter_ns()
    decoder.forward(ids, cache)
    return time.perf_counter_ns() - start


def measure(decoder, args, plan):
    rows = []
    if plan.prefill:
        samples = [timed(decoder, decoder.ids(args.prompt), DynamicCache()) for _ in range(1 + args.repetitions)][1:]
        rows.append({"what": "prefill", "depth": 0, "tokens": args.prompt, "samples_ns": samples})
    cache, filled = DynamicCache(), 0
    for depth in plan.depths:
        while filled < depth:
            piece = min(512, depth - filled)
            decoder.forward(decoder.ids(piece), cache)
            filled += piece
        decoder.forward(decoder.ids(1), cache)
        samples = []
        for _ in range(args.repetitions):
            cache.crop(depth - cache.get_seq_length())
            samples += [timed(decoder, decoder.ids(1), cache) for _ in range(args.generate)]
        cache.crop(depth - cache.get_seq_length())
        rows.append({"what": "decode", "depth": depth, "tokens": 1, "samples_ns": samples})
    return rows


def main():
    args = parse_args(__doc__)
    random.seed(args.seed)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    result = {"version": f"transformers {transformers.__version__}, torch {torch.__version__}",
              "system": torch.backends.cpu.get_cpu_capability(), "variants": []}
    with torch.inference_mode():
        decoder = Decoder(args.model, "eager")
        result["model"] = {"description": decoder.name}
        if args.logits:
            logits = decoder.forward(torch.tensor([args.logits]), DynamicCache())
            args.out.write_bytes(logits.float().numpy().tobytes())
        for plan in args.plans:
            entry = {"variant": plan.name, "rows": [], "error": None}
            decoder.use(settings(plan.name)["experts"])
            try:
                entry["rows"] = measure(decoder, args, plan)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                entry["error"] = str(error).splitlines()[0]
            result["variants"].append(entry)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
