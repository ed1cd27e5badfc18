#!/usr/bin/env bash
# Step 1 of `make setup`: compiler and libraries.
#
# Debian and Ubuntu: dpkg-query says which packages are missing; root (or sudo without a password) installs them.
# Without root, or where there is no dpkg: prints the missing packages and goes on with what an active conda environment
# or loaded modules provide. Each requirement is probed; only a failing probe stops the set-up.
#
# HETLORA_PROBE_ROOT  (tests only) looks for system headers below this folder instead of /
set -euo pipefail
# shellcheck source=scripts/setup/common.sh
source "${BASH_SOURCE[0]%/*}/common.sh"

# In the order in which they are reported. Not probed, as the build works without: ccache, git, python3-dev.
packages=(build-essential cmake ninja-build ccache libopenmpi-dev openmpi-bin libhdf5-dev libboost-program-options-dev
    libfmt-dev libgtest-dev libssl-dev nlohmann-json3-dev python3-venv python3-dev git)
# CI tests the jobs on a Slurm of its own (tests/slurm), looks at the report's page in a browser, and builds with another
# MPI (beside Open MPI, which stays the default). Nobody else's machine gets them.
[ "${CI:-}" != true ] || packages+=(slurm-wlm munge chromium mpich libmpich-dev)

# --- what dpkg knows ------------------------------------------------------------------------------------------------

# Fills `missing` with the packages that dpkg does not have as installed.
list_missing_packages() {
    local name status package
    local -A installed=()
    while read -r name status; do
        [ "$status" = installed ] && installed[$name]=1
    done < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
    missing=()
    for package in "${packages[@]}"; do
        [ -n "${installed[$package]:-}" ] || missing+=("$package")
    done
}

# --- probes: is it there, whoever brought it ------------------------------------------------------------------------

# Folders where CMake will look for headers: compiler variables, modules' variables, conda, and <prefix>/include of
# every <prefix>/bin on PATH.
list_header_folders() {
    local variable entry
    local IFS=:
    for variable in CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH; do
        for entry in ${!variable:-}; do printf '%s\n' "$entry"; done
    done
    for entry in ${CMAKE_PREFIX_PATH:-} ${CONDA_PREFIX:-} ${HDF5_ROOT:-} ${HDF5_DIR:-} ${HDF5_HOME:-} ${BOOST_ROOT:-} \
        ${Boost_ROOT:-} ${BOOST_DIR:-} ${fmt_ROOT:-} ${GTest_ROOT:-} ${nlohmann_json_ROOT:-} ${OPENSSL_ROOT_DIR:-}; do
        printf '%s\n' "$entry/include"
    done
    for entry in $PATH; do
        case $entry in /bin | /usr/bin | /usr/local/bin) ;; */bin) printf '%s\n' "${entry%/bin}/include" ;; esac
    done
    local root=${HETLORA_PROBE_ROOT:-}
    printf '%s\n' "$root/usr/include" "$root/usr/local/include" "$root/usr/include/hdf5/serial" "$root/usr/include/hdf5/openmpi"
}

has_header() {
    local folder
    for folder in "${header_folders[@]}"; do
        [ -f "$folder/$1" ] && return 0
    done
    return 1
}

has_tool() { command -v "$1" >/dev/null 2>&1; }

has_compiler() {
    # A here-document, not a pipe: a compiler that does not read to the end must not fail the probe.
    "${CXX:-c++}" -std=c++20 -fsyntax-only -x c++ - >/dev/null 2>&1 <<'END'
#include <span>
#include <source_location>
int main() { return std::span<int>{}.size(); }
END
}

has_cmake() {
    local version
    version=$(cmake --version 2>/dev/null) || return 1
    [[ $version =~ ([0-9]+)\.([0-9]+) ]] && ((BASH_REMATCH[1] * 1000 + BASH_REMATCH[2] >= 3022))
}

# Fills `failed` with "package  what was looked for" of every requirement that is not met.
run_probes() {
    mapfile -t header_folders < <(list_header_folders)
    failed=()
    has_compiler || failed+=("build-essential  a C++20 compiler (\$CXX or c++: g++ 11 or newer)")
    has_cmake || failed+=("cmake  cmake 3.22 or newer")
    has_tool ninja || failed+=("ninja-build  ninja")
    has_tool mpicc || failed+=("libopenmpi-dev  mpicc")
    has_tool mpirun || failed+=("openmpi-bin  mpirun")
    has_header hdf5.h || failed+=("libhdf5-dev  hdf5.h")
    has_header boost/program_options.hpp || failed+=("libboost-program-options-dev  boost/program_options.hpp")
    has_header fmt/core.h || failed+=("libfmt-dev  fmt/core.h")
    has_header gtest/gtest.h || failed+=("libgtest-dev  gtest/gtest.h")
    has_header openssl/evp.h || failed+=("libssl-dev  openssl/evp.h")
    has_header nlohmann/json.hpp || failed+=("nlohmann-json3-dev  nlohmann/json.hpp")
    find_python >/dev/null || failed+=("python3-venv  python3, 3.10 or newer, with venv and ensurepip")
    [ ${#failed[@]} -eq 0 ]
}

# --- installation ---------------------------------------------------------------------------------------------------

# Sets `as_root` to the prefix that runs a command as root; fails where there is none that asks no password.
find_root() {
    if [ "$(id -u)" = 0 ]; then
        as_root=(env)
    elif has_tool sudo && sudo -n true >/dev/null 2>&1; then
        as_root=(sudo -n env)
    else
        return 1
    fi
}

install_packages() {
    local apt=("${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300) try
    say "installing system packages: ${missing[*]}"
    for try in 1 2 3; do
        # The install decides: an update that failed for one of several sources may still have what is needed.
        "${apt[@]}" update </dev/null || true
        "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null && return 0
        say "apt-get failed (try $try of 3)"
        sleep $((try * 3))
    done
    return 1
}

main() {
    missing=()
    if has_tool dpkg-query; then
        list_missing_packages
        [ ${#missing[@]} -gt 0 ] || { say "system packages: all installed"; return 0; }
    fi

    # An active environment that has everything is what its user wants: leave the system alone.
    if [ -n "${CONDA_PREFIX:-}${LOADEDMODULES:-}" ] && run_probes; then
        say "system packages: compiler and libraries found in the active environment (${CONDA_PREFIX:-modules})"
        return 0
    fi

    as_root=()
    if [ ${#missing[@]} -gt 0 ] && has_tool apt-get && find_root; then
        install_packages && return 0
        say "apt-get could not install: ${missing[*]}"
    elif [ ${#missing[@]} -gt 0 ]; then
        say "missing packages: ${missing[*]}"
        say "not installed: needs root, or sudo without a password"
    fi

    if run_probes; then
        say "system packages: going on, the build needs nothing more"
        return 0
    fi
    local names=("${failed[@]%%  *}")
    [ ${#missing[@]} -gt 0 ] || say "missing packages: ${names[*]}"
    die $EXIT_ENVIRONMENT "not found:" "${failed[@]/#/    }" \
        "mend it with one of:" \
        "    apt-get install -y ${missing[*]:-${names[*]}}     (as root, Debian or Ubuntu)" \
        "    conda env create -f environment.yml && conda activate hetlora     (no root needed)" \
        "    your site's modules (docs/install.md), then make setup again"
}

main
