"""Evaluation in the audit: the rows of run.h5, and the final adapter folder loaded by the real `peft`."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from peft import PeftModel

from hetlora.audit_client import ClientTrainer, mean_nll
from hetlora.audit_config import AuditError
from hetlora.audit_model import load_base
from hetlora.audit_replay import Replay

ROWS, FINAL = "evaluation loss, relative", "final adapter folder in peft"


def read_rows(run_dir: Path) -> dict[int, float]:
    """Measured eval_loss by round number (row 0 = before training) of run.h5."""
    with h5py.File(run_dir / "run.h5") as file:
        rounds, losses = file["rounds/round"][:], file["rounds/eval_loss"][:]
        committed = int(np.asarray(file.attrs.get("committed_rounds", len(rounds))).ravel()[0])
    rows = zip(rounds[:committed], losses[:committed], strict=True)
    return {int(r): float(loss) for r, loss in rows if np.isfinite(loss)}


def audit_evaluation(replay: Replay) -> None:
    """Adds both checks to the replay's report."""
    report, tolerance = replay.report, replay.options.tolerance
    report.declare(ROWS, tolerance)
    report.declare(FINAL, tolerance)
    report.required |= {ROWS, FINAL}
    if int(replay.settings.get("evaluation.sequences", 0) or 0) > 0:
        raise AuditError(
            f"evaluation.sequences = {replay.settings.get('evaluation.sequences')} cannot be replayed (the program "
            f"draws the subset) - {replay.run_dir} - audit without --evaluate or with all sequences", 2,
        )  # fmt: skip
    if not (replay.run_dir / "run.h5").is_file():
        raise AuditError(f"no run.h5 - {replay.run_dir} - audit without --evaluate")
    windows = replay.data.evaluation_windows(str(replay.settings.get("evaluation.part", "valid")))
    rows = read_rows(replay.run_dir)
    last = max(replay.trace.global_rounds)
    limit = replay.options.rounds or last
    for number, theirs in rows.items():
        adapter = replay.trace.global_adapter(number)
        if adapter is not None and number <= limit:
            ours = replay.trainer.evaluate(adapter, replay.rank_max, windows)
            report.relative(ROWS, ours, theirs, f"round {number}")
    folder = replay.run_dir / "adapter"
    if not (folder / "adapter_config.json").is_file():
        report.notes.append("no adapter/ folder: the run is not finished")
        return
    theirs = rows.get(last)
    if theirs is None:  # not measured after the last round: our own evaluation of the traced global instead
        theirs = replay.trainer.evaluate(replay.trace.global_adapter(last), replay.rank_max, windows)
    fresh = ClientTrainer(load_base(replay.model_path, replay.dtype), replay.layout, replay.settings, replay.data)
    fresh.model = PeftModel.from_pretrained(fresh.base, str(folder), autocast_adapter_dtype=False).to(replay.dtype)
    fresh.model.eval()
    report.relative(FINAL, mean_nll(fresh, windows), theirs, f"round {last}")
