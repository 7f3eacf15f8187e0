#!/usr/bin/env bash
# Sets up what is missing, then runs the demo; takes the options of tools/demo.py (see --help).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$python" "$root/tools/demo.py" "$@"
