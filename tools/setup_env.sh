#!/usr/bin/env bash
# Finds or makes a Python environment in which everything works, and leaves its interpreter in $python.
# tools/demo.sh and tools/test.sh source this file; `bash tools/setup_env.sh` only sets up.
#
# An environment that is active (a virtual one, conda, or plain python3) is used as it is if everything
# imports in it, and never changed. Otherwise .venv is made, step by step. Each finished step leaves a note
# in .venv/.steps, so that an interrupted set-up goes on where it was; what does not import in the end is
# installed again. pip's own settings (PIP_*, pip.conf) apply throughout.
#
# Environment variables: MAX_JOBS      compilers at a time for mmcv (default: all cores)
#                        SETUP_MIN_GB  free disk space asked for before installing torch (default: 10)
set -euo pipefail

root="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
setup_log="$venv/setup.log"
checked="$root/.setup_env.checked" # fingerprint of the environment in which everything last imported
lock="$root/.setup_env.lock"

# What is installed, by step. torch stays below 2.14: mmcv's ops do not build as C++20 yet.
build_tools=('setuptools>=80,<82' wheel ninja psutil cython numpy packaging)
torch=(torch==2.10.0 torchvision==0.25.0)
mmcv=(onedl-mmcv==2.3.6)
frameworks=(onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1 onedl-mmrotate==1.2.1 onedl-mim==0.5.1)
helpers=(ruff==0.17.6 pytest pytest-xdist hypothesis scikit-learn matplotlib) # ruff's formatting differs by version

# A notebook names a backend of its own here, without which matplotlib and mmdet do not import.
export MPLBACKEND=Agg
# The tools import one another; a home of another Python keeps .venv from finding its packages.
unset PYTHONSAFEPATH PYTHONHOME

say() { printf '%s\n' "$*" >&2; }
die() {
    say "set-up: $*"
    exit 1
}
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# --- environments that are there already -----------------------------------------------------------------

# Interpreters of active environments, the most explicit first.
active_interpreters() {
    local folder plain
    plain="$(command -v python3 || true)"
    for folder in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
        [[ -n "$folder" ]] || continue
        echo "$folder/bin/python"
        [[ "$plain" != "$folder/bin/"* ]] || plain='' # the same one
    done
    [[ -z "$plain" ]] || echo "$plain"
}

# Succeeds if everything imports; else $complaint has a line `STEP MODULE: REASON` for what does not.
# Imports are tried once per state of an environment.
usable() {
    local answer fingerprint
    if ! answer="$("$1" "$root/tools/check_env.py" quick 2>&1 </dev/null)"; then
        complaint="${answer##*$'\n'}"
        return 1
    fi
    fingerprint="${answer##*$'\n'}"
    if [[ -f "$checked" && "$(cat "$checked")" == "$fingerprint" ]]; then
        return 0
    fi
    say "checking that everything imports in $1 (only this once)"
    if ! complaint="$("$1" "$root/tools/check_env.py" full 2>/dev/null </dev/null)"; then
        return 1
    fi
    # A clone that cannot be written to is checked every time.
    (echo "$fingerprint" >"$checked") 2>/dev/null || true
}

# --- what must be there before anything can be installed -------------------------------------------------

suitable_version='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))'
# Of an active environment the interpreter that it was made with: the environment may be .venv itself.
outside='import sys; print("{}/bin/python{}.{}".format(sys.base_prefix, *sys.version_info))'

# Sets $base_python to an interpreter that can make the environment and compile for it.
find_python() {
    local candidate first_problem='' problem include
    for candidate in python3.11 python3.12 python3.10 python3 python; do
        "$candidate" -c "$suitable_version" 2>/dev/null || continue
        include="$("$candidate" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
        if ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            problem="$candidate cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install $candidate-venv)"
        elif [[ ! -f "$include/Python.h" ]]; then
            problem="$candidate has no headers ($include/Python.h): install them (Debian, Ubuntu: apt install $candidate-dev; Fedora: $candidate-devel)"
        else
            base_python="$("$candidate" -c "$outside")"
            [[ -x "$base_python" ]] || base_python="$candidate"
            return
        fi
        first_problem="${first_problem:-$problem}"
    done
    die "${first_problem:-no Python 3.10, 3.11 or 3.12 found: install one so that python3.11 (or python3.12, python3.10, python3) runs it}"
}

