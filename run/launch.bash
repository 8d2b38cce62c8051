# The one way in which launchers start a program; sourced, not run. It goes to the repository's root and sets PYTHON and PYTHONPATH.
#
#   launch PROGRAM START_FLAG GPUS FLAGS...
#
# PROGRAM is a file below src/. GPUS: ids such as 0 or 0,1,2,3, or `cpu`. START_FLAG (may be empty) says which weights to
# start from; it is added only where FLAGS say nothing of it. With --multiGPU and several GPUs torchrun starts one process
# a GPU; `NPROC=2 ... cpu ... --multiGPU` starts two processes on the CPU.
# With NNODES set, this machine is one of several (run/README.md), and --multiGPU is not needed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
[ . -ef "$OLDPWD" ] || echo "Paths are relative to $PWD, not to where this is called from." >&2

PYTHON=python3
[ -x .venv/bin/python ] && PYTHON=.venv/bin/python
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}

usage() {  # usage TEXT: how to call the launcher, then the end
    echo "Usage: bash run/$(basename "$0") $1" >&2
    echo "Every flag is explained in run/README.md, or by --help after what stands above." >&2
    exit 2
}

launch() {
    local program start=$2 gpus=$3 flag several=no
    # Threads that wait spin for long by default, which brings training to a crawl where something else uses a core.
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
    program=${1#src/} program=${program%.py} program=${program//\//.}  # a module, so that its folder is not on sys.path
    shift 3
    local -a flags=("$@") by=()
    export LAUNCHER="$PWD/run/$(basename "$0")"

    for flag in "${flags[@]}"; do
        case $flag in
            --load | --load=* | --loadLXMERT | --loadLXMERT=* | --loadLXMERTQA | --loadLXMERTQA=* | --fromScratch) start= ;;
            --multiGPU) several=yes ;;
        esac
    done
    # shellcheck disable=SC2206  # a flag and its value are two words
    flags=($start "${flags[@]}")

    local count=${NPROC:-1}
    if [ "$gpus" = cpu ]; then
        flags+=(--device cpu)
    elif [[ $gpus =~ ^[0-9]+(,[0-9]+)*$ ]]; then
        export CUDA_VISIBLE_DEVICES=$gpus
        count=$(awk -F, '{print NF}' <<<"$gpus")
    else
        echo "$(basename "$0"): first argument: expected GPU ids such as 0 or 0,1, or cpu; found '$gpus'" >&2
        exit 2
    fi
    if { [ $several = yes ] && [ "$count" -gt 1 ]; } || [ "${NNODES:-1}" != 1 ]; then
        by=(src/machines.py "$count")
        # torchrun's own default is one thread a process
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(nproc) + count - 1) / count ))}
    fi
    exec "$PYTHON" "${by[@]}" -m "$program" "${flags[@]}"
}
