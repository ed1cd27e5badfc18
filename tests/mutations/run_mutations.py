#!/usr/bin/env python3
"""The tests catch mistakes: puts known mistakes into a copy of the tree, one at a time, and shows which test turns red.

    python tests/mutations/run_mutations.py [--only TEXT] [--jobs N] [--write docs/mutations.md]

The copy (git's files and untracked ones, .venv as a link) lies in a temporary folder and is built there with ccache;
your tree is not touched. Prints a Markdown table. Exit code 1 if a mutation survives (no test fails), 2 if the tests
fail without a mutation, a mutation does not compile, or its text is not found exactly once. Standard library only.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutations import MUTATIONS, Mutation  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TABLE_HEAD = "| mutation | file | caught by |\n|---|---|---|"
TABLE_BEGIN, TABLE_END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
AUDIT_TEST = "tests/python/test_audit_program.py::test_program_agrees_with_stock_transformers_and_peft"
RESUME_TESTS = "tests/python/test_resume.py"
TEST_TIMEOUT_S = 300


class CampaignError(Exception):
    """The campaign itself cannot go on; the message says why and where to look."""


def programs_tests(mutation: Mutation) -> list[str]:
    """The pytest tests of a mutation that need the whole program."""
    audit = [f"{AUDIT_TEST}[{mutation.audit}]"] if mutation.audit else []
    return audit + ([f"{RESUME_TESTS}::{mutation.resume}"] if mutation.resume else [])


def copy_tree(source: Path, target: Path) -> None:
    """Copies what git knows and does not ignore; links .venv. Uncommitted changes come along."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=source, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if not (source / name).is_file():
            continue  # deleted, not committed yet
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)
    if (source / ".venv").exists():
        (target / ".venv").symlink_to((source / ".venv").resolve())


class Campaign:
    """A tree that may be changed, its build folder, and the tests that run on it."""

    def __init__(self, tree: Path, jobs: int, environment: dict[str, str]):
        self.tree = tree
        self.build = tree / "build"
        self.jobs = jobs
        # GoogleTest colours its output under mpirun, which would hide the names from the search below.
        self.environment = os.environ | environment | {"GTEST_COLOR": "no"}

    def run(self, command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=self.tree, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def check(self, command: list[str], what: str) -> None:
        done = self.run(command)
        if done.returncode != 0:
            raise CampaignError(f"{what} failed (exit code {done.returncode}):\n{done.stdout[-4000:]}")

    def configure(self) -> None:
        torch_dir = self.tree / ".venv" / "torch_dir"
        options = [f"-DTORCH_DIR={torch_dir.read_text().strip()}"] if torch_dir.is_file() else []
        self.check(["cmake", "--preset", "release", *options], "cmake")

    def compile(self, mutations: list[Mutation], what: str) -> None:
        targets = {target for mutation in mutations for target in mutation.tests}
        if any(programs_tests(mutation) for mutation in mutations):
            targets.add("hetlora")
        command = ["cmake", "--build", str(self.build), "-j", str(self.jobs), "--target", *sorted(targets)]
        self.check(command, f"building {what}")

    def failures(self, mutations: list[Mutation]) -> list[str]:
        """Names of the tests of these mutations that fail now."""
        programs = sorted({target for mutation in mutations for target in mutation.tests})
        ids = sorted({test for mutation in mutations for test in programs_tests(mutation)})
        return (self.failed_ctests(programs) if programs else []) + (self.failed_pytests(ids) if ids else [])

    def failed_ctests(self, programs: list[str]) -> list[str]:
        pattern = rf"^({'|'.join(map(re.escape, programs))})(\.mpi[0-9]+)?$"
        command = ["ctest", "--test-dir", str(self.build), "-R", pattern, "--timeout", str(TEST_TIMEOUT_S)]
        done = self.run([*command, "--output-on-failure", "--no-tests=error"])
        if done.returncode == 0:
            return []
        named = re.findall(r"\[  FAILED  \] ([\w/]+\.[\w/]+)", done.stdout)
        # Crashed or timed out: no name of a test, only of its program in CTest's summary.
        named = named or re.findall(r"^\s*\d+ - (\S+ \(\w+\))", done.stdout, flags=re.MULTILINE)
        if not named:
            raise CampaignError(f"ctest did not run:\n{done.stdout[-2000:]}")
        return list(dict.fromkeys(named))

    def failed_pytests(self, ids: list[str]) -> list[str]:
        own_python = self.tree / ".venv" / "bin" / "python"
        python = str(own_python) if own_python.exists() else sys.executable
        done = self.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ids])
        failed = re.findall(r"^FAILED \S+?::(\S+\[.*?\]|\w+)", done.stdout, flags=re.MULTILINE)
        if not failed and (done.returncode != 0 or "skipped" in done.stdout):
            raise CampaignError(f"the tests of the program did not run:\n{done.stdout[-2000:]}")
        return failed

    def try_mutation(self, mutation: Mutation) -> list[str]:
        """The tests that turn red. The file is restored whatever happens."""
        path = self.tree / mutation.file
        original = path.read_text()
        path.write_text(mutation.mutate(original))
        try:
            self.compile([mutation], f"with '{mutation.name}'")
            return self.failures([mutation])
        finally:
            path.write_text(original)


