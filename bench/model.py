"""Measures steps of training and of inference: ours, in each mode, and Hugging Face's LXMERT in float32 with the same weights,
batches and rule of the optimizer, in turns in one process; VL-BERT against Hugging Face's VisualBERT of the same size. Needs
transformers (bash run/setup.bash --tests)."""

import contextlib
import copy
import gzip
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import models
from annotations.captions import cut_lengths
from bench import report
from bert import layers
from bert.speed import accelerate
from bert.tokenization import BertTokenizer
from cli import positive, run_main
from files.progress import ProgressBar
from lxrt.config import LxrtConfig
from lxrt.hugging_face import architecture_of, hf_config, hf_tensors
from optimizer import OptimizerStep
from param import Options
from run_state import Progress
from train import autocast, train_step
from vlbert.config import VLBertConfig
from vlbert.heads import TEXT_LENGTH

LENGTH, REGIONS, MASKED = 20, 36, 0.15
ANSWERS = {'vqa': 3129, 'nlvr2': 2, 'pretrain': 9500}
IMAGES = {'vqa': 1, 'nlvr2': 2, 'pretrain': 1}  # per example
MAX_REGIONS = 101  # of VL-BERT, with the whole image
TASKS = {'lxmert': 'vqa,nlvr2,pretrain', 'vlbert': 'vqa,pretrain'}
REAL_VOCABULARY = Path('../shared/data/vocab/bert-base-uncased-vocab.txt')
REAL_QUESTIONS = Path('../shared/data/vqa_raw/questions.json.gz')
REAL_CAPTIONS = Path('../shared/data/cc/Validation_GCC_sample.tsv')
MODES = {'fp32': {}, 'bf16': {'bf16': True}, 'fp16': {'fp16': True}, 'compiled': {'bf16': True, 'compile': True}}
SWITCHES = ('PACK_SEQUENCES', 'FUSED_QKV', 'EAGER_ATTENTION', 'FAST_DROPOUT')  # of bert.layers
SMALL = {'hidden_size': 64, 'num_attention_heads': 4, 'intermediate_size': 128, 'l_layers': 2, 'r_layers': 1, 'x_layers': 1}
SMALL_VLBERT = {'hidden_size': 64, 'num_attention_heads': 4, 'intermediate_size': 128, 'num_hidden_layers': 2}
HUGGING_FACE = 'Hugging Face'
STEPS = 1_000_000  # of the schedule, so that the learning rate is that of its beginning
LR = 1e-5
PRODUCT_SECONDS = 0.1  # longest matrix product that is measured


def main(argv=None) -> int:
    parser = report.parser('model', __doc__, folder=False)
    add_device_flags(parser)
    parser.add_argument('--model', choices=tuple(TASKS), default=models.DEFAULT)
    parser.add_argument('--tasks', help=f'some of {TASKS["lxmert"]}; of VL-BERT {TASKS["vlbert"]}')
    parser.add_argument('--regions', type=positive, help='of each image, for VL-BERT (default: 10 to 100, on average 36)')
    parser.add_argument('--modes', default='fp32,bf16', help=f'some of {",".join(MODES)}; compiled: bf16 with --compile; '
                        f'bf16/SWITCH: with one of {", ".join(SWITCHES)} (src/bert/layers.py) inverted for this device')
    parser.add_argument('--evalBatchSize', type=int, default=256, help='examples in a step of inference; 0: none')
    parser.add_argument('--runs', type=positive, default=5, help='measured steps, after one that warms up')
    parser.add_argument('--alone', action='store_true', help="without Hugging Face's model")
    options = parser.parse_args(argv)
    options.tasks = options.tasks or TASKS[options.model]
    modes = {*MODES, *(f'{mode}/{switch}' for mode in MODES for switch in SWITCHES)}
    for name, known in (('tasks', set(TASKS[options.model].split(','))), ('modes', modes)):
        if unknown := set(getattr(options, name).split(',')) - known:
            parser.error(f'--{name}: expected some of {", ".join(sorted(known))}, found {", ".join(sorted(unknown))}')
    if options.part:
        return run_main('bench.bash', lambda: print(json.dumps(peak_memory(options, *options.part.split('/')))) or 0)
    return run_main('bench.bash', lambda: measure(options, report.Figures(options.out)).finish())


