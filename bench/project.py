"""Hours that the published trainings would take, from the rates that run/bench.bash model has measured on this device (GQA's from
VQA's); and on more, each with a batch of that size, with gradients exchanged in a ring when they are complete, at a rate that is
assumed."""

import json
import sys
from pathlib import Path

from bench import report

PARAMETERS = {'vqa': 213e6, 'nlvr2': 210e6, 'pretrain': 239e6}
# Examples and epochs: VQA's train and nominival, GQA's balanced train and valid, NLVR2's train, the pairs of pre-training.
TRAININGS = {'VQA, 4 epochs': ('vqa', 632_117, 4), 'GQA, 4 epochs': ('vqa', 1_075_062, 4),
             'NLVR2, 4 epochs': ('nlvr2', 86_373, 4), 'pre-training, 20 epochs': ('pretrain', 9_180_000, 20)}


def main(argv=None) -> int:
    parser = report.parser('project', __doc__, folder=False)
    parser.add_argument('--rates', type=Path, default=Path('snap/bench/model.json'), help='what run/bench.bash model has written')
    parser.add_argument('--mode', default='bf16', help='one of those that were measured')
    parser.add_argument('--devices', type=report.counts, default=[1, 8, 64], help='how many, separated by commas')
    parser.add_argument('--GBps', type=float, default=100.0, help='that a device sends while it receives as much')
    options = parser.parse_args(argv)
    if not options.rates.is_file():
        parser.exit(1, f'bench.bash: error: {options.rates}: no such file; bash run/bench.bash model makes it\n')
    rates = json.loads(options.rates.read_text())
    figures = {'measured on': rates['device'], 'model': rates['model'], 'mode': options.mode, 'assumed, GB/s': options.GBps}
    for name, (task, examples, epochs) in TRAININGS.items():
        beginning = f'{task}, training, {options.mode}'
        step = next((key for key in rates if key.startswith(f'{beginning}: s a step of ')), None)
        if step is None:
            parser.exit(1, f'bench.bash: error: {options.rates}: has no "{beginning}: ..."; bash run/bench.bash model '
                           f'--modes {options.mode} measures all that is needed\n')
        batch = int(step.rsplit(' ', 1)[1])
        for count in options.devices:
            exchange = 2 * (count - 1) / count * 4 * PARAMETERS[task] / (options.GBps * 1e9)  # seconds, of float32 gradients
            figures[f'{name}, devices: {count}, hours'] = examples * epochs / (batch * count) * (rates[step] + exchange) / 3600
    return report.tell(figures, options.out)


if __name__ == '__main__':
    sys.exit(main())
