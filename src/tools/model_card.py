"""The model card of a snapshot: what it is, its run's options and scores, how to use it."""

import dataclasses
import re
from pathlib import Path

from files.text import printable
from param import Options
from run_folder import read_run

EXAMPLE = '''import torch
from transformers import {architecture}, LxmertTokenizer

model = {architecture}.from_pretrained({name!r}).eval()
tokenizer = LxmertTokenizer.from_pretrained({name!r})
{images}
features, boxes = torch.rand({count}, 36, {size}), torch.rand({count}, 36, 4)
tokens = tokenizer({texts}, padding=True, truncation=True, return_tensors='pt')
with torch.no_grad():
    out = model(**tokens, visual_feats=features, visual_pos=boxes)
{after}'''
PAIRS = '''from safetensors.torch import load_file  # the head, for which transformers has no class

state = {{key.removeprefix('logit_fc.'): value for key, value in load_file({name!r} + '/nlvr2_head.safetensors').items()}}
wide, n = state['0.weight'].shape[0], len(state['3.bias'])
layers = torch.nn.Linear(wide, wide), torch.nn.GELU(), torch.nn.LayerNorm(wide, eps=1e-12), torch.nn.Linear(wide, n)
head = torch.nn.Sequential(*layers)
head.load_state_dict(state)
chances = head(out.pooled_output.view(-1, wide)).softmax(-1)  # (statements, 2): False, True'''
AFTER = {
    'LxmertForQuestionAnswering': '''chances = out.question_answering_score.{link}  # (questions, answers)
print([model.config.id2label[int(best)] for best in chances.argmax(-1)])''',
    'LxmertForPreTraining': '''print(out.prediction_logits.shape)  # of words
print(out.cross_relationship_score.softmax(-1))  # does the sentence belong to the picture? no, yes''',
    'LxmertModel': PAIRS,
}


def model_card(weights, config, architecture, name, answers):
    """The text of a README.md for the hub.

    weights: the file that the model was read from, beside which a run's options.json and log.log may lie; config: an LxrtConfig;
    architecture: class of transformers; name: of the model; answers: list of str or None.
    """
    run, log = read_run(Path(weights).parent), Path(weights).with_name('log.log')
    link = 'softmax(-1)' if run.get('options', {}).get('mceLoss') else 'sigmoid()'
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines() if log.is_file() else []
    scores = [printable(line) for line in lines if ': Valid ' in line or ': Best ' in line]
    size = f'{config.l_layers} language, {config.r_layers} object relationship and {config.x_layers} cross-modality layers of '
    parts = [
        '---\nlicense: mit\nlanguage: en\nlibrary_name: transformers\ntags:\n- lxmert'
        + ('\npipeline_tag: visual-question-answering' if architecture == 'LxmertForQuestionAnswering' else '') + '\n---',
        f'# {markdown(name)}',
        f'LXMERT ([Tan & Bansal, EMNLP 2019](https://arxiv.org/abs/1908.07490)) with {size}{config.hidden_size} numbers, as '
        f'`{architecture}`{f", {len(answers):,} answers" if answers else ""}. Made from `{code(Path(weights).name)}`.',
        f'```python\n{_example(config, architecture, name, link)}\n```',
        '## Scores\n\n' + ('```\n' + '\n'.join(scores) + '\n```' if scores else 'The run has left no validation scores.'),
        '## Options of the run\n\n' + _options(run),
    ]
    return '\n\n'.join(parts) + '\n'


def _example(config, architecture, name, link):
    """Code that uses the model, on regions that are drawn at random."""
    two = architecture == 'LxmertModel'
    return EXAMPLE.format(
        architecture=architecture, name=name, size=config.visual_feat_dim, count=4 if two else 2,
        images='# Of each picture the regions of a Faster R-CNN; boxes are x1, y1, x2, y2 divided by its width and height.'
               + ('\n# Two pictures a statement, one after the other; so the statement comes twice.' if two else ''),
        texts="['both have a dog'] * 2 + ['one is red'] * 2" if two else "['What is the man holding?', 'Is it red?']",
        after=AFTER[architecture].format(name=name, link=link))


def markdown(value):
    """A value as one line of Markdown without markup, also in a table."""
    return re.sub(r'[<>|`\[\]]', lambda mark: f'&#{ord(mark[0])};', printable(value))


def code(value):
    """A value as one line between backticks, also in a table."""
    return printable(value).replace('`', "'").replace('|', '/')


def _options(run):
    """The command of a run and its options that are not the default, as a table."""
    if not run:
        return 'They did not lie beside the weights.'
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    rows = [f'| `--{code(name)}` | {markdown(value)} |' for name, value in run['options'].items() if value != defaults.get(name)]
    command = run.get('command')
    command = ' '.join(map(str, command)) if isinstance(command, list) else ''
    return (f'`{code(command)}` (commit {markdown(run.get("git"))}, PyTorch {markdown(run.get("torch"))})\n\n'
            + '\n'.join(['| option | value |', '|---|---|', *rows]))
