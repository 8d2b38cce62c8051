# How launchers start a program; sourced, not run. It goes to the repository's root and sets PYTHON and PYTHONPATH.
#
#   launch PROGRAM START_FLAG GPUS FLAGS...
#
# PROGRAM is a file below src/. GPUS: ids such as 0 or 0,1,2,3, or `cpu`. START_FLAG (may be empty) names the weights to start
# from; it is dropped if FLAGS name some, and those of another model start from its own. With --multiGPU and several GPUs torchrun starts one process a GPU;
# `NPROC=2 ... cpu ... --multiGPU` starts two processes on the CPU. With NNODES set, this machine is one of several
# (docs/distributed.md), and --multiGPU is not needed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
[ . -ef "$OLDPWD" ] || echo "Paths are relative to $PWD, not to where this is called from." >&2

# Else files that a program opens get these numbers, and its messages end up in them.
[ -e /dev/fd/0 ] || exec </dev/null
[ -e /dev/fd/1 ] || exec >/dev/null
[ -e /dev/fd/2 ] || exec 2>/dev/null

source run/signals.bash
PYTHON=python3
[ -x .venv/bin/python ] && PYTHON=.venv/bin/python
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}

usage() {  # usage TEXT: how to call the launcher, then the end
    echo "Usage: bash run/$(basename "$0") $1" >&2
    echo "Every flag is explained in run/README.md, or by --help after what stands above." >&2
    exit 2
}

wrong() {  # wrong VARIABLE EXPECTED: the variable's value is refused, with exit status 2
    echo "$(basename "$0"): $1: expected $2; found '${!1-}' (see docs/distributed.md)" >&2
    exit 2
}

number() {  # number VARIABLE MIN MAX EXPECTED: refuses a value that is not a whole number from MIN to MAX
    [[ ${!1-} =~ ^(0|[1-9][0-9]{0,5})$ ]] && [ "${!1}" -ge "$2" ] && [ "${!1}" -le "$3" ] || wrong "$1" "$4"
}

torchrun_flags() {  # torchrun_flags PROCESSES: sets `torchrun` to src/launch.py with its flags, from NNODES and the like
    export NNODES=${NNODES:-1} MASTER_PORT=${MASTER_PORT:-29500} RESTARTS=${RESTARTS:-0}
    number NNODES 1 100000 'the number of machines'
    number RESTARTS 0 1000 'a number of restarts, 0 or more'
    torchrun=(src/launch.py --nnodes="$NNODES" --nproc-per-node="$1" --max-restarts="$RESTARTS")
    if [ "$NNODES" = 1 ]; then
        # Nothing listens to other machines.
        export NODE_RANK=0 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo
        return
    fi
    number NODE_RANK 0 $((NNODES - 1)) "this machine's number, from 0 to NNODES - 1"
    number MASTER_PORT 1 65535 'a free port of machine 0, the same on all, from 1 to 65535'
    local address interface
    address=$(getent ahostsv4 "${MASTER_ADDR-}" | awk 'NR == 1 {print $1}')
    [ -n "$address" ] || wrong MASTER_ADDR 'the address of machine 0, the same on all'
    # Gloo would take the interface of the machine's own name, which may be 127.0.1.1; not the one that leads to machine 0.
    address=$(ip -o route get "$address" 2>/dev/null | sed -n 's/.* src \([^ ]*\).*/\1/p')
    interface=$(ip -o addr show to "$address" 2>/dev/null | awk 'NR == 1 {print $2}')
    [ -z "$interface" ] || export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
    # torchrun sorts machines by --local-addr, and takes that of the first as MASTER_ADDR. It waits 600 s for machines.
    torchrun+=(--rdzv-id=lxmert --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"
        --rdzv-conf="is_host=$((NODE_RANK == 0)),join_timeout=600,read_timeout=600"
        --local-addr="$MASTER_ADDR$([ "$NODE_RANK" = 0 ] || printf '~%06d' "$NODE_RANK")")
}

launch() {
    local program start=$2 gpus=$3 flag before='' model='' several=no
    # OpenMP threads spin while they wait for each other. Beside other processes long spinning multiplies the time of an epoch by 6,
    # 500 rounds by 2.3; on idle cores 500 rounds cost a seventh (docs/results.md, "Speed").
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-500}
    program=${1#src/} program=${program%.py} program=${program//\//.}  # a module, so that its folder is not on sys.path
    shift 3
    local -a flags=("$@") torchrun=()
    export LAUNCHER="$PWD/run/$(basename "$0")"

    for flag in "${flags[@]}"; do
        [ "$before" != --model ] || model=$flag
        case $flag in
            --loadResNet | --loadResNet=* | --loadRationale | --loadRationale=*) ;;
            --load* | --fromScratch) start= ;;
            --model=*) model=${flag#*=} ;;
            --multiGPU) several=yes ;;
        esac
        before=$flag
    done
    case $start,${model:-lxmert} in
        --loadLXMERT*,lxmert) ;;
        --loadLXMERT*,vlbert) start="--loadVLBERT snap/pretrained/vl-bert-base-prec" ;;
        --loadLXMERT*,albef) start="--loadALBEF snap/pretrained/ALBEF" ;;
        --loadLXMERT*) start= ;;  # of other models nothing is published here: they start from BERT
    esac
    # shellcheck disable=SC2206  # a flag and its value are two words
    flags=($start "${flags[@]}")

    [ -z "${NPROC-}" ] || number NPROC 1 1000 'the number of processes, 1 or more'
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
        torchrun_flags "$count"
        # torchrun's own default is one thread a process
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(nproc) + count - 1) / count ))}
    fi
    [ ${#started[@]} = 0 ] || kill -0 $$ || exit 1  # the script was killed
    exec "${started[@]}" "$PYTHON" "${torchrun[@]}" -m "$program" "${flags[@]}"
}
