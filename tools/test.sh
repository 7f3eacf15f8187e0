#!/usr/bin/env bash
# Sets up what is missing, then checks style and runs the tests; takes pytest's options.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
