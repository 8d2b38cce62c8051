"""Inference from Python: a fine-tuned snapshot predicts answers and probabilities for regions and questions (tasks/grounder.py:
regions for expressions; tasks/matcher.py: one of retrieval or a pre-trained one scores pairs)."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import models
from annotations.dataset import ExampleDataset
from annotations.examples import Examples
from annotations.spec import DatasetSpec
from batches import evaluation_batches, load_batches
from bert.tokenization import MAX_UNKNOWN, TextStatistics
from bert.weights import WeightsError
from files.json_files import DataError, some
from images.source import ImageSource, Pictures
from param import Options
from regions import tsv
from regions.arrays import RegionArrays
from regions.placement import without_features
from regions.tsv import ImageRegions, RegionError
from run_folder import read_run
from tasks import checkpoints
from tasks.registry import TASKS, output_of, task_class

MAX_LENGTH = 20  # maximum tokens of a sentence in VQA, GQA, NLVR2 and pre-training


class Inference:
    """What Predictor, Grounder and Matcher share: from regions and texts to batches. head: a heads.Head in evaluation mode, whose
    encoder has a tokenizer; max_length: tokens of a text."""

    output = 'answer'  # heads.Recipe.output

    texts = 'questions'  # for messages
    images = 1  # per text
    answers = ()

    @property
    def tokenizer(self):
        return self.head.encoder.tokenizer

    @property
    def feature_size(self):
        """The size of a region's feature vector; 0 for a model that reads none."""
        return self.head.encoder.config.visual_feat_dim if 'regions' in self.needs else 0

    @property
    def needs(self):
        """Encoder.needs of the model."""
        return self.head.encoder.needs

    @property
    def needs_regions(self):
        """Whether the model reads regions, or boxes, and so needs a detector."""
        return bool(self.needs & {'regions', 'boxes'})

    def batches(self, regions, questions, batch_size=32):
        """Yields the batches of annotations.dataset.ExampleDataset for questions (a list of str), on the head's device. Other
        arguments and errors: as for Predictor.answer."""
        if batch_size < 1:
            raise ValueError(f'batch_size: expected at least 1, found {batch_size}')
        for i, question in enumerate(questions):
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f'{self.texts}[{i}]: expected a text, found {question!r}')
        images = self._images(regions, len(questions))
        if questions:
            dataset, options = self._dataset(images, questions), Options(batchSize=batch_size)
            device = next(self.head.eval().parameters()).device
            yield from load_batches(dataset, evaluation_batches(len(dataset), options), options, device)

    def predict(self, regions, questions, best=1, batch_size=32):
        """For each question, a list of the `best` most probable (place in the logits of the head, probability). Other arguments
        and errors: as for Predictor.answer."""
        if best < 1:
            raise ValueError(f'best: expected at least 1, found {best}')
        predictions = []
        if questions and all(isinstance(question, str) for question in questions):  # else an error of `batches`
            self.text_statistics(questions).warn(self.tokenizer.vocab_file)
        with torch.no_grad():
            for batch in self.batches(regions, questions, batch_size):
                places, probabilities = (tensor.tolist() for tensor in self.head.predict(batch, best))
                predictions += [list(zip(*row, strict=True)) for row in zip(places, probabilities, strict=True)]
        return predictions

    def truncated(self, question):
        """The part of a question that is cut off after max_length - 2 word pieces, or ''."""
        return ' '.join(self.tokenizer.tokenize(question)[self.max_length - 2:]).replace(' ##', '')

    def text_statistics(self, questions):
        """The bert.tokenization.TextStatistics of questions: the share of [UNK], and how many are truncated."""
        return TextStatistics(self.max_length).add(self.tokenizer.encode_counted(questions, self.max_length)[2])

    def unread(self, question):
        """Lines that tell which parts of a question the model does not read; [] if it reads all."""
        rest, statistics = self.truncated(question), self.text_statistics([question])
        lines = [f'too long, not read: {rest}'] if rest else []
        if statistics.unknown:
            advice = '; the vocabulary is not that of this language or script' if statistics.unknown_share > MAX_UNKNOWN else ''
            lines.append(f'{100 * statistics.unknown_share:.0f} % of the word pieces are [UNK]{advice}')
        return lines

    def _images(self, regions, n):
        """A list of n tuples with the k ImageRegions of each question."""
        k = self.images
        images_of_questions = [regions] * n if isinstance(regions, ImageRegions) else list(regions)
        images_of_questions = [tuple(images) if isinstance(images, tuple | list) else (images,) for images in images_of_questions]
        if len(images_of_questions) != n:
            pairs = ', a pair for each' if k == 2 else ''
            raise ValueError(f'regions: expected those of {n} {self.texts}{pairs}, found {len(images_of_questions)}')
        for i, images in enumerate(images_of_questions):
            if len(images) != k or not all(isinstance(image, ImageRegions) for image in images):
                raise ValueError(f'regions[{i}]: expected {"an ImageRegions" if k == 1 else f"a tuple of {k} ImageRegions"} for '
                                 f'{self.texts[:-1]} {i}, found {", ".join(type(image).__name__ for image in images) or "none"}')
        return images_of_questions

    def _dataset(self, images, questions):
        """The dataset of questions and images (a list of n tuples), which stores each ImageRegions once."""
        distinct = {id(image): image for group in images for image in group}
        row_of = {key: row for row, key in enumerate(distinct)}
        rows = np.array([[row_of[id(image)] for image in group] for group in images])  # (n, k)
        regions = source = None
        if self.needs_regions:
            regions = RegionArrays.of_images('regions', [self._checked(image) for image in distinct.values()])
            regions = regions if 'regions' in self.needs else without_features(regions)
        if 'pixels' in self.needs:
            source = ImageSource([Pictures({str(row): self._picture(image) for row, image in enumerate(distinct.values())})])
        examples = Examples.unlabelled([[str(row) for row in group] for group in rows.tolist()], questions)
        return ExampleDataset(examples, regions, rows, self.head.encoder, self.answers, self.max_length, images=source)

    def _picture(self, image):
        picture = image.picture
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape != (image.height, image.width, 3):
            actual = f'{picture.dtype} {picture.shape}' if isinstance(picture, np.ndarray) else picture
            raise RegionError(f'regions: image {image.img_id}: expected a `picture`, which this model reads, an array of uint8 '
                              f'({image.height}, {image.width}, 3), found {actual}; images.pictures.open_picture opens one')
        return picture

    def _checked(self, image):
        try:
            return tsv.check(image, self.feature_size)
        except RegionError as error:
            raise RegionError(f'regions: image {image.img_id}: {error}') from None


