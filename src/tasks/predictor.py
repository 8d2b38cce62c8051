"""A fine-tuned snapshot as a library: regions and questions in, answers and their probabilities out."""

from pathlib import Path

import numpy as np
import torch

from annotations.dataset import QuestionDataset
from annotations.examples import Examples
from annotations.spec import DatasetSpec
from bert.weights import WeightsError, fill
from files.json_files import DataError, read_json, some
from lxrt.config import LxrtConfig
from lxrt.entry import LXRTEncoder
from lxrt.weights import read_task
from param import Options
from regions import tsv
from regions.arrays import RegionArrays
from regions.tsv import ImageRegions, RegionError
from tasks import start
from tasks.model import AnswerModel
from tasks.registry import TASKS, task_class
from tasks.snapshot import SNAPSHOT, answers_beside, find_weights
from train import batches, evaluation_parts

MAX_LENGTH = 20  # tokens of a sentence, of all published data


class Answerer:
    """Answers questions about images as `--test` does: the same answers, the same probabilities.

    task: an Answering task that holds its model; tokenizer, answers and max_length: what the model was trained with.
    """

    def __init__(self, task, tokenizer, answers, max_length=MAX_LENGTH):
        self.task, self.tokenizer, self.answers, self.max_length = task, tokenizer, answers, max_length

    @classmethod
    def from_snapshot(cls, path, device='cpu', max_length=None):
        """From a snapshot of any task, such as snap/vqa/NAME/BEST, with or without .pth, or a folder of Hugging Face.

        Beside it lie config.json, vocab.txt and answers.json, as every run writes them, and perhaps the run's options.json, which
        says whether it was trained with --mceLoss and on which --dataset. max_length: tokens of a sentence; None: that dataset's,
        else 20. Raises FileNotFoundError for what is missing, WeightsError, DataError or ValueError for what does not fit.
        """
        path = find_weights(str(path), SNAPSHOT)
        state, config = read_task(path), LxrtConfig.from_json(path.with_name('config.json'))
        tokenizer, answers = start.read_tokenizer(path.parent, config), answers_beside(path)
        if answers is None:
            raise FileNotFoundError(f'{path}: found no answers.json beside it; copy it from the folder of its run')
        options = run_options(path)
        made = _task(path, state, config, answers)
        length = max_length or _max_length(path, options)
        model = AnswerModel(LXRTEncoder(config, max_seq_length=length), len(answers), len(made.form.images))
        fill(model, state, str(path))
        task = made(model.to(device).eval(), Options(mceLoss=bool(options.get('mceLoss'))))
        return cls(task, tokenizer, answers, length)

    def answer(self, regions, questions, best=1, batch_size=32):
        """A list for each question: its `best` answers as (answer, probability), the most probable first.

        regions: an ImageRegions (boxes in pixels, as regions.source reads them from TSV files and stores), which all questions
        are about, or a list with one for each question; of a task about two images a question, a list of pairs. questions: a
        list of n texts; one text is a list of one. Images may have different numbers of regions. Raises RegionError for regions
        that are damaged or do not fit the model, ValueError for anything else that was not expected.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        if best < 1:
            raise ValueError(f'best: expected at least 1, found {best}')
        self.task.most, found = best, []
        with torch.no_grad():
            for batch in self.batches(regions, questions, batch_size):
                predicted = self.task.predict(self.task.model, batch)
                for places, chances in zip(*(part.tolist() for part in predicted), strict=True):
                    found.append([(self.answers[place], chance) for place, chance in zip(places, chances, strict=True)])
        return found

    def batches(self, regions, questions, batch_size=32):
        """Yields what the model (task.model, which is set to evaluation) reads to answer, as annotations.dataset.QuestionDataset has it,
        on the model's device. Takes and raises what `answer` does; questions: a list."""
        if batch_size < 1:
            raise ValueError(f'batch_size: expected at least 1, found {batch_size}')
        for i, question in enumerate(questions):
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f'questions[{i}]: expected a text, found {question!r}')
        images = self._images(regions, len(questions))
        if questions:
            dataset, options = self._dataset(images, questions), Options(batchSize=batch_size)
            device = next(self.task.model.eval().parameters()).device
            yield from batches(dataset, evaluation_parts(len(dataset), options), options, device)

    def unread(self, question):
        """The end of a question that is not read, since it has more than max_length - 2 word pieces; '' of most."""
        return ' '.join(self.tokenizer.tokenize(question)[self.max_length - 2:]).replace(' ##', '')

    def _images(self, regions, n):
        """The images of each of n questions, all in tuples of as many as the task has."""
        k = len(self.task.form.images)
        each = [regions] * n if isinstance(regions, ImageRegions) else list(regions)
        each = [tuple(images) if isinstance(images, tuple | list) else (images,) for images in each]
        if len(each) != n:
            pairs = ', a pair for each' if k == 2 else ''
            raise ValueError(f'regions: expected those of {n} questions{pairs}, found {len(each)}')
        for i, images in enumerate(each):
            if len(images) != k or not all(isinstance(image, ImageRegions) for image in images):
                raise ValueError(f'regions[{i}]: expected {"an ImageRegions" if k == 1 else f"a tuple of {k} ImageRegions"} for '
                                 f'question {i}, found {", ".join(type(image).__name__ for image in images) or "none"}')
        return each

    def _dataset(self, images, questions):
        """The questions as `--test` reads them, each record of regions once."""
        distinct = {id(image): image for of_one in images for image in of_one}
        row = {key: place for place, key in enumerate(distinct)}
        checked = [_checked(image, self.task.model.lxrt_encoder.config) for image in distinct.values()]
        rows = np.array([[row[id(image)] for image in of_one] for of_one in images])  # (n, k)
        examples = Examples.unlabelled([[image.img_id for image in of_one] for of_one in images], questions)
        return QuestionDataset(examples, RegionArrays.of_images('regions', checked), rows, self.tokenizer, self.answers,
                               self.max_length)


