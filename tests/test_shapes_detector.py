"""The sample world's detector: it detects in new pictures what was drawn."""

import numpy as np
import pytest

from images.pictures import PictureError
from regions import tsv
from shapes import detector, draw, scene, simulate_regions

# (seed, index) of new pictures; in the last three a thing hides what determines another's shape or size.
PICTURES = [*((77, index) for index in range(50)), (78, 87), (78, 497), (78, 1003)]


def drawn(index, seed=77):
    truth = scene.sample(seed, index)
    return truth, draw.picture(truth, np.random.default_rng((seed, index)))


def overlap(one, other):
    """Intersection over union of two boxes."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def test_every_thing_of_new_pictures_is_detected_and_nothing_else():
    for seed, index in PICTURES:
        truth, pixels = drawn(index, seed)
        detected = list(detector.detect(pixels))
        for thing in truth.things:
            same = [one for one in detected if (one.shape, one.colour, one.size) == (thing.shape, thing.colour, thing.size)]
            assert len(same) == 1, f'picture {index}: {thing}'
            assert overlap(same[0].box, thing.box) > 0.75
            detected.remove(same[0])
        assert not detected, f'picture {index}'


def test_regions_are_like_those_of_the_world():
    truth, pixels = drawn(3)
    image, again, fewer = (detector.Detector().regions([pixels], ['new'], 1, most)[0] for most in (36, 36, 10))
    assert tsv.check(image, 144) is image and len(image.boxes) == 36 and image.img_id == 'new'
    simulated = simulate_regions.regions('new', truth, pixels, np.random.default_rng(0))
    for region in range(len(truth.things)):  # the most confident regions are the things
        same = [i for i in range(len(truth.things))
                if (simulated.classes[i], simulated.attributes[i]) == (image.classes[region], image.attributes[region])
                and overlap(simulated.boxes[i], image.boxes[region]) > 0.7]
        assert len(same) == 1
    for name in tsv.ARRAYS:
        assert np.array_equal(getattr(image, name), getattr(again, name))
        assert np.array_equal(getattr(fewer, name), getattr(image, name)[:10])


def test_a_threshold_and_probabilities():
    pixels = drawn(3)[1]
    plain, image, few, many = (detector.Detector().regions([pixels], ['new'], *limits, probabilities=True)[0] for limits in (
        (36, 36), (10, 36, 0.15), (10, 36, 0.9999), (36, 36, 0.9999)))
    count = int((plain.class_conf >= 0.15).sum())
    assert 10 < len(image.boxes) == count < 36 and len(few.boxes) == 10 and len(many.boxes) == 36
    for name in (*tsv.ARRAYS, 'class_probabilities'):
        assert np.array_equal(getattr(image, name), getattr(plain, name)[:count])
    assert tsv.check(image, 144).class_probabilities.shape == (count, 8)


@pytest.mark.parametrize('picture', [np.zeros((480, 640, 3), np.uint8), np.full((120, 160, 3), 145, np.uint8)])
def test_other_pictures_are_refused_by_name(picture):
    with pytest.raises(PictureError, match=r'^photo: expected a picture of the sample world.*download.bash detector'):
        detector.Detector().regions([picture], ['photo'])


@pytest.mark.parametrize('least, most', [(0, 36), (37, 40), (20, 10)])
def test_impossible_numbers_of_boxes_are_refused(least, most):
    with pytest.raises(ValueError, match=f'found {least} and {most}'):
        detector.Detector().regions([drawn(0)[1]], ['x'], least, most)
