"""The models by name. This is the only file that names them; each is imported when it is asked for.

A model's package has a module `heads` with

    read_config(folder, options) -> config            the config.json of a folder, with the flags of the model over it
    config_from_json(path) -> config
    check_config(path, config)                        raises ValueError where a config.json is of another model than `config`
    build(task, config, answers, options) -> Head     with random weights
    load_start(head, start) -> reports                loads the weights of a heads.Start
    layer_names(config) -> (names, names)             the layers of Encoder.hidden_states, of words and of regions
    load_encoder(path, config) -> (Encoder, report)   the encoder of any file of weights
    read_task(path) -> {name: tensor}                 a task's snapshot under the names of Head.original_state
    answers_and_images(state, config) -> (int, int)   how many answers such a snapshot scores, about how many images, or None
"""

import importlib

MODELS = {'lxmert': 'lxrt'}  # name -> package
DEFAULT = 'lxmert'


def package(model, module='heads'):
    """A module of a model's package. Raises ValueError for an unknown name."""
    if model not in MODELS:
        raise ValueError(f'--model {model}: expected one of {", ".join(MODELS)}')
    return importlib.import_module(f'{MODELS[model]}.{module}')


def build(model, task, config, answers=None, options=None):
    """A Head with random weights.

    task: the kind of a dataset, or 'pretrain'; answers: list of str, where the output is one of them; options: param.Options, for
    the loss and the objectives (None: the published ones).
    """
    return package(model).build(task, config, answers, options)
