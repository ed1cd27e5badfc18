"""`hetlora audit RUN_DIR`: replays a traced run with stock `transformers` and `peft`, one client at a time.

Exit codes: 0 within tolerance, 1 not, 2 usage or a setting that cannot be replayed, 3 missing or broken input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hetlora.errors import UserError, need

if TYPE_CHECKING:
    from hetlora.audit_replay import Options
    from hetlora.audit_report import Report


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="hetlora audit",
        description="Replay a traced run ([output] trace = true) with stock transformers and peft, and print the "
        "largest differences. Exit code 0: within tolerance, 1: not.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="the first N rounds only (default: all)")
    parser.add_argument(
        "--clients", type=int, default=0, metavar="N",
        help="train only the first N clients of each round (default: all; switches the fully own chain off)",
    )  # fmt: skip
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference (default: 1e-4)")
    parser.add_argument("--chain", action="store_true", help="apply the tolerance to the fully own chain too")
    parser.add_argument("--evaluate", action="store_true", help="check run.h5's eval_loss and the adapter/ folder too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--model", default="", metavar="DIR", help="the base model's folder, if it has moved")
    parser.add_argument("--data", default="", metavar="FILE", help="the prepared data, if they have moved")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch (default: torch's own)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = parse(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    try:
        return audit(arguments)
    except UserError as error:
        print(f"hetlora audit: {error}", file=sys.stderr)
        return error.exit_code


def audit(arguments: argparse.Namespace) -> int:
    """Runs the audit and prints its table; returns 0 or 1."""
    for module in ("torch", "transformers", "peft"):
        need(module, "audit")
    if not arguments.run_dir.is_dir():
        from hetlora.audit_config import AuditError

        raise AuditError(f"no such folder - {arguments.run_dir} - give the folder of a hetlora run (results/<name>)")
    import torch
    from transformers.utils import logging

    from hetlora.audit_replay import Options

    logging.disable_progress_bar()
    if arguments.threads > 0:
        torch.set_num_threads(arguments.threads)
    options = Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__})
    report = replayed(arguments.run_dir, options)
    print(report.table())
    if arguments.json:
        arguments.json.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    if report.passed:
        print(f"PASSED: the replay agrees within {options.tolerance:g}")
        return 0
    print(f"FAILED: {', '.join(report.failed())}")
    return 1


def replayed(run_dir: Path, options: Options) -> Report:
    """The report of a whole replay, by what the run trained."""
    from hetlora.audit_config import read_settings
    from hetlora.audit_evaluate import Evaluation
    from hetlora.audit_full import FullReplay
    from hetlora.audit_replay import Replay

    if read_settings(run_dir).policy("trainable") == "base":
        return FullReplay(run_dir, options).run()
    replay = Replay(run_dir, options)
    evaluation = Evaluation(replay) if options.evaluate else None
    if evaluation:
        replay.after_round = evaluation.row
    report = replay.run()
    if evaluation:
        evaluation.finish()
    return report


if __name__ == "__main__":
    raise SystemExit(main())
