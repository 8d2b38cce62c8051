"""Make train.json and val.json of Conceptual Captions: the captions whose images have regions.

From the official TSV files, a caption, a tab and an address a line, whose line number from 0, with 8 digits, is the image id
(00000042.jpg is the image of line 43); or from the json lines of VL-BERT's data (train_frcnn.json), which name the images.
"""
import argparse
from pathlib import Path, PurePosixPath

from annotations.raw_data import Outputs, examples_of, image_ids, run
from files.json_files import DataError, field, numbered_lines, parse_json
from regions import store
from regions.readers import id_difference

SOURCE = 'https://ai.google.com/research/ConceptualCaptions/download'
SPLITS = ('train', 'val')
NAMED = 1000  # ids of images without regions that are kept for messages


def read_tsv(path):
    """Yields (img_id, caption) of the official file. Raises DataError that names a line of another form."""
    for number, line in numbered_lines(path):
        place = f'{path}:{number}'
        try:
            caption, tab, _ = line.decode().partition('\t')
        except UnicodeDecodeError:
            raise DataError(f'{place}: expected text in UTF-8; get the file again from {SOURCE}') from None
        if not tab:
            raise DataError(f'{place}: expected a caption, a tab and an address, found no tab; is it the file of {SOURCE}?')
        yield f'{number - 1:08d}', caption


def read_json_lines(path):
    """Yields (img_id, caption) of a file of VL-BERT's data. Raises DataError that names a line of another form."""
    for number, line in numbered_lines(path):
        if line.isspace():
            continue
        place = f'{path}:{number}'
        entry = parse_json(line, place, 'one json object a line, with image, caption and frcnn')
        words = field(entry, 'caption', list, place)
        if not all(isinstance(word, str) for word in words):
            raise DataError(f'{place}: key "caption": expected a list of words, found {words!r}')
        yield PurePosixPath(field(entry, 'frcnn', str, place)).stem, ' '.join(words)


def read(path):
    """Yields (img_id, caption) of a file of either form."""
    return read_json_lines(path) if path.name.removesuffix('.gz').endswith('.json') else read_tsv(path)


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    data = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f'The official files: {SOURCE}.')
    for split in SPLITS:
        parser.add_argument(f'--{split}', type=Path, metavar='FILE', help='the TSV, or json lines, of this split; also with .gz')
    parser.add_argument('--features', type=Path, default=data / 'cc_imgfeat',
                        help='folder of the regions, train.store and val.store, or .tsv; data/cc_imgfeat')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)

    files = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    if not files:
        raise ValueError(f'give --train FILE or --val FILE, or both; the files: {SOURCE}')
    with Outputs(args.out, [f'{split}.json' for split in files]) as out:
        for split, path in files.items():
            features = store.tsv_of(args.features / f'{split}.store')
            with_regions, captions, blank, dropped, missing = image_ids(features), 0, 0, 0, []
            for img_id, caption in read(path):
                if not caption.strip():
                    blank += 1
                elif img_id in with_regions:
                    out.add(f'{split}.json', {'img_id': img_id, 'sentf': {'cc': [caption.strip()]}})
                    captions += 1
                else:
                    dropped += 1
                    missing += [img_id] if len(missing) < NAMED else []
            if not captions:
                raise DataError(f'{path}: none of its images has regions: {id_difference(missing, features)}')
            print(f'{split}: {captions:,} captions; {dropped:,} dropped whose images have no regions{examples_of(missing)}'
                  + (f', {blank:,} without words' if blank else '') + '.')
    print(f'made {", ".join(out.files)} in {args.out}')


if __name__ == '__main__':
    run(main)
