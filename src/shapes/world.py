"""The sample world on disk, in the layout of LXMERT's real data below `data/`.

    <out>/vqa/{train,nominival,minival,test}.json, trainval_ans2label.json, trainval_label2ans.json
    <out>/gqa/{train,valid,testdev,submit}.json, trainval_ans2label.json, trainval_label2ans.json
    <out>/nlvr2/{train,valid,test,hidden}.json
    <out>/entailment/{train,dev,test}.json
    <out>/refcoco/{train,val,testA}.json                       expressions for pictures of train2014
    <out>/retrieval/coco_{train,valid,test}.json, near_misses.json   captions of pictures, and pairs of which one word is wrong
    <out>/cc/{train,val}.json, cc_imgfeat/{train,val}.store    the same captions, and regions with class probabilities
    <out>/corpus/shapes.txt                                    text without pictures
    <out>/vcr/{train,val,test}.json, vcr_imgfeat/{train,val,test}.store    answers and rationales, and the regions of all things
    <out>/vcr/{train,val,test}_boxes.json            their boxes and masks
    <out>/lxmert/{mscoco_train,mscoco_nominival,mscoco_minival,vgnococo}.json, all_ans.json    captions and the same questions
    <out>/mscoco_imgfeat/{train2014,val2014,test2015}_obj36.tsv
    <out>/vg_gqa_imgfeat/{vg_gqa,gqa_testdev}_obj36.tsv, nlvr2_imgfeat/{train,valid,test,hidden}_obj36.tsv    the same regions
    <out>/flickr30k_imgfeat/flickr30k_obj36.tsv      of all pictures
    <out>/images/{train2014,val2014,test2015}/<img_id>.png
    <out>/images/{gqa,nlvr2,flickr30k,vcr1images,cc_train,cc_val}    lists of the same pictures
    <out>/bert/{vocab.txt,config.json}
    <out>/objects_vocab.txt, attributes_vocab.txt    names of the class and attribute ids
    <out>/world.json                                 its settings, and the name of the detector for new pictures
"""
import contextlib
import json
import multiprocessing
import os
import random
import shutil
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import BertWordPieceTokenizer

from bert.tokenization import SPECIAL_TOKENS
from cli import WorkerError, become_worker
from files.atomic import atomic_folder
from files.json_files import read_json
from files.progress import ProgressBar
from regions import tsv
from shapes import (
    caption_data,
    captions,
    draw,
    expressions,
    features,
    gqa_questions,
    hard_text,
    pairs,
    questions,
    retrieval,
    scene,
    simulate_regions,
    statements,
    tagged_questions,
)
from shapes.baselines import TRAIN

FORMAT = 4  # raise it when the same settings give other bytes, world.json aside
DETECTOR = 'shapes'  # the --detector for pictures of this world

# GQA and NLVR2 use the pictures of VQA: the folder of each split's pictures, and the folders whose regions each TSV holds.
FOLDERS = {'gqa': {'train': 'train2014', 'valid': 'val2014', 'testdev': 'test2015', 'submit': 'val2014'},
           'nlvr2': {'train': 'train2014', 'valid': 'val2014', 'test': 'test2015', 'hidden': 'test2015'},
           'entailment': {'train': 'train2014', 'dev': 'val2014', 'test': 'test2015'}}
TSVS = {'vg_gqa_imgfeat/vg_gqa': ('train2014', 'val2014'), 'vg_gqa_imgfeat/gqa_testdev': ('test2015',),
        'flickr30k_imgfeat/flickr30k': ('train2014', 'val2014', 'test2015'),
        **{f'nlvr2_imgfeat/{split}': (folder,) for split, folder in FOLDERS['nlvr2'].items()}}
LISTS = {**dict.fromkeys(('gqa', 'nlvr2', 'flickr30k', 'vcr1images'), ('train2014', 'val2014', 'test2015')),
         'cc_train': ('train2014',), 'cc_val': ('val2014',)}  # lists of pictures -> folders
UNLABELLED = {'vqa': 'test', 'gqa': 'submit', 'nlvr2': 'hidden'}  # splits for submissions
TASKS = (*UNLABELLED, 'entailment', 'refcoco')
LABEL_KEYS = ('label', 'answer_type', 'question_type', 'tags')
ANSWERS = {'vqa': questions.ANSWERS, 'gqa': gqa_questions.ANSWERS}

# Pre-training: the sources of each file's sentences, captions first. The last fifth of train2014 stands for Visual Genome.
COCO = ('mscoco', 'vqa', 'gqa')
SOURCES = {'mscoco_train': COCO, 'mscoco_nominival': COCO, 'mscoco_minival': COCO, 'vgnococo': ('vg', 'gqa')}

