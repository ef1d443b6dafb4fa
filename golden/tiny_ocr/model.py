"""DeepSeek-V2's decoder (MHA or MLA, first layer dense, then routed and shared experts) behind a projector that turns
columns of a picture into embeddings. Keys of a config are HF's; parameters are laid out for training: the experts of a
layer in one tensor, unpacked by checkpoint()."""
import torch
import torch.nn.functional as F
from torch import nn

_COMMON = dict(
    model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"], vocab_size=100, hidden_size=192, num_hidden_layers=4,
    num_attention_heads=6, num_key_value_heads=6, intermediate_size=512, first_k_dense_replace=1, moe_layer_freq=1,
    n_routed_experts=12, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=96, scoring_func="softmax",
    topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0, rope_theta=10000.0, rms_norm_eps=1e-6,
    max_position_embeddings=128, hidden_act="silu", tie_word_embeddings=False, attention_bias=False,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16")
CONFIGS = {
    "mha": dict(_COMMON, use_mla=False, kv_lora_rank=None, q_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0,
                v_head_dim=0),
    "mla": dict(_COMMON, use_mla=True, kv_lora_rank=64, q_lora_rank=None, qk_nope_head_dim=32, qk_rope_head_dim=16,
                v_head_dim=32),
}
_PROJECTOR_WIDTH = 384
_ROWS = 64  # of an expert, rounded up to: few shapes, whose kernels torch keeps


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x, cos, sin):
    """RoPE, pairs (i, i + width/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def deinterleave(x):
    """Pairs (2i, 2i + 1), as MLA's checkpoints have them, to (i, i + width/2)."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)


class MultiHeadAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, width = c["num_attention_heads"], c["hidden_size"]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(width, width) for _ in range(4))

    def forward(self, x, cos, sin, first):
        def heads(t):
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = heads(self.q_proj(x[:, first:])), heads(self.k_proj(x)), heads(self.v_proj(x))
        return attend(rotate(q, cos[first:], sin[first:]), rotate(k, cos, sin), v, self.o_proj)


class MultiHeadLatentAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, width = c["num_attention_heads"], c["hidden_size"]
        self.nope, self.rope, self.value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        self.rank = c["kv_lora_rank"]
        self.q_proj = linear(width, self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(width, self.rank + self.rope)
        self.kv_a_layernorm = RMSNorm(self.rank, 1e-6)
        self.kv_b_proj = linear(self.rank, self.heads * (self.nope + self.value))
        self.o_proj = linear(self.heads * self.value, width)

    def forward(self, x, cos, sin, first):
        q = self.q_proj(x[:, first:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q_nope, q_rope = q.split((self.nope, self.rope), -1)
        q = torch.cat((q_nope, rotate(deinterleave(q_rope), cos[first:], sin[first:])), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), -1)
        k_rope = rotate(deinterleave(k_rope), cos, sin)[:, None].expand(-1, self.heads, -1, -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_nope, v = kv.split((self.nope, self.value), -1)
        return attend(q, torch.cat((k_nope, k_rope), -1), v, self.o_proj)


def attend(q, k, v, o_proj):
    """Causal; q are the last positions of k."""
    behind = k.shape[2] - q.shape[2]
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(behind)
    return o_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(width, inner), linear(width, inner), linear(inner, width)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, inner = c["hidden_size"], c["moe_intermediate_size"]
        self.experts, self.chosen = c["n_routed_experts"], c["num_experts_per_tok"]
        self.gate = linear(width, self.experts)
        self.gate_up = nn.Parameter(torch.empty(self.experts, 2 * inner, width))
        self.down = nn.Parameter(torch.empty(self.experts, width, inner))
        self.shared_experts = MLP(width, inner * c["n_shared_experts"])
        self.balance, self.load = torch.zeros(()), torch.zeros(self.experts)

    def forward(self, x):
        rows = x.flatten(0, 1)
        with torch.autocast("cpu", enabled=False):  # a rounded row could choose another expert
            scores = F.linear(rows.float(), self.gate.weight.float()).softmax(-1)
        weight, index = scores.topk(self.chosen, -1)
        choices = index.flatten()
        order = choices.argsort(stable=True)
        self.load = torch.bincount(choices, minlength=self.experts)
        self.balance = self.experts * (self.load / choices.numel() * scores.mean(0)).sum()  # 1 where all are used alike
        outputs = []
        for expert, part in enumerate(rows[order // self.chosen].split(self.load.tolist())):
            padded = F.pad(part, (0, 0, 0, -len(part) % _ROWS))
            gate, up = F.linear(padded, self.gate_up[expert]).chunk(2, -1)
            outputs.append(F.linear(F.silu(gate) * up, self.down[expert])[:len(part)])
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel())
        routed = torch.cat(outputs)[back].unflatten(0, (-1, self.chosen))
        return (routed * weight[..., None].to(routed.dtype)).sum(1).view_as(x) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        width, eps = c["hidden_size"], c["rms_norm_eps"]
        self.self_attn = (MultiHeadLatentAttention if c["use_mla"] else MultiHeadAttention)(c)
        self.mlp = MLP(width, c["intermediate_size"]) if index < c["first_k_dense_replace"] else MoE(c)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width, eps), RMSNorm(width, eps)

    def forward(self, x, cos, sin, first):
        x = x[:, first:] + self.self_attn(self.input_layernorm(x), cos, sin, first)
        return x + self.mlp(self.post_attention_layernorm(x))


class Projector(nn.Module):
    """[..., patch values] -> [..., D]"""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, _PROJECTOR_WIDTH), nn.GELU(), nn.Linear(_PROJECTOR_WIDTH, outputs))
        for layer in (self.layers[0], self.layers[2]):
            nn.init.normal_(layer.weight, std=layer.in_features ** -0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, patches):
        return self.layers(patches)


class TinyOcr(nn.Module):
    """Reads (ids, ink): ids [B,S] are <bos>, one <image> a column, <ocr>, text; ink [B, 32, 8 * columns]."""

    def __init__(self, config, patch_values):
        super().__init__()
        c = self.config = config
        width = c["hidden_size"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], width)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(width, c["rms_norm_eps"])
        self.lm_head = linear(width, c["vocab_size"])
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.projector = Projector(patch_values, width)
        rope = c["qk_rope_head_dim"] if c["use_mla"] else width // c["num_attention_heads"]
        angles = torch.arange(c["max_position_embeddings"])[:, None] * c["rope_theta"] ** (
            -torch.arange(0, rope, 2) / rope)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def moe_layers(self):
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, MoE)]

    def embed(self, ids, ink, patch):
        """[B,S,D]: the projected columns at the positions behind the first."""
        columns = ink.shape[2] // patch
        patches = ink.unfold(2, patch, patch).transpose(1, 2).flatten(2)  # [B, columns, 32 * patch], row by row
        x = self.embed_tokens(ids)
        return torch.cat((x[:, :1], self.projector(patches).to(x.dtype), x[:, 1 + columns:]), 1)

    def forward(self, x, first=0):
        """Logits [B, S - first, V] of embeddings x [B,S,D]: the last layer computes no position before `first`."""
        cos, sin = self.cos[:x.shape[1]].to(x.dtype), self.sin[:x.shape[1]].to(x.dtype)
        for layer in self.layers[:-1]:
            x = layer(x, cos, sin, 0)
        return self.lm_head(self.norm(self.layers[-1](x, cos, sin, first)))


def checkpoint(model):
    """{HF name: tensor} in bf16."""
    out = {}
    for name, value in model.state_dict().items():
        value = value.detach().to(torch.bfloat16)
        prefix = "" if name.startswith("lm_head") else "model."
        if name.endswith("mlp.gate_up"):
            for e, expert in enumerate(value):
                gate, up = expert.chunk(2)
                stem = f"{prefix}{name.removesuffix('gate_up')}experts.{e}."
                out[stem + "gate_proj.weight"], out[stem + "up_proj.weight"] = gate.clone(), up.clone()
        elif name.endswith("mlp.down"):
            for e, expert in enumerate(value):
                out[f"{prefix}{name.removesuffix('down')}experts.{e}.down_proj.weight"] = expert.clone()
        else:
            out[prefix + name] = value.contiguous()
    return out


def from_checkpoint(config, tensors, patch_values):
    """The model of a checkpoint, its bf16 weights widened to f32."""
    model = TinyOcr(config, patch_values)
    state = {}
    for name in model.state_dict():
        prefix = "" if name.startswith("lm_head") else "model."

        def expert(e, projection, stem=prefix + name.rpartition(".")[0]):
            return tensors[f"{stem}.experts.{e}.{projection}.weight"]

        experts = range(config["n_routed_experts"])
        if name.endswith("mlp.gate_up"):
            value = torch.stack([torch.cat((expert(e, "gate_proj"), expert(e, "up_proj"))) for e in experts])
        elif name.endswith("mlp.down"):
            value = torch.stack([expert(e, "down_proj") for e in experts])
        else:
            value = tensors[prefix + name]
        state[name] = value.float()
    model.load_state_dict(state)
    return model.eval()
