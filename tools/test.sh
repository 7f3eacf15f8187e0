#!/usr/bin/env bash
# Sets up what is missing, then checks style and runs the tests on up to four cores, 3 GB of memory each;
# takes pytest's options (`-n 0` for one process).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
