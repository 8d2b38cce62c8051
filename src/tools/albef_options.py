"""The configurations and flags of ALBEF's programs, as options and datasets of this project's programs."""

import argparse
import difflib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import models
from annotations.albef_files import example_of
from annotations.refer_files import clipped, examples_of_refs, find_refs, read_boxes, read_detections, read_sizes
from annotations.spec import DatasetSpec
from files.json_files import DataError, stream
from files.json_files import field as value_of
from files.text import shown
from files.yaml_files import read_yaml
from param import add_flags

# Where configurations, files and pictures, and weights, are looked for that are not where they are said to be.
HOMES = Path('data/albef'), Path('snap')
YAML = 'a configuration such as data/albef/configs/Retrieval_flickr.yaml'
NUMBER, FILES = (int, float), (str, list)
# Keys of a configuration: what their values are. Those of AlbefConfig are checked there.
MODEL = ('image_res', 'patch_size', 'vision_width', 'vision_depth', 'vision_heads', 'embed_dim', 'queue_size', 'momentum', 'temp',
         'alpha', 'distill', 'augment', 'k_test', 'group', 'repairs')
COMMON = {'bert_config': str, 'batch_size': int, 'batch_size_train': int, 'batch_size_test': int, 'train_file': FILES,
          'image_root': str, 'mlm_probability': NUMBER, 'warm_up': bool, 'eos': str, 'optimizer': dict, 'schedular': dict}
OF_TASK = {'val_file': FILES, 'test_file': FILES}
OPTIMIZER = {'opt': str, 'lr': NUMBER, 'weight_decay': NUMBER}
SCHEDULAR = {'sched': str, 'lr': NUMBER, 'epochs': int, 'min_lr': NUMBER, 'decay_rate': NUMBER, 'warmup_lr': NUMBER,
             'warmup_epochs': int, 'cooldown_epochs': int}
# Keys of which the programs have one value.
FIXED = {'eos': '[SEP]', 'optimizer.opt': 'adamW', 'schedular.sched': 'cosine', 'schedular.decay_rate': 1,
         'schedular.cooldown_epochs': 0}
RISE = 100  # steps of one of warmup_epochs
OURS = ('fromScratch', 'repairs', 'allowBroken', 'accumulate', 'numWorkers', 'saveSteps', 'storeRoot', 'tqdm', 'multiGPU', 'bf16',
        'fp16', 'compile', 'checkpointing', 'deterministic', 'offline')  # flags of this project that are given on
BOOLEANS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}
WORKERS = '4'  # data workers, as in the original code


@dataclass(frozen=True)
class Program:
    """One of ALBEF's programs. kind: of its dataset; keys: further ones of its configuration; lengths: tokens of a text in
    training and in testing."""

    kind: str
    keys: dict = field(default_factory=dict)
    lengths: tuple = (512, 512)
    best: bool = True  # whether it keeps checkpoint_best.pth
    every: bool = False  # whether it keeps checkpoint_NN.pth of every epoch
    better: bool = False  # whether it keeps checkpoint_NN.pth of the epochs that were better


PROGRAMS = {
    'Retrieval': Program('retrieval', OF_TASK, (512, 30)),
    'VQA': Program('vqa', {'test_file': FILES, 'answer_list': str, 'vqa_root': str, 'vg_root': str}, (25, 512), False, True),
    'VE': Program('entailment', OF_TASK),
    'NLVR': Program('nlvr2', OF_TASK, better=True),
    'Grounding': Program('refcoco', {'test_file': FILES, 'refcoco_data': str, 'det_file': str, 'coco_file': str}),
    'Pretrain': Program('captions', {}, (25, 25), False, True),
    'Pretrain_nlvr': Program('captions', {}, (25, 25), False, True),
}
TASK_OF = {'Pretrain': 'pretrain', 'Pretrain_nlvr': 'text_assignment'}  # of the recipe, where it is not the kind of the dataset


@dataclass
class Plan:
    """What a command asks for."""

    name: str  # key of PROGRAMS
    values: dict  # of the configuration, with the paths that are used
    args: argparse.Namespace
    config: object  # of the model
    recipe: dict  # fields of heads.Recipe that the configuration gives
    flags: list  # of this project's program
    splits: dict = field(default_factory=dict)  # of the dataset, {name: {'annotations': path, 'images': [paths]}}
    files: dict = field(default_factory=dict)  # content of files that are written beside dataset.json, by name

    @property
    def program(self):
        return PROGRAMS[self.name]

    @property
    def output(self):
        return Path(self.args.output_dir)

    def names(self, split):
        """The names of the splits that `split` (train, val, test) became."""
        return [name for name in self.splits if name.rstrip('0123456789AB') == split]


