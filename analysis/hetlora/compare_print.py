"""The tables of `hetlora compare` as text, Markdown, LaTeX or CSV."""

import csv
import math
from typing import TextIO

from hetlora.compare_result import Comparison, MethodResult
from hetlora.compare_statistics import Estimate

Table = list[list[str]]


def number(value: float, digits: int = 5, zeros: bool = False) -> str:
    """So many significant digits (`zeros`: kept at the end); '-' if unknown, 'not reached' if infinite."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "not reached"
    text = f"{value:#.{digits}g}" if zeros else f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text.removesuffix(".")


def p_text(p: float) -> str:
    """A p-value; '-' where nothing was tested."""
    return "-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def interval(estimate: Estimate) -> str:
    """'mean [low, high]', or the mean alone."""
    if math.isnan(estimate.low):
        return number(estimate.mean, zeros=True)
    return "{} [{}, {}]".format(*(number(value, zeros=True) for value in (estimate.mean, estimate.low, estimate.high)))


def header(result: Comparison) -> list[str]:
    """What was compared, in sentences."""
    question = result.question
    if question.at == "last":
        where = f"at round {result.common_round}"
    else:
        where = f"at each run's best round on valid up to round {result.common_round}"
    better = "lower" if question.lower_is_better else "higher"
    lines = [f"{question.metric} on {result.part}, {where} ({better} is better); mean and {100 * question.level:g} % "
             f"interval over seeds; differences to {result.baseline}"]  # fmt: skip
    if question.tune:
        lines.append(f"{', '.join(question.tune)} chosen for each method on valid; the numbers are on {result.part}")
    if len(result.methods) == 1:
        lines.append(f"there is one method only by {', '.join(question.by)}")
    return lines


def footer(result: Comparison) -> list[str]:
    """What a reader must know: how intervals and tests were made, what was left out."""
    lines = [f"intervals: {_listed({m.mean.how: [] for m in result.methods}, result.methods, 'mean')}"]
    others = [method for method in result.methods if method.difference]
    if others:
        lines.append(f"tests: {_listed({m.difference.how: [] for m in others}, others, 'difference')}")
        tested = sum(not math.isnan(method.difference.p) for method in others)
        if tested:
            lines.append(f"p (Holm): corrected over {tested} comparison{'s' if tested > 1 else ''}")
        partly = [m for m in others if m.paired_seeds and m.paired_seeds < max(len(m.seeds), _baseline_seeds(result))]
        lines += [f"{m.name}: the difference is over the {m.paired_seeds} seeds that both have" for m in partly]
    lines.append("device-seconds: wall seconds of the rounds times MPI ranks, mean over seeds")
    if result.question.target is not None:
        lines.append("to the target: medians over seeds; a seed that does not reach it counts as infinite; true bytes")
    return lines + result.notes


def _baseline_seeds(result: Comparison) -> int:
    return next(len(method.seeds) for method in result.methods if method.name == result.baseline)


def _listed(groups: dict[str, list[str]], methods: list[MethodResult], which: str) -> str:
    for method in methods:
        groups[getattr(method, which).how].append(method.name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{how} for {', '.join(names)}" for how, names in groups.items())


def summary_table(result: Comparison) -> Table:
    """The first line holds the headings; one line a method."""
    question = result.question
    head = ["method", *([" ".join(question.tune)] if question.tune else []), "seeds", question.metric, "difference",
            "p", "p (Holm)"]  # fmt: skip
    if question.target is not None:
        head += [f"reached {question.target:g}", "rounds to it", "MB up", "MB down"]
    rows = [[*head, "device-seconds"]]
    for method in result.methods:
        row = [method.name, *([method.chosen] if question.tune else [])]
        row.append(f"{len(method.seeds)} of {len(method.seeds) + method.incomplete}" if method.incomplete else
                   str(len(method.seeds)))  # fmt: skip
        row.append(interval(method.mean))
        if method.difference:
            row += [interval(method.difference), p_text(method.difference.p), p_text(method.p_holm)]
        else:
            row += ["baseline", "-", "-"]
        if question.target is not None:
            row.append(f"{method.reached} of {len(method.seeds)}")
            row.append(number(method.median("rounds_to_target")))
            row += [number(method.median(f"{name}_to_target") / 1e6, 4) for name in ("bytes_up", "bytes_down")]
        rows.append([*row, number(method.device_seconds, 4)])
    return rows


def seeds_table(result: Comparison) -> Table:
    """Every seed's value: one line a method, one column a seed; the round in brackets where rounds were chosen."""
    seeds = list(dict.fromkeys(seed.seed for method in result.methods for seed in method.seeds))
    rows = [["method", *(f"seed {seed}" for seed in seeds)]]
    for method in result.methods:
        own = {seed.seed: seed for seed in method.seeds}
        chosen = result.question.at != "last"
        cells = [
            (number(own[s].value, zeros=True) + (f" ({own[s].round})" if chosen else "")) if s in own else "-"
            for s in seeds
        ]
        rows.append([method.name, *cells])
    return rows


def print_as(result: Comparison, form: str, out: TextIO, notes: TextIO) -> None:
    """Writes the tables as 'text', 'markdown', 'latex' or 'csv'. Remarks of CSV go to `notes`, all others to `out`."""
    if form == "csv":
        write_csv(result, out)
        print("\n".join(header(result) + footer(result)), file=notes)
    elif form == "latex":
        print("\n".join(f"% {line}" for line in header(result)), file=out)
        for table in (summary_table(result), seeds_table(result)):
            print(latex(table), file=out)
        print("\n".join(f"% {line}" for line in footer(result)), file=out)
    else:
        render = markdown if form == "markdown" else text
        body = [*header(result), "", render(summary_table(result)), "", render(seeds_table(result)), ""]
        mark = "- " if form == "markdown" else "  "
        print("\n".join(body + [mark + line for line in footer(result)]), file=out)


def text(table: Table) -> str:
    """Columns of a fixed width, the first to the left."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in [table[0], ["-" * width for width in widths], *table[1:]]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in table]
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$"}  # fmt: skip


def latex(table: Table) -> str:
    """A tabular with booktabs rules."""
    lines = [" & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\" for row in table]
    top = r"\begin{tabular}{l" + "r" * (len(table[0]) - 1) + "}"
    return "\n".join([top, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"])


def write_csv(result: Comparison, out: TextIO) -> None:
    """One line a method and seed, with the method's numbers repeated; empty cells are not known, inf not reached."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "chosen", "seed", "run", "part", "round", result.question.metric, "rounds_to_target",
                     "bytes_up_to_target", "bytes_down_to_target", "device_seconds", "mean", "low", "high", "interval",
                     "difference", "difference_low", "difference_high", "p", "p_holm", "test"])  # fmt: skip
    for method in result.methods:
        mean, gap = method.mean, method.difference
        shared = [mean.mean, mean.low, mean.high, mean.how]
        shared += [gap.mean, gap.low, gap.high, gap.p, method.p_holm, gap.how] if gap else [""] * 6
        for seed in method.seeds:
            row = [method.name, method.chosen, seed.seed, seed.run, result.part, seed.round, seed.value,
                   seed.rounds_to_target, seed.bytes_up_to_target, seed.bytes_down_to_target, seed.device_seconds,
                   *shared]  # fmt: skip
            writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
