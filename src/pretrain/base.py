"""What the programs of pre-training share."""

from files.json_files import DataError
from tasks.program import Program, read_spec, train
from train import evaluate_losses

KIND = 'pretrain'  # of the head and of a run
INVALID = ('test', 'loadLXMERTQA', 'mceLoss', 'dumpProbs', 'allowMissing')  # flags of tasks


class PretrainingMetrics:
    """Losses of pre-training. A subclass adds what else is measured."""

    kind = KIND

    def report(self, sums):
        """(text, {name: number}): the mean losses of a training epoch, and its metrics."""
        steps = max(sums.get('steps', 0), 1)
        losses = {name.removeprefix('loss/'): value / steps for name, value in sums.items() if name.startswith('loss/')}
        return self.figures(losses, sums)

    def validate(self, head, dataset, options, device):
        """(score, text, {name: number}) of a dataset."""
        losses, sums = evaluate_losses(head, dataset, options, device)
        return self.score(losses, sums), *self.figures(losses, sums)

    def figures(self, losses, sums):
        """(text, {name: number}). losses: {name: mean}; sums: {metric: sum over the dataset}."""
        text = f'loss {sum(losses.values()):.4f} ({", ".join(f"{name} {value:.4f}" for name, value in losses.items())})'
        return text, {'loss': sum(losses.values()), **losses}


class PretrainingBase(Program):
    """A run of pre-training. A subclass names its data and its metrics."""

    dataset_kind: str  # of --dataset
    whole_image: bool  # whether the data has the image itself as a region
    task = KIND  # of the recipe and the head

    @classmethod
    def prepare(cls, options, device):
        """Reads and checks flags and small files."""
        cls.check_flags(options)
        spec = read_spec(options, [cls.dataset_kind], cls.published)
        for flag in ('train', 'valid') if options.valid else ('train',):
            spec.named(getattr(options, flag), flag)
        return cls.read(options, device, spec, cls.read_answers(spec, options), task=cls.task)

    @staticmethod
    def read_answers(spec, options):
        """The answers of the answer head, in order."""
        return []

    @classmethod
    def check_flags(cls, options):
        """Raises ValueError for flags that do not apply."""
        for flag in cls.invalid:
            if getattr(options, flag):
                raise ValueError(f'--{flag}: does not apply to pre-training{cls.data}; leave it out')

    def run(self):
        train(self.options, self.folder, self.sidecars(), self.make, KIND, self.device)

    def make(self):
        """(task, head, training set, validation set or None)."""
        head = self.build_head(KIND)
        if ('whole' in getattr(head.encoder, 'needs', ())) != self.whole_image:
            raise ValueError(f'--model {self.model}: is pre-trained by another program (see run/README.md)')
        train_set, valid_set = (self.load(names, head.encoder) if names else None
                                for names in (self.options.train, self.options.valid))
        if not train_set.learnable():
            raise DataError(f'--train {self.options.train}: nothing to predict: {self.nothing}; raise --wordMaskRate or '
                            '--objMaskRate')
        return self.metrics(head, train_set, valid_set), head, train_set, valid_set
