"""Finds the region of an image that an expression describes, by a snapshot of RefCOCO."""

import models
from regions.image_regions import with_whole_image
from tasks import checkpoints
from tasks.predictor import Inference, max_length_of, read_snapshot, run_of
from tasks.registry import task_class


class Grounder(Inference):
    """Chooses regions for expressions, with the same regions and probabilities as `--test`.

    head: a heads.Regions in evaluation mode, whose encoder has a tokenizer; max_length: that of its training.
    """

    output, texts = 'region', 'expressions'

    def __init__(self, head, max_length):
        self.head, self.max_length = head, max_length

    @classmethod
    def from_snapshot(cls, path, device='cpu', max_length=None):
        """Loads a snapshot, such as snap/refcoco/NAME/BEST, with or without .pth. Arguments and errors: as of
        Predictor.from_snapshot."""
        path = checkpoints.find_weights(str(path), checkpoints.SNAPSHOT)
        run = run_of(path, cls.output, 'does not choose a region')
        task = task_class(run.get('task') or 'refcoco')
        model, config, state, tokenizer = read_snapshot(path)
        head = models.build(model, task.head_kind(), config)
        head.load_original(state, str(path))
        head.encoder.tokenizer, head.encoder.blank = tokenizer, False
        return cls(head.to(device).eval(), max_length or max_length_of(path, run.get('options', {}), head, task))

    def ground(self, regions, expressions, best=1, batch_size=32):
        """For each expression, a list of the `best` most probable regions as (box [x1, y1, x2, y2] in pixels, probability).

        regions: one ImageRegions for all expressions, or a list with one for each; expressions: a list of str, or one str.
        VL-BERT may also choose the image as a whole. Errors and warnings: as of Predictor.answer.
        """
        expressions = [expressions] if isinstance(expressions, str) else list(expressions)
        images = self._images(regions, len(expressions))
        rows = self.predict(regions, expressions, best, batch_size)
        return [[(self.boxes(image)[place].tolist(), probability) for place, probability in row]
                for (image,), row in zip(images, rows, strict=True)]

    def predict(self, regions, questions, best=1, batch_size=32):
        """As of Inference, without the padding of images with fewer regions than others of the batch."""
        images = self._images(regions, len(questions))
        rows = super().predict(regions, questions, best, batch_size)
        return [[(place, probability) for place, probability in row if place < len(self.boxes(image))]
                for (image,), row in zip(images, rows, strict=True)]

    def boxes(self, image):
        """The boxes that the logits of an ImageRegions score: where the model reads it, the image as a whole is the first."""
        if 'whole' not in self.head.encoder.needs:
            return image.boxes
        return with_whole_image(image.boxes, image.height, image.width)
