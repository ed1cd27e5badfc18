"""Where a run stands, told from its folder: status.json, COMPLETE, the lock that its process holds, its output.log."""

import json
import socket
import time
from pathlib import Path

from hetlora.errors import InputError

# Seconds without a sign of life after which a run on another host counts as dead (as the program has it).
HEARTBEAT_STALE_S = 60.0
START_MARK = "--- "
LOG_TAIL_BYTES = 8192

STATES = ("done", "running", "waiting", "stopped", "died", "failed", "damaged")


def read_status(folder: Path) -> dict:
    """status.json as a dict; {} where there is none. InputError if it is no JSON object with a state."""
    file = folder / "status.json"
    try:
        status = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}; the run's state is told from its other files") from error
    if not isinstance(status, dict) or not isinstance(status.get("state"), str):
        raise InputError(f"{file} names no state; the run's state is told from its other files")
    return status


def is_in_use(folder: Path, status: dict) -> bool:
    """Whether a process works in the folder: it holds the lock, or (on another host) gave a sign of life lately."""
    lock = folder / ".lock"
    try:
        age_s = time.time() - lock.stat().st_mtime
    except OSError:
        return False
    if status.get("host") not in ("", None, socket.gethostname()):
        return age_s < HEARTBEAT_STALE_S
    try:
        import fcntl

        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no such locks here: only the time of the last change tells
        return age_s < HEARTBEAT_STALE_S


def last_error(folder: Path) -> str:
    """The last message of the program in the output.log of a sweep's run since its last start; "" if there is none."""
    try:
        with open(folder / "output.log", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    message = ""
    for line in lines:
        if line.startswith(START_MARK):
            message = ""
        elif line.startswith(("hetlora: ", "hetlora run: ")):
            message = line.split(": ", 1)[1]
    return message


def state_of(folder: Path, status: dict, has_rounds: bool, rounds_wanted: int | None) -> tuple[str, str]:
    """(state, why) of the run in `folder`; the states are those of `hetlora sweep status`.

    `has_rounds`: its log holds at least one round; `rounds_wanted`: `experiment.rounds` of its config, if known.
    """
    complete = (folder / "COMPLETE").is_file()
    if not status:
        if complete:
            return "done", ""
        if has_rounds:
            return "stopped", "no status.json"
        reason = last_error(folder)
        return ("failed", reason) if reason else ("waiting", "")
    state = status["state"]
    if state == "running":
        if is_in_use(folder, status):
            return "running", ""
        return "died", f"killed after round {status.get('round', '?')}, or its machine went down"
    if state == "failed":
        return "failed", str(status.get("message") or last_error(folder)).replace("\n", " ")
    if state == "done" and complete and (rounds_wanted is None or status.get("round", 0) >= rounds_wanted):
        return "done", ""
    return "stopped", str(status.get("message") or "").replace("\n", " ")
