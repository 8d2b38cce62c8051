"""A task's model: an encoder with answer layers, and the weights it starts from."""

from pathlib import Path

import torch
from torch import nn

from annotations.spec import read_answers
from dist import say
from lxrt.entry import LXRTEncoder
from lxrt.modeling import answer_layers
from lxrt.weights import bert_weights_file, fill, load_bert, load_lxmert, read_state
from pretrain.qa_answer_table import read_table, transfer_answers
from start import no_bert_weights


class AnswerModel(nn.Module):
    """Scores answers to a question about an image, or about several, each of which is encoded with the question.

    encoder: any module that turns (token ids (b, t), (features, boxes), mask), the last two of b * k images, into pooled vectors
    (b * k, d).
    """

    def __init__(self, encoder, num_answers, images=1):
        super().__init__()
        self.lxrt_encoder, self.images = encoder, images
        self.logit_fc = answer_layers(encoder.config, num_answers, images)

    def forward(self, input_ids, features, boxes, visual_attention_mask=None):
        """input_ids (b, t); of k images: features (b * k, o, f); boxes (b * k, o, 4); visual_attention_mask (b * k, o), the
        images of an example one after the other -> logits (b, answers)."""
        pooled = self.lxrt_encoder(input_ids, (features, boxes), visual_attention_mask)  # (b * k, d)
        return self.logit_fc(pooled.view(len(input_ids), -1))


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
            beside = path.with_name('answers.json')  # of our own; of the published file, the published table
            table = read_answers(beside) if beside.is_file() else read_table(Path(options.dataRoot) / 'lxmert/all_ans.json')
            copied, zeroed = transfer_answers(model.logit_fc, state, table, answers)
            say(f'Answer head: {copied} answers from the pre-trained head, {zeroed} start at 0.')
    elif not options.fromScratch:
        path = bert_weights_file(folder)
        if path is None:
            raise no_bert_weights(folder)
        say(load_bert(encoder, path))
    return model