def located(path):
    """A path as it is, or below one of HOMES if nothing is there: users type ./configs/..., data/... or pretrained/..."""
    path = Path(path)
    places = () if path.is_absolute() else (home / path for home in HOMES)
    return next((place for place in (path, *places) if place.exists()), path)


def known_or_error(key, known, place):
    """Raises DataError for a key that is not known, with the one that may be meant."""
    if key not in known:
        close = difflib.get_close_matches(str(key), known, 1)
        hint = f'did you mean "{close[0]}"? ' if close else ''
        raise DataError(f'{place}: key {shown(key)}: there is no such key; {hint}Known: {", ".join(known)}')


def check(values, kinds, place, prefix=''):
    """Raises DataError that names the key unless the values of an object are of these kinds."""
    for key, value in values.items():
        known_or_error(key, list(kinds), f'{place}: {prefix[:-1]}' if prefix else place)
        kind, name = kinds[key], f'{place}: key "{prefix}{key}"'
        if kind is None:
            continue
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds_of = ' or '.join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise DataError(f'{name}: expected {kinds_of}, found {shown(value)}; correct it')
        if kind == FILES and (not value or (isinstance(value, list) and not all(isinstance(one, str) and one for one in value))):
            raise DataError(f'{name}: expected a path or a list of paths, found {shown(value)}; correct it')
        if kind in (int, NUMBER) and value < 0:
            raise DataError(f'{name}: expected a number of at least 0, found {shown(value)}; correct it')
        if (fixed := FIXED.get(prefix + key, value)) != value and str(fixed).lower() != str(value).lower():
            raise DataError(f'{name}: expected {shown(fixed)}, the only one that there is, found {shown(value)}; correct it')


def read_config(path, name):
    """The values of a configuration, checked, with the paths that are used. Raises FileNotFoundError or DataError."""
    path = located(path)
    values = read_yaml(path, YAML)
    check(values, dict.fromkeys(MODEL) | COMMON | PROGRAMS[name].keys, path)
    for key, kinds in (('optimizer', OPTIMIZER), ('schedular', SCHEDULAR)):
        check(values.get(key, {}), kinds, path, f'{key}.')
    for key in ('train_file', 'bert_config'):
        if key not in values:
            raise DataError(f'{path}: key "{key}": expected {"a path or a list of paths" if key == "train_file" else "a path"}, '
                            f'found no such key among {", ".join(map(str, values))}; add it')
    for key, kind in (COMMON | PROGRAMS[name].keys).items():
        if kind == FILES and key in values:
            values[key] = [str(located(one)) for one in ([values[key]] if isinstance(values[key], str) else values[key])]
        elif key.endswith(('_root', '_data', '_config', '_list')) or key in ('det_file', 'coco_file'):
            values |= {key: str(located(values[key]))} if key in values else {}
    return path, values


def parse_args(argv):
    """(name of the program, flags) of a command line. Exits with status 2 for a wrong one."""
    parser = argparse.ArgumentParser(prog='run/albef.bash', allow_abbrev=False, description="ALBEF's programs, with its flags.")
    parser.add_argument('program', choices=PROGRAMS)
    parser.add_argument('--config', required=True, help='yaml; looked for below data/albef too')
    parser.add_argument('--output_dir', required=True, help='folder of log.txt, config.yaml and checkpoints')
    parser.add_argument('--checkpoint', default='', help='weights to start from, or to evaluate')
    parser.add_argument('--text_encoder', '--textencoder', default='bert-base-uncased', help='folder of BERT')
    parser.add_argument('--text_decoder', '--textdecoder', help='as --text_encoder; another one is refused')
    parser.add_argument('--evaluate', action='store_true', help='only test')
    parser.add_argument('--resume', nargs='?', const=True, default=False, type=boolean, help='resume the run in --output_dir')
    parser.add_argument('--device', default='cuda', help='cuda or cpu; without a GPU the CPU')
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--distributed', type=boolean, default=True, help='False: one process')
    parser.add_argument('--world_size', type=int, help='number of processes; read by the launcher')
    parser.add_argument('--dist_url', help='not used: machines find each other by MASTER_ADDR (docs/distributed.md)')
    parser.add_argument('--gradcam_mode', choices=('itm', 'itc'), default='itm', help='of Grounding')
    parser.add_argument('--block_num', type=int, default=8, help='of Grounding: the layer whose maps are used')
    add_flags(parser, *OURS)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        close = difflib.get_close_matches(unknown[0].partition('=')[0], flags, 1)
        parser.error(f'{unknown[0]}: there is no such flag; ' + (f'did you mean {close[0]}? ' if close else '')
                     + f'known: {", ".join(flags)}')
    if args.text_decoder not in (None, args.text_encoder):
        parser.error(f'--text_decoder {args.text_decoder}: expected that of --text_encoder, {args.text_encoder}, as both have '
                     'one vocabulary; leave it out')
    if args.evaluate and args.resume:
        parser.error('--evaluate and --resume: evaluation does not train; give one of them')
    if args.evaluate and not args.checkpoint:
        parser.error('--evaluate: give the weights to evaluate with --checkpoint')
    if args.evaluate and args.program.startswith('Pretrain'):
        parser.error(f'--evaluate: {args.program} only trains; leave it out')
    return args


