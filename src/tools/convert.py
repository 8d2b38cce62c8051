"""Converts snapshots to Hugging Face's transformers and back, and files of weights to .pth or .safetensors: `python -m
tools.convert`.

Conversion does not need transformers. Tensor names are mapped by the model's `hugging_face` module, where it has one.
"""

import argparse
import json
import sys
from pathlib import Path

import models
from annotations.answer_table import read_table
from annotations.spec import check_answers
from bert.weights import compare, save_state
from cli import run_main
from files.atomic import write_atomically, write_text
from files.json_files import DataError, read_json, read_text
from run_folder import read_run
from tasks.checkpoints import (
    ANSWER_LINES,
    PRETRAINED,
    answers_beside,
    config_text,
    find_weights,
    has_vocabulary,
    model_type,
    read_tokenizer,
    sidecar_files,
    vocabulary_text,
)
from tasks.registry import output_of
from tools.model_card import model_card

SIDECARS = ('config.json', 'vocab.txt', 'answers.json', ANSWER_LINES, 'options.json')


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='bash run/convert.bash', description=__doc__.split(': `')[0] + '.')
    parts = parser.add_subparsers(dest='part', required=True, metavar='to-hf|from-hf|file|card')
    out = parts.add_parser('to-hf', help='convert a snapshot to a folder for transformers')
    out.add_argument('snapshot', help='such as snap/vqa/NAME/BEST or snap/pretrained/model, with or without .pth')
    out.add_argument('folder', type=Path, help='the folder to create')
    out.add_argument('--push', metavar='OWNER/NAME', help='upload the folder to the hub (log in with "hf auth login", or set '
                     'HF_TOKEN)')
    back = parts.add_parser('from-hf', help='convert a folder of transformers to a snapshot')
    back.add_argument('folder', help='the folder, or an address such as hf://unc-nlp/lxmert-base-uncased')
    back.add_argument('snapshot', help='such as snap/vqa/NAME/BEST, without .pth; config, vocabulary and answers are written to '
                      'the same folder')
    card = parts.add_parser('card', help='write a model card, README.md, beside a snapshot of any model')
    card.add_argument('snapshot', help='as of to-hf')
    for part in (out, back, card):
        part.add_argument('--answers', type=Path, metavar='FILE', help='a json list of answers, or an all_ans.json, if there is '
                          'no answers.json beside the weights')
        part.add_argument('--offline', action='store_true', help='download nothing')
        part.add_argument('--bert', type=Path, metavar='FOLDER', help='config.json and vocab.txt, if the weights have none')
    file = parts.add_parser('file', help='convert a file of weights (.pth, .safetensors, .bin, .model) to .pth or .safetensors')
    file.add_argument('source', type=Path, help="also a published file of the model's original code")
    file.add_argument('target', type=Path, help='a name ending in .pth or .safetensors')
    file.add_argument('--model', choices=models.MODELS, help='of the weights (that of the config.json beside them, else the one '
                      'that has tensors of these names)')
    file.add_argument('--config', type=Path, metavar='FILE', help="config.json of the model, or a yaml file of VL-BERT's own "
                      'code; becomes the config.json beside the target, so that it can be loaded by itself')
    file.add_argument('--bert', type=Path, metavar='FOLDER', help="folder of the weights' vocab.txt, which is copied, and, "
                      'without --config, of the config.json')
    args = parser.parse_args(argv)
    return run_main('convert', lambda: convert(args))


def convert(args):
    """Runs a subcommand; returns the exit status."""
    if args.part == 'to-hf':
        weights = find_weights(args.snapshot, PRETRAINED, args.offline)
        to_hf(weights, args.folder, args.push or str(args.folder), args.bert, args.answers)
        if args.push:
            push(args.folder, args.push)
    elif args.part == 'from-hf':
        from_hf(find_weights(args.folder, (), args.offline), args.snapshot, args.bert, args.answers)
    elif args.part == 'card':
        write_card(find_weights(args.snapshot, PRETRAINED, args.offline), args.bert, args.answers)
    else:
        change(args.source, args.target, args.model, args.config, args.bert)
    return 0


