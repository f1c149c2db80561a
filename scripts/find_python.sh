#!/bin/sh
# Prints the Python that the Makefile builds its .venv from: find_python.sh [PYTHON]
# PYTHON is a command, a path or a version: 3.11, 3.12 or 3.13, for which the lock files are made. Without it: 3.12, else
# 3.11, else 3.13 (CoinRun has no wheel for 3.13), in PATH or installed by pyenv or uv, activated or not. Without uv, only one that can make a venv by itself counts.

if command -v uv >/dev/null 2>&1; then uv=yes needs=sys; else uv="" needs=ensurepip; fi

runs() {
    "$1" -c "import $needs, sys, venv
version = '%d.%d' % sys.version_info[:2]
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) or version != ('$2' or version))" >/dev/null 2>&1
}

found() { "$1" -c 'import sys; print(sys.executable)'; }

find_version() {
    for candidate in "python$1" python3 python "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1"; do
        if runs "$candidate" "$1"; then found "$candidate"; return 0; fi
    done
    if [ "$uv" ]; then
        candidate=$(uv python find --no-project "$1" 2>/dev/null)
        if runs "$candidate" "$1"; then found "$candidate"; return 0; fi
    fi
    return 1
}

case "$1" in
    "") ;;
    3.[0-9]*)
        find_version "$1" && exit 0
        echo "No usable Python $1 in PATH, pyenv or uv (wm_jax needs 3.11, 3.12 or 3.13). Give a path: PYTHON=/path/to/python3" >&2
        exit 1 ;;
    *)
        if runs "$1" ""; then found "$1"; exit 0; fi
        echo "PYTHON=$1 does not run, is not Python 3.11, 3.12 or 3.13, or lacks the venv module (Debian: python3-venv)." >&2
        exit 1 ;;
esac

for version in 3.12 3.11 3.13; do
    find_version "$version" && exit 0
done
echo "wm_jax needs Python 3.11, 3.12 or 3.13 with the venv module (Debian: python3-venv), and found none in PATH, pyenv" >&2
echo "or uv. Install one, or give its path: make $MAKECMDGOALS PYTHON=/path/to/python3" >&2
exit 1