# A small LXMERT that learns this world from scratch on two CPU cores; keys as in BERT's and Hugging Face's configs. Vectors this
# short need larger initial weights than BERT's 0.02; what else was tried: experience_in_pretraining.md.
CONFIG = {'hidden_size': 128, 'num_attention_heads': 4, 'intermediate_size': 256, 'hidden_act': 'gelu',
          'l_layers': 1, 'r_layers': 1, 'x_layers': 2,
          'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0, 'initializer_range': 0.05,
          'max_position_embeddings': 40, 'type_vocab_size': 2,
          'visual_feat_dim': features.FEATURE_DIM, 'visual_pos_dim': 4,
          'num_object_labels': len(simulate_regions.CLASSES), 'num_attr_labels': len(simulate_regions.ATTRIBUTES),
          # A single-stream model of 0.75 million parameters, which sees images from the start: without BERT's weights
          # the published initial scales of 0 grow too slowly (experience_in_pretraining.md).
          'visual_scale_text_init': 0.2, 'visual_scale_object_init': 0.9, 'geometry_size': 128,
          'num_hidden_layers': 5, 'num_region_classes': 1 + len(simulate_regions.CLASSES),
          # With --features pixels: a ResNet that learns shapes and colours from random weights, at the size of the pictures.
          'image_side': scene.HEIGHT, 'resnet_width': 4, 'resnet_blocks': [1, 1, 1, 1], 'resnet_frozen': False,
          # An ALBEF that reads the pictures. Crops, flips and RandAugment would change the places that texts name.
          'image_res': 96, 'patch_size': 12, 'vision_width': 128, 'vision_depth': 3, 'vision_heads': 4, 'fusion_layer': 2,
          'embed_dim': 64, 'queue_size': 1024, 'momentum': 0.99, 'k_test': 32, 'augment': False}
SCENES = 100  # of the corpus that one process describes at once


@dataclass(frozen=True)
class Settings:
    """A world's bytes depend on these settings alone."""
    images: int = 2000
    seed: int = 9595
    questions: int = 10  # per image, of VQA and of GQA; NLVR2 has twice as many statements
    captions: int = 5  # per image of pre-training
    hard: bool = False  # more and partly hidden things, nested descriptions, rare words, held-out combinations

    def __post_init__(self):
        if self.images < 12:
            raise ValueError(f'--images {self.images}: at least 12 are needed, so that every split gets some')
        if self.seed < 0:
            raise ValueError(f'--seed {self.seed}: expected a number from 0 on')
        if not 1 <= self.questions <= 20:
            raise ValueError(f'--questions {self.questions}: expected 1 to 20 questions an image')
        if not 1 <= self.captions <= 6:
            raise ValueError(f'--captions {self.captions}: expected 1 to 6 captions an image')

    def record(self) -> dict:
        """The content of world.json."""
        settings = {name: value for name, value in asdict(self).items() if value is not False}
        return {'format': FORMAT, 'detector': DETECTOR, **settings}

    def scene_of(self, index: int) -> scene.Scene:
        return scene.sample(self.seed, index, scene.HARD if self.hard else scene.ORDINARY)

    def splits(self, task: str = 'vqa') -> dict[str, tuple[str, list[int]]]:
        """{split of the task, or file of `lxmert`: (folder of its images, image indices)}; test2015's share is 8 %, val2014's
        12 %."""
        test, nominival, minival = (max(2, round(self.images * share)) for share in (0.08, 0.04, 0.08))
        train = self.images - test - nominival - minival
        ends = np.cumsum([0, train, nominival, minival, test]).tolist()
        names = {'train': 'train2014', 'nominival': 'val2014', 'minival': 'val2014', 'test': 'test2015'}
        vqa = {split: (folder, list(range(ends[i], ends[i + 1]))) for i, (split, folder) in enumerate(names.items())}
        if task == 'vqa':
            return vqa
        if task == 'refcoco':
            val, test = train * 8 // 10, train * 9 // 10
            return {split: ('train2014', list(range(*part))) for split, part in
                    {'train': (0, val), 'val': (val, test), 'testA': (test, train)}.items()}
        if task == 'lxmert':
            coco = train - train // 5
            cut = {'mscoco_train': ('train2014', list(range(coco))), 'vgnococo': ('train2014', list(range(coco, train)))}
            return {file: cut.get(file) or vqa[file.removeprefix('mscoco_')] for file in SOURCES}
        return {split: (folder, [index for other, indices in vqa.values() if other == folder for index in indices])
                for split, folder in FOLDERS[task].items()}