need_compiler() {
    local missing=''
    command -v "${CC:-gcc}" >/dev/null || command -v cc >/dev/null || missing='C'
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || missing='C++'
    [[ -z "$missing" ]] ||
        die "no $missing compiler found, which mmcv needs: install gcc and g++ (Debian, Ubuntu: apt install build-essential; Fedora: dnf install gcc-c++)"
}

need_disk_space() {
    local free_gb wanted_gb="${SETUP_MIN_GB:-10}"
    [[ "$wanted_gb" =~ ^[0-9]+$ ]] || die "SETUP_MIN_GB: found $wanted_gb, expected a whole number of GB"
    # Names of network shares may have spaces, so columns are counted from the percentage.
    free_gb="$(df -Pk "$root" | awk 'NR == 2 { for (i = 1; i < NF && $i !~ /^[0-9]+%$/; i++); print int($(i - 1) / 1048576) }')"
    ((free_gb >= 10#$wanted_gb)) ||
        die "only $free_gb GB free in $root, and torch with its GPU libraries needs $wanted_gb GB: free some, or clone to a larger disk (where pip is set to a CPU-only torch, SETUP_MIN_GB=4 is enough)"
}

# With a GPU in sight mmcv compiles its ops for it, which takes the CUDA toolkit.
need_cuda_toolkit() {
    "$python" - 2>/dev/null <<'PYTHON' || die 'torch sees a GPU, but nvcc is not found, which mmcv needs to compile for it: install the CUDA toolkit (or set CUDA_HOME), or set up for the CPU with CUDA_VISIBLE_DEVICES= in front of the command'
import sys, torch
from torch.utils.cpp_extension import CUDA_HOME
sys.exit(torch.cuda.is_available() and torch.version.cuda is not None and CUDA_HOME is None)
PYTHON
}

# --- steps ------------------------------------------------------------------------------------------------

total_steps=8
step_number=0

announce() {
    step_number=$((step_number + 1))
    say "[$step_number/$total_steps] $1"
}

# Runs a command with its output in the log, and shows that it is alive.
logged() {
    local begin=$SECONDS status=0
    heartbeat "$begin" &
    heart=$!
    trap 'kill "$heart" 2>/dev/null || true' EXIT
    "$@" >>"$setup_log" 2>&1 || status=$?
    kill "$heart" 2>/dev/null || true
    wait "$heart" 2>/dev/null || true
    trap - EXIT
    if ((status == 0)); then say "${line_start}      done in $(minutes $((SECONDS - begin)))"; fi
    return "$status"
}

# On a terminal the heartbeat rewrites one line; elsewhere (CI) lines add up, so there are fewer.
if [[ -t 2 ]]; then
    pause=2 line_start=$'\r\033[K' line_end=''
else
    pause=30 line_start='' line_end=$'\n'
fi

heartbeat() {
    # The pause must hold neither our output nor the lock open when the heartbeat is stopped.
    while sleep "$pause" >/dev/null 2>&1 9>&- && kill -0 $$ 2>/dev/null; do
        printf '%s      %s %s%s' \
            "$line_start" "$(minutes $((SECONDS - $1)))" "$(compiled_objects)" "$line_end" >&2
    done
}

# The last "[35/78]" that ninja wrote, as words.
compiled_objects() {
    tail -c 20000 "$setup_log" | sed -n 's/^ *\[\([0-9]*\)\/\([0-9]*\)\] .*/compiled \1 of \2/p' | tail -n 1
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# step NAME TITLE PIP-ARGUMENT...: one step, unless its note says that just this was done before.
step() {
    local name="$1" title="$2" note="$venv/.steps/$1" again=()
    shift 2
    if [[ -f "$note" && "$(cat "$note")" == "$*" ]]; then
        announce "$title: there"
        return
    fi
    announce "$title"
    [[ ! -f "$note.again" ]] || again=(--force-reinstall)
    : >"$setup_log"
    logged pip install ${again[@]+"${again[@]}"} "$@" || explain_failure "$title"
    finished "$name" "$@"
}

finished() {
    echo "${*:2}" >"$venv/.steps/$1"
    rm -f "$venv/.steps/$1.again"
}

# Marks a step as one whose packages are all to be installed again.
redo() {
    rm -f "$venv/.steps/$1"
    touch "$venv/.steps/$1.again"
}

# A package whose installation was cut off near its end passes for installed and cannot be uninstalled,
# since its list of files is missing. Without its metadata pip installs over it.
forget_unfinished_packages() {
    local metadata
    for metadata in "$venv"/lib/python*/site-packages/*.dist-info; do
        [[ -f "$metadata/RECORD" ]] || rm -rf "$metadata"
    done
}

# Turns pip's last words into one line that says what to do.
explain_failure() {
    local reason last_words
    last_words="$(tail -n 20 "$setup_log")"
    if grep -q 'Operation cancelled by user' <<<"$last_words"; then
        reason='interrupted'
    elif grep -q 'No space left on device' "$setup_log"; then
        reason="the disk is full (pip also unpacks in ${TMPDIR:-/tmp}; TMPDIR=FOLDER chooses another place)"
    elif grep -qE 'Killed signal|fatal error: Killed' "$setup_log"; then
        reason='the compiler ran out of memory: run again with MAX_JOBS=1'
    elif grep -qE 'from versions: none|NewConnectionError|name resolution|Max retries' <<<"$last_words"; then
        reason='pip reached no package index that has it: check the network, or name an index (PIP_INDEX_URL, or pip config set global.index-url URL)'
    else
        say "$last_words"
        reason='see the lines above'
    fi
    die "${1%% (*}: $reason; all output is in $setup_log; running the command again goes on from here"
}

# An interrupted start has no pip; in a moved clone the programs of the environment point to the old place.
whole_venv() {
    pip --version >/dev/null 2>&1 && grep -qsF "$venv/bin/" "$venv/bin/pip" &&
        "$venv/bin/python" -c "$suitable_version"
}

make_venv() {
    if [[ -e "$venv" || -L "$venv" ]]; then
        if whole_venv; then
            announce 'virtual environment: there'
            mkdir -p "$venv/.steps"
            return
        fi
        [[ ! -f "$venv/pyvenv.cfg" || -d "$venv/.steps" ]] ||
            die "$venv was not made by this set-up, and cannot be used as it is: it has no pip, was made in another place, or is not of Python 3.10 to 3.12. Give it its pip (uv: uv pip install pip), rename or remove it, and run again"
        say "$venv is half-built, or was made in another place: starting it afresh"
    fi
    find_python
    need_disk_space
    need_compiler
    announce "virtual environment .venv with $("$base_python" --version 2>&1)"
    # Interrupted anywhere, what is left is not taken for an environment of somebody else.
    # What a link leads to is of another checkout, and stays.
    [[ -L "$venv" ]] || rm -f "$venv/pyvenv.cfg"
    rm -rf "$venv"
    mkdir -p "$venv/.steps"
    "$base_python" -m venv "$venv" ||
        die "$base_python could not make $venv; its own message is above"
}

install_torch() {
    [[ -f "$venv/.steps/torch" ]] || need_disk_space
    step torch 'torch and torchvision (a download of up to 3 GB)' "${torch[@]}"
}

install_mmcv() {
    local title='mmcv, compiling its ops (10 minutes on 2 cores, unless pip has them from before)'
    if [[ ! -f "$venv/.steps/mmcv" ]]; then
        need_compiler
        need_cuda_toolkit
    fi
    export MMCV_WITH_OPS=1
    export MAX_JOBS="${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}"
    step mmcv "$title" -v --no-build-isolation "${mmcv[@]}"
    if ! "$python" "$root/tools/check_env.py" ops >>"$setup_log" 2>&1; then
        say '      the ops that pip had from before do not fit this torch: compiling them'
        rm "$venv/.steps/mmcv"
        logged pip install -v --no-build-isolation --no-cache-dir --force-reinstall --no-deps "${mmcv[@]}" ||
            explain_failure "$title"
        finished mmcv -v --no-build-isolation "${mmcv[@]}"
    fi
}

# opencv-python needs libGL, which many servers lack; its headless twin serves as well.
fit_opencv() {
    local version
    announce 'OpenCV'
    if "$python" -c 'import cv2' >>"$setup_log" 2>&1; then return; fi
    say '      opencv-python cannot be imported here (no libGL?): replacing it by opencv-python-headless'
    version="$("$python" -c 'from importlib.metadata import version; print(version("opencv-python"))' 2>/dev/null || true)"
    logged pip uninstall -y opencv-python || true
    logged pip install --force-reinstall --no-deps "opencv-python-headless${version:+==$version}" ||
        explain_failure 'OpenCV'
    "$python" -c 'import cv2' 2>>"$setup_log" ||
        die "OpenCV cannot be imported: $(tail -n 1 "$setup_log")"
}

install_all() {
    step_number=0
    make_venv
    forget_unfinished_packages
    python="$venv/bin/python"
    step build-tools 'build tools' "${build_tools[@]}"
    install_torch
    install_mmcv
    step frameworks 'mmengine, mmdet, mmrotate, mim' --no-build-isolation "${frameworks[@]}"
    step helpers 'test and demo tools' "${helpers[@]}"
    fit_opencv
    # Quick enough to be done each time; it follows a change of setup.py or pyproject.toml.
    rm -f "$venv/.steps/plugin"
    step plugin 'the plugin itself' --no-deps --no-build-isolation -e "$root"
}

# Installs what is missing, and once more what turns out not to import.
build_venv() {
    local begin=$SECONDS name
    install_all
    if usable "$python"; then
        say "environment ready after $(minutes $((SECONDS - begin)))"
        return
    fi
    say "not everything imports; installing that again: $complaint"
    while read -r name _; do redo "$name"; done <<<"$complaint"
    install_all
    usable "$python" || die "still not importable: ${complaint%%$'\n'*}; remove $venv and run again"
}

# Two set-ups of one clone wait for each other, where the system can lock files. Succeeds if it had to wait.
waited_for_another() {
    exec 9>"$lock"
    if ! command -v flock >/dev/null || flock -n 9; then return 1; fi
    say 'another set-up of this clone is running; waiting for it'
    flock 9
}

# --- all together -----------------------------------------------------------------------------------------

setup_env() {
    local candidate
    while read -r candidate; do
        if usable "$candidate"; then
            python="$candidate"
            return
        fi
        # Someone who activated an environment wants to know why it is not used; a plain python3 may lack anything.
        [[ "$candidate" != "${VIRTUAL_ENV:-${CONDA_PREFIX:--}}/"* ]] ||
            say "not using the active environment, because this does not work in it: ${complaint%%$'\n'*}"
    done < <(active_interpreters)
    python="$venv/bin/python"
    if usable "$python"; then return; fi
    (: >>"$lock") 2>/dev/null ||
        die "no active environment has everything, and $root cannot be written to, so that none can be set up in it: activate one, or clone to another folder"
    say "setting up $venv (about 12 minutes on 2 cores the first time)"
    if ! { waited_for_another && usable "$python"; }; then build_venv; fi
    exec 9>&-
}

setup_env
# Programs that the tools start themselves (mim, torchrun) come from the same environment.
PATH="$(dirname "$python"):$PATH"
export PATH
