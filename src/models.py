"""The registry of models. Only this file names them; a model is imported when it is first used.

A model's package has a module `heads` with

    read_config(folder, options) -> config            config.json of a folder, overridden by the flags of the model
    config_from_json(path) -> config
    check_config(path, config)                        raises ValueError if the config.json at path contradicts `config`
    recipe(task, options) -> heads.Recipe             of a task, or of 'pretrain'; raises ValueError for a task without one
    build(task, config, answers, options) -> Head     with random weights
    load_start(head, start) -> list                   loads the weights that a heads.Start describes; reports to print
    layer_names(config) -> (names, names)             the layers of Encoder.hidden_states for words and for regions
    load_encoder(path, config) -> (Encoder, report)   the encoder from a file of weights of any kind
    load_pretrained(path, config) -> (Head, report)   with match_logits and word_logits, from a pre-trained file
    read_task(path) -> {name: tensor}                 the snapshot of a task, with the names of Head.original_state
    read_weights(path) -> {name: tensor}              any file of weights, with the names of the model's original code
    recognises(names) -> bool                         whether a file with tensors of these names is of this model
    answers_and_images(state, config) -> (int, int)   numbers of answers (None: a decoder writes them) and of images per
                                                      example; None: no answer head
"""

import importlib

MODELS = {'lxmert': 'lxrt', 'vlbert': 'vlbert', 'albef': 'albef', 'visualbert': 'visualbert'}  # name -> package
DEFAULT = 'lxmert'
OTHER_TYPES = ('bert', 'visual_bert')  # model_type in a config.json of transformers whose weights a model of these reads
# Flag -> the model of its weights.
FLAG_MODELS = {'loadLXMERT': 'lxmert', 'loadLXMERTQA': 'lxmert', 'loadVLBERT': 'vlbert', 'loadALBEF': 'albef'}


def chosen(options):
    """The model that the flags name, or None. Raises ValueError if they name two."""
    for flag, model in FLAG_MODELS.items():
        if getattr(options, flag):
            if (options.model or model) != model:
                raise ValueError(f'--model {options.model} and --{flag}: those are weights of the model {model}; name weights of '
                                 f'{options.model}, or leave --model out')
            return model
    return options.model


def flag_of(model):
    """The flag that names weights of a model, or else chooses it."""
    return next((f'--{flag}' for flag, name in FLAG_MODELS.items() if name == model), f'--model {model}')


def package(model, module='heads'):
    """A module of the model's package. Raises ValueError for an unknown model."""
    if model not in MODELS:
        raise ValueError(f'--model {model}: expected one of {", ".join(MODELS)}; correct it')
    return importlib.import_module(f'{MODELS[model]}.{module}')


def of_names(names):
    """The model of a file with tensors of these names; the default if no model recognises them."""
    last = sorted(MODELS, key=DEFAULT.__eq__)  # which may recognise BERT's words in files of others
    return next((model for model in last if names and package(model).recognises(names)), DEFAULT)


def build(model, task, config, answers=None, options=None):
    """A Head with random weights.

    task: the kind of a dataset, or 'pretrain'; answers: list of str, for output 'answer'; options: param.Options with the loss
    and the pre-training objectives (None: the published ones).
    """
    return package(model).build(task, config, answers, options)
