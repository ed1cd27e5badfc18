"""Draws docs/demo.svg from the runs of `make demo`: held-out perplexity by round, and the slots that can still learn.

usage: .venv/bin/python scripts/demo_figure.py [RESULTS_DIR] [OUT.svg]
"""

import sys
from pathlib import Path

import h5py

RUNS = [  # folder, label, colour (Okabe-Ito, safe for colour-blind readers)
    ("hetlora", "HetLoRA, lora_rank 2-32", "#0072B2"),
    ("homlora-low", "homogeneous, lora_rank 2", "#D55E00"),
    ("homlora-high", "homogeneous, lora_rank 32", "#009E73"),
]
WIDTH, HEIGHT, LEFT, TOP, PANEL_W, PANEL_H = 860, 330, 60, 40, 330, 220


def panel(x0: float, title: str, series: list, low: float, high: float) -> list[str]:
    """One chart: axes with four ticks, a line with round marks per series."""
    rounds = max(len(values) for values, _ in series) - 1

    def place(i: int, value: float) -> tuple[float, float]:
        return x0 + PANEL_W * i / rounds, TOP + PANEL_H * (1 - (value - low) / (high - low))

    out = [f'<text x="{x0}" y="{TOP - 14}" font-weight="600">{title}</text>']
    for tick in range(5):
        value = low + (high - low) * tick / 4
        _, y = place(0, value)
        out.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + PANEL_W}" y2="{y:.1f}" stroke="#ccc"/>')
        out.append(f'<text x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    for i in range(0, rounds + 1, 2):
        x, _ = place(i, low)
        out.append(f'<text x="{x:.1f}" y="{TOP + PANEL_H + 18}" text-anchor="middle">{i}</text>')
    out.append(f'<text x="{x0 + PANEL_W / 2}" y="{TOP + PANEL_H + 36}" text-anchor="middle">round</text>')
    for values, colour in series:
        points = [place(i, v) for i, v in enumerate(values)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return out


def main() -> int:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "docs/demo.svg")
    perplexity, alive = [], []
    for folder, _, colour in RUNS:
        with h5py.File(results / folder / "run.h5") as file:
            perplexity.append((file["rounds/eval_perplexity"][:].tolist(), colour))
            alive.append((file["rounds/slots_alive"][:].tolist(), colour))
    values = [v for series, _ in perplexity for v in series]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *panel(LEFT, "held-out perplexity", perplexity, 10 * (min(values) // 10), 10 * (max(values) // 10 + 1)),
        *panel(LEFT + PANEL_W + 90, "slots of the global adapter that can still learn", alive, 0, 32),
    ]
    x = LEFT
    for _, label, colour in RUNS:
        parts.append(f'<circle cx="{x}" cy="{HEIGHT - 14}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 10}" y="{HEIGHT - 10}">{label}</text>')
        x += 230
    out.write_text("\n".join([*parts, "</svg>"]) + "\n")
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
