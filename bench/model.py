"""Measures steps of training and of inference: ours, in each mode, beside Hugging Face's LXMERT in float32 with the same weights,
batches and rule of the optimizer, turn by turn in one process. Needs Hugging Face's library (bash run/setup.bash --tests)."""

import contextlib
import json
import statistics
import sys
import time

import torch
from tqdm import tqdm

from bench import report, work
from bert import layers
from bert.optimization import BertAdam
from bert.speed import accelerate
from lxrt.config import LxrtConfig
from param import Options
from train import Update, autocast, train_step

HABITS = ('PACK_SEQUENCES', 'FUSED_QKV', 'EAGER_ATTENTION', 'FAST_DROPOUT')  # of bert.layers
MODES = {'fp32': {}, 'bf16': {'bf16': True}, 'fp16': {'fp16': True}, 'compiled': {'bf16': True, 'compile': True}}
SMALL = {'hidden_size': 64, 'num_attention_heads': 4, 'intermediate_size': 128, 'l_layers': 2, 'r_layers': 1, 'x_layers': 1}
THEIRS = 'Hugging Face'
STEPS = 1_000_000  # of the schedule, so that the rate is that of its beginning
LR = 1e-5


def main(argv=None) -> int:
    parser = report.parser('model', __doc__, folder=False, world=True)
    parser.add_argument('--tasks', default='vqa,nlvr2,pretrain', help='some of %(default)s')
    parser.add_argument('--modes', default='fp32,bf16', help=f'some of {",".join(MODES)}; compiled: bf16 with --compile; '
                        f'bf16/HABIT: with one of {", ".join(HABITS)} (src/bert/layers.py) not as it is on this device')
    parser.add_argument('--batchSize', type=report.count, default=32, help='of a step of training')
    parser.add_argument('--evalBatchSize', type=int, default=256, help='of a step of inference; 0: none')
    parser.add_argument('--runs', type=report.count, default=5, help='turns, after one that does not count')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--alone', action='store_true', help="without Hugging Face's")
    parser.add_argument('--small', action='store_true', help='a model of a few neurons, to try the program')
    options = parser.parse_args(argv)
    modes = {*MODES, *(f'{mode}/{habit}' for mode in MODES for habit in HABITS)}
    for name, known in (('tasks', set(work.ANSWERS)), ('modes', modes)):
        if unknown := set(getattr(options, name).split(',')) - known:
            parser.error(f'--{name}: expected some of {", ".join(sorted(known))}, found {", ".join(sorted(unknown))}')
    try:
        if options.part:
            print(json.dumps(peak_memory(options, options.part)))
            return 0
        figures = measure(options)
    except (FileNotFoundError, ImportError) as error:
        parser.exit(1, f'bench.bash: error: {error}\n')
    return report.tell(figures, options.out)


def measure(options) -> dict:
    """All figures by name, with their units."""
    device, config = torch.device(options.device), config_of(options)
    lengths, source = work.question_lengths(options.world)
    figures = {'device': torch.cuda.get_device_name() if options.device == 'cuda' else 'CPU', 'threads': torch.get_num_threads(),
               'model': 'a few neurons' if options.small else 'lxr955', 'sentences': source,
               'tokens a sentence': float(lengths.mean())}
    rates = {mode: matrix_rate(MODES[mode], device) / 1e12 for mode in dict.fromkeys(['fp32', *options.modes.split(',')])
             if mode in MODES}
    figures |= {f'matrix products, {mode}, TFLOP/s': rate for mode, rate in rates.items()} | measure_optimizers(device)
    rates[THEIRS] = rates['fp32']
    for task in options.tasks.split(','):
        figures |= measure_task(options, task, config, lengths, device, rates)
        for who in contenders(options):
            if '/' in who:
                continue
            figures[f'{task}, training, {who}: peak memory, MB'] = report.measured_apart(
                'model', '--part', f'{task}/{who}', '--batchSize', options.batchSize, '--device', options.device,
                '--world', options.world, *(['--small'] if options.small else []))
    return figures


def config_of(options):
    return LxrtConfig(**SMALL) if options.small else LxrtConfig()


def contenders(options):
    return [*([] if options.alone else [THEIRS]), *options.modes.split(',')]


