"""Evaluation in the audit: rows of run.h5, the final adapter folder in the real `peft`, and a changed base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file

from hetlora.audit_client import ClientTrainer, mean_nll
from hetlora.audit_config import AuditError
from hetlora.audit_data import Window
from hetlora.audit_products import Base, change_difference
from hetlora.audit_replay import Replay
from hetlora.audit_trace import resize

ROWS, FINAL, BASE = "evaluation loss, relative", "final adapter folder in peft", "base in the last checkpoint, relative"


def read_rows(run_dir: Path) -> dict[int, float]:
    """Measured eval_loss by round number (row 0 = before training) of run.h5."""
    with h5py.File(run_dir / "run.h5") as file:
        rounds, losses = file["rounds/round"][:], file["rounds/eval_loss"][:]
        committed = int(np.asarray(file.attrs.get("committed_rounds", len(rounds))).ravel()[0])
    rows = zip(rounds[:committed], losses[:committed], strict=True)
    return {int(r): float(loss) for r, loss in rows if np.isfinite(loss)}


class Evaluation:
    """Checks beside a replay: `row` after every round, with the base as it is then; `finish` after the last one."""

    def __init__(self, replay: Replay) -> None:
        self.replay, self.report = replay, replay.report
        tolerance, settings = replay.options.tolerance, replay.settings
        for name in (ROWS, FINAL):
            self.report.declare(name, tolerance)
        self.report.required |= {ROWS, FINAL}
        if int(settings.get("evaluation.sequences", 0) or 0) > 0:
            raise AuditError(
                f"evaluation.sequences = {settings.get('evaluation.sequences')} cannot be replayed (the program "
                f"draws the subset) - {replay.run_dir} - audit without --evaluate or with all sequences", 2,
            )  # fmt: skip
        if replay.personal and not replay.natural:
            raise AuditError(
                f"the clients' own evaluation with data.partition = {settings.get('data.partition')} cannot be "
                f"replayed (the program draws what they hold) - {replay.run_dir} - audit without --evaluate", 2,
            )  # fmt: skip
        if not (replay.run_dir / "run.h5").is_file():
            raise AuditError(f"no run.h5 - {replay.run_dir} - audit without --evaluate")
        self.part = str(settings.get("evaluation.part", "valid"))
        self.windows = replay.data.evaluation_windows(self.part)
        self.rows = read_rows(replay.run_dir)
        self.own = self._own_windows() if replay.personal else {}

    def _own_windows(self) -> dict[int, Sequence[Window]]:
        """Held-back windows of every client that can train."""
        data, minimum = self.replay.data, max(1, int(self.replay.settings.get("data.min_windows", 1)))
        eligible = [c for c in range(data.n_clients) if len(data.client_windows(c)) >= minimum]
        return {c: data.client_evaluation_windows(c, self.part) for c in eligible}

    def row(self, number: int) -> None:
        """The evaluation of a round, where one was measured."""
        adapter = self.replay.trace.global_adapter(number)
        if adapter is not None and number in self.rows:
            self._load_head(number)
            ours = self._personal(adapter) if self.replay.personal else self._global(adapter)
            self.report.relative(ROWS, ours, self.rows[number], f"round {number}")

    def _load_head(self, number: int) -> None:
        if self.replay.trainer.head:
            self.replay.trainer.head.load(self.replay.trace.global_head(number))

    def _global(self, adapter: np.ndarray) -> float:
        return self.replay.trainer.evaluate(adapter, self.replay.rank_max, self.windows)

    def _personal(self, adapter: np.ndarray) -> float:
        """The shared A with every client's own B, on its own data; one that never took part has B = 0."""
        replay, total, count = self.replay, 0.0, 0
        for client, windows in self.own.items():
            if not windows:
                continue
            rank = replay.private.kept.get(client, (replay.rank_max, []))[0]
            own = resize(adapter, replay.layout, replay.rank_max, rank)
            own = replay.private.put(client, own, replay.layout, rank)
            n = sum(len(window.positions) for window in windows)
            total += n * replay.trainer.evaluate(own, rank, windows)
            count += n
        return total / count

    def finish(self) -> None:
        """What the finished run left behind."""
        replay, report = self.replay, self.report
        folder, last = replay.run_dir / "adapter", max(replay.trace.global_rounds)
        if not (folder / "adapter_config.json").is_file():
            report.notes.append("no adapter/ folder: the run is not finished")
            return
        if replay.base and replay.options.rounds and replay.options.rounds < last:
            report.notes.append("the adapter/ folder belongs to a base of later rounds: not checked")
            report.required.discard(FINAL)
            return
        # Not measured after the last round, or on other data: our own evaluation of the traced global instead.
        theirs = None if replay.personal else self.rows.get(last)
        if theirs is None:
            self._load_head(last)
            theirs = self._global(replay.trace.global_adapter(last))
        fresh = ClientTrainer(replay.load_base(), replay.layout, replay.settings, replay.data)
        if replay.base:
            Base(fresh.base, replay.layout).load(replay.base_now)
        fresh.model = PeftModel.from_pretrained(fresh.base, str(folder), autocast_adapter_dtype=False).to(replay.dtype)
        fresh.model.eval()
        report.relative(FINAL, mean_nll(fresh, self.windows), theirs, f"round {last}")
        if replay.base:
            self._checkpoint(last)

    def _checkpoint(self, last: int) -> None:
        """The base that the program itself keeps, against ours, relative to the change."""
        replay, report = self.replay, self.report
        found = sorted((replay.run_dir / "checkpoint").glob("round_*/state.safetensors"))
        rounds = [int(re.search(r"\d+", file.parent.name).group()) for file in found]
        if not rounds or rounds[-1] != last:
            report.notes.append("no checkpoint of the last round: the program's own base was not compared")
            return
        report.declare(BASE, replay.options.tolerance)
        tensors = load_file(found[-1])
        for (name, _, _), ours, start in zip(replay.layout, replay.base_now, replay.base.start, strict=True):
            theirs = torch.from_numpy(np.array(tensors[f"base/{name}"])).reshape(ours.shape)
            report.difference(BASE, change_difference(ours, theirs, start), f"round {last} {name}")
