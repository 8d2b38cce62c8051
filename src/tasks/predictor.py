"""A fine-tuned snapshot as a library: regions and questions in, answers and their probabilities out."""

from pathlib import Path

import numpy as np
import torch

import models
from annotations.dataset import ExampleDataset
from annotations.examples import Examples
from annotations.spec import DatasetSpec
from bert.weights import WeightsError
from files.json_files import DataError, read_json, some
from param import Options
from regions import tsv
from regions.arrays import RegionArrays
from regions.tsv import ImageRegions, RegionError
from tasks import checkpoints
from tasks.registry import TASKS, task_class
from train import evaluation_batches, load_batches

MAX_LENGTH = 20  # tokens of a sentence, of all published data


class Predictor:
    """Answers questions about images as `--test` does: the same answers, the same probabilities.

    head: a heads.Answers in evaluation mode, whose encoder has its tokenizer; task: its Task class; answers and max_length: what
    the head was trained with.
    """

    def __init__(self, head, task, answers, max_length=MAX_LENGTH):
        self.head, self.task, self.answers, self.max_length = head, task, answers, max_length

    @classmethod
    def from_snapshot(cls, path, device='cpu', max_length=None):
        """From a snapshot of any task, such as snap/vqa/NAME/BEST, with or without .pth, or a folder of Hugging Face.

        Beside it lie config.json, vocab.txt and answers.json, as every run writes them, and perhaps the run's options.json, which
        says of which task it is, whether it was trained with --mceLoss and on which --dataset. max_length: tokens of a sentence;
        None: that dataset's, else 20. Raises FileNotFoundError for what is missing, WeightsError, DataError or ValueError for
        what does not fit.
        """
        path = checkpoints.find_weights(str(path), checkpoints.SNAPSHOT)
        package = models.package(model := checkpoints.model_type(path))
        state, config = package.read_task(path), package.config_from_json(path.with_name('config.json'))
        tokenizer, answers = checkpoints.read_tokenizer(path.parent, config), checkpoints.answers_beside(path)
        if answers is None:
            raise FileNotFoundError(f'{path}: found no answers.json beside it; copy it from the folder of its run')
        run = read_run(path)
        options = run.get('options', {})
        task = task_of(path, run.get('task'), package.answers_and_images(state, config), answers)
        length = max_length or max_length_of(path, options)
        head = models.build(model, task.kind, config, answers, Options(mceLoss=bool(options.get('mceLoss'))))
        head.load_original(state, str(path))
        head.encoder.tokenizer = tokenizer
        return cls(head.to(device).eval(), task, answers, length)

    @property
    def tokenizer(self):
        return self.head.encoder.tokenizer

    @property
    def feature_size(self):
        """The numbers of a region's features."""
        return self.head.encoder.config.visual_feat_dim

    @property
    def images(self):
        """How many images a question is about."""
        return len(self.task.schema.images)

    def answer(self, regions, questions, best=1, batch_size=32):
        """A list for each question: its `best` answers as (answer, probability), the most probable first.

        regions: an ImageRegions (boxes in pixels, as regions.readers reads them from TSV files and stores), which all questions
        are about, or a list with one for each question; of a task about two images a question, a list of pairs. questions: a
        list of n texts; one text is a list of one. Images may have different numbers of regions. Raises RegionError for regions
        that are damaged or do not fit the model, ValueError for anything else that was not expected.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        if best < 1:
            raise ValueError(f'best: expected at least 1, found {best}')
        predictions = []
        with torch.no_grad():
            for batch in self.batches(regions, questions, batch_size):
                for places, probabilities in zip(*(part.tolist() for part in self.head.predict(batch, best)), strict=True):
                    predictions.append([(self.answers[place], p) for place, p in zip(places, probabilities, strict=True)])
        return predictions

    def batches(self, regions, questions, batch_size=32):
        """Yields the batches of annotations.dataset.ExampleDataset that answer some questions, on the head's device. Takes and
        raises what `answer` does; questions: a list."""
        if batch_size < 1:
            raise ValueError(f'batch_size: expected at least 1, found {batch_size}')
        for i, question in enumerate(questions):
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f'questions[{i}]: expected a text, found {question!r}')
        images = self._images(regions, len(questions))
        if questions:
            dataset, options = self._dataset(images, questions), Options(batchSize=batch_size)
            device = next(self.head.eval().parameters()).device
            yield from load_batches(dataset, evaluation_batches(len(dataset), options), options, device)

    def truncated(self, question):
        """The end of a question that is not read, since it has more than max_length - 2 word pieces; '' of most."""
        return ' '.join(self.tokenizer.tokenize(question)[self.max_length - 2:]).replace(' ##', '')

    def _images(self, regions, n):
        """The images of each of n questions, all in tuples of as many as the task has."""
        k = self.images
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
        distinct = {id(image): image for images_of_one in images for image in images_of_one}
        row = {key: place for place, key in enumerate(distinct)}
        checked = [self._checked(image) for image in distinct.values()]
        rows = np.array([[row[id(image)] for image in images_of_one] for images_of_one in images])  # (n, k)
        examples = Examples.unlabelled([[image.img_id for image in images_of_one] for images_of_one in images], questions)
        return ExampleDataset(examples, RegionArrays.of_images('regions', checked), rows, self.head.encoder, self.answers,
                              self.max_length)

    def _checked(self, image):
        try:
            return tsv.check(image, self.feature_size)
        except RegionError as error:
            raise RegionError(f'regions: image {image.img_id}: {error}') from None


def read_run(path):
    """The options.json of the run that wrote a snapshot, {'task': ..., 'options': {...}}; {} where there is none."""
    path = path.with_name('options.json')
    if not path.is_file():
        return {}
    run = read_json(path, 'the options of the run that wrote the snapshot')
    if not isinstance(run, dict) or not isinstance(run.get('options'), dict):
        raise DataError(f'{path}: key "options": expected an object, found none; copy the file of the run again, or remove it')
    return run


def max_length_of(path, options):
    """The max_length of the dataset that a snapshot was trained on. options: of its run."""
    dataset = options.get('dataset')
    if dataset and not Path(dataset).is_file():
        raise FileNotFoundError(f'{path}: was trained on --dataset {dataset}, which says how long sentences may be and does not '
                                'exist; give max_length')
    return DatasetSpec.from_json(dataset).max_length if dataset else MAX_LENGTH


def task_of(path, kind, sizes, answers):
    """The Task class of a snapshot: of the kind that its run recorded, else by its answer layers and answers (older runs, and
    Hugging Face's files; VQA and GQA answer alike).

    sizes: (how many answers it scores, about how many images), None for a file without answer layers. Raises WeightsError or
    DataError.
    """
    if sizes is None:
        raise WeightsError(f'{path}: has no answer layers; expected the snapshot of a task, such as the BEST.pth that '
                           'run/vqa_finetune.bash writes')
    count, images = sizes
    if count != len(answers):
        raise DataError(f'{path.with_name("answers.json")}: expected {count} answers, as many as {path.name} scores, found '
                        f'{len(answers)}; copy the file from the folder of its run')
    classes = [task_class(kind)] if kind in TASKS else []
    classes += sorted(map(task_class, TASKS), key=lambda task: task.schema.answers is None)  # first those with fixed answers
    for task in classes:
        if len(task.schema.images) == images and (task.schema.answers or tuple(answers)) == tuple(answers):
            return task
    raise DataError(f'{path}: scores {len(answers)} answers ({some(answers)}) to a question about {images} images, as no task '
                    'does; do config.json and answers.json beside it belong to it?')
