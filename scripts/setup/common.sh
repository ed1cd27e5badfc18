# shellcheck shell=bash disable=SC2034
# Shared by the set-up steps (sourced, never run): messages, and the choice of the Python interpreter.

say() { printf 'setup: %s\n' "$*"; }

# die CODE LINE...: the first line says what happened, the others how to mend it.
die() {
    local code=$1
    shift
    printf 'setup: %s\n' "$@" >&2
    exit "$code"
}

# Exit code for a missing tool, package or library; the same number that the program uses for its environment.
readonly EXIT_ENVIRONMENT=4

# Prints the first interpreter of $PYTHON, python3, python3.12, ... that is 3.10 or newer and can make virtual
# environments; fails if there is none. Inside an active virtual environment this is the interpreter under it,
# so that .venv never depends on another environment by accident.
find_python() {
    local candidate found
    for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.10 python3.13; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        found=$("$candidate" - 2>/dev/null <<'PY'
import sys
import ensurepip, venv  # Debian ships these in python3-venv
if sys.version_info < (3, 10):
    sys.exit(1)
print(getattr(sys, "_base_executable", sys.executable))
PY
        ) && [ -n "$found" ] && printf '%s\n' "$found" && return 0
    done
    return 1
}