def to_hf(weights, folder, name, bert=None, answers=None):
    """Converts a file of weights and its sidecars to a folder for transformers.

    VQA and GQA become the model's class ForQuestionAnswering, pre-trained weights ForPreTraining. Transformers has no class for
    NLVR2 as it is trained here: it becomes the class of the encoder, with the head in a separate file, as do pairs, regions and
    choices where the model's `hugging_face` module has a place for them. name: for the model card;
    bert: folder with config.json and vocab.txt, answers: file of answers, if there are none beside the weights. Raises
    ValueError or OSError that names the file.
    """
    model = model_type(weights)
    hf, (config, tokenizer) = hugging_face(model, weights), read_sidecars(model, weights, bert)
    state, task = hf.read_task(weights), read_run(weights.parent).get('task')
    output = output_of(task)
    if not (architecture := hf.architecture_of(state, config, output)):
        raise ValueError(f'{weights}: is a snapshot of {config.MODEL} and the task {task}, for which transformers has no class; '
                         'convert the file alone (bash run/convert.bash file)')
    answers = answers_of(weights, hf.answer_count(state), answers)
    print(compare(hf.model_of(state, config), state, str(weights), hf.MAY_MISS))
    tensors, head = hf.hf_tensors(state, architecture)
    texts = {
        'vocab.txt': vocabulary_text(tokenizer),
        'tokenizer_config.json': json.dumps(hf.TOKENIZER, indent=2) + '\n',
        'config.json': json.dumps(hf.hf_config(config, state, answers, architecture), indent=2) + '\n',
        'README.md': model_card(weights, config, name, answers, architecture, hf.example), **options_of(weights),
    }
    write_new({folder / 'model.safetensors': tensors, **({folder / hf.HEAD_FILE: head} if head else {})}, texts)
    print(f'{folder}: {architecture}, {len(tensors)} tensors{f" and {hf.HEAD_FILE}" if head else ""}, config, vocabulary, model '
          f'card{told_of(answers, hf.answer_count(state), output)}')


def from_hf(weights, snapshot, bert=None, answers=None):
    """Converts weights in a folder of transformers to a snapshot with config, vocabulary and, if known, answers beside it.

    snapshot: path without its ending. Other arguments and errors as for to_hf.
    """
    model = model_type(weights)
    hf, (config, tokenizer) = hugging_face(model, weights), read_sidecars(model, weights, bert)
    state = hf.complete(hf.read_task(weights))
    answers = answers_of(weights, hf.answer_count(state), answers)
    print(compare(hf.model_of(state, config), state, str(weights)))
    ending = '.pth' if hf.is_task(state) else '_LXRT.pth'
    target = Path(str(snapshot).removesuffix('.pth').removesuffix('_LXRT') + ending)
    texts = sidecar_files(model, config, tokenizer, answers) | options_of(weights)
    if answers is None:
        del texts['answers.json']
    write_new({target: state}, texts)
    output = output_of(read_run(weights.parent).get('task'))
    print(f'{target}: {len(state)} tensors; beside it {", ".join(texts)}{told_of(answers, hf.answer_count(state), output)}')


def write_card(weights, bert=None, answers=None):
    """Writes README.md beside a file of weights of any model. Raises FileExistsError if one exists with other contents."""
    config, _ = read_sidecars(model_type(weights), weights, bert)
    path, answers = weights.with_name('README.md'), answers_beside(weights) or read_answer_file(answers)
    text = model_card(weights, config, f'{config.MODEL}: {weights.parent.name}', answers)
    if path.is_file() and read_text(path, 'a model card') != text:
        raise FileExistsError(f'{path}: exists with other contents; move it away')
    write_text(path, text)
    print(f'{path}: model card of {weights.name}')


def hugging_face(model, weights):
    """The model's module `hugging_face`. Raises ValueError for a model without one."""
    try:
        return models.package(model, 'hugging_face')
    except ModuleNotFoundError:
        raise ValueError(f'{weights}: is of the model {model}, for which there are no folders for transformers; convert the file '
                         'alone (bash run/convert.bash file), or describe it (bash run/convert.bash card)') from None


