"""A Slurm of the tests' own (cluster.sh) and the few things that tests ask of it."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))

import micro  # noqa: E402, F401 (the tests take it from here)
import program  # noqa: E402

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
# Debian has the daemons where an ordinary user's PATH does not look.
_missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
_why = f"{', '.join(_missing)} not installed (apt-get install slurm-wlm munge)" if _missing else ""
if not _why and os.geteuid() != 0:
    _why = "only root can start slurmd"
if _why:
    warnings.warn(f"SKIPPED: the Slurm jobs were NOT tested: {_why}", stacklevel=1)
needs_slurm = pytest.mark.skipif(bool(_why), reason=_why)
long_test = pytest.mark.skipif("HETLORA_TEST_LONG" not in os.environ, reason="HETLORA_TEST_LONG=1 (make test-long)")

TIME_LIMIT_S = 240
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


class Slurm:
    """One node with 4 CPUs; partitions main, and urgent, which preempts main after a grace time of 20 s."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hetlora-slurm-", dir="/tmp"))  # a socket's path must be short
        self.environment = program.environment(
            SLURM_CONF=str(self.folder / "slurm.conf"), HETLORA=str(program.PROGRAM),
            PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin",
        )  # fmt: skip

    def start(self) -> None:
        self._cluster("start")

    def stop(self) -> None:
        self._cluster("stop")
        left = self._processes()
        shutil.rmtree(self.folder)
        assert not left, f"the test's Slurm left processes: {left}"

    def _cluster(self, verb: str) -> None:
        """cluster.sh, with its output in a file: its daemons would keep a pipe open."""
        log = self.folder / f"{verb}.out"
        with log.open("w") as out:
            command = [str(HERE / "cluster.sh"), verb, str(self.folder)]
            environment = {key: value for key, value in self.environment.items() if key != "SLURM_CONF"}
            done = subprocess.run(command, env=environment, stdout=out, stderr=out, timeout=120, check=False)
        assert done.returncode == 0, log.read_text()

    def _processes(self) -> list[str]:
        mark, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in file.read_bytes().split(b"\0"):
                    found.append((file.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                pass  # ended meanwhile
        return found

    def call(self, *words: object, check: bool = True, cwd: Path | None = None, **variables: str):
        """Runs a command against this Slurm and returns the finished process."""
        done = subprocess.run(
            [str(word) for word in words], env=self.environment | variables, cwd=cwd, capture_output=True, text=True,
            timeout=TIME_LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def sbatch(self, *words: object, cwd: Path, **variables: str) -> str:
        """Submits and returns the job's id. The job's output: job-<id>.out (or -<array id>_<index>) in cwd."""
        output = "job-%A_%a.out" if any(str(word).startswith("--array") for word in words) else "job-%j.out"
        return self.call("sbatch", "--parsable", f"--output={output}", *words, cwd=cwd, **variables).stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; of an array the first task that it names."""
        text = self.call("scontrol", "show", "job", "--oneliner", job).stdout.splitlines()[0]
        return dict(re.findall(r"(\S+?)=(\S*)", text))

    def wait_for_end(self, job: str, seconds: float = TIME_LIMIT_S) -> dict[str, str]:
        """Waits until the job is over for good and returns what Slurm says of it."""

        def over() -> dict[str, str] | None:
            if self.show(job)["JobState"] not in ENDED:
                return None
            time.sleep(1)  # a job that is being requeued shows the state of an ended one for a moment
            info = self.show(job)
            return info if info["JobState"] in ENDED else None

        return self.wait_until(job, over, seconds)

    def wait_until(self, job: str, condition: Callable[[], object], seconds: float = TIME_LIMIT_S):
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                queue = self.call("squeue", "--all", check=False).stdout
                pytest.fail(f"waited {seconds} s in vain for job {job}: {self.show(job)}\n{queue}")
            time.sleep(0.2)
        return found

    def rank_processes(self, job: str) -> list[int]:
        """Ids of the program's processes in the job's step."""
        lines = self.call("scontrol", "listpids", f"{job}.0").stdout.splitlines()[1:]
        # Columns: PID JOBID STEPID LOCALID GLOBALID; tasks have a LOCALID.
        return [int(line.split()[0]) for line in lines if line.split()[3].isdigit()]
