"""bench.md and curve.svg from the rows of bench.py."""

from __future__ import annotations

import math

WIDTH, HEIGHT, LEFT, TOP, PANEL_W, PANEL_H = 860, 330, 70, 44, 320, 210
COLOURS = {"T": "#0072B2", "S": "#D55E00"}  # Okabe-Ito, safe for colour-blind readers


def markdown(facts: dict, rows: list[dict]) -> str:
    """All tables."""
    out = [f"{facts['cpu']}, {facts['cores']} cores; {facts['hetlora'].splitlines()[0]}; {facts['when_utc']}", ""]

    def table(group: str, title: str) -> list[dict]:
        chosen = [row for row in rows if row["group"] == group]
        if not chosen:
            return []
        out.extend([f"### {title}", "", "| workload | | ms a client step | tokens/s | GFLOP/s | share of GEMM peak "
                    "| outside training | peak memory MiB |", "|---|---|---|---|---|---|---|---|"])  # fmt: skip
        for row in chosen:
            flops = sum(part["flops"] for part in row["parts"].values()) / row["train_s"]
            rate = f"{flops / 1e9:.1f} of {row['gemm_peak_flops'] / 1e9:.1f}"
            out.append(
                f"| {row['workload']} | {label(row)}, gemm {row['gemm']} | {number(row['ms_per_client_step'])} | "
                f"{row['tokens_per_s']:,.0f} | {rate} | {100 * row['share_of_peak']:.0f} % | "
                f"{100 * (1 - row['train_s'] / row['round_s']):.1f} % | {row['peak_memory_bytes'] / 2**20:,.0f} |"
            )
        out.append("")
        return chosen

    for row in table("step", "One client step"):
        if row["label"] == "fp32" and row["workload"] in ("T", "S", "M"):
            out.extend(profile(row))
    table("gemm", "Paths of the frozen matrices")
    threads = table("threads", "Threads")
    for one, two in zip(threads[::2], threads[1::2], strict=False):
        ratio = one["ms_per_client_step"] / two["ms_per_client_step"]
        out.append(f"- {one['workload']}: 2 threads are {ratio:.2f} times as fast as 1")
    out.append("")
    out.extend(ranks(rows))
    table("clients", "Clients a pack (128 tokens a client step)")
    table("tokens", "Tokens a client step (one client a pack)")
    mixed = table("mixed", "Mixed ranks")
    for equal, other in zip(mixed[::2], mixed[1::2], strict=False):
        without = [row["ms_per_client_step"] - lora_ms(row) for row in (equal, other)]
        more = 100 * (without[1] / without[0] - 1)
        lora = f"LoRA terms {lora_ms(equal):.3g} -> {lora_ms(other):.3g} ms"
        out.append(f"- {equal['workload']}: mixed ranks cost {more:+.1f} % with the LoRA terms' own time off ({lora})")
    out.append("")
    table("memory", "Memory")
    return "\n".join(out) + "\n"


def label(row: dict) -> str:
    """What was measured, with the threads where the label doesn't say them."""
    return row["label"] if "thread" in row["label"] else f"{row['label']}, {row['threads']} thread"


def number(x: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def lora_ms(row: dict) -> float:
    """Milliseconds a client step in the LoRA terms."""
    return 1e3 * row["parts"]["LoRA terms"]["seconds"] / row["client_steps"]


def profile(row: dict) -> list[str]:
    """Shares by operation."""
    out = [f"Where a step of {row['workload']} goes:", "", "| part | ms | share of time | GFLOP/s | of peak |",
           "|---|---|---|---|---|"]  # fmt: skip
    named = 0.0
    for name, part in row["parts"].items():
        named += part["seconds"]
        rate = part["flops"] / part["seconds"] if part["seconds"] > 0 and part["flops"] > 0 else math.nan
        speed = f"{rate / 1e9:.1f} | {100 * rate / row['gemm_peak_flops']:.0f} %" if rate == rate else " | "
        out.append(f"| {name} | {number(1e3 * part['seconds'] / row['client_steps'])} | "
                   f"{100 * part['seconds'] / row['train_s']:.1f} % | {speed} |")  # fmt: skip
    rest = row["train_s"] - named
    out.append(f"| the rest | {number(1e3 * rest / row['client_steps'])} | {100 * rest / row['train_s']:.1f} % | | |")
    return [*out, ""]


def ranks(rows: list[dict]) -> list[str]:
    """Rounds on several MPI ranks."""
    chosen = [row for row in rows if row["group"] == "ranks"]
    if not chosen:
        return []
    out = ["### MPI ranks and threads", "", "| workload | | ms a round | ms in training |", "|---|---|---|---|"]
    out += [f"| {row['workload']} | {row['label']} | {1e3 * row['round_s']:.1f} | {1e3 * row['train_s']:.1f} |"
            for row in chosen]  # fmt: skip
    return [*out, ""]


def curve_svg(rows: list[dict]) -> str:
    """Speed against the clients of a pack, and against the tokens of a client step."""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *panel(LEFT, "share of the GEMM peak, 128 tokens a client step", "clients a pack", points(rows, "clients")),
        *panel(LEFT + PANEL_W + 90, "share of the GEMM peak, one client a pack", "tokens a client step",
               points(rows, "tokens")),
    ]  # fmt: skip
    x = LEFT
    for name, colour in COLOURS.items():
        parts.append(f'<circle cx="{x}" cy="{HEIGHT - 12}" r="5" fill="{colour}"/>')
        text = "T (hidden 64, 2 layers)" if name == "T" else "S (hidden 512, 8 layers)"
        parts.append(f'<text x="{x + 10}" y="{HEIGHT - 8}">{text}</text>')
        x += 230
    return "\n".join([*parts, "</svg>"]) + "\n"


def points(rows: list[dict], group: str) -> dict[str, list[tuple[int, float]]]:
    """(x, share of peak) of each workload; x is the first word of the label."""
    series: dict[str, list[tuple[int, float]]] = {name: [] for name in COLOURS}
    for row in rows:
        if row["group"] == group:
            series[row["workload"]].append((int(row["label"].split()[0]), 100 * row["share_of_peak"]))
    return series


def panel(x0: float, title: str, x_label: str, series: dict[str, list[tuple[int, float]]]) -> list[str]:
    """A chart with a logarithmic x axis and 0 to 100 % on the other."""
    xs = sorted({x for values in series.values() for x, _ in values})
    out = [f'<text x="{x0}" y="{TOP - 16}" font-weight="600">{title}</text>']
    for tick in range(0, 101, 25):
        y = TOP + PANEL_H * (1 - tick / 100)
        out.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + PANEL_W}" y2="{y:.1f}" stroke="#ccc"/>')
        out.append(f'<text x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{tick} %</text>')
    if len(xs) < 2:
        return out
    span = math.log2(xs[-1] / xs[0])

    def place(x: int, share: float) -> tuple[float, float]:
        return x0 + PANEL_W * math.log2(x / xs[0]) / span, TOP + PANEL_H * (1 - min(share, 100) / 100)

    for x in xs:
        out.append(f'<text x="{place(x, 0)[0]:.1f}" y="{TOP + PANEL_H + 18}" text-anchor="middle">{x}</text>')
    out.append(f'<text x="{x0 + PANEL_W / 2}" y="{TOP + PANEL_H + 36}" text-anchor="middle">{x_label}</text>')
    for name, values in series.items():
        placed = [place(x, share) for x, share in values]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        out.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[name]}"/>' for x, y in placed]
    return out
