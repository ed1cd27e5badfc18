#!/usr/bin/env bash
# `make lint` (check: changes nothing) and `make format` (fix: in place): clang-format over the C++ files that git knows or
# would take, ruff over the Python folders. All run; the exit code is non-zero if one found something.
set -uo pipefail
cd -- "${BASH_SOURCE[0]%/*}/.." || exit 4

case ${1:-} in
    check) clang_format=(--dry-run --Werror) ruff_check=() ruff_format=(--check) ;;
    fix) clang_format=(-i) ruff_check=(--fix) ruff_format=() ;;
    *) echo "usage: scripts/lint.sh check|fix" >&2 && exit 2 ;;
esac
python_folders=(analysis tests scripts benchmarks examples src)

failed=()
git ls-files -z --cached --others --exclude-standard -- '*.cpp' '*.hpp' '*.cu' |
    xargs -0 -r .venv/bin/clang-format "${clang_format[@]}" || failed+=(clang-format)
.venv/bin/ruff check ${ruff_check[@]+"${ruff_check[@]}"} "${python_folders[@]}" || failed+=("ruff check")
.venv/bin/ruff format ${ruff_format[@]+"${ruff_format[@]}"} "${python_folders[@]}" || failed+=("ruff format")

if [ ${#failed[@]} -gt 0 ]; then
    printf 'lint: %s failed - make format puts most of it right\n' "${failed[@]}" >&2
    exit 1
fi
echo "lint: clean"
