#!/usr/bin/env python3
"""Trains one of the two models that read lines of text (README.md), on lines drawn as it goes.

    train.py mha|mla --out FOLDER [--resume]

Everything hangs on the seed and the number of the step, nothing on the clock. --resume goes on from the last snapshot
in FOLDER, and ends as the run would have ended without the break."""
import argparse
import json
import math
import os
import random
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import lines
from evaluate import evaluate
from model import CONFIGS, TinyOcr, checkpoint

HYPERPARAMETERS = dict(
    seed=1, steps=6500, batch=64, learning_rate=1.5e-3, warm_up=200, constant=0.35, last_rate=0.02, betas=(0.9, 0.98),
    weight_decay=0.01, clip=1.0, balance=0.01, autocast=True,  # products in bf16, weights and sums in f32
    # The curriculum is the key: it goes on by `pace` in each step in which the loss is below `ready`, and ends by
    # `in_time` of the steps. Without it the loss stays at 3.4.
    ready=0.7, pace=0.0025, in_time=0.5, first_length=8, first_random_share=0.35)


class Curriculum:
    """From lines of up to 8 characters in one font and size to all of the recipe."""

    def __init__(self, hyper):
        self.hyper, self.difficulty, self.loss = hyper, 0.0, 9.0

    def step(self, done):
        if self.loss < self.hyper["ready"] or done > self.hyper["in_time"]:
            self.difficulty = min(1.0, self.difficulty + self.hyper["pace"])

    def saw(self, loss):
        self.loss = 0.97 * self.loss + 0.03 * loss

    def recipe(self, r):
        d, first = self.difficulty, self.hyper["first_length"]
        longest = round(first + d * (lines.MOST_CHARACTERS - first))
        if r.random() < 0.4:
            longest = r.randint(1, longest)
        full = lines.Recipe(lines.TRAINED_WORDS, lines.TRAINED_FONTS)
        return lines.Recipe(
            full.words, full.fonts[:1 + math.ceil(d * (len(full.fonts) - 1))],
            random_share=self.hyper["first_random_share"] * (1 - d) + full.random_share * d,
            form_share=full.form_share * d, sizes=(round(20 - 4 * d), round(20 + 4 * d)),
            augmented=full.augmented if d > 0.3 else 0, most_characters=longest)