def add_device_flags(parser):
    """The flags that bench.loop has too."""
    parser.add_argument('--world', type=Path, default=Path('data/shapes'), help='a sample world, for the lengths of its '
                        'questions, if there are none of VQA')
    parser.add_argument('--batchSize', type=positive, default=32, help='examples in a step of training')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--small', action='store_true', help='a very small model, to try the program')


def measure(options, figures) -> dict:
    """Adds all figures by name, with their units, and returns them."""
    device, config = torch.device(options.device), config_of(options)
    figures |= {'device': torch.cuda.get_device_name() if options.device == 'cuda' else 'CPU',
                'threads': torch.get_num_threads(), 'model': 'very small' if options.small else f'{config.MODEL} base'}
    rates = {mode: matrix_rate(MODES[mode], device) / 1e12 for mode in dict.fromkeys(['fp32', *options.modes.split(',')])
             if mode in MODES}
    figures |= {f'matrix products, {mode}, TFLOP/s': rate for mode, rate in rates.items()}
    rates[HUGGING_FACE] = rates['fp32']
    for task in options.tasks.split(','):
        lengths, source = sentence_lengths(options, task)
        figures |= {f'{task}: sentences': source, f'{task}: tokens per sentence': float(lengths.mean())}
        measure_task(options, task, config, lengths, device, rates, figures)
        for name in names(options):
            if '/' not in name:
                figures[f'{task}, training, {name}: peak memory, MB'] = report.run_separately(
                    'model', '--part', f'{task}/{name}', '--model', options.model, '--batchSize', options.batchSize,
                    '--device', options.device, '--world', options.world, *(['--small'] if options.small else []),
                    *(['--regions', options.regions] if options.regions else []))
    return figures


def config_of(options):
    config, small = {'lxmert': (LxrtConfig, SMALL), 'vlbert': (VLBertConfig, SMALL_VLBERT)}[options.model]
    return config(**small) if options.small else config()


def model_name(config):
    return 'vlbert' if isinstance(config, VLBertConfig) else 'lxmert'


def names(options):
    return [*([] if options.alone else [HUGGING_FACE]), *options.modes.split(',')]


def measure_task(options, task, config, lengths, device, rates, figures):
    """Adds seconds, examples per second and TFLOP/s of each model's steps to the figures."""
    runners = {}
    for name in names(options):  # fp32, bf16 and their switches share one model
        same = next((runners[other] for other in runners if model_of(other) == model_of(name)), None)
        runners[name] = reference(task, config, device) if name == HUGGING_FACE else Ours(task, name, config, device, same)
    if not options.alone and options.model == 'lxmert':
        batch = make_batch(task, config, lengths[:4], 0, device)
        loss, expected = (runners[name].exact_loss(batch) for name in (options.modes.split(',')[0], HUGGING_FACE))
        figures[f'{task}: relative difference of the losses, without dropout'] = abs(loss - expected) / expected
    for what, size in (('training', options.batchSize), ('inference', options.evalBatchSize)):
        if not size:
            continue
        seconds, tokens = {name: [] for name in runners}, []
        for turn in ProgressBar(range(options.runs + 1), f'{task}, {what}'):
            drawn = lengths[torch.arange(turn * size, (turn + 1) * size).numpy() % len(lengths)]
            tokens.append(float(drawn.mean()))
            for name, runner in runners.items():
                batch = make_batch(task, config, drawn, turn, device, model_of(name) == 'compiled', options.regions)
                seconds[name].append(timed(partial(getattr(runner, what), batch, turn), device))
        useful = None
        if options.model == 'lxmert':
            useful = forward_flops(task, config, statistics.mean(tokens[1:])) * size * (3 if what == 'training' else 1)
        medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
        for name, median in medians.items():
            figures[f'{task}, {what}, {name}: s a step of {size}'] = median
            figures[f'{task}, {what}, {name}: examples/s'] = size / median
            if model_of(name) == 'compiled':
                figures[f'{task}, {what}, {name}: s of the first step, compiling'] = seconds[name][0]
            if useful:
                figures[f'{task}, {what}, {name}: useful TFLOP/s'] = useful / median / 1e12
            if useful and name in rates:
                figures[f'{task}, {what}, {name}: per cent of the rate of matrix products'] = useful / median / 1e10 / rates[name]
            if HUGGING_FACE in medians and name != HUGGING_FACE:
                figures[f'{task}, {what}, {name}: times as fast as {HUGGING_FACE}'] = medians[HUGGING_FACE] / median


