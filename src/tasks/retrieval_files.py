"""Files of ranks that `run/retrieval_test.bash` writes: reading and checking them."""

from collections import Counter

import numpy as np

from files.json_files import layout, stream
from tasks.scoring import CORRECT, PredictionFaults

EXPECTED = '{"img_id": a text, "caption": its number from 0 among those of the image, "image_rank", "text_rank": from 1}'


def numbered(img_ids):
    """Yields (image id, number of the caption from 0 among those of the image) of captions in order."""
    counts = Counter()
    for img_id in img_ids:
        yield img_id, counts[img_id]
        counts[img_id] += 1


def read_ranks(path, examples, annotations):
    """The ranks (n, 2) int64 of the captions of Examples, as tasks.ranking.rank returns them. annotations: path, for messages.

    Raises DataError unless the file has each caption exactly once, with ranks that are possible among these images and captions.
    """
    faults = PredictionFaults(path)
    faults.rule = 'every caption must be ranked exactly once'
    images, of_image = np.unique(examples.images[:, 0], return_inverse=True)
    others = len(examples) - np.bincount(of_image)  # captions of other images, of each image
    place = {caption: i for i, caption in enumerate(numbered(examples.names()))}
    ranks = np.zeros((len(examples), 2), np.int64)
    if layout(path) == 'object':
        faults.add('files that are no list', f'expected {EXPECTED}', 'Name the predictions first, then the annotations')
        faults.check()
    for i, row in enumerate(stream(path, 'item', 'ranks')):
        row = row if isinstance(row, dict) else {}
        values = [row.get(key) for key in ('caption', 'image_rank', 'text_rank')]
        if not isinstance(row.get('img_id'), str) or not all(type(value) is int for value in values):
            faults.add(f'rows that are not {EXPECTED}', f'number {i}', CORRECT)
        elif (caption := place.get((row['img_id'], values[0]))) is None:
            faults.add(f'captions that are not in {annotations}', f'{row["img_id"]}, caption {values[0]}', 'Name the annotations '
                       'of the split that was tested')
        elif ranks[caption].any():
            faults.add('captions ranked again', f'{row["img_id"]}, caption {values[0]}', 'Keep one row of each caption')
        elif not 1 <= values[1] <= len(images) or not 1 <= values[2] <= others[of_image[caption]] + 1:
            faults.add(f'ranks beyond the {len(images):,} images or the captions of other images', f'number {i}', CORRECT)
        else:
            ranks[caption] = values[1:]
    for (img_id, number), caption in place.items():
        if not ranks[caption].any():
            faults.add('captions not ranked', f'{img_id}, caption {number}', 'Rank all captions of the annotations')
    faults.check()
    return ranks
