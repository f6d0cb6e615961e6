#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Finds a Python that can run d2defense and hands over to install.py.
#
#   PYTHON  the interpreter to use; unset: the environment's own, else the first that will do
#   VENV    the environment to install into (default .venv)
set -u
here=$(dirname "$0")
VENV=${VENV:-.venv}
supported="CPython 3.11, 3.12 or 3.13"

# Status 0: will do; 3: a supported Python that cannot make environments; anything else: unsupported.
probe() {
    "$1" -c '
import sys
if sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)):
    sys.exit(2)
if sys.implementation.name != "cpython":
    sys.exit(2)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(3)
' >/dev/null 2>&1
}

no_venv() {
    echo "d2defense: $1 has no venv module: install it (on Debian and Ubuntu: the package python3-venv)" >&2
    exit 1
}

if [ -n "${PYTHON:-}" ]; then
    probe "$PYTHON"
    case $? in
    0) exec "$PYTHON" "$here/install.py" --venv "$VENV" --chosen "$@" ;;
    3) no_venv "$PYTHON" ;;
    *)
        found=$("$PYTHON" --version 2>/dev/null | head -n 1)
        echo "d2defense: $PYTHON is ${found:-not a Python that runs}: use $supported" >&2
        exit 1
        ;;
    esac
fi

# An environment's own Python needs no venv module.
if [ -x "$VENV/bin/python" ]; then
    probe "$VENV/bin/python"
    case $? in
    0 | 3) exec "$VENV/bin/python" "$here/install.py" --venv "$VENV" "$@" ;;
    esac
fi

without_venv=
for candidate in python3 python3.11 python3.12 python3.13; do
    probe "$candidate"
    case $? in
    0) exec "$candidate" "$here/install.py" --venv "$VENV" "$@" ;;
    3) without_venv=${without_venv:-$candidate} ;;
    esac
done
[ -z "$without_venv" ] || no_venv "$without_venv"
found=$(python3 --version 2>/dev/null | head -n 1)
echo "d2defense: python3 is ${found:-missing}: install $supported, or name one with PYTHON=..." >&2
exit 1
