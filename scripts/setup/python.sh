#!/usr/bin/env bash
# Step 2 of `make setup`: the virtual environment .venv with the pinned packages of requirements.txt.
#
# .venv/.hetlora-stamp holds a hash of all that decides its content; while it matches, nothing is done and no network is
# needed. An installation that was killed (.venv/.hetlora-incomplete) is made anew from nothing.
#
# PYTHON=...           interpreter to build .venv with (default: python3, 3.10 or newer)
# HETLORA_USE_ENV=1    take torch from the active conda or virtual environment instead of installing the pinned one;
#                      remembered in .venv, HETLORA_USE_ENV=0 goes back
# .venv/torch_dir      (written) the LibTorch folder that `make build` uses unless TORCH_DIR is set
set -euo pipefail
# shellcheck source=scripts/setup/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"

# Modules and conda set these; they would leak other packages into .venv.
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

root=$PWD
venv=$root/.venv
stamp=$venv/.hetlora-stamp
incomplete=$venv/.hetlora-incomplete
remembered_env=$venv/.hetlora-env

# --- which torch ----------------------------------------------------------------------------------------------------

# Sets `env_prefix`: the environment that provides torch, empty for the pinned wheel.
choose_environment() {
    env_prefix=
    case ${HETLORA_USE_ENV:-} in
        1) env_prefix=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} ;;
        0) return 0 ;;
        '') [ ! -s "$remembered_env" ] || env_prefix=$(<"$remembered_env") ; return 0 ;;
        *) die 2 "HETLORA_USE_ENV='$HETLORA_USE_ENV' is neither 0 nor 1 - set it to 1 to take torch from the active environment" ;;
    esac
    if [ -z "$env_prefix" ] || [ "$env_prefix" = "$venv" ]; then
        die $EXIT_ENVIRONMENT "HETLORA_USE_ENV=1, but no conda or virtual environment of yours is active" \
            "activate the one that has torch, or leave HETLORA_USE_ENV out"
    fi
}

# Sets `torch_dir` for the environment's torch, after checking its version and headers.
check_environment_torch() {
    local version folder
    version=$("$env_prefix/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null) ||
        die $EXIT_ENVIRONMENT "no torch in the environment $env_prefix" "install torch >=2.11,<2.15 there, or use HETLORA_USE_ENV=0"
    [[ $version =~ ^2\.(11|12|13|14)([^0-9]|$) ]] ||
        die $EXIT_ENVIRONMENT "torch $version in $env_prefix: hetlora needs >=2.11,<2.15" "or use HETLORA_USE_ENV=0 for the pinned wheel"
    folder=$("$env_prefix/bin/python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
    # Wheels keep headers in the package, conda's libtorch keeps them in the environment's own include folder.
    for torch_dir in "$folder" "$env_prefix"; do
        [ ! -f "$torch_dir/include/ATen/ATen.h" ] || return 0
    done
    die $EXIT_ENVIRONMENT "torch $version in $env_prefix has no C++ headers (looked for include/ATen/ATen.h)" \
        "install its development files there, or use HETLORA_USE_ENV=0"
}

# --- is there anything to do ----------------------------------------------------------------------------------------

content_hash() {
    {
        printf '%s\n' "$root" "$env_prefix"
        cat requirements.txt scripts/setup/python.sh
        [ ! -f analysis/pyproject.toml ] || cat analysis/pyproject.toml
    } | sha256sum | cut -d ' ' -f 1
}

is_up_to_date() {
    [ -f "$stamp" ] && [ ! -e "$incomplete" ] && [ "$(<"$stamp")" = "$wanted" ] &&
        "$venv/bin/python" -c 'import pip' >/dev/null 2>&1
}

# A .venv can be brought up to date in place if it is whole, was made at this path and for the same choice of torch.
is_usable() {
    [ ! -e "$incomplete" ] && "$venv/bin/python" -c 'import pip' >/dev/null 2>&1 &&
        grep -qF "$venv" "$venv/bin/activate" &&
        [ "$(cat "$remembered_env" 2>/dev/null || true)" = "$env_prefix" ]
}

# --- installation ---------------------------------------------------------------------------------------------------

create_venv() {
    local python
    if [ -n "$env_prefix" ]; then
        python=$env_prefix/bin/python
    else
        python=$(find_python) || die $EXIT_ENVIRONMENT "no python3, 3.10 or newer, with venv" \
            "install python3-venv, or name an interpreter: PYTHON=/path/to/python3 make setup"
    fi
    say "making .venv with $python"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    printf '%s' "$env_prefix" >"$remembered_env"
    if [ -n "$env_prefix" ]; then
        # A path file puts the environment's packages behind .venv's own.
        local site
        site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        "$env_prefix/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/hetlora_environment.pth"
    fi
}

pip_install() { "$venv/bin/python" -m pip install --quiet "$@" </dev/null; }

# requirements.txt, then its "# no-deps:" lines (packages whose own dependencies are not wanted), then analysis/.
install_packages() {
    local requirements=$venv/.hetlora-requirements.txt
    if [ -n "$env_prefix" ]; then
        grep -v '^torch==' requirements.txt >"$requirements"
    else
        cp requirements.txt "$requirements"
    fi
    pip_install -r "$requirements" || return 1
    local line
    while read -r line; do
        pip_install --no-deps "$line" || return 1
    done < <(sed -n 's/^# no-deps: *//p' requirements.txt)
    [ ! -f analysis/pyproject.toml ] || pip_install --no-deps --no-build-isolation -e ./analysis
}

main() {
    choose_environment
    [ -z "$env_prefix" ] || check_environment_torch
    wanted=$(content_hash)
    if is_up_to_date; then
        say "python packages: up to date (.venv)"
        return 0
    fi

    is_usable || create_venv
    rm -f "$stamp"
    : >"$incomplete"
    say "installing python packages into .venv (torch is the largest: minutes on a slow network)"
    if ! install_packages; then
        # pip gave up and cleaned up by itself: what is there stays usable. A kill leaves the mark, and .venv is made anew.
        rm -f "$incomplete"
        die $EXIT_ENVIRONMENT "pip could not install the packages of requirements.txt (its message is above)" \
            "check the network or pip's configuration, then: make setup"
    fi
    if [ -z "$env_prefix" ]; then
        torch_dir=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch
    fi
    printf '%s\n' "$torch_dir" >"$venv/torch_dir"
    rm -f "$incomplete"
    printf '%s' "$wanted" >"$stamp"
    say "python packages: installed (.venv)"
}

main
