"""`python -m hetlora VERB ...`: dispatches to one module per verb; imports nothing heavy before it knows the verb."""

import os
import shutil
import sys
from pathlib import Path

from hetlora import __version__
from hetlora.errors import UserError

VERBS = {
    "prepare": ("hetlora.prepare.command", "turn conversations or text into one prepared .h5 file"),
    "convert": ("hetlora.convert.command", "turn a GGUF, llama2.c or Hugging Face checkpoint into a model folder"),
    "audit": ("hetlora.audit", "replay a traced run with stock transformers and peft"),
    "compare": ("hetlora.compare", "methods side by side: intervals over seeds, paired tests, bytes to a target"),
    "watch": ("hetlora.watch", "a live view of runs in the terminal, from their folders"),
    "report": ("hetlora.report.command", "one HTML page with charts, of a run or a sweep"),
    "table": ("hetlora.table", "one line per run folder: method, perplexity, bytes, time"),
}


def usage() -> str:
    """The text of `hetlora --help`."""
    lines = ["usage: python -m hetlora VERB ...   (VERB --help for each)", ""]
    lines += [f"  {verb:<9} {about}" for verb, (_, about) in VERBS.items()]
    lines += ["", "Any other verb (run, check, pretrain, ...) is handed to the hetlora program, which is looked for in"]
    lines += ["$HETLORA_PROGRAM, ./build/hetlora and on the PATH."]
    return "\n".join(lines)


def find_program() -> str | None:
    """Path of the C++ program, or None. This very script is skipped when it is what the PATH holds."""
    named = os.environ.get("HETLORA_PROGRAM")
    if named:
        return named
    local = Path("build/hetlora")
    if local.is_file() and os.access(local, os.X_OK):
        return str(local.resolve())
    found = shutil.which("hetlora")
    # A console script of this package starts with "#!": handing over to it would go round in circles.
    if found and open(found, "rb").read(2) != b"#!":
        return found
    return None


def forward(argv: list[str]) -> int:
    """Replace this process by the C++ program with the same arguments; returns only on failure."""
    program = find_program()
    if program is None:
        known = ", ".join(VERBS)
        print(
            f"hetlora: unknown verb {argv[0]!r} for the Python package (it knows: {known}), and the hetlora program "
            "that may know it was not found; build it with `make build` or set HETLORA_PROGRAM to its path",
            file=sys.stderr,
        )
        return 2
    try:
        os.execv(program, [program, *argv])
    except OSError as error:
        print(f"hetlora: cannot start {program}: {error.strerror}; check HETLORA_PROGRAM", file=sys.stderr)
        return 4


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the return value is the exit code (0 done, 2 usage, 3 input, 4 environment)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"hetlora (Python package) {__version__}")
        return 0
    if argv[0] not in VERBS:
        return forward(argv)
    import importlib

    try:
        return importlib.import_module(VERBS[argv[0]][0]).main(argv[1:]) or 0
    except UserError as error:
        print(f"hetlora {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not an error of anyone's.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"hetlora {argv[0]}: stopped; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
