"""A task's model: an encoder with answer layers, and the weights it starts from."""

from pathlib import Path

import torch
from torch import nn

from dist import say
from lxrt.config import LxrtConfig
from lxrt.entry import LXRTEncoder
from lxrt.modeling import answer_layers
from lxrt.tokenization import BertTokenizer
from lxrt.weights import bert_weights_file, fill, load_bert, load_lxmert, read_state
from pretrain.qa_answer_table import read_table, transfer_answers


class AnswerModel(nn.Module):
    """Scores answers to a question about an image, or about several, each of which is encoded with the question.

    encoder: any module that turns (token ids, (features, boxes), mask) into pooled vectors (b, d).
    """

    def __init__(self, encoder, num_answers, images=1):
        super().__init__()
        self.lxrt_encoder, self.images = encoder, images
        self.logit_fc = answer_layers(encoder.config, num_answers, images)

    def forward(self, input_ids, features, boxes, visual_attention_mask=None):
        """input_ids (b, t); of k images: features (b * k, o, f); boxes (b * k, o, 4); visual_attention_mask (b * k, o), the
        images of an example one after the other -> logits (b, answers)."""
        each = input_ids.repeat_interleave(self.images, 0) if self.images > 1 else input_ids
        pooled = self.lxrt_encoder(each, (features, boxes), visual_attention_mask)  # (b * k, d)
        return self.logit_fc(pooled.view(len(input_ids), -1))


def bert_folder(options):
    """The folder that --bert names: a path, or a name below --dataRoot. Raises FileNotFoundError that says what to do."""
    beside = Path(f'{options.load}.pth').parent if options.load else None
    if beside and (beside / 'vocab.txt').is_file() and (beside / 'config.json').is_file():
        return beside  # a snapshot carries its own
    for folder in (Path(options.bert), Path(options.dataRoot) / options.bert):
        if (folder / 'vocab.txt').is_file():
            return folder
    raise FileNotFoundError(
        f'--bert {options.bert}: found no vocab.txt in {options.bert}/ or {Path(options.dataRoot) / options.bert}/; '
        "put BERT's vocab.txt, config.json and pytorch_model.bin (or model.safetensors) there"
    )


def read_config(folder, options):
    """The model's config: the folder's config.json (BERT base and lxr955 if there is none) with --llayers, --xlayers,
    --rlayers and --dropout over it."""
    path = folder / 'config.json'
    config = LxrtConfig.from_json(path) if path.is_file() else LxrtConfig()
    for name, value in (('l_layers', options.llayers), ('x_layers', options.xlayers), ('r_layers', options.rlayers),
                        ('hidden_dropout_prob', options.dropout), ('attention_probs_dropout_prob', options.dropout)):
        if value is not None:
            setattr(config, name, value)
    return config


def read_tokenizer(folder, config):
    """The folder's tokenizer. Raises ValueError if the vocabulary is larger than the model's."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f'{tokenizer.vocab_file}: {len(tokenizer)} word pieces, but vocab_size of the config is '
                         f'{config.vocab_size}')
    return tokenizer


def check_snapshots(options, task_class):
    """Raises FileNotFoundError or ValueError for files to start from that are not there or do not fit the task."""
    if options.loadLXMERTQA and len(task_class.form.images) > 1:
        raise ValueError(f'--loadLXMERTQA: the answer head of {task_class.kind} is of another shape; give --loadLXMERT')
    for flag, endings in (('load', ['.pth']), ('loadLXMERT', ['_LXRT.pth', '.pth']), ('loadLXMERTQA', ['_LXRT.pth'])):
        if (value := getattr(options, flag)) and not any(Path(value + ending).is_file() for ending in endings):
            raise FileNotFoundError(f'--{flag} {value}: {value}{endings[0]}: no such file')


def build_model(options, config, folder, answers, max_length, images=1):
    """An AnswerModel with its starting weights, drawn from --seed where they are random.

    answers: the answer vocabulary (list of str); folder: where BERT's weights may lie; images: how many an example has.
    """
    torch.manual_seed(options.seed)
    model = AnswerModel(LXRTEncoder(config, max_seq_length=max_length), len(answers), images)
    encoder = model.lxrt_encoder.model
    # Which weights win: 1. a run state (--resume, later and over all of these), 2. --load, 3. --loadLXMERT and
    # --loadLXMERTQA, 4. --fromScratch, 5. BERT's, for the language layers.
    if options.load:
        path = f'{options.load}.pth'
        say(fill(model, read_state(path), path))
    elif options.loadLXMERT or options.loadLXMERTQA:
        path = Path(f'{options.loadLXMERT or options.loadLXMERTQA}_LXRT.pth')
        report, state = load_lxmert(encoder, path if path.is_file() else f'{options.loadLXMERT}.pth')  # the second: a snapshot
        say(report)
        if options.loadLXMERTQA:
            table = read_table(Path(options.dataRoot) / 'lxmert' / 'all_ans.json')
            copied, zeroed = transfer_answers(model.logit_fc, state, table, answers)
            say(f'Answer head: {copied} answers from the pre-trained head, {zeroed} start at 0.')
    elif not options.fromScratch:
        path = bert_weights_file(folder)
        if path is None:
            raise FileNotFoundError(f"{folder}: found no pytorch_model.bin or model.safetensors with BERT's weights; put one "
                                    'there, or give --fromScratch to start from random weights')
        say(load_bert(encoder, path))
    return model