def boolean(text):
    """The value of a flag that is spelled True or False."""
    if text.lower() not in BOOLEANS:
        raise argparse.ArgumentTypeError(f'expected True or False, found {text}')
    return BOOLEANS[text.lower()]


def make_plan(argv):
    """The Plan of a command line. Reads configurations, writes nothing. Raises FileNotFoundError or DataError."""
    args = parse_args(argv)
    path, values = read_config(args.config, args.program)
    batch = values.get('batch_size_train', values.get('batch_size'))  # of a process: negatives of each other
    changes = {'group': batch} if batch and 'group' not in values else {}
    if args.repairs:
        changes['repairs'] = args.repairs.split(',')
    config = models.package('albef', 'config').AlbefConfig.from_files(path, values['bert_config'], **changes)
    optimizer, schedular = values.get('optimizer', {}), values.get('schedular', {})
    recipe = {'weight_decay': optimizer.get('weight_decay'), 'min_lr': schedular.get('min_lr'),
              'warmup_lr': schedular.get('warmup_lr'),
              'warmup': RISE * schedular['warmup_epochs'] if 'warmup_epochs' in schedular else None}
    processes = int(os.environ.get('WORLD_SIZE', 1))
    options = {'output': args.output_dir, 'dataset': f'{args.output_dir}/dataset.json', 'bert': str(located(args.text_encoder)),
               'model': 'albef', 'seed': args.seed, 'batchSize': batch and batch * processes,
               'evalBatchSize': values.get('batch_size_test'), 'lr': schedular.get('lr', optimizer.get('lr')),
               'epochs': schedular.get('epochs'), 'wordMaskRate': values.get('mlm_probability')}
    if args.checkpoint:
        options['load' if args.evaluate else 'loadALBEF'] = str(located(args.checkpoint))
    device = args.device.partition(':')
    if device[0] not in ('cpu', 'cuda') or (device[2] and not device[2].isdecimal()):
        raise ValueError(f'--device {args.device}: expected cuda, cuda:N or cpu')
    if device[0] == 'cpu':
        options['device'] = 'cpu'
    elif not args.numWorkers:
        args.numWorkers = WORKERS
    options |= {name: getattr(args, name) for name in (*OURS, 'resume')}
    flags = [word for name, value in options.items() if value not in (None, False)
             for word in ([f'--{name}'] if value is True else [f'--{name}', str(value)])]
    plan = Plan(args.program, values, args, config, {key: value for key, value in recipe.items() if value is not None}, flags)
    describe_splits(plan)
    train, valid, test = (','.join(plan.names(split)) for split in ('train', 'val', 'test'))
    plan.flags += ['--test', test] if args.evaluate else ['--train', train, '--valid', valid if plan.program.best else '']
    return plan


def describe_splits(plan):
    """Fills Plan.splits: of each file of the configuration its annotations and the folders of its pictures."""
    values, output = plan.values, plan.output
    if plan.name == 'Grounding':
        for name, examples, boxes in expressions(plan):
            plan.splits[name] = {'annotations': str(output / f'{name}.json'), 'images': [values.get('image_root', '.')],
                                 'boxes': str(output / f'{name}_boxes.json')}
            plan.files |= {f'{name}.json': examples, f'{name}_boxes.json': boxes}
        return
    for split in ('train', 'val', 'test'):
        for number, path in enumerate(values.get(f'{split}_file', []), 1):
            plan.splits[f'{split}{number if number > 1 else ""}'] = {'annotations': path, 'images': images_of(plan, path)}


