"""`hetlora compare`: methods side by side, with intervals over seeds, paired tests, costs to a target.

The means are over seeds. Differences are to the baseline: paired by seed where two or more seeds are common, else
Welch's test. Below ten seeds intervals and tests are Student's t; from ten on BCa bootstrap intervals and sign-flip
tests with a fixed random seed. p-values are corrected over the methods by Holm. What is not comparable is refused.
"""

import argparse
import sys

from hetlora.errors import UsageError

RAISED_BY_MORE = ("accuracy", "f1", "rouge", "bleu", "exact_match", "effective_rank", "slots_alive", "adapter_norm")


def parser() -> argparse.ArgumentParser:
    """The argument parser of `compare`."""
    top = argparse.ArgumentParser(
        prog="hetlora compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("runs", nargs="+", metavar="SWEEP|RUN", help="a sweep's .ini or folder, run folders, patterns")
    top.add_argument("--by", default="strategy.preset", metavar="KEY,...", help="settings that make the methods")
    top.add_argument("--metric", default="eval_perplexity", help="a column of /rounds (default: %(default)s)")
    top.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only these runs (or KEY~TEXT); repeatable"
    )
    top.add_argument("--tune", default="", metavar="KEY,...", help="settings chosen per method on valid")
    top.add_argument("--at", choices=("last", "best-valid"), default="last", help="the round whose value counts")
    top.add_argument("--target", type=float, help="value to reach: rounds and true bytes until then")
    top.add_argument("--baseline", metavar="METHOD", help="method that the others are compared to (default: the first)")
    top.add_argument("--level", type=float, default=0.95, help="confidence of the intervals (default: %(default)s)")
    top.add_argument("--better", choices=("lower", "higher"), help="which values are better (default: by the name)")
    form = top.add_mutually_exclusive_group()
    for name in ("markdown", "latex", "csv"):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"print {name}")
    return top


def main(argv: list[str]) -> int:
    """Print the comparison."""
    options = parser().parse_args(argv)
    if not 0 < options.level < 1:
        raise UsageError(f"--level {options.level:g}: give a number between 0 and 1, such as 0.95")
    from hetlora.compare_print import print_as
    from hetlora.compare_result import compare
    from hetlora.compare_runs import Question

    better = options.better or ("higher" if any(word in options.metric for word in RAISED_BY_MORE) else "lower")
    question = Question(
        metric=options.metric,
        by=_keys(options.by),
        where=tuple(options.where),
        tune=_keys(options.tune),
        at=options.at,
        level=options.level,
        target=options.target,
        baseline=options.baseline,
        lower_is_better=better == "lower",
    )
    result = compare(options.runs, question)
    print_as(result, options.form or "text", sys.stdout, sys.stderr)
    return 0


def _keys(text: str) -> tuple[str, ...]:
    return tuple(key.strip() for key in text.split(",") if key.strip())
