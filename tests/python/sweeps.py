"""Sweeps over the micro world, for tests: a sweep file, its folder, and what the program says of it."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import program  # noqa: E402

USAGE, INPUT, ENVIRONMENT, TRAINING, STOPPED = 2, 3, 4, 5, 75
TWO_BY_TWO = "lora.rank_distribution = uniform, powerlaw\nexperiment.seed = 1..2"


class Sweep:
    """A sweep file over the micro world, and its folder."""

    def __init__(self, folder: Path, world: tuple[Path, Path], axes: str, more: str = "",
                 compute: dict | None = None, **experiment: object) -> None:  # fmt: skip
        self.folder, self.output, self.file = folder, folder / "out", folder / "sweep.ini"
        folder.mkdir(exist_ok=True)
        base = program.write_ini(
            folder / "base.ini", world, {"experiment": {"rounds": 2} | experiment, "compute": compute or {}}
        )
        self.file.write_text(f"[sweep]\nbase = {base}\noutput = {self.output}\n[axes]\n{axes}\n{more}\n")

    def words(self, verb: str, *options: object) -> list[str]:
        return ["sweep", verb, "--config", str(self.file), *map(str, options)]

    def call(self, verb: str, *options: object, env: dict | None = None):
        return program.start(*self.words(verb, *options), env=env)

    def run(self, *options: object, code: int = 0) -> str:
        done = self.call("run", *options)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def status(self, *words: object) -> dict:
        file = self.folder / "status.json"
        done = self.call("status", *words, "--json", file)
        assert done.returncode == 0, done.stderr
        return json.loads(file.read_text())

    def counts(self, *words: object) -> dict[str, int]:
        return {state: number for state, number in self.status(*words)["counts"].items() if number}

    def folders(self) -> set[str]:
        return {path.name for path in self.output.glob("*_????????")}

    def results(self) -> dict[str, dict]:
        return {path.parent.name: program.columns(path) for path in self.output.glob("*/run.h5")}


def commands(folder: Path, **scripts: str) -> str:
    """A PATH with these commands in front."""
    folder.mkdir(exist_ok=True)
    for name, text in scripts.items():
        (folder / name).write_text("#!/bin/sh\n" + text)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def refused(done, code: int, *fragments: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("hetlora"), done.stderr
    for fragment in fragments:
        assert fragment in done.stderr, f"{fragment!r} is not in: {done.stderr}"
    for alien in ("terminate called", "what():", "internal error", "Traceback"):
        assert alien not in done.stderr