def model_of(name):
    """The model that a mode needs: modes with the same one can share it."""
    mode = name.partition('/')[0]
    return 'plain' if mode in ('fp32', 'bf16') else mode


def timed(call, device):
    """Seconds until the device has finished a call."""
    begin = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begin


# ---------------------------------------------------------------------------- models


class Ours:
    """Our model in one mode, with random weights."""

    def __init__(self, task, name, config, device, same=None):
        """name: a mode, or mode/switch; same: another Ours, whose model and optimizer are used."""
        mode, _, self.switch = name.partition('/')
        self.device, self.head = device, same.head if same else make_head(task, config).to(device)
        self.options = Options(optim=self.head.recipe.optim, lr=LR, epochs=1, device=device.type, **MODES[mode])
        if same:
            self.optimizer_step = same.optimizer_step
        else:
            accelerate(self.head, self.options)
            self.optimizer_step = OptimizerStep(self.head, self.options, STEPS, device)
        self.labels_only = task == 'pretrain'

    @torch.no_grad()
    def exact_loss(self, batch):
        """The loss in float32, without dropout."""
        head = self.head.eval()
        return float(sum(head.losses(batch, head.counts([batch])).values()))

    def training(self, batch, turn):
        self.head.train()
        with inverted(self.switch, self.device):
            train_step(self.head, self.optimizer_step, [batch], self.options, Progress(0, turn, STEPS), self.device)

    @torch.no_grad()
    def inference(self, batch, _):
        """The best answers, or in pre-training the losses."""
        head = self.head.eval()
        with inverted(self.switch, self.device), autocast(self.options, self.device):
            if self.labels_only:
                head(batch, head.counts([batch]))
            else:
                head.predict(batch)


