#!/usr/bin/env bash
# Puts in place what the build needs, and only what is missing: tools/setup.sh [--check]
#   --check  also what tools/check can use: the format checker and the Fashion-MNIST data set
# A tool or a header that is there counts, whoever installed it. Where nothing is missing, nothing is touched.
# Sourced, it defines `setup`, `setup_clang_format` and `say_cuda`.
set -euo pipefail

setup_cmake_least=3.25

setup_has_header() {
  printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" |
    "${CXX:-g++}" -std=c++20 -E -x c++ - >/dev/null 2>&1
}

setup_has_compiler() {
  printf '#include <compare>\n#include <span>\nint main() { return 0; }\n' |
    "${CXX:-g++}" -std=c++20 -fopenmp -fsyntax-only -x c++ - >/dev/null 2>&1
}

setup_has_cmake() {
  local version
  version=$(cmake --version 2>/dev/null | sed -n '1s/[^0-9]*//p') || return 1
  [ -n "$version" ] && printf '%s\n' "$setup_cmake_least" "$version" | sort -C -V
}

# Is the capability there that a Debian package would bring?
setup_has() {
  case "$1" in
    g++) setup_has_compiler ;;
    cmake) setup_has_cmake ;;
    ninja-build) command -v ninja >/dev/null || command -v ninja-build >/dev/null ;;
    libfmt-dev) setup_has_header fmt/format.h ;;
    doctest-dev) setup_has_header doctest/doctest.h ;;
    libcli11-dev) setup_has_header CLI/CLI.hpp ;;
    nlohmann-json3-dev) setup_has_header nlohmann/json.hpp ;;
    zlib1g-dev) setup_has_header zlib.h ;;
    clang-format-14) setup_clang_format >/dev/null ;;
    dataset-fashion-mnist) [ -d /usr/share/datasets/fashion-mnist ] ;;
    *) return 1 ;;
  esac
}

# Prints the name of a clang-format 14.
setup_clang_format() {
  local name
  for name in clang-format-14 clang-format; do
    if "$name" --version 2>/dev/null | grep -q 'version 14\.'; then
      echo "$name"
      return 0
    fi
  done
  return 1
}

# Prints which of the packages are neither installed nor otherwise there.
setup_missing() {
  local package installed=""
  if command -v dpkg-query >/dev/null; then
    # Exits with 1 if it does not know one of them.
    installed=$(dpkg-query -W -f='${db:Status-Abbrev}${binary:Package}\n' "$@" 2>/dev/null |
      sed -n 's/^ii *\([^:]*\).*/\1/p') || true
  fi
  for package in "$@"; do
    grep -qxF -- "$package" <<<"$installed" || setup_has "$package" || echo "$package"
  done
}

# Debian ≥ 12 or Ubuntu ≥ 24.04.
setup_knows_distribution() {
  local id version least
  [ -r /etc/os-release ] && command -v apt-get >/dev/null || return 1
  id=$(. /etc/os-release && echo "${ID:-}")
  version=$(. /etc/os-release && echo "${VERSION_ID:-}")
  case "$id" in
    debian) least=12 ;;
    ubuntu) least=24.04 ;;
    *) return 1 ;;
  esac
  # Debian's next release has no number yet.
  [ -z "$version" ] || printf '%s\n' "$least" "$version" | sort -C -V
}

# May this user install packages without being asked where nobody could answer?
setup_may_install() {
  [ "$(id -u)" -eq 0 ] && return 0
  command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }
}

setup_apt() {
  local -a as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >&2
}

setup_lists_are_empty() { ! compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null; }

setup() {
  local package
  local -a needed optional=() available=()
  mapfile -t needed < <(setup_missing g++ cmake ninja-build libfmt-dev doctest-dev libcli11-dev \
    nlohmann-json3-dev zlib1g-dev)
  if [ "${1:-}" = --check ]; then
    mapfile -t optional < <(setup_missing clang-format-14 dataset-fashion-mnist)
  fi
  [ "$((${#needed[@]} + ${#optional[@]}))" -gt 0 ] || return 0

  if [ "${#needed[@]}" -gt 0 ]; then
    if ! setup_knows_distribution; then
      echo "setup: missing: ${needed[*]} (Debian's names, cmake >= $setup_cmake_least; Debian 12, Ubuntu 24.04 and newer are known here): install them and start again" >&2
      return 1
    fi
    # Lists that cannot be updated may still do.
    if ! setup_may_install || ! {
      echo "setup: installing ${needed[*]}" >&2
      setup_apt update || true
      setup_apt install -y --no-install-recommends "${needed[@]}"
    }; then
      echo "setup: missing: ${needed[*]}; run: sudo apt-get update && sudo apt-get install -y ${needed[*]}" >&2
      return 1
    fi
  fi

  if [ "${#optional[@]}" -gt 0 ] && setup_knows_distribution && setup_may_install; then
    if setup_lists_are_empty; then setup_apt update || true; fi
    for package in "${optional[@]}"; do
      if apt-cache show "$package" >/dev/null 2>&1; then available+=("$package"); fi
    done
    if [ "${#available[@]}" -gt 0 ]; then
      echo "setup: installing ${available[*]}" >&2
      setup_apt install -y --no-install-recommends "${available[@]}" || true
    fi
  fi
  for package in ${optional[@]+"${optional[@]}"}; do
    setup_has "$package" || echo "setup: going on without $package, which could not be installed" >&2
  done
}

# say_cuda BUILD: whether the configured build folder compiles the CUDA backend.
say_cuda() {
  local nvcc
  nvcc=$(sed -n 's/^ULP_NVCC:[A-Z]*=//p' "$1/CMakeCache.txt")
  if grep -q '^ULP_CUDA:BOOL=ON$' "$1/CMakeCache.txt"; then
    echo "CUDA: compiled with $nvcc"
  elif [ -z "$nvcc" ] || [[ $nvcc == *-NOTFOUND ]]; then
    echo "CUDA: NOT compiled, nvcc was not found; this build runs on the CPU"
  else
    echo "CUDA: NOT compiled, $1 is configured with ULP_CUDA=OFF; this build runs on the CPU"
  fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  setup "$@"
fi
