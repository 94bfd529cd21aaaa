#!/usr/bin/env bash
# Makes .venv with pinned wheels, the project itself and the model. Nothing is compiled.
#   tools/setup.sh run    what `bul` needs
#   tools/setup.sh dev    what the tests and checks need, on top
# Does nothing when the pins have not changed since the last time.
set -euo pipefail
cd "$(dirname "$0")/.."
part="${1:-run}"
python=.venv/bin/python

say() { printf '%s\n' "$*"; }

usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

find_python() {
    local name
    for name in python3.11 python3 python3.12 python3.13 python3.14; do
        if usable "$name"; then
            say "$name"
            return
        fi
    done
    say "bul: Python 3.11 or newer is needed; on Debian: apt-get install python3 python3-venv" >&2
    return 1
}

# Debian splits venv out of Python; without ensurepip a virtual environment would have no pip.
need_venv_module() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    local package
    package="$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "      installing $package with apt-get"
        apt-get install -y -qq "$package" >/dev/null 2>&1 ||
            { apt-get update -qq && apt-get install -y -qq "$package" >/dev/null; }
        return
    fi
    say "bul: $1 has no venv module; install it with: sudo apt-get install $package" >&2
    return 1
}

fingerprint() { cat "$@" | cksum | tr -d ' \n'; }

# One line per wheel, so that a slow network shows progress; of pip's own words only errors.
install_pins() {
    "$python" -m pip install --disable-pip-version-check --only-binary=:all: --no-deps -r "$1" 2>&1 |
        sed -u -n -E \
            -e 's/^Collecting ([^ ;]+).*/      \1/p' \
            -e 's/^Installing .*/      installing/p' \
            -e '/^ERROR/p'
}

setup_run() {
    local wanted stamp=.venv/.setup-run
    wanted="$(fingerprint requirements.txt pyproject.toml tools/setup.sh)"
    [ -x .venv/bin/bul ] && [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && return
    local base
    base="$(find_python)"
    say "[1/4] virtual environment in .venv with $base (5 s)"
    need_venv_module "$base"
    [ -x "$python" ] || "$base" -m venv .venv
    say "[2/4] wheels from requirements.txt (10 to 60 s)"
    install_pins requirements.txt
    say "[3/4] bul itself (5 s)"
    "$python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
    say "[4/4] the model, SmolLM2-135M-Instruct, about 90 MB (5 to 60 s, once per machine)"
    .venv/bin/bul model fetch
    say "$wanted" >$stamp
}

setup_dev() {
    local wanted stamp=.venv/.setup-dev
    wanted="$(fingerprint requirements-dev.txt)"
    [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && return
    say "[dev] wheels from requirements-dev.txt (10 to 60 s)"
    install_pins requirements-dev.txt
    say "$wanted" >$stamp
}

setup_run
if [ "$part" = dev ]; then
    setup_dev
fi
