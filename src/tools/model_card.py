"""The model card of a snapshot: what it is, its run's options and scores, how to use it."""

import dataclasses
import re
import shlex
from pathlib import Path

from files.text import printable
from param import Options
from run_folder import read_run
from tasks.registry import TASKS, output_of, task_class

LOAD = '''```python
from tasks import snapshots  # src/ of this project in PYTHONPATH

{name} = snapshots.load({path!r})
```'''
LOAD_PRETRAINED = '''```python
from tasks.matcher import Matcher  # src/ of this project in PYTHONPATH

matcher = Matcher.from_pretrained({path!r})
```'''
TEST = '''```bash
bash run/{task}_test.bash cpu NAME --load FOLDER/{path}
```'''


def model_card(weights, config, name, answers, architecture=None, example=None):
    """The text of a README.md for the hub.

    weights: the file that the model was read from, beside which a run's options.json and log.log may lie; config: of the model;
    name: of the model; answers: list of str or None; architecture: class of transformers, and example(config, architecture, name,
    link): code that uses it. Without them the card tells how to load the file with this project.
    """
    run, log = read_run(Path(weights).parent), Path(weights).with_name('log.log')
    kind = task_class(run['task']).head_kind() if run.get('task') in TASKS else None
    softmax = run.get('options', {}).get('mceLoss') or kind in ('nlvr', 'classify', 'entailment')  # trained by cross entropy
    link = 'softmax(-1)' if softmax else 'sigmoid()'
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines() if log.is_file() else []
    scores = [printable(line) for line in lines if ': Valid ' in line or ': Best ' in line]
    task, data = run.get('task'), run.get('options', {}).get('train')
    made = f'Task: {code(task) if task else "not recorded"}; training data: {code(data) if data else "not recorded"}'
    asks = architecture and architecture.endswith('ForQuestionAnswering')
    head = [f'license: {config.LICENSE}'] if config.LICENSE else []
    head += ['language: en', *(['library_name: transformers'] if architecture else []), f'tags:\n- {config.MODEL.lower()}',
             *(['pipeline_tag: visual-question-answering'] if asks else [])]
    parts = [
        '\n'.join(['---', *head, '---']),
        f'# {markdown(name)}',
        f'{config.MODEL}{f" ({config.PAPER})" if config.PAPER else ""} with hidden size '
        f'{getattr(config, "text", config).hidden_size}'
        f'{f", as `{architecture}`" if architecture else ""}{f", {len(answers):,} answers" if answers else ""}. '
        f'Made from `{code(Path(weights).name)}`. {made}.',
        f'```python\n{example(config, architecture, name, link)}\n```' if example else _usage(run, Path(weights), answers),
        '## Scores\n\n' + ('```\n' + '\n'.join(scores) + '\n```' if scores else 'The run has left no validation scores.'),
        '## Options of the run\n\n' + _options(run),
    ]
    return '\n\n'.join(parts) + '\n'


def markdown(value):
    """A value as one line of Markdown without markup, also in a table."""
    return re.sub(r'[<>|`\[\]]', lambda mark: f'&#{ord(mark[0])};', printable(value))


def code(value):
    """A value as one line between backticks, also in a table."""
    return printable(value).replace('`', "'").replace('|', '/')


def _usage(run, weights, answers):
    """How to use weights with this project. run: of their options.json; without a task and answers they are pre-trained ones."""
    task = run.get('task')
    if task == 'pretrain' or weights.stem.endswith('_LXRT') or not (task or answers):
        return LOAD_PRETRAINED.format(path=weights.name)
    if (output := output_of(task)) == 'choice':
        flag = ' --rationale' if run['options'].get('rationale') else ''
        return TEST.format(path=shlex.quote(weights.name) + flag, task=task)
    return LOAD.format(path=weights.name, name={'region': 'grounder', 'match': 'matcher'}.get(output, 'predictor'))


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
