"""From what a user names (run folders, sweep folders, sweep files, patterns) to a list of run folders."""

import configparser
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from hetlora.errors import InputError

# A folder with one of these is a run's; request.ini is all that a run of a sweep has that never started.
RUN_FILES = ("run.h5", "status.json", "config.json", "progress.jsonl", "request.ini")
DEEPEST_BELOW = 2

Paths = str | os.PathLike | Iterable[str | os.PathLike]


def find_runs(paths: Paths) -> list[Path]:
    """The run folders that `paths` name, each once, in the order given (below a folder: by name, numbers by value).

    A path may be a run folder (or its run.h5), a folder with runs in it (a sweep's, or `results`), a sweep's .ini file,
    or a pattern with * ? [ ]. InputError for a path that does not exist or below which there is no run.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    found: dict[Path, Path] = {}
    for path in paths:
        for folder in _expand(str(path)):
            found.setdefault(folder.resolve(), folder)
    if not found:
        raise InputError("no runs were named; give run folders, a sweep's folder or a sweep's .ini file")
    return list(found.values())


def _expand(text: str) -> list[Path]:
    path = Path(os.path.expandvars(text)).expanduser()
    if not path.exists() and glob.has_magic(str(path)):
        matches = sorted(glob.glob(str(path)), key=_by_number)
        folders = [folder for one in matches for folder in _below(Path(one), DEEPEST_BELOW)]
        if not folders:
            raise InputError(f"no run matches {text}; check the pattern")
        return folders
    if path.is_file() and path.name == "run.h5":
        return [path.parent]
    if path.is_file() and path.suffix == ".ini":
        return _of_sweep(path)
    if path.is_file():
        raise InputError(f"{path} is neither a run's folder nor a sweep's .ini file")
    if not path.is_dir():
        raise InputError(f"no such folder: {path} (a run or a sweep); check the path")
    folders = _below(path, DEEPEST_BELOW)
    if not folders:
        raise InputError(f"{path} holds no runs; give a folder that `hetlora run` or `hetlora sweep` wrote")
    return folders


def _of_sweep(file: Path) -> list[Path]:
    """The runs in the folder of a sweep file."""
    folder = sweep_folder(file)
    if not folder.is_dir():
        raise InputError(
            f"the sweep {file} has no folder {folder} yet; start it with: hetlora sweep run --config {file}"
        )
    folders = _below(folder, 1)
    if not folders:
        raise InputError(f"the sweep {file} has no runs in {folder} yet; start it with: hetlora sweep run")
    return folders


def sweep_folder(file: Path) -> Path:
    """Where a sweep file's runs go: [sweep] output, else results/<name> of the working directory."""
    parser = configparser.ConfigParser(
        interpolation=None, inline_comment_prefixes=("#",), strict=False, allow_no_value=True
    )
    try:
        # Sections may be repeated and hold repeated keys; only [sweep] matters here.
        parser.read_string(file.read_text())
    except (configparser.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} is not a sweep file: {' '.join(str(error).split())}") from error
    if not parser.has_section("sweep"):
        raise InputError(f"{file} has no section [sweep]; give a sweep's .ini file, or the folder of a run")
    output = parser["sweep"].get("output") or ""
    if output:
        return Path(os.path.expandvars(output)).expanduser()
    return Path("results") / (parser["sweep"].get("name") or file.stem)


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run's files."""
    return any((folder / name).is_file() for name in RUN_FILES)


def _below(path: Path, depth: int) -> list[Path]:
    """`path` itself if it is a run, else the runs in it down to `depth` folders."""
    if not path.is_dir():
        return []
    if is_run(path):
        return [path]
    if depth == 0:
        return []
    inside = sorted((one for one in path.iterdir() if one.is_dir() and one.name[0] != "."), key=_by_number)
    return [run for one in inside for run in _below(one, depth - 1)]


def _by_number(path: object) -> list:
    """Sorts s2 before s10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]
