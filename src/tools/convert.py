"""Snapshots in the form of Hugging Face's transformers and back, .pth to .safetensors and back: `python -m tools.convert`.

Nothing here needs transformers, with which the tests load what is written.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from annotations.answer_table import read_table
from annotations.spec import check_answers
from bert.weights import compare, save_state
from files.atomic import write_atomically
from files.json_files import DataError, read_json
from lxrt.config import LxrtConfig
from lxrt.hugging_face import answer_count, architecture_of, hf_config, hf_tensors, is_task, model_of
from lxrt.weights import DECODER, NLVR2_HEAD, read_lxmert, read_task
from tasks.checkpoints import PRETRAINED, answers_beside, find_weights, has_vocabulary, read_tokenizer, sidecar_files
from tools.model_card import model_card

TOKENIZER = {'tokenizer_class': 'LxmertTokenizer', 'do_lower_case': True, 'model_max_length': 20}  # as it was trained
BESIDE = ('config.json', 'vocab.txt', 'answers.json', 'options.json')


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='bash run/convert.bash', description=__doc__.split('`')[0].rstrip(': ') + '.')
    parts = parser.add_subparsers(dest='part', required=True, metavar='to-hf|from-hf|file')
    out = parts.add_parser('to-hf', help='a snapshot becomes a folder that transformers loads')
    out.add_argument('snapshot', help='such as snap/vqa/NAME/BEST or snap/pretrained/model, without its ending or with it')
    out.add_argument('folder', type=Path, help='the folder to make')
    out.add_argument('--push', metavar='OWNER/NAME', help='upload the folder to the hub (log in with "hf auth login", or set '
                     'HF_TOKEN)')
    back = parts.add_parser('from-hf', help='a folder of transformers becomes a snapshot')
    back.add_argument('folder', help='the folder, or an address such as hf://unc-nlp/lxmert-base-uncased')
    back.add_argument('snapshot', help='such as snap/vqa/NAME/BEST, without its ending; config, vocabulary and answers go into '
                      'the same folder')
    for part in (out, back):
        part.add_argument('--answers', type=Path, metavar='FILE', help='a list of the answers, or an all_ans.json, where the '
                          'weights have none beside them')
        part.add_argument('--offline', action='store_true', help='download nothing')
        part.add_argument('--bert', type=Path, metavar='FOLDER', help='has config.json and vocab.txt where the weights have none')
    file = parts.add_parser('file', help='weights become a file of another kind: .pth to .safetensors, or back')
    file.add_argument('source', type=Path)
    file.add_argument('target', type=Path)
    args = parser.parse_args(argv)
    try:
        if args.part == 'to-hf':
            made_of = find_weights(args.snapshot, PRETRAINED, args.offline)
            to_hf(made_of, args.folder, args.push or str(args.folder), args.bert, args.answers)
            if args.push:
                push(args.folder, args.push)
        elif args.part == 'from-hf':
            from_hf(find_weights(args.folder, (), args.offline), args.snapshot, args.bert, args.answers)
        else:
            change(args.source, args.target)
    except (ValueError, OSError) as error:
        print(f'convert: error: {error}', file=sys.stderr)
        return 1
    return 0


def to_hf(weights, folder, name, bert=None, answers=None):
    """Writes a folder that transformers loads from a file of weights and what lies beside it: LxmertForQuestionAnswering of VQA
    and GQA, LxmertForPreTraining of pre-trained weights; of NLVR2, for which it has no class, LxmertModel and its head.

    name: of the model, for its card; bert: folder of config.json and vocab.txt, answers: file of answers, for what does not lie
    beside the weights. Raises ValueError or OSError, which name the file.
    """
    config, tokenizer = read_beside(weights, bert)
    state = read_task(weights)
    answers = answers_of(weights, state, answers)
    print(compare(model_of(state, config), state, str(weights), (re.escape(DECODER),)))
    architecture, (tensors, head) = architecture_of(state, config), hf_tensors(state, config)
    texts = {
        'vocab.txt': sidecar_files('lxmert', config, tokenizer, [])['vocab.txt'],
        'tokenizer_config.json': json.dumps(TOKENIZER, indent=2) + '\n',
        'config.json': json.dumps(hf_config(config, state, answers), indent=2) + '\n',
        'README.md': model_card(weights, config, architecture, name, answers), **options_of(weights),
    }
    write_new({folder / 'model.safetensors': tensors, **({folder / NLVR2_HEAD: head} if head else {})}, texts)
    print(f'{folder}: {architecture}, {len(tensors)} tensors{f" and {NLVR2_HEAD}" if head else ""}, config, vocabulary, '
          f'{f"{len(answers):,} answers" if answers else "no names of answers (none lie beside the weights)"}, model card')


def from_hf(weights, snapshot, bert=None, answers=None):
    """Writes a snapshot from a file of weights in a folder of transformers, with config, vocabulary and, if their names are
    known, answers beside it. snapshot: path without its ending. The others, and what is raised, as in to_hf."""
    config, tokenizer = read_beside(weights, bert)
    state = read_task(weights)
    answers = answers_of(weights, state, answers)
    state = {name: tensor for name, tensor in state.items() if not name.endswith('embeddings.position_ids')}
    if 'cls.predictions.bias' in state and DECODER not in state:
        state[DECODER] = state['bert.embeddings.word_embeddings.weight']
    print(compare(model_of(state, config), state, str(weights)))
    target = Path(str(snapshot).removesuffix('.pth').removesuffix('_LXRT')
                  + ('.pth' if is_task(state) else '_LXRT.pth'))
    texts = sidecar_files('lxmert', config, tokenizer, answers) | options_of(weights)
    if answers is None:
        del texts['answers.json']
    write_new({target: state}, texts)
    print(f'{target}: {len(state)} tensors; beside it {", ".join(texts)}'
          f'{"" if answers else "; its answers have no names there: put an answers.json beside it"}')


def change(source, target):
    """Writes a file of weights as another one, .pth or .safetensors, with what lies beside it. Raises ValueError or OSError."""
    if target.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'{target}: expected a name that ends in .pth or .safetensors')
    state = read_lxmert(source)
    beside = [source.with_name(name) for name in BESIDE if source.with_name(name).is_file()]
    write_new({target: state}, {path.name: path.read_text(encoding='utf-8') for path in beside})
    print(f'{target}: {len(state)} tensors; beside it {", ".join(path.name for path in beside) or "nothing"}')


def push(folder, name):
    """Uploads a folder to the hub as owner/name. Raises OSError."""
    from huggingface_hub import HfApi  # takes a second to import
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        print(f'Uploaded: {api.upload_folder(repo_id=name, folder_path=folder)}')
    except Exception as error:  # the hub's library has a dozen kinds, some of them plain exceptions
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        raise OSError(f'--push {name}: not uploaded ({reason}); log in with "hf auth login" or HF_TOKEN; the '
                      f'folder {folder} is whole') from None


def read_beside(weights, bert):
    """The LxrtConfig and BertTokenizer of a file of weights, from beside it or from the folder `bert`."""
    folders = (weights.parent, *([bert] if bert else []))
    config = next((folder for folder in folders if (folder / 'config.json').is_file()), None)
    words = next((folder for folder in folders if has_vocabulary(folder)), None)
    if not config or not words:
        raise FileNotFoundError(f'{weights.parent}: expected config.json and vocab.txt beside {weights.name}; give --bert '
                                'FOLDER, which has them')
    config = LxrtConfig.from_json(config / 'config.json')
    return config, read_tokenizer(words, config)


def answers_of(weights, state, file):
    """The answers of the head of a file of weights, as they stand beside it or in another file, a list or a table; None where
    nobody tells. Raises DataError if they are not as many as the head has rows."""
    answers, rows = answers_beside(weights), answer_count(state)
    if answers is None and file:
        table = read_json(file, 'the answers of the weights')
        is_table = isinstance(table, list) and table and isinstance(table[0], dict)
        answers = read_table(file) if is_table else check_answers(table, file)
    if answers and rows != len(answers):
        raise DataError(f'{weights}: its answer head has {rows} rows, but {len(answers)} answers are given for it')
    return answers


def options_of(weights):
    """{'options.json': its text} of the run that made the weights, if it is beside them: it says how answers were learned."""
    path = weights.with_name('options.json')
    return {path.name: path.read_text(encoding='utf-8')} if path.is_file() else {}


def write_new(files, texts):
    """Writes {path: tensors} of one folder, and {name: text} beside them. Raises FileExistsError, before anything is written, if
    a file is there, or what would be taken for a part of it though it is of something else."""
    folder = next(iter(files)).parent
    for path in files:
        if path.is_file():
            raise FileExistsError(f'{path}: is there; choose another place')
    for name in {*BESIDE, *texts}:
        beside = folder / name
        if beside.is_file() and beside.read_text(encoding='utf-8') != texts.get(name):
            raise FileExistsError(f'{beside}: is there, and belongs to something else; choose another place')
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding='utf-8')
    for path, state in files.items():
        write_atomically(path, lambda part, path=path, state=state: save_state(state, part, path.suffix))


if __name__ == '__main__':
    sys.exit(main())
