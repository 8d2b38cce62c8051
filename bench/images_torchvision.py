"""The same images by torchvision's ImageFolder and transforms: prints images per second. Run by bench/images.py with the Python
of an environment with torchvision, such as

    python3 -m venv tv && tv/bin/pip install torch==2.13.0 torchvision

Arguments: folder (with a subfolder), side, workers, batch size, whether with RandAugment (0 or 1)."""

import sys
import time
import types

import torch

try:
    import torchvision
except RuntimeError:  # its operators were built for CUDA; its transforms of pillow images need none
    sys.modules['torchvision._meta_registrations'] = types.ModuleType('unused')
    import torchvision
from torchvision import transforms

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def main(folder, side, workers, batch_size, augmented):
    torch.set_num_threads(1)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.RandomResizedCrop(side, (0.5, 1.0), interpolation=bicubic), transforms.RandomHorizontalFlip()]
    if augmented:
        steps.append(transforms.RandAugment(2, 7))
    dataset = torchvision.datasets.ImageFolder(folder, transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]))
    batches = iter(torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers))
    next(batches)  # the workers have started
    begin, count = time.perf_counter(), 0
    for pixels, _ in batches:
        count += len(pixels)
    print(count / (time.perf_counter() - begin))


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