def batch(r, recipe, count, whole_width):
    """ink [count, 32, W], ids and labels [count, 2 + columns + longest text], columns. W: that of the widest picture,
    or WIDTH."""
    drawn = [lines.draw_line(r, recipe) for _ in range(count)]
    columns = lines.COLUMNS
    if not whole_width:
        columns = -(-max(pixels.shape[1] for _, pixels, _ in drawn) // lines.PATCH)
    longest = max(len(text) for text, _, _ in drawn)
    ids = np.full((count, 2 + columns + longest), lines.PAD)
    labels = np.full(ids.shape, -100)
    ids[:, 0], ids[:, 1:1 + columns], ids[:, 1 + columns] = lines.BOS, lines.IMAGE, lines.OCR
    for row, (text, _, _) in enumerate(drawn):
        characters = [lines.ID[character] for character in text]
        ids[row, 2 + columns:2 + columns + len(text)] = characters
        labels[row, 1 + columns:2 + columns + len(text)] = characters + [lines.EOS]
    ink = np.stack([lines.ink(pixels, columns * lines.PATCH) for _, pixels, _ in drawn])
    return torch.from_numpy(ink), torch.from_numpy(ids), torch.from_numpy(labels), columns


def learning_rate(hyper, step):
    done = step / hyper["steps"]
    rate = min(1.0, (step + 1) / hyper["warm_up"])
    if done > hyper["constant"]:
        falling = 0.5 * (1 + math.cos(math.pi * (done - hyper["constant"]) / (1 - hyper["constant"])))
        rate *= hyper["last_rate"] + (1 - hyper["last_rate"]) * falling
    return hyper["learning_rate"] * rate


def write_whole(path, write):
    """A file that is there in full or not at all."""
    write(path + ".new")
    os.replace(path + ".new", path)


class Training:
    def __init__(self, kind, out, hyper):
        self.kind, self.out, self.hyper = kind, out, hyper
        torch.manual_seed(hyper["seed"])
        self.random = random.Random(hyper["seed"])
        self.model = TinyOcr(CONFIGS[kind], lines.HEIGHT * lines.PATCH)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": hyper["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
            lr=hyper["learning_rate"], betas=hyper["betas"], fused=True)
        self.curriculum, self.step = Curriculum(hyper), 0

    @property
    def snapshot_path(self):
        return os.path.join(self.out, "snapshot.pt")

    def save(self):
        state = {"hyper": self.hyper, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "random": self.random.getstate(), "step": self.step, "difficulty": self.curriculum.difficulty,
                 "loss": self.curriculum.loss}
        write_whole(self.snapshot_path, lambda path: torch.save(state, path))

    def resume(self):
        state = torch.load(self.snapshot_path, weights_only=False)
        if state["hyper"] != self.hyper:
            sys.exit(f"{self.snapshot_path}: of other hyperparameters: {state['hyper']}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.setstate(state["random"])
        self.step = state["step"]
        self.curriculum.difficulty, self.curriculum.loss = state["difficulty"], state["loss"]

    def train_step(self):
        """(loss on the text, balance loss, tokens)."""
        hyper, curriculum = self.hyper, self.curriculum
        curriculum.step(self.step / hyper["steps"])
        rate = learning_rate(hyper, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ink, ids, labels, columns = batch(self.random, curriculum.recipe(self.random), hyper["batch"],
                                          curriculum.difficulty == 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=hyper["autocast"]):
            logits = self.model(self.model.embed(ids, ink, lines.PATCH), 1 + columns)
        text_loss = F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1 + columns:].flatten(), ignore_index=-100)
        balance = sum(moe.balance for moe in self.model.moe_layers())
        self.optimizer.zero_grad(set_to_none=True)
        (text_loss + hyper["balance"] * balance).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), hyper["clip"])
        self.optimizer.step()
        self.step += 1
        curriculum.saw(text_loss.item())
        return text_loss.item(), balance.item() / len(self.model.moe_layers()), ids.numel()

    def run(self, log_every=100, save_every=250):
        began, first, sums, summed = time.monotonic(), self.step, np.zeros(3), 0
        with open(os.path.join(self.out, "log.jsonl"), "a", encoding="utf-8") as log:
            while self.step < self.hyper["steps"]:
                sums += self.train_step()
                summed += 1
                if self.step % save_every == 0:
                    self.save()
                if self.step % log_every and self.step < self.hyper["steps"]:
                    continue
                loss, balance, tokens = map(float, sums / summed)
                sums[:], summed = 0, 0
                entry = {"step": self.step, "loss": round(loss, 4), "balance": round(balance, 3),
                         "difficulty": round(self.curriculum.difficulty, 3), "tokens_a_step": round(tokens)}
                print(json.dumps(entry), file=log, flush=True)
                each = (time.monotonic() - began) / (self.step - first)
                left = each * (self.hyper["steps"] - self.step) / 60
                print(f"{self.kind} {entry} {each:.2f} s a step, {left:.0f} min left", file=sys.stderr, flush=True)
        self.save()


def export(training, out):
    """The checkpoint as dsv2 reads it."""
    model = training.model
    write_whole(os.path.join(out, "model.safetensors"),
                lambda path: save_file(checkpoint(model), path, {"format": "pt"}))
    lines.write_json(os.path.join(out, "config.json"), model.config)
    lines.write_json(os.path.join(out, "vocab.json"), lines.TOKENS)
    lines.write_json(os.path.join(out, "processor_config.json"), lines.processor_config())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=CONFIGS)
    parser.add_argument("--out", required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    for name in ("steps", "seed"):
        parser.add_argument(f"--{name}", type=int, default=HYPERPARAMETERS[name])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    os.makedirs(arguments.out, exist_ok=True)
    training = Training(arguments.kind, arguments.out,
                        dict(HYPERPARAMETERS, steps=arguments.steps, seed=arguments.seed))
    if arguments.resume:
        training.resume()
    training.run()
    export(training, arguments.out)
    lines.write_json(os.path.join(arguments.out, "training.json"), {
        "kind": arguments.kind, "hyperparameters": training.hyper, "torch": torch.__version__,
        "fonts": [os.path.basename(path) for path in lines.TRAINED_FONTS],
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "lines": training.hyper["steps"] * training.hyper["batch"],
        "evaluation": evaluate(arguments.out)})


if __name__ == "__main__":
    main()