def table_row(mutation: Mutation, caught_by: list[str]) -> str:
    """A row of the table: the first three tests, without the instances of parametrised ones."""
    names = list(dict.fromkeys(re.sub(r"^\w+/|/\w+$", "", name) for name in caught_by))
    shown = ", ".join(f"`{name}`" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"| {mutation.name} | `{mutation.file}` | {shown + more or '**nothing: it survives**'} |"


def write_table(path: Path, rows: dict[str, str]) -> None:
    """Puts rows (by mutation) into the table of the document; rows of mutations that were not tried now stay."""
    text = path.read_text()
    begin, end = text.index(TABLE_BEGIN) + len(TABLE_BEGIN), text.index(TABLE_END)
    old = {line.split(" | ")[0].removeprefix("| "): line for line in text[begin:end].splitlines()}
    merged = [(old | rows).get(m.name, f"| {m.name} | `{m.file}` | not tried yet |") for m in MUTATIONS]
    path.write_text(text[:begin] + "\n".join([TABLE_HEAD, *merged]) + "\n" + text[end:])


def run_campaign(campaign: Campaign, chosen: list[Mutation], deadline_s: float) -> list[tuple[Mutation, list[str]]]:
    """(mutation, tests that caught it) of every mutation that was tried. Stops early at the deadline."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    say("building the tests without a mutation")
    campaign.configure()
    campaign.compile(chosen, "without a mutation")
    red = campaign.failures(chosen)
    if red:
        raise CampaignError(f"tests fail without a mutation: {', '.join(red)}: run `make test` and mend them first")
    results = []
    for number, mutation in enumerate(chosen, start=1):
        if deadline_s and time.monotonic() - started > deadline_s:
            say(f"out of time: {len(chosen) - len(results)} mutations were not tried")
            break
        caught_by = campaign.try_mutation(mutation)
        results.append((mutation, caught_by))
        say(f"{number} of {len(chosen)}: {mutation.name}: {', '.join(caught_by) or 'SURVIVES'}")
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="TEXT", action="append", help="mutations whose name contains TEXT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also put the table between the markers of FILE")
    parser.add_argument("--minutes", type=float, default=0, help="start no mutation after so long (0: no limit)")
    parser.add_argument("--list", action="store_true", help="only list the mutations")
    parser.add_argument(
        "--in-place", action="store_true", help="this tree is a disposable copy itself: change and build it where it is"
    )
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.only or any(text in m.name for text in arguments.only)]
    for mutation in chosen:
        mutation.mutate((ROOT / mutation.file).read_text())  # fail early and loudly
    if arguments.list or not chosen:
        print("\n".join(f"{m.name} ({m.file})" for m in chosen) or "no mutation has such a name")
        return 0 if chosen else 2

    with contextlib.ExitStack() as stack:
        if arguments.in_place:
            campaign = Campaign(ROOT, arguments.jobs, {"OMP_NUM_THREADS": "1"})
        else:
            tree = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hetlora_mutations_"))) / "tree"
            tree.mkdir()
            copy_tree(ROOT, tree)
            ccache = {"CCACHE_BASEDIR": str(tree), "CCACHE_NOHASHDIR": "true"}
            campaign = Campaign(tree, arguments.jobs, ccache | {"OMP_NUM_THREADS": "1"})
        results = run_campaign(campaign, chosen, 60 * arguments.minutes)

    rows = {mutation.name: table_row(mutation, caught_by) for mutation, caught_by in results}
    print(TABLE_HEAD, *rows.values(), sep="\n")
    if arguments.write:
        write_table(arguments.write, rows)
    survivors = [mutation.name for mutation, caught_by in results if not caught_by]
    if survivors:
        print(f"no test noticed: {'; '.join(survivors)}", file=sys.stderr)
    return 1 if survivors or len(results) < len(chosen) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CampaignError, ValueError) as error:
        print(f"run_mutations: {error}", file=sys.stderr)
        sys.exit(2)