def _checked(image, config):
    try:
        return tsv.check(image, config.visual_feat_dim)
    except RegionError as error:
        raise RegionError(f'regions: image {image.img_id}: {error}') from None


def run_options(path):
    """The options of the run that wrote a snapshot; {} where its options.json is not there."""
    beside = path.with_name('options.json')
    if not beside.is_file():
        return {}
    about = read_json(beside, 'the options of the run that wrote the snapshot')
    if not isinstance(about, dict) or not isinstance(about.get('options'), dict):
        raise DataError(f'{beside}: key "options": expected an object, found none; copy the file of the run again, or remove it')
    return about['options']


def _max_length(path, options):
    dataset = options.get('dataset')
    if dataset and not Path(dataset).is_file():
        raise FileNotFoundError(f'{path}: was trained on --dataset {dataset}, which says how long sentences may be and is not '
                                'there; give max_length')
    return DatasetSpec.from_json(dataset).max_length if dataset else MAX_LENGTH


def _task(path, state, config, answers):
    """The class of the task whose snapshot this is, by its answer layers and answers. VQA and GQA answer alike."""
    first, last = (state.get(f'logit_fc.{place}.weight') for place in (0, 3))
    if first is None or last is None:
        raise WeightsError(f'{path}: has no answer layers (logit_fc); expected the snapshot of a task, such as the BEST.pth that '
                           'run/vqa_finetune.bash writes')
    if len(last) != len(answers):
        raise DataError(f'{path.with_name("answers.json")}: expected {len(last)} answers, as many as {path.name} scores, found '
                        f'{len(answers)}; copy the file from the folder of its run')
    images = first.shape[1] // config.hidden_size
    classes = sorted(map(task_class, TASKS), key=lambda made: made.form.answers is None)  # those with answers of their own first
    for made in classes:
        if len(made.form.images) == images and (made.form.answers or tuple(answers)) == tuple(answers):
            return made
    raise DataError(f'{path}: scores {len(answers)} answers ({some(answers)}) to a question about {images} images, as no task '
                    'does; do config.json and answers.json beside it belong to it?')