def exists(out: Path, settings: Settings) -> bool:
    """Whether the folder `out` holds a complete world with these settings.

    Raises:
        FileExistsError: `out` holds something else.
    """
    if not out.exists():
        return False
    expected = settings.record()
    record = out / 'world.json'
    existing = read_json(record, 'the settings of a sample world', dict) if record.exists() else {}
    if {'detector': DETECTOR, **existing} != expected:
        raise FileExistsError(f'{out}: holds {existing or "no world.json"}, expected {expected}; '
                              'choose another --out')
    if 'detector' not in existing:  # a world made before the key was introduced
        _dump(record, expected, indent=2)
    return True


def make(out: Path, settings: Settings, processes: int | None = None) -> dict[str, dict[str, list[dict]]]:
    """Makes a world; `out` appears only when it is complete.

    The bytes do not depend on `processes` (default: one per core).

    Returns:
        {task: {split: annotations}}, all with their labels, also those that no file contains; under 'lxmert' those of
        pre-training, by file.
    """
    with atomic_folder(out) as folder:
        return _write(folder, settings, processes or len(os.sched_getaffinity(0)))


def _write(out: Path, settings: Settings, processes: int) -> dict[str, dict[str, list[dict]]]:
    folders = {}  # images of nominival and minival share a folder and a TSV
    for folder, indices in settings.splits().values():
        folders.setdefault(folder, []).extend(indices)
    images = [f'images/{folder}' for folder in folders]
    for folder in ('bert', *TASKS, 'retrieval', 'lxmert', 'cc', 'corpus', 'cc_imgfeat', 'mscoco_imgfeat', 'vg_gqa_imgfeat',
                   'nlvr2_imgfeat', 'flickr30k_imgfeat', 'vcr', 'vcr_imgfeat', *images):
        (out / folder).mkdir(parents=True)
    tsvs = {folder: out / 'mscoco_imgfeat' / f'{folder}_obj36.tsv' for folder in folders}

    with _worker_pool(processes) as pool:
        pending = {task: {split: pool.submit(_generate, settings, task, split) for split in settings.splits(task)}
                   for task in (*TASKS, 'lxmert')}
        captioned = {file: pool.submit(_captioned, settings, file) for file in retrieval.FILES}
        texts = [pool.submit(_corpus, settings, first, min(SCENES, settings.images - first))
                 for first in range(0, settings.images, SCENES)]
        for folder, indices in folders.items():
            regions = pool.map(partial(_draw, out / 'images' / folder, folder, settings), indices, chunksize=8)
            regions = ProgressBar(regions, folder, len(indices), unit=' pictures')
            split = caption_data.SPLITS.get(folder)
            with (caption_data.storing(out / f'cc_imgfeat/{split}.store', regions) if split
                  else contextlib.nullcontext(regions)) as regions:
                tsv.write(tsvs[folder], (replace(image, class_probabilities=None) for image in regions))
            with caption_data.reproducible_store(out / f'vcr_imgfeat/{tagged_questions.SPLITS[folder]}.store') as writer:
                tagged_regions = partial(_tagged_regions, out / 'images' / folder, folder, settings)
                things = list(pool.map(tagged_regions, indices, chunksize=8))
                for image, _ in things:
                    writer.add(image)
            _dump(out / f'vcr/{tagged_questions.SPLITS[folder]}_boxes.json', [boxes for _, boxes in things])
        annotations = {task: {split: result.result() for split, result in splits.items()} for task, splits in pending.items()}
        for file, result in captioned.items():
            _dump(out / f'retrieval/{file}.json', result.result())
        _write_lines(out / 'corpus/shapes.txt', [line for part in texts for line in part.result()])
    captions_of = annotations['lxmert']
    annotations['lxmert'] = pretraining(captions_of, annotations)
    tagged = {split: list(tagged_questions.generate(
        {_img_id(folder, index): settings.scene_of(index) for index in folders[folder]},
        random.Random(f'vcr {settings.seed} {split}'), split)) for folder, split in tagged_questions.SPLITS.items()}
    if settings.hard:
        tagged = {split: list(hard_text.pointing_examples(items, split in TRAIN['vcr'], random.Random(f'vcr words {split}')))
                  for split, items in tagged.items()}
    for split, items in tagged.items():
        left_out = (*tagged_questions.LABELS, 'tags') if split == 'test' else ()
        _dump(out / f'vcr/{split}.json', [{key: value for key, value in item.items() if key not in left_out} for item in items])

    for name, parts in LISTS.items():
        _write_lines(out / 'images' / name, [f'{folder}/{_img_id(folder, index)}.png' for folder in parts
                                             for index in folders[folder]])
    for name, parts in TSVS.items():
        _join([tsvs[folder] for folder in parts], out / f'{name}_obj36.tsv')
    for task, splits in annotations.items():
        for split, items in splits.items():
            left_out = LABEL_KEYS if split == UNLABELLED.get(task) else ()
            _dump(out / task / f'{split}.json', [{k: v for k, v in item.items() if k not in left_out} for item in items])
    for task, answers in ANSWERS.items():
        _dump(out / task / 'trainval_label2ans.json', list(answers))
        _dump(out / task / 'trainval_ans2label.json', {answer: i for i, answer in enumerate(answers)})
    _dump(out / 'lxmert/all_ans.json', answer_table())
    for folder, split in caption_data.SPLITS.items():
        _dump(out / f'cc/{split}.json', [
            {'img_id': img_id, 'sentf': {caption_data.SOURCE: sentences}} for by_image in captions_of.values()
            for img_id, sentences in by_image.items() if sentences and img_id.startswith(f'COCO_{folder}_')])
    pieces = vocabulary([
        *(item['sent'] for task in UNLABELLED for items in annotations[task].values() for item in items),
        *(sentence for by_image in captions_of.values() for sentences in by_image.values() for sentence in sentences),
        *(' '.join(hard_text.words(name)) for name in (hard_text.SYNONYMS if settings.hard else ()))])
    _write_lines(out / 'bert/vocab.txt', pieces)
    _dump(out / 'bert/config.json', {'vocab_size': len(pieces), **CONFIG}, indent=2)
    _write_lines(out / 'objects_vocab.txt', simulate_regions.CLASSES)
    _write_lines(out / 'attributes_vocab.txt', simulate_regions.ATTRIBUTES)
    _dump(out / 'world.json', settings.record(), indent=2)
    return annotations | {'vcr': tagged}


