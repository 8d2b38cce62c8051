"""Whether an image and a sentence match, by a pre-trained model or one of retrieval, and what words a pre-trained one puts at
[MASK]."""

import numpy as np
import torch

import models
from bert.tokenization import MASK
from bert.weights import WeightsError
from param import Options
from tasks import checkpoints
from tasks.predictor import MAX_LENGTH, Inference, max_length_of, run_of
from tasks.registry import TASKS, task_class


class Matcher(Inference):
    """Scores pairs of an image and a sentence, and fills [MASK].

    head: a heads.Head with match_logits and word_logits in evaluation mode, whose encoder has a tokenizer; options: those of its
    run, {} where they are not known.
    """

    output, texts = 'match', 'sentences'

    def __init__(self, head, max_length=MAX_LENGTH, options=None, source='the model'):
        self.head, self.max_length, self.options, self.source = head, max_length, options or {}, source

    @classmethod
    def from_pretrained(cls, path, device='cpu', max_length=None, bert=Options.bert):
        """Loads pre-trained weights, such as snap/pretrained/model, with or without _LXRT.pth, or a Hugging Face folder; or the
        snapshot of a run of retrieval, which cannot fill [MASK].

        max_length: tokens of a sentence; None: of retrieval that of its dataset, else 20. bert: folder of vocab.txt and
        config.json where these do not lie beside the weights. Raises FileNotFoundError for a missing file, and WeightsError,
        DataError or ValueError for files that do not match, such as the snapshot of another task.
        """
        options = Options(load=str(path), bert=str(bert))
        weights = checkpoints.starting_weights(options)
        run = run_of(weights, cls.output, 'does not score whether image and sentence match')
        folder = checkpoints.bert_folder(options, weights)
        package = models.package(model := checkpoints.model_type(weights))
        config = package.config_from_json(folder / 'config.json')
        checkpoints.check_size(config, folder, weights)
        tokenizer = checkpoints.read_tokenizer(folder, config)
        checkpoints.check_sidecars(model, weights, config, tokenizer)
        if run.get('task') in TASKS:
            head = models.build(model, task_class(run['task']).head_kind(), config)
            head.load_original(package.read_task(weights), str(weights))
            head.encoder.blank = False
            max_length = max_length or max_length_of(weights, run['options'], head, task_class(run['task']))
        else:
            head, _ = package.load_pretrained(weights, config)
        max_length = max_length or MAX_LENGTH
        checkpoints.check_max_length(max_length, config)
        head.encoder.tokenizer = tokenizer
        return cls(head.to(device).eval(), max_length, run.get('options'), weights)

    def match(self, regions, sentences, batch_size=32):
        """The probability that image and sentence belong together, of each pair: (n,) float32.

        regions: one ImageRegions for all sentences, or a list with one for each; sentences: a list of str, or one str. Errors: as
        of Predictor.answer, and WeightsError if the weights were pre-trained without this objective.
        """
        self.check_objective('match')
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        with torch.no_grad():
            rows = [self.head.match_logits(batch).sigmoid().cpu().numpy() for batch in
                    self.batches(regions, sentences, batch_size)]
        return np.concatenate(rows) if rows else np.zeros(0, np.float32)

    def match_all(self, images, sentences, batch_size=32):
        """The same for every image with every sentence: (images, sentences) float32, to rank either by the other."""
        pairs = [image for image in images for _ in sentences]
        return self.match(pairs, list(sentences) * len(images), batch_size).reshape(len(images), len(sentences))

    def fill(self, regions, sentences, best=5, batch_size=32):
        """For each sentence a list with, for each [MASK] in it, the `best` most probable (word piece, probability).

        regions, sentences: as for `match`. Raises ValueError for a sentence without [MASK] in its first max_length tokens.
        """
        self.check_objective('words')
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        mask, filled = self.tokenizer.vocab[MASK], []
        with torch.no_grad():
            for batch in self.batches(regions, sentences, batch_size):
                masked = batch['input_ids'] == mask  # (b, t)
                for row in (~masked.any(1)).nonzero()[:1, 0].tolist():
                    raise ValueError(f'sentences[{len(filled) + row}]: expected {MASK} among its first {self.max_length} tokens, '
                                     f'found {sentences[len(filled) + row]!r:.200}')
                logits = self.head.word_logits(batch, masked.flatten().nonzero()[:, 0])
                top = logits.softmax(-1).topk(min(best, logits.shape[1]))
                words = [list(zip(self.tokenizer.convert_ids_to_tokens(ids), values, strict=True))
                         for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
                for count in masked.sum(1).tolist():
                    filled.append(words[:count])
                    words = words[count:]
        return filled

    def check_objective(self, objective):
        """Raises WeightsError if the weights have no trained head for an objective of heads.Head.untrained."""
        if reason := self.head.untrained(objective, self.options):
            raise WeightsError(f'{self.source}: {reason}; name weights that were pre-trained with it')