def change(source, target, model=None, config=None, bert=None):
    """Converts a file of weights to .pth or .safetensors, with the names of the model's original code, and copies its sidecars.

    model: its name; None: that of the config.json beside it, else the one with tensors of these names. config: file of the
    model's config, and bert: folder with vocab.txt, which become sidecars. Raises ValueError or OSError.
    """
    if target.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'{target}: expected a name that ends in .pth or .safetensors; rename it')
    model = model or model_type(source)
    package = models.package(model)
    state = package.read_weights(source)
    sidecars = [source.with_name(name) for name in SIDECARS if source.with_name(name).is_file()]
    texts = {path.name: read_text(path, 'a file beside the weights') for path in sidecars}
    if config or bert:
        config = package.config_from_json(config or bert / 'config.json')
        print(package.load_encoder(source, config)[1])  # raises WeightsError for the config of another model
        texts['config.json'] = config_text(model, config)
        if bert:
            texts['vocab.txt'] = vocabulary_text(read_tokenizer(bert, config))
    write_new({target: state}, texts)
    print(f'{target}: {len(state)} tensors of the model {model}; beside it {", ".join(texts) or "nothing"}')


def push(folder, name):
    """Uploads a folder to the hub as owner/name. Raises OSError."""
    from huggingface_hub import HfApi  # takes a second to import
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        print(f'Uploaded: {api.upload_folder(repo_id=name, folder_path=folder)}')
    except Exception as error:  # huggingface_hub raises many kinds of exceptions
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        raise OSError(f'--push {name}: not uploaded ({reason}); log in with "hf auth login" or HF_TOKEN; the '
                      f'folder {folder} is complete') from None


def read_sidecars(model, weights, bert):
    """The config and BertTokenizer of a file of weights, from beside it or from the folder `bert`."""
    folders = (weights.parent, *([bert] if bert else []))
    config = next((folder for folder in folders if (folder / 'config.json').is_file()), None)
    vocabulary = next((folder for folder in folders if has_vocabulary(folder)), None)
    if not config or not vocabulary:
        raise FileNotFoundError(f'{weights.parent}: expected config.json and vocab.txt beside {weights.name}; give --bert '
                                'FOLDER, which has them')
    config = models.package(model).config_from_json(config / 'config.json')
    return config, read_tokenizer(vocabulary, config)


def answers_of(weights, rows, file):
    """The answers of an answer head with that many rows, from beside the weights or from a file (a list, or an answer table).
    None if unknown. Raises DataError if their number differs from the rows."""
    answers = answers_beside(weights) or read_answer_file(file)
    if answers and rows != len(answers):
        raise DataError(f'{weights}: its answer head has {rows} rows, but {len(answers)} answers are given for it; give '
                        'those of its run with --answers')
    return answers


def told_of(answers, rows, output):
    """What is printed of the answers of a head with that many rows; output: heads.Recipe.output of its task, None: not known."""
    if answers:
        return f'; {len(answers):,} answers'
    return '; names of answers unknown (no answers.json beside the weights)' if rows and output in (None, 'answer') else ''


def read_answer_file(file):
    """The answers in a file, a list or an answer table; None without a file."""
    if not file:
        return None
    table = read_json(file, 'the answers of the weights')
    is_table = isinstance(table, list) and table and isinstance(table[0], dict)
    return read_table(file) if is_table else check_answers(table, file)


def options_of(weights):
    """{'options.json': text} of the run that wrote the weights, if it is beside them; it records the task and the loss."""
    path = weights.with_name('options.json')
    return {path.name: read_text(path, 'the options of a run')} if path.is_file() else {}


def write_new(files, texts):
    """Writes files {path: tensors} of one folder, and texts {name: text} beside them. Writes nothing and raises FileExistsError
    if a file exists, or if the folder has a sidecar with another content."""
    folder = next(iter(files)).parent
    for path in files:
        if path.is_file():
            raise FileExistsError(f'{path}: exists; choose another path')
    for name in {*SIDECARS, *texts}:
        path = folder / name
        if path.is_file() and read_text(path, 'a file of a snapshot') != texts.get(name):
            raise FileExistsError(f'{path}: exists with other contents; choose another folder')
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    for path, state in files.items():
        write_atomically(path, lambda temporary, path=path, state=state: save_state(state, temporary, path.suffix))


if __name__ == '__main__':
    sys.exit(main())