@contextlib.contextmanager
def _worker_pool(processes: int):
    """A ProcessPoolExecutor whose processes end at once after an error or a signal. Raises WorkerError if one was killed."""
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context('fork'), become_worker, (os.getpid(),))
    try:
        yield pool
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise WorkerError('a process that draws pictures was killed (is memory short?); repeat the command') from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _join(parts: list[Path], path: Path) -> None:
    """Concatenates files; a single one is linked where the file system can do that."""
    if len(parts) == 1:
        with contextlib.suppress(OSError):
            os.link(parts[0], path)
            return
    with open(path, 'wb') as target:
        for part in parts:
            with open(part, 'rb') as source:
                shutil.copyfileobj(source, target)


def _img_id(folder: str, index: int) -> str:
    return f'COCO_{folder}_{index + 1:012d}'


def _draw(images: Path, folder: str, settings: Settings, index: int) -> tsv.ImageRegions:
    """Draws and saves picture `index`; returns its regions. A generator per picture makes it independent of all others."""
    rng = np.random.default_rng((settings.seed, index))
    truth = settings.scene_of(index)
    pixels = draw.picture(truth, rng)
    img_id = _img_id(folder, index)
    Image.fromarray(pixels).save(images / f'{img_id}.png')
    return simulate_regions.regions(img_id, truth, pixels, rng, probabilities=True)


def _tagged_regions(images: Path, folder: str, settings: Settings, index: int) -> tuple[tsv.ImageRegions, dict]:
    truth = settings.scene_of(index)
    image = tagged_questions.regions(images, _img_id(folder, index), truth)
    return image, tagged_questions.boxes_and_masks(image, truth)


