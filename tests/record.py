"""Record everything that the launchers compute on a small sample world, to prove that a refactoring changes nothing.

    python tests/record.py OUT.json [--repo DIR] [--jobs 2]    # DIR: the checkout to record; default: that of this script
    python tests/record.py --compare A.json B.json             # print every difference; exit status 1 if there is any

The checkout (tracked and new files, not ignored ones) is copied to a temporary folder and only run/*.bash is called there, with
the Python that runs this script. OUT.json maps names to the exit status and stdout of each command, and to a digest of each file
that all commands have written. Results are bit-identical only on the same machine with the same packages, so record both sides
on one machine. Not recorded: stderr, copies of the source, TensorBoard events, options of runs, times and absolute paths.
"""

import argparse
import base64
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

SMALL = {'hidden_size': 32, 'num_attention_heads': 2, 'intermediate_size': 64, 'l_layers': 1, 'r_layers': 1, 'x_layers': 1,
         'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1}
# Files left out; of the state before the last one the bytes have absolute paths
SKIP = re.compile(r'/src/|\.previous$|tfevents|\.lock$|/run\.bash$|/options\.json$|^logs/|__pycache__|^data/(nlvr_)?corpus/')
# Keys left out of json: random or of the clock, digests of source files, absolute paths
VOLATILE = {'stamp', 'mtime_ns', 'code', 'made_from', 'extracted at', 'extracted from', 'imported at', 'imported from',
            'converted from'}
TEXT = ((r'[\d,.]+ (images a second|images per second|images/s)', r'N \1'), (r'in [\d.]+ s\b', 'in N s'),
        (r'-[0-9a-f]{8}\.(store|columns)', r'-HASH.\1'),  # the hash of an absolute path
        (r'(ROOT/)?\bsrc/[\w/]+\.py', 'PROGRAM'))  # the command of a run in a model card
STOPPED, TIMEOUT = 75, 300  # exit status of a run that SIGTERM ended with all saved; seconds

SHORTCUTS = '''
world="--dataRoot data/shapes --bert data/shapes/bert"
small="$world --batchSize 16 --lr 1e-3 --epochs 1"
tune() { exec bash "run/$1_finetune.bash" cpu "$2" $small "${@:3}"; }
predict() { exec bash "run/$1_test.bash" cpu "$2" $world --batchSize 32 "${@:3}"; }
pretrain() { exec bash run/lxmert_pretrain.bash cpu $small --output "snap/pretrain/$1" "${@:2}"; }
run() { exec bash "run/$1.bash" "${@:2}"; }
'''
# A line is a command; "! " before it: it must fail; "@": a function here; "stop FOLDER ": SIGTERM once FOLDER has a run state,
# which must end it with status 75, then the same command again.
# Chains depend only on the prelude, and may run at the same time.
PRELUDE = '''
run shapes --images 60
@edit_world
run regions convert data/shapes/*/*.tsv
'''
CHAINS = ['''
tune vqa a --fromScratch --epochs 2 --saveSteps 4
tune vqa a --fromScratch --epochs 2 --saveSteps 4 --resume
! tune vqa a --fromScratch --epochs 2
! tune vqa a --fromScratch --epochs 2 --resume --lr 1e-4
! tune vqa wrong --noSuchFlag
! tune vqa wrong --fromScratch --valid test
predict vqa minival --test minival --load snap/vqa/a/BEST --dumpProbs 5
predict vqa test --test test --load snap/vqa/a/BEST --dumpProbs 5
NPROC=2 predict vqa minival2 --test minival --load snap/vqa/a/BEST --multiGPU --dumpProbs 5
tune vqa accumulate --fromScratch --accumulate 2
tune vqa plain --fromScratch --dropout 0 --valid "" --llayers 2 --xlayers 2 --rlayers 2 --numWorkers 1
tune vqa bf16 --fromScratch --bf16 --featDevice ram --checkpointing
tune vqa mce --fromScratch --mceLoss --optim adam --evalBatchSize 7
predict vqa mce_test --test minival --load snap/vqa/mce/LAST --dumpProbs 5 --mceLoss
NPROC=2 tune vqa two --fromScratch --multiGPU --saveSteps 4
stop snap/vqa/stopped tune vqa stopped --fromScratch --epochs 12 --saveSteps 4 --resume
stop snap/vqa/stopped2 NPROC=2 tune vqa stopped2 --fromScratch --epochs 8 --saveSteps 4 --resume --multiGPU
tune vqa fp16 --load snap/vqa/a/BEST --fp16
tune vqa tiny --tiny --fromScratch --dataset data/mine/mine.json --train train --valid dev
run check_dataset data/mine/mine.json --bert data/shapes/bert
tune gqa a --fromScratch --epochs 2 --saveSteps 9
predict gqa testdev --test testdev --load snap/gqa/a/BEST --dumpProbs 5
predict gqa submit --test submit --load snap/gqa/a/BEST --dumpProbs 5
tune gqa transfer --load snap/vqa/a/BEST --transferAnswers
tune nlvr2 a --loadLXMERT snap/vqa/a/BEST --epochs 2 --saveSteps 20
predict nlvr2 test --test test --load snap/nlvr2/a/BEST --dumpProbs 5
predict nlvr2 hidden --test hidden --load snap/nlvr2/a/BEST --dumpProbs 5
run evaluate vqa snap/vqa/minival/minival_predict.json data/shapes/vqa/minival.json --out out/vqa.json
run evaluate gqa snap/gqa/testdev/testdev_predict.json data/shapes/gqa/testdev.json --out out/gqa.json
run evaluate nlvr2 snap/nlvr2/test/test_predict.csv data/shapes/nlvr2/test.json --out out/nlvr2.json
run ensemble vqa cpu both --test test --load snap/vqa/a/BEST,snap/vqa/mce/LAST,snap/vqa/test/test_probs.json $world
run ensemble gqa cpu both --test testdev --load snap/gqa/a/BEST,snap/gqa/a/LAST $world
run ensemble nlvr2 cpu both --test hidden --load snap/nlvr2/a/BEST,snap/nlvr2/a/LAST $world
run encode cpu data/shapes/vqa/minival.json --features data/shapes/mscoco_imgfeat/val2014_obj36.tsv --load snap/vqa/a/BEST \
    --states pooled,words,regions --layers lang0,lang1,visn0,rel1,cross1 --out out/states.npz
run show attention --load snap/vqa/a/BEST --image data/shapes/images/val2014/COCO_val2014_000000000051.png --out out/attention \
    --features data/shapes/mscoco_imgfeat/val2014_obj36.tsv --question "What colour is the circle?" --names data/shapes
run show attention --load snap/nlvr2/a/BEST --image COCO_val2014_000000000051 COCO_val2014_000000000052 --out out/attention2 \
    --features data/shapes/mscoco_imgfeat/val2014_obj36.tsv --question "Both have a circle." --heads 2
run show pointing --load snap/vqa/a/BEST
run show errors --load snap/vqa/a/BEST --test minival --dataRoot data/shapes --out out/vqa.html \
    --images data/shapes/images/val2014
run show errors --load snap/gqa/a/BEST --task gqa --test testdev --dataRoot data/shapes --out out/gqa.html
run show errors --load snap/nlvr2/a/BEST --task nlvr2 --test valid --dataRoot data/shapes --out out/nlvr2.html
run ask cpu data/shapes/images/val2014/COCO_val2014_00000000005[12].png "What colour is the circle?" "Is there a star?" \
    --load snap/vqa/a/BEST --out out/ask
run ask cpu data/shapes/images/val2014/COCO_val2014_00000000005[12].png "Both have a circle." \
    --load snap/nlvr2/a/BEST --out out/ask2
''', '''
pretrain a --epochs 2 --saveSteps 9
pretrain loaded --load snap/pretrain/a/Epoch01 --valid "" --train mscoco_nominival --accumulate 2
pretrain words --taskMaskLM --wordMaskRate 0.3 --train vgnococo
pretrain some --taskObjPredict --taskQA --visualLosses obj,feat --qaSets vqa --objMaskRate 0.3 --train vgnococo
NPROC=2 pretrain two --multiGPU --train vgnococo
stop snap/pretrain/stopped pretrain stopped --epochs 12 --saveSteps 3 --resume --train vgnococo
@make_bert
tune vqa from_bert --load= --bert data/bert
pretrain from_bert --load= --bert data/bert --train vgnococo
tune vqa from_qa --loadLXMERTQA snap/pretrain/a/BEST_EVAL_LOSS
tune gqa from_qa --loadLXMERTQA snap/pretrain/a/Epoch02
tune nlvr2 from_lxmert --loadLXMERT snap/pretrain/a/Epoch02
! tune nlvr2 wrong --loadLXMERTQA snap/pretrain/a/Epoch02
run convert to-hf snap/pretrain/a/Epoch02 out/hf_pretrain
run convert to-hf snap/vqa/from_qa/BEST out/hf_vqa
run convert to-hf snap/nlvr2/from_lxmert/BEST out/hf_nlvr2
run convert from-hf out/hf_vqa out/back_vqa/BEST
run convert from-hf out/hf_pretrain out/back_pretrain/Epoch02
run convert file snap/vqa/from_qa/BEST.pth out/file_vqa/BEST.safetensors
run convert file out/file_vqa/BEST.safetensors out/file_vqa_back/BEST.pth
predict vqa from_hf --test minival --load out/hf_vqa
run encode cpu data/pairs.tsv --features data/shapes/mscoco_imgfeat/val2014_obj36.tsv --out out/pooled.npz \
    --load snap/pretrain/a/Epoch02
run nlvr cpu n --nlvr data/nlvr_corpus --statements 24 --batchSize 4
run nlvr cpu blind --nlvr data/nlvr_corpus --statements 0 --withoutPretraining --withoutPictures --batchSize 4
run check_dataset data/nlvr/made/dataset.json --bert data/nlvr/made/bert
run check_dataset data/nlvr/made/pretraining.json
run show errors --load snap/nlvr/n/BEST --task nlvr --dataset data/nlvr/made/dataset.json --test dev --out out/nlvr.html
run regions convert --dtype float16 --storeRoot data/half data/shapes/mscoco_imgfeat/val2014_obj36.tsv
predict vqa half --test minival --load snap/vqa/from_qa/BEST --storeRoot data/half
run regions info data/shapes/mscoco_imgfeat/val2014_obj36.tsv
run regions info data/half/*.store
run regions check data/shapes/mscoco_imgfeat/val2014_obj36.tsv --questions data/shapes/vqa/minival.json
run regions check data/shapes/mscoco_imgfeat/val2014_obj36.store
! run regions check data/broken.tsv
run regions repair data/broken.tsv --out out/repaired.tsv
run regions stats data/shapes/mscoco_imgfeat/train2014_obj36.tsv --names data/shapes
run regions stats data/shapes/mscoco_imgfeat/val2014_obj36.store --against data/mine/mine.tsv
run regions show data/shapes/mscoco_imgfeat/val2014_obj36.tsv --ids COCO_val2014_000000000051 COCO_val2014_000000000052 \
    --photos data/shapes/images/val2014 --names data/shapes --out out/regions
run regions import data/arrays --out out/imported.tsv --madeBy "a test"
run regions import data/arrays --out out/imported.store --dtype float16
run extract cpu --images data/shapes/images/val2014 --detector shapes --out out/found.tsv
NPROC=2 run extract cpu --images data/shapes/images/val2014 --detector shapes --minBoxes 5 --maxBoxes 9 --out out/found.store
run download pretrained bert answers vqa gqa nlvr2 lxmert mscoco_imgfeat detector --list
''']


def tsv_line(line, keep, img_id=None):
    """A line of a TSV of regions with only its first `keep` regions, and perhaps another image id."""
    parts = line.rstrip('\n').split('\t')
    count, parts[7] = int(parts[7]), str(min(keep, int(parts[7])))
    for i in (3, 4, 5, 6, 8, 9):
        data = base64.b64decode(parts[i])
        parts[i] = base64.b64encode(data[:len(data) // count * int(parts[7])]).decode()
    return '\t'.join([img_id or parts[0], *parts[1:]]) + '\n'


def edit_world(root):
    """Make the model of the world small and its numbers of regions uneven, and add the inputs of the other commands."""
    data, world = root / 'data', root / 'data/shapes'
    config = world / 'bert/config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | SMALL))
    for path in sorted(world.glob('*/*.tsv')):
        lines = path.read_text().splitlines()
        path.unlink()  # some are hard links to one file
        path.write_text(''.join(tsv_line(line, 36 if i % 3 else 5 + i % 7) for i, line in enumerate(lines)))
    lines = (world / 'mscoco_imgfeat/val2014_obj36.tsv').read_text().splitlines()
    for name in ('mine', 'arrays', 'nlvr_corpus'):
        (data / name).mkdir()
    (data / 'pairs.tsv').write_text(''.join(f'{line.split()[0]}\tis there a star\n' for line in lines))
    (data / 'broken.tsv').write_text('\n'.join([lines[0], lines[1][:500], lines[2], lines[0], *lines[3:]]) + '\n')
    for line in lines:
        parts, arrays = line.split('\t'), {}
        for i, name, dtype in ((3, 'classes', '<i8'), (8, 'boxes', '<f4'), (9, 'features', '<f4')):
            arrays[name] = np.frombuffer(base64.b64decode(parts[i]), dtype).reshape(int(parts[7]), -1).squeeze()
        np.savez(data / f'arrays/{parts[0]}.npz', size=np.int64(parts[1:3]), **arrays)
    # More images than --tiny takes
    (data / 'mine/mine.tsv').write_text(''.join(tsv_line(lines[i % 5], 1 + i % 2, f'm{i}') for i in range(530)))
    asked = json.loads((world / 'vqa/train.json').read_text())
    asked = [asked[i % len(asked)] | {'question_id': i, 'img_id': f'm{i}'} for i in range(530)]
    (data / 'mine/train.json').write_text(json.dumps(asked))
    (data / 'mine/dev.json').write_text(json.dumps(asked[:20]))
    (data / 'mine/mine.json').write_text(json.dumps({
        'kind': 'vqa', 'name': 'mine', 'max_length': 12, 'answers': '../shapes/vqa/trainval_label2ans.json',
        'splits': {split: {'annotations': f'{split}.json', 'features': ['mine.tsv']} for split in ('train', 'dev')}}))
    said = ('there is a black box', 'there is a blue tower', 'there is a box with a yellow circle', 'there are 2 black squares')
    a, b, c = ({'type': kind, 'color': color, 'size': 20, 'x_loc': 20, 'y_loc': 40}
               for kind, color in (('circle', 'Yellow'), ('square', 'Black'), ('triangle', '#0099ff')))
    for split, count in (('train', 8), ('dev', 3)):
        (data / f'nlvr_corpus/{split}.json').write_text(''.join(json.dumps({
            'identifier': f'{i}-0', 'sentence': said[i % 4], 'label': 'true' if i % 3 else 'false',
            'structured_rep': [[a, b][i % 2:], [c] * (i % 3), [b]]}) + '\n' for i in range(count)))


def make_bert(root):
    """Weights of BERT, taken from the pre-trained model, for runs that start from BERT."""
    shutil.copytree(root / 'data/shapes/bert', root / 'data/bert')
    state = torch.load(root / 'snap/pretrain/a/Epoch01_LXRT.pth', weights_only=True)
    names = re.compile(r'bert\.(embeddings|encoder\.layer|pooler)\.|cls\.')
    state = {name: value.clone() for name, value in state.items() if names.match(name)}
    safetensors.torch.save_file(state, root / 'data/bert/model.safetensors')


def sha(data):
    return hashlib.sha256(data).hexdigest()[:32]


def digest(value):
    """The digest of nested dicts and lists of tensors, arrays and plain values; the order of keys does not matter."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
        return sha(f'{value.dtype} {tuple(value.shape)} '.encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, np.ndarray):
        return sha(f'{value.dtype} {value.shape} '.encode() + value.tobytes())
    if isinstance(value, dict):
        return sha(repr(sorted((str(key), digest(part)) for key, part in value.items())).encode())
    if isinstance(value, list | tuple):
        return sha(repr([digest(part) for part in value]).encode())
    return sha(repr(value).encode())


def normalise(text, root):
    text = text.replace(str(root), 'ROOT')
    for pattern, new in TEXT:
        text = re.sub(pattern, new, text)
    return text


def without_volatile(value):
    if isinstance(value, dict):
        return {key: without_volatile(part) for key, part in value.items() if key not in VOLATILE}
    return [without_volatile(part) for part in value] if isinstance(value, list) else value


def record_file(path, root):
    """What a file holds: its digest; lines of logs and model cards; small json as it is; of a run state a dict of its parts."""
    if path.suffix == '.pth':
        state = torch.load(path, map_location='cpu', weights_only=True)
        if path.name == 'RUN_STATE.pth':
            state = {name: state[name] for name in state.keys() - {'options', 'cwd', 'inputs', 'digest'}}  # with absolute paths
            return {name: value if name == 'progress' else digest(value) for name, value in sorted(state.items())}
        return digest(state)
    if path.suffix == '.safetensors':
        return digest(safetensors.torch.load_file(path))
    if path.suffix == '.npz':
        with np.load(path) as arrays:
            return {name: digest(arrays[name]) for name in sorted(arrays)}
    if path.suffix == '.json':
        text = normalise(json.dumps(without_volatile(json.loads(path.read_text())), sort_keys=True), root)
        return json.loads(text) if text.startswith('{') and len(text) < 2000 else sha(text.encode())
    if path.suffix in ('.log', '.md'):
        return normalise(path.read_text(), root).splitlines()
    return sha(path.read_bytes())


def execute(line, root):
    """Run one line; returns ({name: what it recorded}, whether it ended as expected)."""
    began, log, folder = time.monotonic(), root / f'logs/{sha(line.encode())}', None
    command, expected = line.removeprefix('! '), 'failed' if line.startswith('! ') else 0
    if line.startswith('@'):
        try:
            globals()[line[1:]](root)
        except OSError as error:  # a command before it has failed
            print(f'{line}: {error}', file=sys.stderr)
            return {}, False
        return {}, True
    if command.startswith('stop '):
        _, folder, command = command.split(maxsplit=2)
        status = run_shell(command, root, log, root / folder / 'RUN_STATE.pth')
        expected = 0 if status == STOPPED else STOPPED
    if not folder or status == STOPPED:
        status = run_shell(command, root, log)
    well = status == expected or (expected == 'failed' and status in (1, 2))
    print(f'{time.monotonic() - began:6.1f} s  status {status}  {line}', file=sys.stderr)
    if not well:
        print(f'EXPECTED status {expected}\n{Path(f"{log}.err").read_text()[-2000:]}', file=sys.stderr)
    entries = {f'status of {line}': status}
    if not folder:  # at which step a signal arrives is chance
        entries[f'stdout of {line}'] = normalise(Path(f'{log}.out').read_text(), root).splitlines()
    return entries, well


def run_shell(command, root, log, stop_at=None):
    """Run a command with its output to log.out and log.err, until it ends or the file stop_at exists; returns its status."""
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': ''}
    with open(f'{log}.out', 'w') as out, open(f'{log}.err', 'w') as err:
        process = subprocess.Popen(['bash', '-c', SHORTCUTS + command], cwd=root, env=environment, stdout=out, stderr=err)
        while stop_at and process.poll() is None:
            if stop_at.exists():
                process.terminate()
                break
            time.sleep(0.01)
        try:
            return process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            return f'none after {TIMEOUT} s'


def record(repo, jobs):
    """The record of a checkout, and whether every command succeeded or failed as expected."""
    with tempfile.TemporaryDirectory(prefix='record-') as folder:
        root = Path(folder).resolve()
        listed = subprocess.check_output(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=repo, text=True)
        for name in listed.split('\0')[:-1]:
            if (repo / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(repo / name, root / name)
        (root / '.venv').symlink_to(sys.prefix)
        for name in ('logs', 'out'):
            (root / name).mkdir()
        before = set(root.rglob('*'))

        def run_all(lines):
            return [execute(line, root) for line in re.sub(' +', ' ', lines).strip().splitlines()]

        done = run_all(PRELUDE)
        with ThreadPoolExecutor(jobs) as pool:
            done += [one for chain in pool.map(run_all, CHAINS) for one in chain]
        entries = {name: value for part, _ in done for name, value in part.items()}
        for path in sorted(set(root.rglob('*')) - before):
            name = str(path.relative_to(root))
            if path.is_file() and not SKIP.search(name):
                entries[f'file {normalise(name, root)}'] = record_file(path, root)
        return entries, all(well for _, well in done)


def differences(a, b):
    """Yields the differences of two records, one text per entry."""
    for name in sorted(a.keys() | b.keys()):
        one, other = (side.get(name, 'NOT THERE') for side in (a, b))
        if isinstance(one, list) and isinstance(other, list):
            lines = list(difflib.unified_diff(one, other, lineterm='', n=0))[2:]
        else:
            one, other = (side if isinstance(side, dict) else {'': side} for side in (one, other))
            lines = [f'{key} {one.get(key)} != {other.get(key)}' for key in one | other if one.get(key) != other.get(key)]
        if lines:
            yield '\n    '.join([name, *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, nargs='?')
    parser.add_argument('--repo', type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument('--jobs', type=int, default=1, help='chains of commands that run at the same time (at most 2)')
    parser.add_argument('--compare', type=Path, nargs=2, metavar=('A', 'B'))
    flags = parser.parse_args()
    if flags.compare:
        a, b = (json.loads(path.read_text()) for path in flags.compare)
        changed = list(differences(a, b))
        kinds = Counter(entry.split()[0] for entry in changed)
        print(*changed, f'{len(changed)} of {len(a.keys() | b.keys())} entries differ: {dict(kinds)}', sep='\n')
        return int(bool(changed))
    if not flags.out:
        parser.error('expected OUT.json or --compare')
    entries, succeeded = record(flags.repo, flags.jobs)
    flags.out.write_text(json.dumps(entries, indent=0) + '\n')
    print(f'{len(entries)} entries: {flags.out}{"" if succeeded else "; some commands did not end as expected, see above"}')
    return int(not succeeded)


if __name__ == '__main__':
    sys.exit(main())
