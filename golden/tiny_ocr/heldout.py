#!/usr/bin/env python3
"""Pictures that training never saw, and what torch reads of them.

    heldout.py --out heldout --models mha mla [--seed 7]

Writes OUT/lines (200 pictures of held-out words and forms in trained fonts) and OUT/unseen (50 in fonts that training
never saw), each a folder of PNG files with lines.tsv (file, font, text), and for each model what torch reads of them in
f32: OUT/SET.MODEL.safetensors with ids i64 (of all pictures, end included), begin i64 [N+1] (where a picture's begin)
and logits f32 [ids, V]; OUT/torch.json has the error rates, of bf16 arithmetic too."""
import argparse
import json
import os
import random

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import lines
from evaluate import error_rates, load, read, text_of

SETS = {"lines": (200, lines.Recipe(lines.HELD_OUT_WORDS, lines.TRAINED_FONTS, random_share=0.1, augmented=0.5)),
        "unseen": (50, lines.Recipe(lines.HELD_OUT_WORDS, lines.UNSEEN_FONTS, random_share=0.1, augmented=0.5))}


def draw(folder, count, recipe, r):
    os.makedirs(folder, exist_ok=True)
    rows = []
    for i in range(count):
        text, pixels, font = lines.draw_line(r, recipe)
        name = f"{i:03d}.png"
        Image.fromarray(pixels).save(os.path.join(folder, name), optimize=True)
        rows.append(f"{name}\t{os.path.basename(font)}\t{text}\n")
    with open(os.path.join(folder, "lines.tsv"), "w", encoding="utf-8") as file:
        file.writelines(rows)


def load_set(folder):
    """(texts, pictures)"""
    with open(os.path.join(folder, "lines.tsv"), encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t", 2) for line in file]
    return [text for _, _, text in rows], [np.asarray(Image.open(os.path.join(folder, name))) for name, _, _ in rows]


def read_all(model, pictures):
    return [answer for at in range(0, len(pictures), 50) for answer in read(model, pictures[at:at + 50])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--models", nargs="+", required=True, help="folders of checkpoints")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    rates = {}
    for name, (count, recipe) in SETS.items():
        folder = os.path.join(arguments.out, name)
        draw(folder, count, recipe, random.Random(f"{arguments.seed} {name}"))
        texts, pictures = load_set(folder)
        for path in arguments.models:
            label = os.path.basename(os.path.normpath(path))
            answers = read_all(load(path), pictures)
            begin = np.cumsum([0] + [len(ids) for ids, _ in answers])
            save_file({"begin": torch.from_numpy(begin), "ids": torch.tensor(sum((ids for ids, _ in answers), [])),
                       "logits": torch.cat([logits for _, logits in answers])},
                      os.path.join(arguments.out, f"{name}.{label}.safetensors"), {"torch": torch.__version__})
            rounded = read_all(load(path).bfloat16(), pictures)
            rates.setdefault(label, {})[name] = {
                "f32": error_rates(texts, [text_of(ids) for ids, _ in answers]),
                "bf16": error_rates(texts, [text_of(ids) for ids, _ in rounded])}
    lines.write_json(os.path.join(arguments.out, "torch.json"),
                     {"seed": arguments.seed, "torch": torch.__version__, "models": rates})
    print(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