def measure_task(options, task, config, lengths, device, rates) -> dict:
    figures, runners = {}, {}
    for who in contenders(options):  # of a mode with one habit or another, and of the plain modes, weights are shared
        kind = kind_of(who)
        runners[who] = Runner(task, who, config, device, next((runners[each] for each in runners if kind_of(each) == kind), None))
    if not options.alone:
        batch = work.make_batch(task, config, lengths[:4], 0, device)
        ours, theirs = (runners[who].exact_loss(batch) for who in (options.modes.split(',')[0], THEIRS))
        figures[f'{task}: relative difference of the losses, without dropout'] = abs(ours - theirs) / theirs
    for what, size in (('training', options.batchSize), ('inference', options.evalBatchSize)):
        if not size:
            continue
        seconds, tokens = {who: [] for who in runners}, []
        for turn in tqdm(range(options.runs + 1), f'{task}, {what}', disable=None):
            own = lengths[torch.arange(turn * size, (turn + 1) * size).numpy() % len(lengths)]
            batches = {whole: work.make_batch(task, config, own, turn, device, whole) for whole in (False, True)}
            tokens.append(float(own.mean()))
            for who, runner in runners.items():
                batch = batches[kind_of(who) == 'compiled']
                begin = time.perf_counter()
                getattr(runner, what)(batch, turn)
                if device.type == 'cuda':
                    torch.cuda.synchronize()
                seconds[who].append(time.perf_counter() - begin)
        useful = work.forward_flops(task, config, statistics.mean(tokens[1:])) * size * (3 if what == 'training' else 1)
        for who, each in seconds.items():
            median = statistics.median(each[1:])
            figures[f'{task}, {what}, {who}: s a step of {size}'] = median
            figures[f'{task}, {what}, {who}: examples/s'] = size / median
            if 'compiled' in who:
                figures[f'{task}, {what}, {who}: s of the first step, compiling'] = each[0]
            figures[f'{task}, {what}, {who}: useful TFLOP/s'] = useful / median / 1e12
            if who in rates:
                figures[f'{task}, {what}, {who}: per cent of the rate of matrix products'] = useful / median / 1e10 / rates[who]
            if THEIRS in seconds and who != THEIRS:
                figures[f'{task}, {what}, {who}: times as fast as {THEIRS}'] = statistics.median(seconds[THEIRS][1:]) / median
    return figures


def kind_of(who):
    mode = who.partition('/')[0]
    return 'plain' if mode in ('fp32', 'bf16') else mode


class Runner:
    """Steps of one contender on one task."""

    def __init__(self, task, who, config, device, shared=None):
        self.who, self.device = who, device
        mode, _, self.habit = who.partition('/')
        self.options = Options(lr=LR, device=device.type, **MODES.get(mode, {}))
        if shared:
            self.task, self.update = shared.task, shared.update
        else:
            self.task = work.make_task(task, config, self.options)
            self.task.model.to(device)
        if who == THEIRS:
            self.model = work.HuggingFace(self.task, task, config).to(device)
            self.task.model = None
            self.optimizer = work.PlainBertAdam(self.model.parameters(), LR)
        elif not shared:
            accelerate(self.task.model, self.options)
            self.update = Update(self.task.model.parameters(), self.options, STEPS, self.task, device)
        self.clip = self.task.clip

    def exact_loss(self, batch):
        """In float32, without dropout."""
        with torch.no_grad():
            if self.who == THEIRS:
                return float(self.model.eval()(batch))
            counts = self.task.counts([batch])
            return float(sum(self.task.losses(self.task.model.eval(), batch, counts)[0].values()))

    def training(self, batch, turn):
        if self.who != THEIRS:
            self.task.model.train()
            with turned_over(self.habit, self.device):
                train_step(self.task, self.task.model, self.update, [batch], self.options, turn, self.device)
            return
        self.model.train().zero_grad(set_to_none=True)
        self.model(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    @torch.no_grad()
    def inference(self, batch, _):
        """Answers, and of pre-training its losses."""
        if self.who == THEIRS:
            self.model.eval()(batch, predict=True)
            return
        with turned_over(self.habit, self.device), autocast(self.options, self.device):
            if hasattr(self.task, 'predict'):
                self.task.predict(self.task.model.eval(), batch)
            else:
                self.task.losses(self.task.model.eval(), batch, self.task.counts([batch]))


@contextlib.contextmanager
def turned_over(habit, device):
    """While it is entered, bert.layers has a habit on the device where it has it not, and the other way round."""
    if habit:
        getattr(layers, habit).symmetric_difference_update({device.type})
    yield
    if habit:
        getattr(layers, habit).symmetric_difference_update({device.type})


def measure_optimizers(device):
    """What a step of the optimizer takes, ours and parameter by parameter, turn by turn."""
    figures, matrices, numbers = {}, 20, 20 * 3072 * 768
    kinds = {'BertAdam': BertAdam, 'parameter by parameter': work.PlainBertAdam}
    made, seconds = {}, {name: [] for name in kinds}
    for name, kind in kinds.items():
        own = [torch.nn.Parameter(torch.randn(3072, 768, device=device)) for _ in range(matrices)]
        for p in own:
            p.grad = torch.randn_like(p)
        made[name] = kind(own, lr=LR)
    for _ in range(6):
        for name, optimizer in made.items():
            begin = time.perf_counter()
            optimizer.step()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    for name, each in seconds.items():
        figures[f'optimizer, {name}: ms for a million parameters'] = 1e3 * statistics.median(each[1:]) / (numbers / 1e6)
    return figures


def peak_memory(options, part):
    """MB at the most in a process of its own that trains two steps."""
    task, who = part.split('/')
    device, config = torch.device(options.device), config_of(options)
    runner, (lengths, _) = Runner(task, who, config, device), work.question_lengths(options.world)
    for turn in range(2):
        runner.training(work.make_batch(task, config, lengths[:options.batchSize], turn, device, who == 'compiled'), turn)
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated() / 1e6
    return report.most_resident() / 1e6


def matrix_rate(mode, device):
    """FLOP/s of a product of large matrices, the best of several."""
    n = 8192 if device.type == 'cuda' else 2048
    dtype = torch.bfloat16 if mode.get('bf16') else torch.float16 if mode.get('fp16') else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float('inf')
    for _ in range(10):
        begin = time.perf_counter()
        a @ b
        if device.type == 'cuda':
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * n ** 3 / best


if __name__ == '__main__':
    sys.exit(main())