def _generate(settings: Settings, task: str, split: str) -> list[dict] | dict[str, list[str]]:
    """The annotations of a split of a task; for `lxmert` {image id: captions} of a file."""
    splits = settings.splits(task)
    folder, indices = splits[split]
    scenes = {_img_id(folder, index): settings.scene_of(index) for index in indices}
    rng = random.Random(f'{"questions" if task == "vqa" else task} {settings.seed} {split}')
    if task == 'lxmert':
        return _captions(settings, scenes, split in TRAIN[task], rng)
    if task == 'gqa':
        items = gqa_questions.generate(scenes, settings.questions, (1 + list(splits).index(split)) * 10**8, rng)
    elif task == 'entailment':
        items = statements.generate(scenes, -(-len(scenes) * settings.questions // len(statements.LABELS)), split, rng)
    elif task == 'nlvr2':
        items = pairs.generate(scenes, -(-2 * len(scenes) * settings.questions // (2 * pairs.PAIRS)), split, rng)
    else:
        generator = questions if task == 'vqa' else expressions
        items = generator.generate(scenes, settings.questions, indices[0] * settings.questions, rng)
    return [*hard_text.examples(items, split in TRAIN[task], rng)] if settings.hard else items


def _captions(settings: Settings, scenes: dict[str, scene.Scene], training: bool, rng: random.Random) -> dict[str, list[str]]:
    """{image id: its captions}; in training of the hard world fewer, even none, where most name held-out combinations."""
    drawn = settings.captions * (1 + settings.hard)
    by_image = {img_id: [caption.sent for caption in of_image]
                for img_id, of_image in captions.generate(scenes, drawn, rng).items()}
    return {img_id: hard_text.lines(sentences, training, rng)[:settings.captions] if settings.hard else sentences
            for img_id, sentences in by_image.items()}


def _corpus(settings: Settings, first: int, scenes: int) -> list[str]:
    """The lines of the corpus about so many scenes from number `first` on."""
    rules = settings.scene_of(first).rules
    lines = caption_data.corpus(settings.seed, rules, first, scenes, settings.captions)
    return hard_text.lines(lines, True, random.Random(f'corpus words {settings.seed} {first}')) if settings.hard else lines


def _captioned(settings: Settings, file: str) -> list[dict]:
    """The content of a file of retrieval."""
    folder, indices = settings.splits()[retrieval.FILES[file]]
    scenes = {_img_id(folder, index): settings.scene_of(index) for index in indices}
    rng = random.Random(f'retrieval {settings.seed} {file}')
    if file == 'near_misses':
        pairs_of = retrieval.near_misses(scenes, rng)
        for seed, pair in enumerate(pairs_of if settings.hard else ()):
            pair['sent'], pair['foil'] = hard_text.near_miss((pair['sent'], pair['foil']), seed)
        return pairs_of
    by_image = _captions(settings, scenes, file in TRAIN['retrieval'], rng)
    return [{'img_id': img_id, 'sent': sentences} for img_id, sentences in by_image.items() if sentences]


def pretraining(captions_of: dict[str, dict[str, list[str]]], annotations: dict[str, dict[str, list[dict]]]) -> dict[str, list]:
    """{file: [{'img_id', 'sentf', 'labelf'}, ...]}, an object per image, in the format of LXMERT's pre-training data.

    Args:
        captions_of: {file: {img_id: captions}}.
        annotations: as `make` returns them; the labelled questions of VQA and GQA about these images are copied.
    """
    by_image = {task: defaultdict(list) for task in ANSWERS}
    for task, images in by_image.items():
        for split, items in annotations[task].items():
            for item in items if split != UNLABELLED[task] else ():
                images[item['img_id']].append(item)
    return {file: [{'img_id': img_id,
                    'sentf': {caption: sentences, **{task: [item['sent'] for item in by_image[task][img_id]] for task in tasks}},
                    'labelf': {task: [item['label'] for item in by_image[task][img_id]] for task in tasks}}
                   for img_id, sentences in captions_of[file].items()] for file, (caption, *tasks) in SOURCES.items()}


def answer_table() -> list[dict]:
    """all_ans.json: {'ans', 'dsets'} of each answer of VQA and GQA, in alphabetical order; all are normalised."""
    return [{'ans': answer, 'dsets': [task for task, answers in ANSWERS.items() if answer in answers]}
            for answer in sorted(set().union(*ANSWERS.values()))]


def vocabulary(sentences: list[str]) -> list[str]:
    """The lower-cased WordPiece vocabulary of `sentences`, [PAD] first."""
    trainer = BertWordPieceTokenizer(lowercase=True)
    letters = list('abcdefghijklmnopqrstuvwxyz0123456789')
    trainer.train_from_iterator(sentences, vocab_size=4000, min_frequency=1, special_tokens=list(SPECIAL_TOKENS),
                                initial_alphabet=letters, show_progress=False)
    # The trainer iterates over a hash table, so the order of its pieces, and which pieces between a letter and a complete word it
    # adds, may differ from run to run. Letters and complete words cover all sentences; sorted they are the same in each run.
    words = {word for sentence in sentences for word, _ in
             trainer.pre_tokenizer.pre_tokenize_str(trainer.normalizer.normalize_str(sentence))}
    letters = {*letters, *(f'##{letter}' for letter in letters)}
    return [*SPECIAL_TOKENS, *sorted(letters | words & trainer.get_vocab().keys())]


def _dump(path: Path, content, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent) + '\n')


def _write_lines(path: Path, lines) -> None:
    path.write_text('\n'.join(lines) + '\n')
