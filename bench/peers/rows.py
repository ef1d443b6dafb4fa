"""From samples to rows: medians, quartiles, ratios, and the table. Python's standard library alone."""
import math
import statistics

BUSY = 0.1  # processors that daemons may use: two threads on two cores lose 5 %


def quartiles(values):
    """[first quartile, median, third], by linear interpolation; None for no values."""
    if not values:
        return None
    ordered = sorted(values)

    def at(share):
        position = share * (len(ordered) - 1)
        low, high = math.floor(position), math.ceil(position)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return [at(0.25), at(0.5), at(0.75)]


def tokens_per_s(tokens, ns):
    return tokens / ns * 1e9


def fastest(variants, key):
    """The variant with the highest speed at row `key`, of {name: {key: tokens/s}}; None if none has the row."""
    having = [(speeds[key], name) for name, speeds in variants.items() if key in speeds]
    return max(having)[1] if having else None


def assemble(identity, rounds):
    """A row of the report. `rounds`: [{ours, peer, roof}] in tokens/s, None where a side has no figure.

    `ratio` is that of the medians; `ratio_quartiles` are those of the ratios within a round, where the machine was
    most alike for both. A side is at most as fast as `roof`, which the same round measured.
    """
    both = [r["ours"] / r["peer"] for r in rounds if r["ours"] and r["peer"]]
    row = dict(identity)
    for side in ("ours", "peer"):
        speeds = [r[side] for r in rounds if r[side]]
        spread = quartiles(speeds)
        shares = [r[side] / r["roof"] for r in rounds if r[side] and r.get("roof")]
        row[side] = spread[1] if spread else None
        row[f"{side}_quartiles"] = [spread[0], spread[2]] if spread else None
        row[f"{side}_rounds"] = [r[side] for r in rounds]
        row[f"{side}_share_of_roof"] = statistics.median(shares) if shares else None
    row["ratio"] = row["ours"] / row["peer"] if row["ours"] and row["peer"] else None
    row["ratio_quartiles"] = quartiles(both)
    row["roof_rounds"] = [r.get("roof") for r in rounds]
    return row


def summary(values):
    """{median, min, max} of what several rounds measured; None for nothing."""
    found = [v for v in values if v is not None]
    return {"median": statistics.median(found), "min": min(found), "max": max(found)} if found else None


def roof_tokens_per_s(tokens, flops, total_bytes, peak_gflop_s, read_gb_s):
    """No machine with these limits can be faster: the slower of computing and reading."""
    return tokens / max(flops / peak_gflop_s, total_bytes / read_gb_s) * 1e9


def busy_warning(processors):
    """What to think of figures from a machine on which others kept this {median, min, max} of processors busy."""
    if not processors or processors["median"] <= BUSY:
        return ""
    return (f" **Not to be quoted: other processes kept {processors['median']:.1f} processors busy "
            f"({processors['min']:.1f}-{processors['max']:.1f}).**")


def ratio_at_the_roof(row):
    """The ratio to the peer with ours at the roof of the run: what no other program could exceed either."""
    if row["ratio"] is None or not row["ours_share_of_roof"]:
        return None
    return row["ratio"] / row["ours_share_of_roof"]


def markdown(report):
    """The table of every row, with what its conditions were above it."""

    def number(value, digits=1):
        return "" if value is None else f"{value:.{digits}f}"

    def percent(value):
        return "" if value is None else f"{100 * value:.0f} %"

    def spread(row, side):
        if row[side] is None:
            return "-"
        low, high = row[f"{side}_quartiles"]
        return f"{number(row[side])} ({number(low)}-{number(high)})"

    machine = report["machine"]
    limits = machine.get("limits") or {}

    def limit(key, unit):
        value = limits.get(key)
        return f"{value['median']:.0f} {unit} ({value['min']:.0f}-{value['max']:.0f})" if value else "not measured"

    lines = [
        f"{machine['cpu']}, {report['threads']} threads each; reads {limit('read_bandwidth_gb_s', 'GB/s')}, f32 peak "
        f"{limit('peak_f32_gflop_s', 'GFLOP/s')}. Tokens/s: median of {report['rounds']} alternating rounds "
        f"(quartiles).{busy_warning(machine.get('processors_busy_elsewhere'))}",
        "",
        "| shape | what | depth | weights | KV | dsv2 | of roof | peer | weights, KV | tokens/s | of roof | ratio | at the roof |",
        "|---|---|--:|---|---|--:|--:|---|---|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        what = f"{row['what']} {row['prompt']}" if row["what"] == "prefill" else row["what"]
        cells = [row["shape"], what, str(row["depth"]), row["dtype"], row["kv_dtype"], spread(row, "ours"),
                 percent(row["ours_share_of_roof"]), row["peer_name"], f"{row['peer_dtype']}, {row['peer_kv_dtype'] or '-'}",
                 spread(row, "peer"),
                 percent(row["peer_share_of_roof"]), "-" if row["ratio"] is None else f"**{row['ratio']:.2f}**",
                 number(ratio_at_the_roof(row), 2) or "-"]
        lines.append("| " + " | ".join(cells) + " |")
    missing = sorted({f"{row['shape']} {row['dtype']}: {row[key]}" for row in report["rows"]
                      for key in ("ours_reason", "peer_reason") if row.get(key)})
    return "\n".join(lines + ([""] + [f"- {reason}" for reason in missing] if missing else [])) + "\n"
