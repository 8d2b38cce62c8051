"""The program of a task: loads data and model, then trains or tests."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import models
from annotations.dataset import load_examples
from annotations.examples import read_examples
from annotations.spec import DatasetSpec
from batches import MicroBatch
from bert.speed import accelerate
from bert.tokenization import BertTokenizer
from bert.weights import read_state
from cli import train_main
from dist import is_main, print0, world_size
from files.atomic import write_atomically
from files.json_files import DataError
from files.memory import check_memory
from optimizer import schedule_name, warmup_steps
from param import Options
from run_folder import ANNOTATIONS, RunFolder, check_same_options, read_run
from tasks import checkpoints
from tasks.checkpoints import PRETRAINED, SNAPSHOT, weights_in
from tasks.task import warn_same_predictions
from train import begin_or_resume, fit, warn_constant_logits

ACTIVATIONS = 4  # bytes of a batch and its hidden states, at least, per byte of the batch


def main(task_class, argv=None):
    """Runs a task's program; returns its exit status."""
    return train_main(partial(TaskProgram.prepare, task_class), argv)


def check_features(regions, config, names, folder):
    """Raises DataError unless the splits `names` have the feature size of the model. folder: Path of its config.json."""
    if regions.feature_size != config.visual_feat_dim:
        raise DataError(f'features of {names} have {regions.feature_size} numbers a region, but the model expects '
                        f'{config.visual_feat_dim} (visual_feat_dim in {folder / "config.json"}); give others, or '
                        'another model')


def check_has_features(splits, names, boxes=False):
    """Raises DataError if a split lists no files of region features. boxes: a file of boxes will do."""
    for split in splits:
        if not split.features and not (boxes and split.boxes):
            raise DataError(f'{names}: the split of {split.annotations} lists no features (regions), which this model needs; add '
                            'them')


def inputs_of(dataset, options, flag):
    """{what the run reads for --train or --valid: [digest, name]}, as RunFolder.check_inputs compares them."""
    regions, images = dataset.regions, dataset.images
    inputs = {f'{ANNOTATIONS} of --{flag}': [dataset.digest(), getattr(options, flag)]}
    if images is not None:
        inputs[f'images of --{flag}'] = [images.digest(dataset.pixels.rows), images.name]
    if regions is None:
        return inputs
    if options.image_limit:  # the regions may come from a TSV now and from a store later: only those in use are compared
        return inputs | {f'regions of --{flag}': [regions.digest(dataset.used_rows()), str(regions.name)]}
    stores = getattr(regions, 'stores', [regions])
    return inputs | {f'regions of --{flag} ({i})': [store.digest(), str(store.name)] for i, store in enumerate(stores, 1)}


def check_batch(dataset, examples, flag, device):
    """Raises DataError that names the flag if a batch of so many examples cannot fit the memory of the device."""
    examples = min(examples, len(dataset))
    one = dataset[MicroBatch(np.arange(1), 0)]
    size = ACTIVATIONS * examples * sum(value.nbytes for value in one.values() if isinstance(value, torch.Tensor))
    total = torch.cuda.get_device_properties(device).total_memory if device.type == 'cuda' else None
    check_memory(size, f'--{flag}: a batch of {examples:,} examples', total)


