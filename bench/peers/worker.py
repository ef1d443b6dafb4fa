"""What the processes that time a peer share: their flags, and which rows a variant is to measure."""
import argparse
import pathlib
from typing import NamedTuple


class Plan(NamedTuple):
    """One --variant: NAME@ROWS, ROWS of "prefill" and depths; without @ROWS every row."""

    name: str
    prefill: bool
    depths: list


def numbers(text):
    return [int(n) for n in text.split(",") if n]


def parse_args(doc):
    """The flags, with `plans`; the peer's own parts of a variant's name are not looked at."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--depth", type=numbers, default=[])
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--logits", type=numbers)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    args.plans = []
    for text in args.variant:
        name, _, rows = text.partition("@")
        wanted = rows.split(",") if rows else ["prefill"] + [str(d) for d in args.depth]
        depths = sorted(int(row) for row in wanted if row != "prefill")
        args.plans.append(Plan(name, "prefill" in wanted and args.prompt > 0, depths))
    return args


def settings(name):
    """"a=1,b=x" as {"a": "1", "b": "x"}."""
    return dict(part.split("=") for part in name.split(","))
