#!/usr/bin/env python3
"""Writes a checkpoint of `dsv2 init` as GGUF, and quantises one with llama.cpp's own quantiser.

    make_gguf.py convert FOLDER OUT.gguf           the very same bf16 weights, as convert_hf_to_gguf.py lays them out
    make_gguf.py quantise IN.gguf OUT.gguf Q8_0    or Q4_0: every matrix, embedding and head included

Plain attention becomes the architecture `deepseek2-ocr`, MLA `deepseek2` with kv_b_proj split for absorption. Norms and
router are float32, as llama.cpp stores them. Tensors pass through memory one at a time. The vocabulary has no text.
"""
import argparse
import ctypes
import pathlib

import gguf
import numpy as np

from checkpoint import Checkpoint, to_f32

F32, BF16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.BF16


def add_config(writer, config):
    """The hyperparameters that llama.cpp's loader asks for (src/models/deepseek2.cpp and deepseek2ocr.cpp)."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("random weights")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
    if not config["use_mla"]:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
        return
    writer.add_head_count_kv(1)  # the latent: one key that all heads share
    writer.add_q_lora_rank(config["q_lora_rank"] or 0)
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["kv_lora_rank"])
    writer.add_key_length_mla(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    if scaling := config["rope_scaling"]:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])  # the loader divides by 0.1


def tensors(config):
    """(GGUF name, GGUF type, function of the checkpoint that gives the array) of every tensor."""

    def one(target, source, kind=BF16):
        return target, kind, lambda c: c[source + ".weight"]

    def experts(target, source):
        return target, BF16, lambda c: np.stack([c[source.format(e)] for e in range(config["n_routed_experts"])])

    def split_kv_b(c, source):
        heads = c[source + ".weight"].reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
        return np.split(heads, [config["qk_nope_head_dim"]], axis=1)

    yield one("token_embd.weight", "model.embed_tokens")
    for i in range(config["num_hidden_layers"]):
        to, of = f"blk.{i}.", f"model.layers.{i}."
        yield one(to + "attn_norm.weight", of + "input_layernorm", F32)
        attn = of + "self_attn."
        if not config["use_mla"]:
            for letter in "qkv":
                yield one(f"{to}attn_{letter}.weight", f"{attn}{letter}_proj")
        else:
            if config["q_lora_rank"]:
                yield one(to + "attn_q_a.weight", attn + "q_a_proj")
                yield one(to + "attn_q_a_norm.weight", attn + "q_a_layernorm", F32)
                yield one(to + "attn_q_b.weight", attn + "q_b_proj")
            else:
                yield one(to + "attn_q.weight", attn + "q_proj")
            yield one(to + "attn_kv_a_mqa.weight", attn + "kv_a_proj_with_mqa")
            yield one(to + "attn_kv_a_norm.weight", attn + "kv_a_layernorm", F32)
            kv_b = attn + "kv_b_proj"
            yield to + "attn_k_b.weight", BF16, lambda c, s=kv_b: split_kv_b(c, s)[0].swapaxes(1, 2)
            yield to + "attn_v_b.weight", BF16, lambda c, s=kv_b: split_kv_b(c, s)[1]
        yield one(to + "attn_output.weight", attn + "o_proj")
        yield one(to + "ffn_norm.weight", of + "post_attention_layernorm", F32)
        mlp = of + "mlp."
        if i < config["first_k_dense_replace"]:
            for part in ("gate", "up", "down"):
                yield one(f"{to}ffn_{part}.weight", f"{mlp}{part}_proj")
            continue
        yield one(to + "ffn_gate_inp.weight", mlp + "gate", F32)
        for part in ("gate", "up", "down"):
            yield experts(f"{to}ffn_{part}_exps.weight", mlp + "experts.{}." + part + "_proj.weight")
            yield one(f"{to}ffn_{part}_shexp.weight", f"{mlp}shared_experts.{part}_proj")
    yield one("output_norm.weight", "model.norm", F32)
    yield one("output.weight", "lm_head")


def stored(array, kind):
    """The array's bytes in the file: bf16 as uint8, which the writer takes a type for; norms widened exactly."""
    if kind == F32:
        return to_f32(array) if array.dtype == np.uint16 else array
    return np.ascontiguousarray(array).view(np.uint8)


def convert(folder, out):
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    writer = gguf.GGUFWriter(out, "deepseek2" if config["use_mla"] else "deepseek2-ocr")
    add_config(writer, config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    every = list(tensors(config))
    for name, kind, read in every:
        data = stored(read(checkpoint), kind)
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, kind, read in every:
        writer.write_tensor_data(stored(read(checkpoint), kind))
    writer.close()


def quantise(source, out, name):
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.pure = True
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if code != 0:
        raise SystemExit(f"{source}: llama_model_quantize to {name} failed with {code}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("convert")
    sub.add_argument("source", type=pathlib.Path)
    sub.add_argument("out", type=pathlib.Path)
    sub = commands.add_parser("quantise")
    sub.add_argument("source", type=pathlib.Path)
    sub.add_argument("out", type=pathlib.Path)
    sub.add_argument("type", choices=("Q8_0", "Q4_0"))
    args = parser.parse_args()
    part = args.out.with_suffix(".part")  # a file that is there is whole
    if args.command == "convert":
        convert(args.source, part)
    else:
        quantise(args.source, part, args.type)
    part.rename(args.out)


if __name__ == "__main__":
    main()