class HuggingFace:
    """Hugging Face's LXMERT with the weights of our head. Sentences are padded to 20."""

    def __init__(self, task, config, device):
        import transformers

        head, self.task = make_head(task, config), task
        architecture = architecture_of(state := head.original_state(), config)
        tensors, _ = hf_tensors(state, architecture)
        sizes = transformers.LxmertConfig.from_dict(hf_config(config, state, None, architecture))
        self.model = getattr(transformers, architecture)(sizes)
        self.model.load_state_dict(tensors, strict=False)  # tied weights have one name here and two there
        if task == 'nlvr2':
            self.model.classifier = copy.deepcopy(head.classifier)
        self.model.to(device)
        self.optimizer, self.clip = PlainBertAdam(self.model.parameters(), LR), head.recipe.clip

    def __call__(self, batch, predict=False):
        """The loss, or with `predict` the answers' logits."""
        task, pad = self.task, LENGTH - batch['input_ids'].shape[1]
        ids = F.pad(batch['input_ids'], (0, pad)).repeat_interleave(IMAGES[task], 0)
        inputs = {'input_ids': ids, 'attention_mask': (ids != 0).float(), 'visual_pos': batch['boxes'],
                  'visual_feats': batch['visual_feats' if task == 'pretrain' else 'features']}
        if task == 'pretrain':
            labels = F.pad(batch['masked_lm_labels'], (0, pad), value=-1)
            inputs |= {key: batch[key] for key in ('obj_labels', 'matched_label', 'ans')}
            inputs['labels'] = labels.masked_fill(labels == -1, -100)
        output = self.model(**inputs)
        if task == 'pretrain':
            return output.question_answering_score if predict else output.loss
        if task == 'nlvr2':
            logits = self.model.classifier(output.pooled_output.view(batch['examples'], -1))
        else:
            logits = output.question_answering_score
        if predict:
            return logits
        if task == 'nlvr2':
            return F.cross_entropy(logits, batch['label_answer'])
        target = F.one_hot(batch['label_answer'], ANSWERS[task]).float()
        return F.binary_cross_entropy_with_logits(logits, target) * ANSWERS[task]

    @torch.no_grad()
    def exact_loss(self, batch):
        self.model.eval()
        return float(self(batch))

    def training(self, batch, _):
        self.model.train().zero_grad(set_to_none=True)
        self(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    @torch.no_grad()
    def inference(self, batch, _):
        self.model.eval()
        self(batch, predict=True)


class VisualBert(HuggingFace):
    """Hugging Face's VisualBERT of VL-BERT's size, with random weights and its own losses: of pre-training masked words alone.

    It reads the same texts and regions, without [MASK] and the whole image, padded to the longest of the batch; in pre-training
    captions and texts apart, so that neither is padded to the other. PyTorch's AdamW has the rule of ours but for the place of
    epsilon.
    """

    def __init__(self, task, config, device):
        import transformers

        sizes = {name: getattr(config, name) for name in ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
                                                          'intermediate_size')}
        kind = 'VisualBertForPreTraining' if task == 'pretrain' else 'VisualBertForQuestionAnswering'
        self.model = getattr(transformers, kind)(transformers.VisualBertConfig(
            **sizes, visual_embedding_dim=config.visual_feat_dim, num_labels=ANSWERS[task], pad_token_id=0)).to(device)
        self.task, self.clip = task, models.package('vlbert').recipe(task).clip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LR, eps=1e-6, weight_decay=1e-4)

    def __call__(self, batch, predict=False):
        b, ids = batch['examples'], batch['input_ids']
        regions, features = batch['visual_attention_mask'][:, 1:].float(), batch['features'][:, 1:]
        if self.task == 'vqa':
            ids = ids[:, :-2]
            words = torch.arange(ids.shape[1], device=ids.device) < batch['slot'][:, None]
            target = F.one_hot(batch['label_answer'], ANSWERS['vqa']).float()
            output = self.model(input_ids=ids * words, attention_mask=words.long(), visual_embeds=features,
                                visual_attention_mask=regions, labels=target)
            return output.logits if predict else output.loss
        t = int((ids[:b] != 0).sum(1).max())
        return sum(self.masked_words(*part) for part in (
            (ids[:b, :t], batch['masked_lm_labels'][:b, :t], features, regions),
            (ids[b:], batch['masked_lm_labels'][b:], features[:, :0], regions[:, :0])))

    def masked_words(self, ids, labels, features, regions):
        labels = F.pad(labels.masked_fill(labels == -1, -100), (0, features.shape[1]), value=-100)
        return self.model(input_ids=ids, attention_mask=(ids != 0).long(), visual_embeds=features, visual_attention_mask=regions,
                          labels=labels).loss


def reference(task, config, device):
    return (HuggingFace if model_name(config) == 'lxmert' else VisualBert)(task, config, device)


def make_head(task, config):
    """A head of ours with random weights."""
    torch.manual_seed(0)
    head = models.build(model_name(config), task, config, range(ANSWERS[task]))
    if task == 'pretrain':
        head.sources = ['vqa']
    return head


