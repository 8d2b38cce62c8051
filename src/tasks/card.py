"""The model card of a snapshot: what it is, its run's options and scores, how to use it."""

import dataclasses
from pathlib import Path

from annotations.files import read_json
from param import Options

USE = {
    'LxmertForQuestionAnswering': '`model(input_ids, visual_feats=features, visual_pos=boxes).question_answering_score` scores '
                                  'each answer of `model.config.id2label`.',
    'LxmertForPreTraining': 'Its five objectives are those of the paper.',
    'LxmertModel': 'transformers has no class for two images a statement: the head over their two pooled vectors, one after the '
                   'other, is in `nlvr2_head.safetensors` (Linear, GELU, LayerNorm, Linear; False, True).',
}


def model_card(weights, config, architecture, name, answers):
    """The text of a README.md for the hub.

    weights: the file that the model was read from, beside which a run's options.json and log.log may lie; config: an LxrtConfig;
    architecture: class of transformers; name: of the model; answers: list of str or None.
    """
    about, log = (Path(weights).with_name(file) for file in ('options.json', 'log.log'))
    run = read_json(about, 'the options of a run') if about.is_file() else {}
    lines = log.read_text(encoding='utf-8').splitlines() if log.is_file() else []
    scores = [line for line in lines if ': Valid ' in line or ': Best ' in line]
    size = f'{config.l_layers} language, {config.r_layers} object relationship and {config.x_layers} cross-modality layers of '
    parts = [
        '---\nlicense: mit\nlanguage: en\nlibrary_name: transformers\ntags:\n- lxmert'
        + ('\npipeline_tag: visual-question-answering' if architecture == 'LxmertForQuestionAnswering' else '') + '\n---',
        f'# {name}',
        f'LXMERT ([Tan & Bansal, EMNLP 2019](https://arxiv.org/abs/1908.07490)) with {size}{config.hidden_size} numbers, as '
        f'`{architecture}`{f", {len(answers):,} answers" if answers else ""}. Made from `{Path(weights).name}`.',
        f'```python\nfrom transformers import {architecture}, LxmertTokenizer\n\n'
        f'model = {architecture}.from_pretrained({name!r})\ntokenizer = LxmertTokenizer.from_pretrained({name!r})\n```',
        f'It takes features ({config.visual_feat_dim} numbers a region) and boxes (x1, y1, x2, y2, divided by the width and the '
        f'height of the picture). {USE[architecture]}',
        '## Scores\n\n' + ('```\n' + '\n'.join(scores) + '\n```' if scores else 'The run has left no validation scores.'),
        '## Options of the run\n\n' + _options(run),
    ]
    return '\n\n'.join(parts) + '\n'


def _options(run):
    """The command of a run and its options that are not the default, as a table."""
    if not isinstance(run, dict) or not isinstance(run.get('options'), dict):
        return 'They did not lie beside the weights.'
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    rows = [f'| `--{name}` | {value} |' for name, value in run['options'].items() if value != defaults.get(name)]
    command = ' '.join(map(str, run.get('command', [])))
    return (f'`{command}` (commit {run.get("git")}, PyTorch {run.get("torch")})\n\n'
            + '\n'.join(['| option | value |', '|---|---|', *rows]))
