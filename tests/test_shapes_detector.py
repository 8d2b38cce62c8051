"""The sample world's detector: what it finds in fresh pictures is what was drawn."""

import numpy as np
import pytest

from images.pictures import PictureError
from regions import tsv
from shapes import detector, draw, scene, simulate_regions

# The seed and number of fresh pictures; the last three have things of which others in front hide what tells their shape or size.
PICTURES = [*((77, index) for index in range(50)), (78, 87), (78, 497), (78, 1003)]


def drawn(index, seed=77):
    made = scene.sample(seed, index)
    return made, draw.picture(made, np.random.default_rng((seed, index)))


def overlap(one, other):
    """Intersection over union of two boxes."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    both = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def test_every_thing_of_fresh_pictures_is_found_and_nothing_else():
    for seed, index in PICTURES:
        made, pixels = drawn(index, seed)
        left = list(detector.detect(pixels))
        for thing in made.things:
            same = [one for one in left if (one.shape, one.colour, one.size) == (thing.shape, thing.colour, thing.size)]
            assert len(same) == 1, f'picture {index}: {thing}'
            assert overlap(same[0].box, thing.box) > 0.75
            left.remove(same[0])
        assert not left, f'picture {index}'


def test_regions_are_as_those_of_the_world():
    made, pixels = drawn(3)
    image, again, fewer = (detector.Detector().regions([pixels], ['fresh'], 1, most)[0] for most in (36, 36, 10))
    assert tsv.check(image, 144) is image and len(image.boxes) == 36 and image.img_id == 'fresh'
    own = simulate_regions.regions('fresh', made, pixels, np.random.default_rng(0))
    for region in range(len(made.things)):  # the surest are the things themselves
        place = [i for i in range(len(made.things)) if (own.classes[i], own.attributes[i]) == (
            image.classes[region], image.attributes[region]) and overlap(own.boxes[i], image.boxes[region]) > 0.7]
        assert len(place) == 1
    for name in tsv.ARRAYS:
        assert np.array_equal(getattr(image, name), getattr(again, name))
        assert np.array_equal(getattr(fewer, name), getattr(image, name)[:10])


@pytest.mark.parametrize('picture', [np.zeros((480, 640, 3), np.uint8), np.full((120, 160, 3), 145, np.uint8)])
def test_other_pictures_are_refused_by_name(picture):
    with pytest.raises(PictureError, match=r'^photo: expected a picture of the sample world.*download.bash detector'):
        detector.Detector().regions([picture], ['photo'])


@pytest.mark.parametrize('least, most', [(0, 36), (37, 40), (20, 10)])
def test_numbers_of_boxes_that_cannot_be_are_refused(least, most):
    with pytest.raises(ValueError, match=f'found {least} and {most}'):
        detector.Detector().regions([drawn(0)[1]], ['x'], least, most)