class PlainBertAdam:
    """BertAdam as the original code has it: parameter by parameter."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr = list(parameters), lr
        self.m, self.v = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self):
        for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
            if p.grad is not None:
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                update = m / (v.sqrt() + 1e-6)
                update += 0.01 * p
                p.add_(-self.lr * update)


@contextlib.contextmanager
def inverted(switch, device):
    """Inverts a switch of bert.layers for a device until the block ends; '': none."""
    if switch:
        getattr(layers, switch).symmetric_difference_update({device.type})
    yield
    if switch:
        getattr(layers, switch).symmetric_difference_update({device.type})


# ---------------------------------------------------------------------------- batches


def sentence_lengths(options, task):
    """(numbers of tokens of the sentences of a task, with [CLS] and [SEP], the file that they are from)."""
    if options.model == 'lxmert':
        return question_lengths(options.world)
    if task == 'pretrain' and REAL_CAPTIONS.is_file() and REAL_VOCABULARY.is_file():
        captions = [line.partition('\t')[0] for line in REAL_CAPTIONS.read_text().splitlines()]
        return (BertTokenizer(REAL_VOCABULARY).encode(captions, TEXT_LENGTH) != 0).sum(1), str(REAL_CAPTIONS)
    return question_lengths(options.world, TEXT_LENGTH)


def question_lengths(world, length=LENGTH):
    """(numbers of tokens of questions, with [CLS] and [SEP], the file that they are from): VQA's if they are next to the project,
    else those of the sample world in folder `world`. Raises FileNotFoundError."""
    for questions, vocabulary in ((REAL_QUESTIONS, REAL_VOCABULARY), (world / 'vqa/minival.json', world / 'bert/vocab.txt')):
        if questions.is_file() and vocabulary.is_file():
            with (gzip.open if questions.suffix == '.gz' else open)(questions) as file:
                content = json.load(file)
            content = content['questions'] if isinstance(content, dict) else content
            texts = [one.get('question') or one['sent'] for one in content]
            return (BertTokenizer(vocabulary).encode(texts, length) != 0).sum(1), str(questions)
    raise FileNotFoundError(f'{world}/vqa/minival.json: no such file, to measure on its questions; bash run/shapes.bash makes it')


def make_batch(task, config, lengths, seed, device, static_shape=False, regions=None):
    """A batch as the task's dataset makes it, of b = len(lengths) examples with random content. regions: of each image, for
    VL-BERT."""
    if model_name(config) == 'vlbert':
        return to_device(vlbert_batch(task, config, lengths, seed, static_shape, regions), device)
    g = torch.Generator().manual_seed(seed)
    b, t, m = len(lengths), LENGTH if static_shape else int(lengths.max()), len(lengths) * IMAGES[task]
    real = torch.arange(t) < torch.as_tensor(lengths)[:, None]
    ids = torch.randint(1, config.vocab_size, (b, t), generator=g) * real
    features = torch.rand(m, REGIONS, config.visual_feat_dim, generator=g)
    boxes = torch.rand(m, REGIONS, 4, generator=g)
    answer = torch.randint(ANSWERS[task], (b,), generator=g)
    batch = {'examples': b, 'input_ids': ids, 'boxes': boxes}
    if task != 'pretrain':
        batch |= {'features': features, 'label_example': torch.arange(b), 'label_answer': answer, 'label_score': torch.ones(b)}
        return to_device(batch, device)
    words = real & (torch.rand(b, t, generator=g) < MASKED)
    masked = torch.rand(b, REGIONS, generator=g) < MASKED
    confidence = torch.rand(2, b, REGIONS, generator=g)
    classes, attributes = (torch.randint(n, (b, REGIONS), generator=g)
                           for n in (config.num_object_labels, config.num_attr_labels))
    return to_device(batch | {
        'attention_mask': real, 'masked_lm_labels': ids.where(words, -1), 'words_at': words.flatten().nonzero()[:, 0],
        'visual_feats': features.masked_fill(masked[..., None], 0), 'regions_at': masked.flatten().nonzero()[:, 0],
        'obj_labels': {'obj': (classes, confidence[0]), 'attr': (attributes, confidence[1]), 'feat': (features, masked.float())},
        'matched_label': torch.randint(2, (b,), generator=g), 'ans': answer, 'source': torch.zeros(b, dtype=torch.int64)}, device)


def vlbert_batch(task, config, lengths, seed, static_shape, regions=None):
    """make_batch for VL-BERT. Without `regions` their numbers are like those of a detector that keeps 10 to 100: 36 on average,
    with a standard deviation of 18."""
    g, b = torch.Generator().manual_seed(seed), len(lengths)
    drawn = np.random.default_rng(seed).gamma(4, 9, b)
    regions = 1 + (np.full(b, regions) if regions else np.clip(drawn, 10, MAX_REGIONS - 1).astype(np.int64))
    if task == 'pretrain':
        lengths, regions = cut_lengths(lengths, regions, TEXT_LENGTH)
        lengths = np.concatenate([lengths, np.full(b, TEXT_LENGTH)])
        longest = TEXT_LENGTH, TEXT_LENGTH - 2
    else:
        lengths, longest = lengths + 2, (TEXT_LENGTH + 2, MAX_REGIONS)
    t, o = longest if static_shape else (int(lengths.max()), int(regions.max()))
    lengths, regions = torch.as_tensor(lengths), torch.as_tensor(regions)
    words, mask = torch.arange(t) < lengths[:, None], torch.arange(o) < regions[:, None]
    ids = torch.randint(1, config.vocab_size, words.shape, generator=g) * words
    batch = {'examples': b, 'input_ids': ids, 'token_type_ids': torch.zeros_like(ids), 'visual_attention_mask': mask,
             'features': torch.rand(b, o, config.visual_feat_dim, generator=g), 'boxes': torch.rand(b, o, 4, generator=g),
             'image_size': torch.tensor([[480, 640]]).repeat(b, 1), 'mirrored': torch.rand(b, generator=g) < 0.5}
    if task != 'pretrain':
        return batch | {'slot': lengths - 2, 'label_example': torch.arange(b), 'label_score': torch.ones(b),
                        'label_answer': torch.randint(ANSWERS[task], (b,), generator=g)}
    words &= torch.rand(words.shape, generator=g) < MASKED
    masked = mask & (torch.rand(mask.shape, generator=g) < MASKED)
    classes = torch.rand(b, o, config.num_region_classes, generator=g).softmax(-1) * masked[..., None]
    return batch | {'pictures': torch.cat([torch.arange(b), torch.full((b,), -1)]), 'masked_lm_labels': ids.where(words, -1),
                    'words_at': words.flatten().nonzero()[:, 0], 'masked_regions': masked, 'region_classes': classes,
                    'regions_at': masked.flatten().nonzero()[:, 0]}


def to_device(value, device):
    """Nested dicts and tuples with their tensors on a device."""
    if isinstance(value, dict):
        return {name: to_device(each, device) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(to_device(each, device) for each in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


# ---------------------------------------------------------------------------- arithmetic and memory


def forward_flops(task, config, tokens):
    """Floating point operations of the matrix products of one example's forward pass: what its loss or answer needs, without
    padding. Training takes three times as many."""
    d, ff, t, o = config.hidden_size, config.intermediate_size, tokens, REGIONS

    def attention(queries, keys):  # projections of queries, keys, values and the result; scores and weighted sum
        return 4 * d * d * (queries + keys) + 4 * queries * keys * d

    def layer(n):
        return attention(n, n) + 4 * n * d * ff

    cross = attention(t, o) + attention(o, t) + layer(t) + layer(o)
    last = attention(t, o) + attention(1, t) + 4 * d * ff  # all that [CLS] needs
    words, regions = config.l_layers * layer(t), 2 * o * d * (config.visual_feat_dim + 4) + config.r_layers * layer(o)
    head = IMAGES[task] * 2 * d * d + 2 * (IMAGES[task] * d * 2 * d + 2 * d * ANSWERS[task])
    if task != 'pretrain':
        return words + IMAGES[task] * (regions + (config.x_layers - 1) * cross + last) + head
    masked_words = MASKED * t * (2 * d * d + 2 * d * config.vocab_size)
    all_regions = o * (2 * d * d + 2 * d * (config.num_object_labels + config.num_attr_labels + MASKED * config.visual_feat_dim))
    return words + regions + config.x_layers * cross + head + masked_words + all_regions


def peak_memory(options, task, name):
    """Peak MB of two steps of training in a process of their own."""
    device, config = torch.device(options.device), config_of(options)
    runner = reference(task, config, device) if name == HUGGING_FACE else Ours(task, name, config, device)
    lengths, _ = sentence_lengths(options, task)
    for turn in range(2):
        batch = make_batch(task, config, lengths[:options.batchSize], turn, device, name == 'compiled', options.regions)
        runner.training(batch, turn)
    return (torch.cuda.max_memory_allocated() if device.type == 'cuda' else report.peak_resident()) / 1e6


def matrix_rate(mode, device):
    """FLOP/s of a product of square matrices, the best of several. Its size doubles from 256 while one product takes less than
    PRODUCT_SECONDS, since some processors multiply bfloat16 a hundred times slower than float32."""
    dtype = torch.bfloat16 if mode.get('bf16') else torch.float16 if mode.get('fp16') else torch.float32
    n, limit = 256, 8192 if device.type == 'cuda' else 2048
    while True:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        seconds = min(timed(partial(torch.mm, a, b), device) for _ in range(2))  # the first one warms up
        if n == limit or 8 * seconds > PRODUCT_SECONDS:
            return 2 * n ** 3 / min(seconds, *(timed(partial(torch.mm, a, b), device) for _ in range(8)))
        n *= 2


if __name__ == '__main__':
    sys.exit(main())