def train(options, folder, sidecars, make, task_kind, device):
    """Starts or resumes a run, unless it is finished.

    sidecars: {file name: text} to write beside the snapshots; make: () -> (task, head, training set, validation set or None).
    Returns what make returned, or None if the run was finished.
    """
    state = folder.read_state(options, sidecars)
    if state is not None and state['progress']['epoch'] >= options.epochs:
        print0(f'The run in {folder.path} is finished ({state["progress"]["epoch"]} epochs): nothing to resume; more --epochs '
               'continue it.')
        return None
    task, head, train_set, valid_set = make()
    inputs = inputs_of(train_set, options, 'train') | (inputs_of(valid_set, options, 'valid') if valid_set is not None else {})
    folder.check_inputs(state, inputs, head)
    folder.check_best(state, task.best_name)
    step, parts = min(len(train_set), options.batchSize), world_size() * options.accumulate
    if step < parts:
        raise DataError(f'a step of {step} examples cannot be split into {parts} parts (processes x --accumulate); give a larger '
                        '--batchSize')
    check_batch(train_set, -(-step // parts), 'batchSize', device)
    if valid_set is not None:
        check_batch(valid_set, options.evalBatchSize or options.batchSize, 'evalBatchSize', device)
    resumed, data = state is not None, inputs[f'{ANNOTATIONS} of --train'][0]
    progress, optimizer_step = begin_or_resume(state, head, train_set, data, options, folder, device)
    folder.begin(options, sidecars, progress if resumed else None, task_kind)
    print0(*describe_run(head, len(train_set), options, progress, optimizer_step, device))
    fit(task, head, train_set, valid_set, options, folder, progress, optimizer_step, device)
    if valid_set is not None and not (folder.path / task.best_name).is_file():
        raise ValueError(f'{folder.path / task.best_name}: was not written, since no validation had a score that is a number; '
                         f'the last epoch is {folder.path / task.epoch_name.format(options.epochs)}')
    print0('', f'Snapshots, log and events: {folder.path}')
    return task, head, train_set, valid_set


def describe_run(head, examples, options, progress, optimizer_step, device):
    """Lines of what a user checks first: parameters, device, examples, steps, learning rate and optimizer."""
    trained = sum(p.numel() for p in head.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in head.parameters()) - trained
    place = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{torch.get_num_threads()} threads'
    total, size = progress.steps_per_epoch * options.epochs, min(options.batchSize, examples)
    lines = [f'Training {trained / 1e6:.1f} M parameters on {device}, processes: {world_size()}.',
             f'  {place}; {trained:,} parameters trained, {frozen:,} frozen',
             f'  {examples:,} examples, {size:,} in a step: {progress.steps_per_epoch:,} steps an epoch, {total:,} in '
             f'{options.epochs} epochs']
    recipe, name = head.recipe, schedule_name(head.recipe, options)
    source, counted = 'of the recipe', options.batchSize * recipe.examples_per_item
    if recipe.lr_per_example is not None:
        source = f'{recipe.lr_per_example:g} x {counted:,} examples in a step, as in the original code'
    source = f'{source}; --lr sets another' if options.lr == recipe.rate(options.batchSize) else '--lr'
    optimizer = f'{type(optimizer_step.optimizer).__name__}{f", momentum {recipe.momentum:g}" * (options.optim == "momentum")}'
    if name == 'constant':
        return [*lines, f'  learning rate {options.lr:g} ({source}), {optimizer}, constant']
    rate = optimizer_step.rate(progress.total_steps, total, options.epochs)
    if total == 1 and not rate:
        lines.append(f'Warning: the schedule {name} gives the only step the learning rate 0: nothing is learned; give a smaller '
                     '--batchSize, more --epochs, or another --schedule.')
    return [*lines, f'  learning rate up to {options.lr:g} ({source}), {optimizer}, {name}, warm-up over '
            f'{warmup_steps(recipe, total, name):,.0f} steps; {rate:.3g} at step {progress.total_steps:,}']


@dataclass
class Program:
    """A run of a task or of pre-training: options, files, config, tokenizer and answers."""

    kind: str  # of the dataset
    model: str  # key of models.MODELS
    options: Options
    device: torch.device
    folder: RunFolder
    spec: DatasetSpec
    weights: Path | None  # initial weights; None: BERT's, or random
    bert: Path  # folder of vocabulary, config and, optionally, BERT's weights
    config: object
    tokenizer: BertTokenizer
    answers: list  # of str, in the order of the answer head

    folder_class = RunFolder

    @classmethod
    def read_config(cls, model, folder, options):
        """The config of a model. folder: Path of its config.json."""
        return models.package(model).read_config(folder, options)

    @classmethod
    def read(cls, options, device, spec, answers, endings=checkpoints.PRETRAINED, task=None, kind=None):
        """Reads and checks the small files, so that errors appear before large files are loaded. Completes the options.

        endings: those that the path of --load may omit; task: of pre-training, None for tasks; kind: of the recipe of a task.
        """
        weights = checkpoints.starting_weights(options, endings)
        bert = checkpoints.bert_folder(options, weights)
        model = models.chosen(options) or checkpoints.model_type(weights)
        recipe = models.package(model).recipe(task or kind or spec.kind, options)
        if options.resume and options.lr is None and recipe.lr_per_example:  # it stays, also with another --batchSize
            lr = read_run(options.output).get('options', {}).get('lr')
            options.lr = lr if isinstance(lr, float) else None
        options.complete(recipe)
        schedule_name(recipe, options)  # fail early
        config = cls.read_config(model, bert, options)
        if options.repairs and not hasattr(config, 'repairs'):
            raise ValueError(f'--repairs: --model {model} has nothing to repair; leave the flag out')
        if options.withoutDistillation and not hasattr(config, 'alpha'):
            raise ValueError(f'--withoutDistillation: --model {model} has no momentum models; leave the flag out')
        if first := weights or weights_in(bert):
            checkpoints.check_size(config, bert, first)
        copies = 4 if options.test is None and device.type == 'cpu' else 2  # gradients and the optimizer's two averages
        try:
            config.check_memory(len(answers), copies)
        except ValueError as error:
            raise DataError(f'{spec.answers or bert / "config.json"}: {error}') from None
        tokenizer = checkpoints.read_tokenizer(bert, config)
        if not options.dataset:
            spec = replace(spec, max_length=recipe.max_length(config, spec.max_length))
        checkpoints.check_max_length(spec.max_length, config, task)
        if weights:
            checkpoints.check_weights(model, options, weights, config, tokenizer, answers)
        folder = cls.folder_class(options.output)
        check_same_options(options, checkpoints.sidecar_files(model, config, tokenizer, answers))
        return cls(spec.kind, model, options, device, folder, spec, weights, bert, config, tokenizer, answers)

    def build_head(self, kind):
        """The head for a task or for 'pretrain', with its initial weights, on the device."""
        torch.manual_seed(self.options.seed)
        head = models.build(self.model, kind, self.config, self.answers, self.options)
        if head.encoder is not None:
            head.encoder.tokenizer = self.tokenizer
        checkpoints.load_start(self.model, head, self.options, self.weights, self.bert, self.answers)
        accelerate(head.to(self.device), self.options)
        if self.options.freeze and self.options.test is None:
            head.freeze(self.options.freeze)
            sizes = [sum(p.numel() for p in head.parameters() if p.requires_grad == trained) for trained in (True, False)]
            print0(f'--freeze {self.options.freeze}: {sizes[0]:,} parameters are trained, {sizes[1]:,} frozen.')
        return head

    def sidecars(self):
        """{file name: content} of the files beside snapshots."""
        return checkpoints.sidecar_files(self.model, self.config, self.tokenizer, self.answers)


def read_spec(options, kinds, published):
    """The DatasetSpec of --dataset, else published(data folder). Raises DataError unless it is of one of these kinds."""
    spec = DatasetSpec.from_json(options.dataset) if options.dataset else published(Path(options.dataRoot))
    if spec.kind not in kinds:
        expected = ' or '.join(f'"{kind}"' for kind in kinds)
        raise DataError(f'{options.dataset or published.__qualname__}: key "kind": expected {expected} for this program, found '
                        f'"{spec.kind}"; start the program of that task')
    return spec


def check_recipe(model, task_class, options):
    """Raises ValueError unless the recipe that a model takes for a task has the output and the images of its examples."""
    kind, schema = task_class.head_kind(), task_class.schema
    recipe = models.package(model).recipe(kind, options)
    if (recipe.output, recipe.images) != (schema.output, len(schema.images)):
        raise ValueError(f'{task_class.__name__}: its examples have the output {schema.output} and images per example: '
                         f'{len(schema.images)}, but the recipe of {model} for {kind} has the output {recipe.output} and '
                         f'{recipe.images}; name in `like` a kind that has the same')


class TaskProgram(Program):
    """Trains or tests a task."""

    task_class: type  # set by prepare

    @classmethod
    def prepare(cls, task_class, options, device):
        """Reads and checks flags and small files."""
        classes = {one.kind: one for one in (task_class, *task_class.variants)}
        spec = read_spec(options, classes, task_class.spec)
        task_class = classes[spec.kind]
        for flag in ('rationale', 'loadRationale'):
            if getattr(options, flag) and flag not in task_class.flags:
                raise ValueError(f'--{flag}: is for VCR, run/vcr_finetune.bash and run/vcr_test.bash; leave it out')
        has_vocabulary = task_class.output == 'answer' and not task_class.schema.answers
        if has_vocabulary and spec.answers is None:
            raise DataError(f'{options.dataset or task_class.spec.__qualname__}: key "answers": expected the path of a list of '
                            'answers, found none; add it')
        for flag in ('train', 'valid') if options.test is None else ('test',):
            if flag != 'valid' or options.valid:
                spec.named(getattr(options, flag), flag)
        if options.loadLXMERTQA and len(task_class.schema.images) > 1:
            raise ValueError(f'--loadLXMERTQA: the answer head of {task_class.kind} is of another shape; give --loadLXMERT')
        answers = list(task_class.schema.answers or (spec.read_answers() if has_vocabulary else ()))
        endings = SNAPSHOT if task_class.output != 'match' else (*SNAPSHOT, *PRETRAINED)  # pre-trained weights may have this head
        program = cls.read(options, device, spec, answers, endings, kind=task_class.head_kind())
        check_recipe(program.model, task_class, options)
        program.task_class = task_class
        return program

    def build_head(self, kind=None):
        """As Program.build_head; kind: None for that of the task."""
        return super().build_head(kind or self.task_class.head_kind())

    def examples(self, names, further=False):
        """The Examples of splits separated by commas; further: as of read_examples. Raises DataError."""
        paths, world = [split.annotations for split in self.spec.named(names)], Path(self.options.dataRoot)
        missing = [path for path in paths if not path.is_file()]
        if missing and not self.options.dataset and (world / 'world.json').is_file():
            raise FileNotFoundError(f'{missing[0]}: no such file; the sample world in {world} has none, perhaps as it was made '
                                    'before: bash run/shapes.bash --out FOLDER makes another; or correct the name')
        return read_examples(paths, self.task_class.schema, self.answers, further)

    def labelled(self, flag, names, advice='; name a split that has', further=False):
        """The same, for the value `names` of --flag; raises DataError if they have no labels."""
        examples = self.examples(names, further)
        if not examples.labelled:
            raise DataError(f'--{flag} {names}: these questions have no labels{advice}')
        return examples

    def load(self, names, examples, head, submit=False):
        """The dataset of splits. Raises DataError if their regions do not fit the model."""
        needs = head.encoder.needs
        if needs & {'regions', 'boxes'}:
            check_has_features(self.spec.named(names), names, boxes='regions' not in needs)
        answers = [*self.answers, *examples.further]
        dataset = load_examples(self.spec, names, examples, head.encoder, answers, self.options, submit, self.device)
        if 'regions' in needs:
            check_features(dataset.regions, self.config, names, self.bert)
        return dataset

    def run(self):
        if self.options.test is not None:
            self.test()
        else:
            self.train()

    def train(self):
        options, folder = self.options, self.folder
        trained = train(options, folder, self.sidecars(), self.make, self.kind, self.device)
        if trained is None:
            print0(f'Scores by type of question: --test {options.valid or "SPLIT"} --load '
                   f'{folder.path / self.task_class.best_name.removesuffix(".pth")}')
        elif options.valid:
            task, head, _, valid_set = trained
            print0('', head.load_original(read_state(folder.path / task.best_name), task.best_name))
            predictions = task.predict(head, valid_set, options, self.device)
            print0('', f'{task.best_name} on {options.valid}:', *task.table(valid_set, predictions).split('\n'))

    def make(self):
        """(task, head, training set, validation set or None)."""
        options = self.options
        recipe = models.package(self.model).recipe(self.task_class.head_kind(), options)
        writes = recipe.loss == 'LM'  # a decoder, which learns to write any answer
        # Annotations are read before TSV files are converted, which takes longer.
        train_examples = self.labelled('train', options.train, further=writes)
        valid_examples = self.labelled('valid', options.valid, '; give --valid "" for none') if options.valid else None
        task, head = self.task_class(options), self.build_head()
        if further := train_examples.further:
            head.train_on(further)
            print0(f'{options.train}: {len(further):,} answers beside the {len(self.answers):,} candidates are trained on, and '
                   'never chosen.')
        train_set = self.load(options.train, train_examples, head)
        if not train_set.examples.learnable():
            raise DataError(f'--train {options.train}: no question that is used has an answer with a score above 0'
                            + (f' among those of {self.spec.answers}' if self.spec.answers else '')
                            + '; bash run/check_dataset.bash says more')
        valid_set = self.load(options.valid, valid_examples, head) if options.valid else None
        if self.weights and not options.resume:
            warn_constant_logits(head, train_set, options, self.device)
        if valid_set is not None and task.output == 'answer' and not task.schema.classes:
            print0(f'Valid Oracle: {valid_set.oracle():.2f}')
        return task, head, train_set, valid_set

    def test(self):
        """Predicts a split, writes the submission file and, if the split has labels, prints the score."""
        name, task = self.options.test, self.task_class(self.options)
        examples = self.examples(name)  # first, since a fault of theirs is found sooner than weights are loaded
        dataset, predictions = self.predict(task, examples, self.build_head())
        self.save(task, dataset, predictions)
        if dataset.examples.labelled:
            print0(f'Score on {name}: {task.score(dataset, predictions):.2f}', *task.table(dataset, predictions).split('\n'))
        else:
            print0(f'{name} has no labels: no score.')

    def predict(self, task, examples, head):
        """(dataset, predictions) of the split to be tested."""
        name = self.options.test
        dataset = self.load(name, examples, head, submit=True)
        check_batch(dataset, self.options.evalBatchSize or self.options.batchSize, 'evalBatchSize', self.device)
        predictions = task.predict(head, dataset, self.options, self.device, f'Testing on {name}')
        warn_same_predictions(dataset, predictions)
        return dataset, predictions

    def save(self, task, dataset, predictions):
        """Writes the files of predictions."""
        name = self.options.test
        files = task.files(name)
        if self.options.dumpProbs:
            files[f'{name}_probs.json'] = partial(task.dump_probabilities, best=self.options.dumpProbs)
        for file, dump in files.items():
            path = self.folder.path / file
            if is_main():
                write_atomically(path, partial(dump, dataset, predictions))
            print0(f'{len(dataset):,} predictions: {path}')
