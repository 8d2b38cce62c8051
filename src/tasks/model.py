"""A task's model: an encoder with answer layers, and the weights it starts from."""

from pathlib import Path

import torch
from torch import nn

from annotations.answer_table import read_table, transfer_answers
from bert.weights import fill
from dist import print0
from lxrt.entry import LXRTEncoder
from lxrt.modeling import answer_layers
from lxrt.weights import answer_head, load_bert, load_lxmert, read_task
from tasks.snapshot import answers_beside
from tasks.start import bert_weights

NEVER = -1e4  # the bias of an answer that must not win


class AnswerModel(nn.Module):
    """Scores answers to a question about an image, or about several, each of which is encoded with the question.

    encoder: any module that turns (token ids (b, t), (features, boxes), mask), the last two of b * k images, into pooled vectors
    (b * k, d).
    """

    def __init__(self, encoder, num_answers, images=1):
        super().__init__()
        self.lxrt_encoder, self.images = encoder, images
        self.logit_fc = answer_layers(encoder.config, num_answers, images)

    def forward(self, input_ids, features, boxes, visual_attention_mask=None, return_attention=False):
        """input_ids (b, t); of k images: features (b * k, o, f); boxes (b * k, o, 4); visual_attention_mask (b * k, o), the
        images of an example one after the other -> logits (b, answers); with return_attention (they, attention probabilities
        by layer, as LXRTModel returns them), which the encoder must then know."""
        inputs = input_ids, (features, boxes), visual_attention_mask
        if return_attention:
            pooled, attention = self.lxrt_encoder(*inputs, return_attention=True)
            return self.logit_fc(pooled.view(len(input_ids), -1)), attention
        pooled = self.lxrt_encoder(*inputs)  # (b * k, d)
        return self.logit_fc(pooled.view(len(input_ids), -1))


def build_model(options, config, weights, folder, answers, max_length, images=1):
    """An AnswerModel with its starting weights, drawn from --seed where they are random.

    weights: the file to start from, or None; folder: where BERT's weights may lie; answers: the answer vocabulary (list of str);
    images: how many an example has.
    """
    torch.manual_seed(options.seed)
    model = AnswerModel(LXRTEncoder(config, max_seq_length=max_length), len(answers), images)
    encoder = model.lxrt_encoder.model
    # Which weights win: 1. a run state (--resume, later and over all of these), 2. --load, 3. --loadLXMERT and
    # --loadLXMERTQA, 4. --fromScratch, 5. BERT's, for the language layers.
    theirs = answers_beside(weights) if options.load or options.loadLXMERTQA else None
    if options.load and theirs in (None, answers):
        print0(fill(model, read_task(weights), str(weights)))
    elif weights:
        report, state = load_lxmert(encoder, weights)
        print0(report)
        if not options.loadLXMERT:
            theirs = theirs or read_table(Path(options.dataRoot) / 'lxmert/all_ans.json')  # of the published file
            never = options.test is not None
            copied, new = transfer_answers(model.logit_fc, answer_head(state, weights), theirs, answers,
                                           NEVER if never else 0.0)
            print0(f'Answer head: {copied} answers from the head there, {new} {"are never given" if never else "start at 0"}.')
    elif not options.fromScratch:
        print0(load_bert(encoder, bert_weights(folder)))
    return model
