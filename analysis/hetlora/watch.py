"""`hetlora watch RUN_OR_SWEEP...`: a live view in the terminal, read from status.json and progress.jsonl of the runs.

Ends when every run has ended, or on Ctrl-C; nothing is written and no run is disturbed.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from hetlora.errors import UserError, need
from hetlora.headline import ACCURACY, PERPLEXITY, headline_of
from hetlora.run_config import read_config
from hetlora.run_folders import find_runs
from hetlora.run_state import HEARTBEAT_STALE_S, read_status, state_of
from hetlora.runs_settings import unique_names

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-=*#"
SPARK_WIDTH = 20
COLOURS = {"done": "green", "running": "cyan", "waiting": "dim", "stopped": "yellow", "died": "red", "failed": "red",
           "damaged": "red"}  # fmt: skip
#: What is shown of a run, by what it is judged by.
FIGURES = {PERPLEXITY: ("perplexity",), ACCURACY: ("accuracy", "loss")}
ENDED = ("done", "failed", "damaged", "stopped", "died")


def parser() -> argparse.ArgumentParser:
    """The argument parser of `watch`."""
    top = argparse.ArgumentParser(prog="hetlora watch", description=__doc__)
    top.add_argument("runs", nargs="+", metavar="RUN_OR_SWEEP", help="run folders, a sweep's folder or .ini file")
    top.add_argument("--once", action="store_true", help="print the present state and end")
    top.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between looks (default 2)")
    return top


@dataclass
class Tail:
    """The rounds of a progress.jsonl, of which only what is new is read at each look."""

    file: Path
    offset: int = 0
    losses: list[float] = field(default_factory=list)
    """Evaluation loss, else training loss, of every committed round; NaN where there is neither."""
    accuracies: list[float] = field(default_factory=list)
    """Of the evaluations only."""
    seconds: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Takes over the whole lines that came since; starts again if the file became shorter (a resume cut it)."""
        try:
            size = self.file.stat().st_size
            if size < self.offset:
                self.offset, self.losses, self.accuracies, self.seconds = 0, [], [], []
            with open(self.file, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return
        whole = data.rfind(b"\n") + 1
        self.offset += whole
        for line in data[:whole].splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            loss = row.get("eval_loss")
            loss = row.get("train_loss") if loss is None else loss
            self.losses.append(math.nan if loss is None else float(loss))
            if row.get("eval_accuracy") is not None:
                self.accuracies.append(float(row["eval_accuracy"]))
            self.seconds.append(float(row.get("t_round_s") or 0.0))


@dataclass
class Watched:
    """One run as it stands."""

    name: str
    folder: Path
    tail: Tail
    state: str = "waiting"
    why: str = ""
    task: str = "causal"
    """model.task: what the run is judged by follows from it."""
    status: dict = field(default_factory=dict)
    rounds: int = 0
    wanted: int = 0

    def look(self) -> None:
        """Reads the folder anew; what cannot be read is said in `why`."""
        self.tail.look()
        wanted = None
        try:
            self.status = read_status(self.folder)
            config = read_config(self.folder)
            wanted = config.get("experiment", {}).get("rounds")
            self.task = str(config.get("model", {}).get("task", self.task))
        except UserError as error:
            self.why = str(error)
        self.rounds = max(0, len(self.tail.losses) - 1)
        self.wanted = int(self.status.get("rounds") or wanted or 0)
        self.state, why = state_of(self.folder, self.status, bool(self.tail.losses), self.wanted or None)
        self.why = why or self.why

    @property
    def newest_loss(self) -> float:
        """Of the newest round that has one, else NaN."""
        return next((loss for loss in reversed(self.tail.losses) if math.isfinite(loss)), math.nan)

    @property
    def loss(self) -> str:
        """The newest loss."""
        return f"{self.newest_loss:.4f}" if math.isfinite(self.newest_loss) else "-"

    @property
    def perplexity(self) -> str:
        """exp of the newest loss."""
        return f"{math.exp(min(self.newest_loss, 700.0)):.3f}" if math.isfinite(self.newest_loss) else "-"

    @property
    def accuracy(self) -> str:
        """Of the newest evaluation."""
        return f"{self.tail.accuracies[-1]:.4f}" if self.tail.accuracies else "-"

    def figure(self, name: str) -> str:
        """The cell of one of FIGURES; "-" where it says nothing of this run's task."""
        return getattr(self, name) if name in FIGURES[headline_of([self.task])] else "-"

    @property
    def rate(self) -> str:
        """Seconds of a round, mean of the last five."""
        last = self.tail.seconds[1:][-5:]
        return f"{sum(last) / len(last):.1f} s" if last else "-"

    @property
    def left(self) -> str:
        """Time until the end, as the run itself expects it."""
        seconds = self.status.get("seconds_left")
        return duration(seconds) if self.state == "running" and seconds is not None else "-"

    @property
    def silent_s(self) -> float:
        """Seconds since the run last said anything, NaN if it never did."""
        try:
            said = datetime.strptime(self.status["updated_utc"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        except (KeyError, ValueError, TypeError):
            return math.nan
        return time.time() - said.timestamp()

    @property
    def note(self) -> str:
        """What needs a look: why it ended, or that its host gives no sign of life."""
        if self.state == "running" and self.silent_s > HEARTBEAT_STALE_S:
            lock = self.folder / ".lock"
            beat = time.time() - lock.stat().st_mtime if lock.exists() else self.silent_s
            if beat > HEARTBEAT_STALE_S:
                return f"no sign of life for {duration(beat)}"
        return self.why if self.state in ("failed", "died", "damaged", "stopped") else ""


def duration(seconds: float) -> str:
    """'47 s', '12 min', '3.4 h', '2.1 d'."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86400:.1f} d"


def spark(losses: list[float], plain: bool) -> str:
    """The losses as a row of bars, high to low; long runs by every n-th round."""
    bars = PLAIN_BARS if plain else BARS
    known = [loss for loss in losses if math.isfinite(loss)]
    if len(known) < 2:
        return ""
    step = max(1, math.ceil(len(known) / SPARK_WIDTH))
    shown = known[::step]
    low, high = min(shown), max(shown)
    width = (high - low) or 1.0
    return "".join(bars[round((loss - low) / width * (len(bars) - 1))] for loss in shown)


def table(watched: list[Watched], plain: bool):
    """The runs as a rich table; with many runs those that run or need a look come first."""
    rich_table = need("rich.table", "report")
    rich_text = need("rich.text", "report")
    order = {"running": 0, "failed": 1, "died": 1, "damaged": 1, "stopped": 2, "waiting": 3, "done": 4}
    counts: dict[str, int] = {}
    for run in watched:
        counts[run.state] = counts.get(run.state, 0) + 1
    title = ", ".join(f"{n} {state}" for state, n in sorted(counts.items(), key=lambda item: order[item[0]]))
    made = rich_table.Table(title=title, title_justify="left", box=None, pad_edge=False, expand=False)
    judged = dict.fromkeys(headline_of([run.task]) for run in watched)
    figures = [name for kind in judged for name in FIGURES[kind]]
    for name, justify, ratio in (("run", "left", 3), ("state", "left", None), ("round", "right", None),
                                 *((name, "right", None) for name in figures), ("", "left", None),
                                 ("a round", "right", None), ("left", "right", None), ("note", "left", 2)):  # fmt: skip
        made.add_column(name, justify=justify, ratio=ratio, no_wrap=name not in ("run", "note"), overflow="fold")
    for run in sorted(watched, key=lambda one: order[one.state]):
        made.add_row(
            rich_text.Text(run.name), rich_text.Text(run.state, style=COLOURS[run.state]),
            f"{run.rounds}/{run.wanted or '?'}", *map(run.figure, figures),
            spark(run.tail.losses, plain), run.rate, run.left, rich_text.Text(run.note),
        )  # fmt: skip
    return made


def look_at(paths: list[str], known: dict[Path, Watched]) -> list[Watched]:
    """All runs below the paths, new ones included, read anew."""
    folders = find_runs(paths)
    for folder, name in zip(folders, unique_names(folders), strict=True):
        run = known.setdefault(folder.resolve(), Watched(name, folder, Tail(folder / "progress.jsonl")))
        run.look()
    return [known[folder.resolve()] for folder in folders]


def main(argv: list[str]) -> int:
    """Show the runs until all have ended; 0, also after Ctrl-C."""
    options = parser().parse_args(argv)
    console = need("rich.console", "report").Console()
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    known: dict[Path, Watched] = {}
    watched = look_at(options.runs, known)
    if options.once or not console.is_terminal:
        console.print(table(watched, plain))
        return 0
    live = need("rich.live", "report").Live(table(watched, plain), console=console, auto_refresh=False)
    try:
        with live:
            while not all(run.state in ENDED for run in watched):
                time.sleep(max(0.2, options.every))
                watched = look_at(options.runs, known)
                live.update(table(watched, plain), refresh=True)
    except KeyboardInterrupt:
        pass
    return 0