def images_of(plan, path):
    """The folders, or the list, of the pictures of a file."""
    values = plan.values
    if plan.name == 'VQA':
        first = next(stream(path, 'item', 'questions'))
        key = 'vg_root' if isinstance(first, dict) and first.get('dataset') == 'vg' else 'vqa_root'
        return [value_of(values, key, str, plan.args.config)]
    if 'image_root' in values:
        return [values['image_root']]
    if plan.name.startswith('Pretrain'):  # whose paths are complete
        return [str(plan.output / f'{Path(path).stem}.images.txt')]
    raise DataError(f'{plan.args.config}: key "image_root": expected the folder of the pictures, found no such key; add it')


def write_dataset(plan):
    """Writes dataset.json, and the files that it names, to the folder of the run."""
    plan.output.mkdir(parents=True, exist_ok=True)
    for name, content in plan.files.items():
        (plan.output / name).write_text(json.dumps(content))
    for split in plan.splits.values():
        for path in split['images']:
            if path.endswith('.images.txt') and not Path(path).exists():
                write_images(path, split['annotations'])
    values = dataset_of(plan)
    (plan.output / 'dataset.json').write_text(json.dumps(values, indent=1) + '\n')
    DatasetSpec.from_dict(values, plan.output, plan.output / 'dataset.json')


def dataset_of(plan):
    """The content of dataset.json, in which paths are relative to the folder of the run."""
    def relative(path):
        return os.path.relpath(path, plan.output)

    length = min(plan.program.lengths[plan.args.evaluate], plan.config.max_text_length())
    answers = {'answers': relative(value_of(plan.values, 'answer_list', str, plan.args.config))} if plan.name == 'VQA' else {}
    return {'kind': plan.program.kind, 'name': plan.name, 'max_length': length, **answers, 'splits': {
        name: {key: [relative(one) for one in value] if isinstance(value, list) else relative(value)
               for key, value in split.items()} for name, split in plan.splits.items()}}


def write_images(path, annotations):
    """Writes the list of the pictures of a pre-training file, whose paths are complete, or relative to the current folder."""
    paths = dict.fromkeys(value_of(item, 'image', str, f'{annotations}: example {number}')
                          for number, item in enumerate(stream(annotations, 'item', 'images with captions')))
    if relative := next((one for one in paths if not os.path.isabs(one)), None):
        raise DataError(f'{annotations}: expected complete paths of pictures, found {shown(relative)}; add the key "image_root", '
                        'the folder that it is relative to, to the configuration')
    Path(path).write_text(''.join(f'{one}\n' for one in paths))


def expressions(plan):
    """Yields (split, examples, {image id: boxes}) of Grounding: train, and as in the refs val, testA, testB or test. The boxes of
    a split for testing are the detected ones, of train those of the expressions, which are not trained on. Boxes are cut at the
    border of their image."""
    values, place = plan.values, plan.args.config
    folder, detections = Path(value_of(values, 'refcoco_data', str, place)) / 'refcoco+', value_of(values, 'det_file', str, place)
    annotated, sizes = read_boxes(folder / 'instances.json', clip=True)[0], read_sizes(folder / 'instances.json')
    official = folder / 'refs(unc).p'
    path = official if official.is_file() else find_refs(folder)
    refs = {item['ref_id']: (split, int(item['img_id'][-12:]), item['box'])
            for split, item in examples_of_refs(path, annotated, defaultdict(list))}
    detected, examples, boxes = read_detections(detections), defaultdict(list), defaultdict(dict)
    detected = {image: [cut for box in of_image if (cut := clipped(box, sizes[image]))]
                for image, of_image in detected.items() if image in sizes}
    for key in ('train_file', 'test_file'):
        for path in values.get(key, []):
            for number, item in enumerate(stream(path, 'item', 'expressions')):
                where, example = f'{path}: example {number}', example_of(item, number, path)
                if (ref := refs.get(value_of(example, 'ref_id', int, where))) is None:
                    raise DataError(f'{where}: key "ref_id": expected a ref of {folder}, found {example["ref_id"]}; are the '
                                    'files of one dataset?')
                split, image, box = ref
                name = 'train' if key == 'train_file' else split if split != 'train' else 'test'
                examples[name].append(example | {'box': box})
                if name == 'train':
                    boxes[name].setdefault(example['img_id'], []).append(box)
                elif detected.get(image):
                    boxes[name][example['img_id']] = detected[image]
                else:
                    raise DataError(f'{detections}: expected boxes of image {image}, of which {path} has expressions, found none')
    yield from ((name, examples[name], boxes[name]) for name in examples)
