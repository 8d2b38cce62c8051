"""Make the json of image-text retrieval: captions of images, from Karpathy's splits of COCO and Flickr30k, or a file a split.

--karpathy dataset_coco.json makes coco_train (with its restval), coco_valid and coco_test, and likewise dataset_flickr30k.json.
--split NAME FILE makes NAME.json from json lines with id or img_path and sentences, or from ALBEF's json with image and caption.
An image id is the file name without folder and ending.
"""
import argparse
from collections import Counter
from itertools import chain
from pathlib import Path

from annotations.caption_files import FORMS, KARPATHY, read_captions, read_karpathy
from annotations.examples import is_id
from annotations.raw_data import Outputs, examples_of, image_ids, run
from files.json_files import DataError, some
from files.text import shown
from images.ids import ImageIds
from regions.readers import id_difference

NAMES = {'val': 'valid'}  # of splits, where they differ from Karpathy's


def image_id(name, names, place):
    """The image id of a file name, also with folders. names: {image id: its file name so far}. Raises DataError for one that has
    no id, or that of another."""
    img_id = ImageIds()(name)
    if not is_id(img_id):
        raise DataError(f'{place}: expected the name of an image, found {shown(name)}; correct the file')
    if (other := names.setdefault(img_id, name)) != name:
        raise DataError(f'{place}: expected a new image id, found {img_id} of {shown(name)}, which is that of {shown(other)}; '
                        'rename one of them')
    return img_id


def report(name, by_image, empty, without_regions):
    """Prints what was kept, dropped and found twice of a split."""
    captions = Counter(chain.from_iterable(by_image.values()))
    again = sum(len(of_image) - len(set(of_image)) for of_image in by_image.values())
    images_of_text = Counter(chain.from_iterable(map(set, by_image.values())))
    shared = [text for text, count in images_of_text.items() if count > 1]
    print(f'{name}: {captions.total():,} captions of {len(by_image):,} images kept.')
    if empty:
        print(f'  {empty.total():,} empty captions dropped{examples_of(empty)}')
    if without_regions:
        print(f'  {len(without_regions):,} images without regions dropped{examples_of(without_regions)}')
    print(f'  {again:,} captions repeat one of the same image; {len(shared):,} captions have several images'
          f'{examples_of(shared, 2)}')


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f"Karpathy's splits: {KARPATHY}.")
    parser.add_argument('--karpathy', type=Path, action='append', default=[], metavar='FILE',
                        help='dataset_coco.json or dataset_flickr30k.json')
    parser.add_argument('--split', nargs=2, action='append', default=[], metavar=('NAME', 'FILE'),
                        help=f'json (lines) of {FORMS}')
    parser.add_argument('--features', type=Path, nargs='+', default=[], metavar='TSV', help='drop images that these do not have')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)
    if not args.karpathy and not args.split:
        parser.error('expected --karpathy FILE or --split NAME FILE')

    with_regions, splits = set().union(*map(image_ids, args.features)), {}
    for path in args.karpathy:
        names = {}
        dataset = path.name.removesuffix('.gz').removesuffix('.json').removeprefix('dataset_')
        for number, (split, picture, captions) in enumerate(read_karpathy(path)):
            splits.setdefault(f'{dataset}_{NAMES.get(split, split)}', []).append(
                (image_id(picture, names, f'{path}: image {number}'), captions))
    for name, path in args.split:
        names = {}
        splits.setdefault(name, []).extend(
            (image_id(picture, names, f'{path}: item {number}'), captions)
            for number, (picture, captions) in enumerate(read_captions(Path(path))))
    split_of = {}
    with Outputs(args.out, [f'{name}.json' for name in splits]) as out:
        for name, items in splits.items():
            by_image, empty, without_regions = {}, Counter(), []
            for img_id, captions in items:
                if (other := split_of.setdefault(img_id, name)) != name:
                    raise DataError(f'image {img_id}: expected in one split, found in {other} and in {name}; make them one by '
                                    'one')
                texts_of_image = by_image.setdefault(img_id, [])
                texts_of_image += [text.strip() for text in captions if text.strip()]
                empty[img_id] += sum(not text.strip() for text in captions)
            for img_id in [img_id for img_id in by_image if args.features and img_id not in with_regions]:
                del by_image[img_id]
                without_regions.append(img_id)
            if none := [img_id for img_id, captions in by_image.items() if not captions]:
                raise DataError(f'{name}: {len(none):,} images have no caption ({some(none)}); expected at least one; '
                                'correct the file')
            if not by_image:
                raise DataError(f'{name}: none of its images has regions: {id_difference(without_regions, args.features[0])}')
            for img_id, captions in by_image.items():
                out.add(f'{name}.json', {'img_id': img_id, 'sent': captions})
            report(name, by_image, +empty, without_regions)
    print(f'made {", ".join(out.files)} in {args.out}')


if __name__ == '__main__':
    run(main)