class Predictor(Inference):
    """Answers questions about images, with the same answers and probabilities as `--test`.

    head: a heads.Answers in evaluation mode, whose encoder has a tokenizer; task: its Task class; answers, max_length: those of
    its training.
    """

    def __init__(self, head, task, answers, max_length=MAX_LENGTH):
        self.head, self.task, self.answers, self.max_length = head, task, answers, max_length

    @classmethod
    def from_snapshot(cls, path, device='cpu', max_length=None):
        """Loads a snapshot, such as snap/vqa/NAME/BEST, with or without .pth, or a Hugging Face folder.

        Its folder must have config.json, vocab.txt and answers.json, as every run writes them. The run's options.json, if it
        exists, gives the task, --mceLoss and --dataset. max_length: tokens of a sentence; None: that of the dataset, else 20.
        Raises FileNotFoundError for a missing file, and WeightsError, DataError or ValueError for files that do not match.
        """
        path = checkpoints.find_weights(str(path), checkpoints.SNAPSHOT)
        run = run_of(path, cls.output, 'does not answer questions')
        model, config, state, tokenizer = read_snapshot(path)
        answers, options = checkpoints.answers_beside(path), run.get('options', {})
        if answers is None:
            raise FileNotFoundError(f'{path}: found no answers.json beside it; copy it from the folder of its run')
        task = task_of(path, run.get('task'), models.package(model).answers_and_images(state, config), answers)
        head = models.build(model, task.head_kind(), config, answers, Options(mceLoss=bool(options.get('mceLoss'))))
        head.load_original(state, str(path))
        head.encoder.tokenizer = tokenizer
        return cls(head.to(device).eval(), task, answers, max_length or max_length_of(path, options, head, task))

    @property
    def images(self):
        """The number of images per question."""
        return len(self.task.schema.images)

    def answer(self, regions, questions, best=1, batch_size=32):
        """For each question, a list of the `best` most probable answers as (answer, probability).

        regions: one ImageRegions (boxes in pixels, as regions.readers reads them from TSV files and stores) for all questions, or
        a list with one for each question (for a task with two images per question, a pair). Images may have different numbers of
        regions. A model that reads pixels needs their `picture`; for one that reads pixels alone ImageRegions.without_regions
        makes them of pictures. questions: a list of str, or one str. Raises RegionError for regions and pictures that are damaged
        or do not fit the model, ValueError for other invalid arguments. Issues TextWarning for truncated questions, and for a
        language that the vocabulary does not know.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        return [[(self.answers[place], probability) for place, probability in row]
                for row in self.predict(regions, questions, best, batch_size)]

    @property
    def writes(self):
        """Whether the model has a decoder, which can write any answer (ALBEF's VQA and GQA)."""
        return hasattr(self.head, 'generate')

    def write(self, regions, questions, batch_size=32):
        """For each question, the answer that the decoder writes freely: piece by piece the likeliest, whether or not it is one of
        `answers`. Arguments and errors: as for `answer`; raises ValueError for a model without a decoder."""
        if not self.writes:
            raise ValueError('write: the model classifies into a list of answers and has no decoder; use `answer`')
        questions = [questions] if isinstance(questions, str) else list(questions)
        return [text for batch in self.batches(regions, questions, batch_size) for text in self.head.generate(batch)]


def run_of(path, output, refusal):
    """What the run of a snapshot recorded, see run_folder.read_run. Raises WeightsError if its task has another output; refusal:
    what it cannot do."""
    run = read_run(path.parent)
    kind = run.get('task')
    if (other := output_of(kind)) not in (None, output):
        launcher = {'answer': 'ask', 'region': 'ask', 'match': 'match'}.get(other, f'{kind}_test')
        raise WeightsError(f'{path}: is a snapshot of the task {kind}, which {refusal}; name one that does, or use it with '
                           f'run/{launcher}.bash')
    return run


def read_snapshot(path):
    """(name of the model, config, {name: tensor}, tokenizer) of a task's snapshot and the files beside it."""
    package = models.package(model := checkpoints.model_type(path))
    config = package.config_from_json(path.with_name('config.json'))
    checkpoints.check_size(config, path.parent, path)
    return model, config, package.read_task(path), checkpoints.read_tokenizer(path.parent, config)


def max_length_of(path, options, head, task):
    """The max_length of the dataset that a snapshot of a Task class, loaded into `head`, was trained on. options: those of its
    run. Raises FileNotFoundError."""
    dataset = options.get('dataset')
    if dataset and not Path(dataset).is_file():
        raise FileNotFoundError(f'{path}: was trained on --dataset {dataset}, which defines max_length and does not exist; give '
                                'max_length')
    if dataset:
        return DatasetSpec.from_json(dataset).max_length
    length = MAX_LENGTH
    with suppress(ValueError, OSError):  # of a task whose datasets are all given by --dataset
        length = task.spec(Path(options.get('dataRoot') or 'data')).max_length
    return head.recipe.max_length(head.encoder.config, length)


def task_of(path, kind, sizes, answers):
    """The Task class of a snapshot: that of `kind`, which its run recorded, else the first task with the same answers and number
    of images (older runs and Hugging Face's files; VQA and GQA predict in the same way).

    sizes: (number of answers, None: any; number of images per example), or None without an answer head. Raises WeightsError or
    DataError.
    """
    if sizes is None:
        raise WeightsError(f'{path}: has no answer layers; expected the snapshot of a task, such as the BEST.pth that '
                           'run/vqa_finetune.bash writes')
    count, images = sizes
    if count not in (None, len(answers)):
        raise DataError(f'{path.with_name("answers.json")}: expected {count} answers, as many as {path.name} scores, found '
                        f'{len(answers)}; copy the file from the folder of its run')
    classes = [task_class(kind)] if kind in TASKS else []
    classes += sorted(map(task_class, TASKS), key=lambda task: task.schema.answers is None)  # tasks with fixed answers first
    for task in classes:
        if len(task.schema.images) == images and (task.schema.answers or tuple(answers)) == tuple(answers):
            return task
    raise DataError(f'{path}: scores {len(answers)} answers ({some(answers)}) to a question about {images} images, as no task '
                    'does; do config.json and answers.json beside it belong to it?')
