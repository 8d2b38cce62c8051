#!/usr/bin/env bash
# ALBEF's programs, with its configurations and flags: bash run/albef.bash Retrieval --config configs/Retrieval_flickr.yaml \
#     --output_dir output/Retrieval_flickr --checkpoint data/albef/ALBEF.pth [--evaluate] [--device cpu] [--distributed False]
# One process a GPU of CUDA_VISIBLE_DEVICES, or as many as --world_size says; one if it says neither. With --device cpu NPROC
# processes. The original: 5 hours for each of 30 epochs of pre-training on 4.0 million images on 8 V100.
# Writes to --output_dir: log.txt, config.yaml, checkpoint_best.pth or checkpoint_NN.pth. data/albef/README.md; flags: --help
source "$(dirname "$0")/launch.bash"
[ $# -ge 1 ] && [[ $1 != -* || $1 == --help ]] || usage "Retrieval|VQA|VE|NLVR|Grounding|Pretrain|Pretrain_nlvr --config FILE \
--output_dir FOLDER [--checkpoint FILE] [flags]"
value() {  # value FLAG ARGUMENTS...: the value of --FLAG VALUE or --FLAG=VALUE, as given last
    local flag=--$1 before='' argument text=''
    for argument in "${@:2}"; do
        [ "$before" != "$flag" ] || text=$argument
        [[ $argument != "$flag="* ]] || text=${argument#*=}
        before=$argument
    done
    echo "${text,,}"
}
gpus=${CUDA_VISIBLE_DEVICES:-0} world_size=$(value world_size "$@") flags=(--multiGPU)
[ -z "$world_size" ] || number world_size 1 1000 'the number of processes, 1 or more'
[ -z "$world_size" ] || [ -n "${CUDA_VISIBLE_DEVICES-}" ] || gpus=$(seq -s, 0 $((world_size - 1)))
[ "$(value device "$@")" != cpu ] || { gpus=cpu NPROC=${world_size:-${NPROC:-1}}; export NPROC; }
case $(value distributed "$@") in
    false | 0 | no) flags=() ;;
esac
launch src/tools/albef.py '' "$gpus" "$@" "${flags[@]}"
