#!/usr/bin/env bash
# Tests of scripts/setup*: without root the list of missing packages is exact, environments are recognised, a second call
# is instantaneous and uses no network, and an interrupted or failed installation is done again.
#
# The scripts run as they are, in a copy, with a PATH that holds only the named tools and stand-ins for apt-get, sudo and
# dpkg-query; started as root, the cases without root really drop it (setpriv). Takes about 15 seconds.
set -uo pipefail
unset CI # adds packages

repository=$(cd -- "${BASH_SOURCE[0]%/*}/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

all_packages="build-essential cmake ninja-build ccache libopenmpi-dev openmpi-bin libhdf5-dev libboost-program-options-dev \
libfmt-dev libgtest-dev libssl-dev nlohmann-json3-dev python3-venv python3-dev git"
# What the probes can see: all but ccache, python3-dev and git.
probed_packages="build-essential cmake ninja-build libopenmpi-dev openmpi-bin libhdf5-dev libboost-program-options-dev \
libfmt-dev libgtest-dev libssl-dev nlohmann-json3-dev python3-venv"

n_failed=0
n_passed=0
check() { # check DESCRIPTION EXPECTED ACTUAL
    if [ "$2" = "$3" ]; then
        n_passed=$((n_passed + 1))
    else
        n_failed=$((n_failed + 1))
        printf 'FAILED %s\n  expected: %s\n  actual:   %s\n' "$1" "$2" "$3"
    fi
}

# --- a machine made of stand-ins ------------------------------------------------------------------------------------

new_machine() { # fills $tools with a minimal set, a dpkg-query that knows $1 as installed, and a copy of the scripts
    rm -rf "$work/machine" && mkdir -p "$work/machine"/{tools,root,repo/scripts}
    tools=$work/machine/tools
    local tool
    for tool in bash env cat grep id sed sha256sum cut rm cp sleep; do
        ln -s "$(command -v "$tool")" "$tools/$tool"
    done
    cp -r "$repository/scripts/setup" "$repository/scripts/setup.sh" "$work/machine/repo/scripts/"
    stand_in dpkg-query 'for name in '"$1"'; do echo "$name installed"; done; echo "git config-files"; exit 1'
    chmod -R a+rX "$work/machine"
}

stand_in() { # stand_in NAME BODY
    printf '#!%s\n%s\n' "$(command -v bash)" "$2" >"$tools/$1" && chmod 755 "$tools/$1"
}

conda_prefix() { # a folder that looks like an active environment with everything in it
    prefix=$work/machine/conda
    mkdir -p "$prefix"/bin "$prefix"/include/{boost,fmt,gtest,openssl,nlohmann}
    touch "$prefix"/include/{hdf5.h,boost/program_options.hpp,fmt/core.h,gtest/gtest.h,openssl/evp.h,nlohmann/json.hpp}
    local saved=$tools
    tools=$prefix/bin
    stand_in c++ 'exit 0'
    stand_in cmake 'echo "cmake version 3.28.1"'
    stand_in ninja 'exit 0'
    stand_in mpicc 'exit 0'
    stand_in mpirun 'exit 0'
    stand_in python3 "echo $prefix/bin/python3"
    tools=$saved
    chmod -R a+rX "$prefix"
}

as_user() { # without root
    if [ "$(id -u)" = 0 ]; then setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; else "$@"; fi
}

run_system_step() { # run_system_step [VARIABLE=value ...]: sets output, code
    output=$(as_user env -i PATH="$tools" HETLORA_PROBE_ROOT="$work/machine/root" "$@" \
        bash "$work/machine/repo/scripts/setup/system.sh" 2>&1)
    code=$?
}

missing_line() { sed -n 's/^setup: missing packages: //p' <<<"$output"; }
not_found() { sed -n 's/^setup:     \([a-z0-9-]*\)  .*/\1/p' <<<"$output" | grep -v '^apt-get\|^conda' | tr '\n' ' ' | sed 's/ $//'; }

# --- the list of missing packages -----------------------------------------------------------------------------------

new_machine ""
run_system_step
check "empty machine: exit code" 4 "$code"
check "empty machine: missing packages" "$all_packages" "$(missing_line)"
check "empty machine: failed probes" "$probed_packages" "$(not_found)"

run_system_step CI=true
check "CI: missing packages" "$all_packages slurm-wlm munge chromium mpich libmpich-dev" "$(missing_line)"

new_machine "build-essential cmake libfmt-dev python3-dev"
run_system_step
check "four installed: missing packages" "ninja-build ccache libopenmpi-dev openmpi-bin libhdf5-dev \
libboost-program-options-dev libgtest-dev libssl-dev nlohmann-json3-dev python3-venv git" "$(missing_line)"

new_machine ""
rm "$tools/dpkg-query"
run_system_step
check "no dpkg: exit code" 4 "$code"
check "no dpkg: missing packages" "$probed_packages" "$(missing_line)"

new_machine "$all_packages"
run_system_step
check "all installed" "0 setup: system packages: all installed" "$code $output"

# --- conda, modules, sudo -------------------------------------------------------------------------------------------

new_machine ""
conda_prefix
run_system_step PATH="$prefix/bin:$tools" CONDA_PREFIX="$prefix"
check "complete conda environment" "0 setup: system packages: compiler and libraries found in the active environment ($prefix)" "$code $output"

rm "$prefix/include/fmt/core.h"
run_system_step PATH="$prefix/bin:$tools" CONDA_PREFIX="$prefix"
check "conda without fmt: exit code" 4 "$code"
check "conda without fmt: failed probes" "libfmt-dev" "$(not_found)"

touch "$prefix/include/fmt/core.h"
tools=$prefix/bin stand_in cmake 'echo "cmake version 3.18.4"'
run_system_step PATH="$prefix/bin:$tools" LOADEDMODULES=gcc/12
check "modules with an old cmake: failed probes" "cmake" "$(not_found)"

new_machine "git"
stand_in apt-get "echo \"\$*\" >>$work/machine/apt-calls"
stand_in sudo 'exit 1'
run_system_step
check "sudo that asks a password: exit code" 4 "$code"
check "sudo that asks a password: apt-get not called" "" "$(cat "$work/machine/apt-calls" 2>/dev/null)"

new_machine "build-essential cmake ninja-build ccache libopenmpi-dev openmpi-bin libhdf5-dev python3-venv python3-dev"
stand_in apt-get "echo \"\$*\" >>$work/machine/apt-calls"
stand_in sudo 'shift; "$@"'
touch "$work/machine/apt-calls" && chmod 666 "$work/machine/apt-calls"
run_system_step
check "sudo without a password: exit code" 0 "$code"
check "sudo without a password: what is installed" "libboost-program-options-dev libfmt-dev libgtest-dev libssl-dev nlohmann-json3-dev git" \
    "$(sed -n 's/.* install -y --no-install-recommends //p' "$work/machine/apt-calls" 2>/dev/null)"

# --- .venv: nothing twice, no network, interruptions ----------------------------------------------------------------

run_setup() { # run_setup FOLDER: with a broken apt-get and without a package index; sets output, code
    output=$(env PATH="$tools:$PATH" PIP_NO_INDEX=1 PIP_FIND_LINKS= HETLORA_USE_ENV= "$1/scripts/setup.sh" 2>&1)
    code=$?
}

new_machine "$all_packages"
stand_in apt-get "echo \"\$*\" >>$work/machine/apt-calls; exit 100"
rm "$tools"/{bash,env,cat,grep,id,sed,sha256sum,cut,rm,cp,sleep}
repo=$work/machine/repo
echo "# nothing to install" >"$repo/requirements.txt"
run_setup "$repo"
check "first call makes .venv" "0 yes" "$code $([ -f "$repo/.venv/.hetlora-stamp" ] && echo yes)"

touch "$repo/.venv/leftover"
run_setup "$repo"
check "second call does nothing" "0 setup: python packages: up to date (.venv)" "$code ${output##*$'\n'}"
check "second call keeps .venv" yes "$([ -e "$repo/.venv/leftover" ] && echo yes)"

touch "$repo/.venv/.hetlora-incomplete"
run_setup "$repo"
check "killed installation is made anew" "0 gone" "$code $([ -e "$repo/.venv/leftover" ] || echo gone)"

echo "no-such-package-of-hetlora==1.0" >"$repo/requirements.txt"
run_setup "$repo"
check "failed installation: exit code" 4 "$code"
check "failed installation: no stamp, .venv kept" "no yes" \
    "$([ -e "$repo/.venv/.hetlora-stamp" ] && echo yes || echo no) $([ -x "$repo/.venv/bin/python" ] && echo yes)"

echo "# nothing again" >"$repo/requirements.txt"
run_setup "$repo"
check "mended requirements: installed" "0 setup: python packages: installed (.venv)" "$code ${output##*$'\n'}"

# --- this repository, set up already --------------------------------------------------------------------------------

run_setup "$repository"
check "this repository, second call: nothing to do, no network" "0 setup: python packages: up to date (.venv)" "$code ${output##*$'\n'}"
check "apt-get never called" "" "$(cat "$work/machine/apt-calls" 2>/dev/null)"

echo "$n_passed passed, $n_failed failed"
[ $n_failed -eq 0 ]
