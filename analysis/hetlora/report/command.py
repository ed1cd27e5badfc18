"""`hetlora report RUN_OR_SWEEP...`: writes the page, and each figure as SVG and PNG on request."""

import argparse
from pathlib import Path

from hetlora.errors import InputError, UsageError, need
from hetlora.files import atomic_file
from hetlora.report.figures import Figure, all_figures
from hetlora.report.page import render
from hetlora.report.rows import methods_of
from hetlora.report.theme import PRINT
from hetlora.run_record import GROUPS, RunRecord
from hetlora.runs_settings import read_runs
from hetlora.runs_where import chosen_runs

PRINT_WIDTH = 560
PIXELS_PER_INCH = 220


def parser() -> argparse.ArgumentParser:
    """The argument parser of `report`."""
    top = argparse.ArgumentParser(prog="hetlora report", description=__doc__)
    top.add_argument("runs", nargs="+", metavar="RUN_OR_SWEEP", help="run folders, a sweep's folder or .ini file")
    top.add_argument("--output", metavar="FILE", help="the page (default: report.html in the first folder named)")
    top.add_argument("--title", help="heading of the page (default: the folder's name)")
    top.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this setting")
    top.add_argument("--only", action="append", default=[], metavar="NAME", help="only this figure (repeatable)")
    top.add_argument("--figures", metavar="DIR", help="also write each figure there, as SVG and PNG for print")
    return top


def default_output(first: str) -> Path:
    """report.html beside the runs: in the run's or sweep's folder; for a sweep file or a pattern here."""
    path = Path(first).expanduser()
    return (path if path.is_dir() else Path()) / "report.html"


def write_figures(figures: list[Figure], folder: Path) -> int:
    """Every chart as SVG and PNG at print quality; returns how many."""
    convert = need("vl_convert", "report")
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for figure in figures:
        for i, spec in enumerate(figure.specs):
            name = figure.key if len(figure.specs) == 1 else f"{figure.key}-{i + 1}"
            printed = {**spec, "width": PRINT_WIDTH, "config": PRINT}
            with atomic_file(folder / f"{name}.svg") as file:
                file.write_text(convert.vegalite_to_svg(printed), encoding="utf-8")
            with atomic_file(folder / f"{name}.png") as file:
                file.write_bytes(convert.vegalite_to_png(printed, scale=PIXELS_PER_INCH / 72, ppi=PIXELS_PER_INCH))
            count += 1
    return count


def wanted_figures(figures: list[Figure], names: list[str]) -> list[Figure]:
    """Those of these names; all without names."""
    unknown = [name for name in names if name not in {figure.key for figure in figures}]
    if unknown:
        known = ", ".join(figure.key for figure in figures)
        raise UsageError(f"--only {unknown[0]}: there is no such figure of these runs; there are {known}")
    return [figure for figure in figures if not names or figure.key in names]


def readable(records: list[RunRecord]) -> list[RunRecord]:
    """The same, or an InputError if there is not one round to show."""
    if any(record.committed_rounds for record in records):
        return records
    problems = [problem for record in records for problem in record.problems][:3]
    raise InputError(
        f"none of the {len(records)} runs has a round to show: " + ("; ".join(problems) or "none has started")
    )


def main(argv: list[str]) -> int:
    """Read the runs, write the page, say where."""
    options = parser().parse_args(argv)
    records = readable(chosen_runs(read_runs(options.runs, GROUPS), options.where))
    methods = methods_of(records)
    figures = wanted_figures(all_figures(methods), options.only)
    output = Path(options.output).expanduser() if options.output else default_output(options.runs[0])
    title = options.title or Path(options.runs[0]).expanduser().resolve().stem
    page = render(methods, figures, title)
    with atomic_file(output) as file:
        file.write_text(page, encoding="utf-8")
    print(f"{output}: {len(records)} runs, {len(figures)} figures, {len(page.encode()) / 1e6:.1f} MB")
    if options.figures:
        count = write_figures(figures, Path(options.figures).expanduser())
        print(f"{options.figures}: {count} charts as SVG and PNG")
    return 0
