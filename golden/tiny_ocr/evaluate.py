#!/usr/bin/env python3
"""Error rates of a checkpoint, in torch, f32 arithmetic on its weights.

    evaluate.py FOLDER [--lines 500] [--seed 2026]"""
import argparse
import json
import os
import random

import numpy as np
import torch
from safetensors.torch import load_file

import lines
from model import from_checkpoint


def load(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    return from_checkpoint(config, load_file(os.path.join(folder, "model.safetensors")), lines.HEIGHT * lines.PATCH)


@torch.no_grad()
def read(model, pictures, most=lines.processor_config()["max_new_tokens"]):
    """Greedy: for each picture (ids up to and with <eos>, logits f32 [len(ids), V] that they were chosen from)."""
    ink = torch.from_numpy(np.stack([lines.ink(pixels) for pixels in pictures]))
    prompt = torch.tensor([[lines.BOS] + [lines.IMAGE] * lines.COLUMNS + [lines.OCR]]).expand(len(pictures), -1)
    x = model.embed(prompt, ink.to(model.lm_head.weight.dtype), lines.PATCH)
    steps, ended = [], torch.zeros(len(pictures), dtype=torch.bool)
    while len(steps) < most and not ended.all():
        steps.append(model(x, x.shape[1] - 1)[:, 0].float())
        chosen = steps[-1].argmax(-1)
        ended |= chosen == lines.EOS
        x = torch.cat((x, model.embed_tokens(chosen)[:, None]), 1)
    logits = torch.stack(steps, 1)
    out = []
    for row in logits:
        ids = row.argmax(-1).tolist()
        count = ids.index(lines.EOS) + 1 if lines.EOS in ids else len(ids)
        out.append((ids[:count], row[:count]))
    return out


def text_of(ids):
    return "".join(lines.TOKENS[i] for i in ids if i != lines.EOS)


def edit_distance(a, b):
    before = list(range(len(b) + 1))
    for i, x in enumerate(a):
        now = [i + 1]
        for j, y in enumerate(b):
            now.append(min(before[j] + (x != y), before[j + 1] + 1, now[j] + 1))
        before = now
    return before[-1]


def error_rates(texts, found):
    """Characters wrong of those there are, and lines read exactly, both in percent."""
    errors = sum(edit_distance(a, b) for a, b in zip(found, texts))
    exact = sum(a == b for a, b in zip(found, texts))
    return {"cer": round(100 * errors / sum(map(len, texts)), 3), "exact": round(100 * exact / len(texts), 2)}


def expert_usage(model, pictures):
    """Share of each expert, in percent, in each layer that has experts, over the prompts of these pictures."""
    read(model, pictures, most=1)
    return [[round(100 * float(count) / float(moe.load.sum()), 2) for count in moe.load] for moe in model.moe_layers()]


SETS = {"held-out words, trained fonts": lines.CLEAN_WORDS, "augmented mix, trained fonts": lines.AUGMENTED_MIX,
        "mix, unseen fonts": lines.UNSEEN_MIX}


def evaluate(folder, count=500, seed=2026):
    model, out = load(folder), {}
    for name, recipe in SETS.items():
        r = random.Random(f"{seed} {name}")
        drawn = [lines.draw_line(r, recipe) for _ in range(count)]
        answers = []
        for at in range(0, count, 100):
            answers += read(model, [pixels for _, pixels, _ in drawn[at:at + 100]])
        out[name] = error_rates([text for text, _, _ in drawn], [text_of(ids) for ids, _ in answers])
    out["expert usage, percent"] = expert_usage(model, [pixels for _, pixels, _ in drawn])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2026)
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.folder, arguments.lines, arguments.seed), indent=1))


if __name__ == "__main__":
    main()
