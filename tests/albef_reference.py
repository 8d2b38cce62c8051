"""A plain restatement of ALBEF on tensors by their original names: formulas of the original code, without dropout."""

import torch
import torch.nn.functional as F

PATCH, FUSION = 8, 2  # of the tests' configs


def linear(x, state, name):
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def norm(x, state, name, eps=1e-12):
    return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], eps)


def attend(query, key, value, heads, bias=0.0):
    query, key, value = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    probabilities = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)
    return (probabilities @ value).transpose(1, 2).flatten(2), probabilities


def vit(state, pixels, twin='', heads=4, recorded=None):
    at = f'visual_encoder{twin}.'
    patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)  # (b, patches, 3 * 8 * 8)
    x = patches @ state[f'{at}patch_embed.proj.weight'].flatten(1).T + state[f'{at}patch_embed.proj.bias']
    x = torch.cat([state[f'{at}cls_token'].expand(len(x), -1, -1), x], 1) + state[f'{at}pos_embed']
    i = 0
    while f'{at}blocks.{i}.norm1.weight' in state:
        block = f'{at}blocks.{i}.'
        query, key, value = linear(norm(x, state, f'{block}norm1', 1e-6), state, f'{block}attn.qkv').chunk(3, -1)
        output, probabilities = attend(query, key, value, heads)
        if recorded is not None:
            recorded.append(probabilities)
        x = x + linear(output, state, f'{block}attn.proj')
        x = x + linear(F.gelu(linear(norm(x, state, f'{block}norm2', 1e-6), state, f'{block}mlp.fc1')), state, f'{block}mlp.fc2')
        i += 1
    return norm(x, state, f'{at}norm', 1e-6)


def embed(state, at, ids):
    words, positions, kinds = (state[f'{at}embeddings.{name}_embeddings.weight'] for name in ('word', 'position', 'token_type'))
    return norm(words[ids] + positions[:ids.shape[1]] + kinds[0], state, f'{at}embeddings.LayerNorm')


def layers(state, at, hidden, mask, first, last, contexts=(), heads=4, causal=False, context_mask=None, fusion=FUSION):
    """contexts: for each image its tokens; layer i attends to that of (i - fusion) modulo their number."""
    see = mask[:, None, None, :].float()
    if causal:
        see = see * torch.ones(hidden.shape[1], hidden.shape[1]).tril()
    for i in range(first, last):
        layer = f'{at}encoder.layer.{i}.'
        steps = [('attention', hidden, (1 - see) * -10000.0)]
        if i >= fusion:
            steps.append(('crossattention', contexts[(i - fusion) % len(contexts)],
                          0.0 if context_mask is None else (1 - context_mask[:, None, None, :].float()) * -1e9))
        for name, context, bias in steps:
            context = hidden if name == 'attention' else context
            parts = [linear(one, state, f'{layer}{name}.self.{part}') for part, one in
                     (('query', hidden), ('key', context), ('value', context))]
            output = linear(attend(*parts, heads, bias)[0], state, f'{layer}{name}.output.dense')
            hidden = norm(output + hidden, state, f'{layer}{name}.output.LayerNorm')
        inner = linear(F.gelu(linear(hidden, state, f'{layer}intermediate.dense')), state, f'{layer}output.dense')
        hidden = norm(inner + hidden, state, f'{layer}output.LayerNorm')
    return hidden


def words(state, at, prediction, hidden):
    """Logits of the head of word pieces."""
    hidden = norm(F.gelu(linear(hidden, state, f'{prediction}.transform.dense')), state, f'{prediction}.transform.LayerNorm')
    return hidden @ state[f'{at}embeddings.word_embeddings.weight'].T + state[f'{prediction}.bias']


def features(state, name, states):
    return F.normalize(linear(states[:, 0], state, name), dim=-1)


def soft(targets, logits):
    return -(targets * logits.log_softmax(-1)).sum(-1)


def update_twins(state, momentum):
    """The momentum models of a state dict, in place; `state` may hold a tensor under two names."""
    done = set()
    with torch.no_grad():
        for name, tensor in state.items():
            module, _, rest = name.partition('.')
            if module.endswith('_m') and id(tensor) not in done and not name.endswith('position_ids'):
                done.add(id(tensor))
                tensor.mul_(momentum).add_((1 - momentum) * state[f'{module[:-2]}.{rest}'])


def contrast(state, batch, alpha, choose, text='text_encoder.', count=4, distill=True):
    """({ITC, ITM} of one process, what MLM needs); fills the queues of `state`. count: layers of the text encoder."""
    ids, mask, b = batch['input_ids'], batch['attention_mask'], len(batch['input_ids'])
    twin, temp, numbered = text.replace('text_encoder', 'text_encoder_m'), state['temp'], 'idx_queue' in state
    v = vit(state, batch['pixels'])
    t = layers(state, text, embed(state, text, ids), mask, 0, FUSION)
    image, sentence = features(state, 'vision_proj', v), features(state, 'text_proj', t)
    with torch.no_grad():
        v_m = vit(state, batch['pixels'], '_m')
        t_m = layers(state, twin, embed(state, twin, ids), mask, 0, FUSION)
        image_m, sentence_m = features(state, 'vision_proj_m', v_m), features(state, 'text_proj_m', t_m)
        images = torch.cat([image_m, state['image_queue'].T]).T
        sentences = torch.cat([sentence_m, state['text_queue'].T]).T
        if numbered:
            numbers = batch['image_id']
            hard = (numbers[:, None] == torch.cat([numbers, state['idx_queue'][0]])).float()
            hard = hard / hard.sum(1, keepdim=True)
        else:
            hard = torch.eye(b, images.shape[1])
        share = alpha if distill else 0.0
        to_text = share * (image_m @ sentences / temp).softmax(1) + (1 - share) * hard
        to_image = share * (sentence_m @ images / temp).softmax(1) + (1 - share) * hard
    i2t, t2i = image @ sentences / temp, sentence @ images / temp
    itc = (soft(to_text, i2t).mean() + soft(to_image, t2i).mean()) / 2
    with torch.no_grad():
        pointer, size = int(state['queue_ptr']), state['image_queue'].shape[1]
        state['image_queue'][:, pointer:pointer + b], state['text_queue'][:, pointer:pointer + b] = image_m.T, sentence_m.T
        if numbered:
            state['idx_queue'][:, pointer:pointer + b] = numbers
        state['queue_ptr'][0] = (pointer + b) % size
        same = numbers[:, None] == numbers if numbered else torch.eye(b, dtype=torch.bool)
        wrong_images = choose(t2i[:, :b].softmax(1).masked_fill(same, 0))
        wrong_texts = choose(i2t[:, :b].softmax(1).masked_fill(same, 0))
    positive = layers(state, text, t, mask, FUSION, count, [v])[:, 0]
    negative = layers(state, text, torch.cat([t, t[wrong_texts]]), torch.cat([mask, mask[wrong_texts]]), FUSION, count,
                      [torch.cat([v[wrong_images], v])])[:, 0]
    logits = linear(torch.cat([positive, negative]), state, 'itm_head')
    itm = F.cross_entropy(logits, torch.cat([torch.ones(b), torch.zeros(2 * b)]).long())
    return {'ITC': itc, 'ITM': itm}, (v, v_m)


def pretraining(state, batch, alpha, choose):
    state['temp'].data.clamp_(0.001, 0.5)
    losses, (v, v_m) = contrast(state, batch, alpha, choose, 'text_encoder.bert.')
    logits = []
    for twin, tokens in (('', v), ('_m', v_m)):
        at = f'text_encoder{twin}.bert.'
        hidden = layers(state, at, embed(state, at, batch['masked_input_ids']), batch['attention_mask'], 0, 4, [tokens])
        logits.append(words(state, at, f'text_encoder{twin}.cls.predictions', hidden))
    labels = batch['masked_lm_labels']
    chosen = labels != -1
    hard = F.cross_entropy(logits[0][chosen], labels[chosen])
    losses['MLM'] = (1 - alpha) * hard + alpha * soft(logits[1].detach().softmax(-1), logits[0])[chosen].mean()
    return losses


def question(state, batch, twin=''):
    at, mask = f'text_encoder{twin}.', batch['attention_mask']
    return layers(state, at, embed(state, at, batch['input_ids']), mask, 0, 4, [vit(state, batch['pixels'], twin)])


def decode(state, ids, states, mask, twin=''):
    at = f'text_decoder{twin}.bert.'
    hidden = layers(state, at, embed(state, at, ids), ids != 0, 0, 2, [states], causal=True, context_mask=mask, fusion=0)
    return words(state, at, f'text_decoder{twin}.cls.predictions', hidden)


def answering(state, batch, answers, alpha, distill=True):
    states, states_m, total = question(state, batch), question(state, batch, '_m').detach(), 0.0
    for place, answer, weight in zip(batch['label_example'], batch['label_answer'], batch['label_score'], strict=True):
        ids = answers[answer][answers[answer] != 0][None]
        mask, one = batch['attention_mask'][place:place + 1], slice(place, place + 1)
        logits = decode(state, ids, states[one], mask)[:, :-1]
        with torch.no_grad():
            logits_m = decode(state, ids, states_m[one], mask, '_m')[:, :-1]
        hard = F.cross_entropy(logits[0], ids[0, 1:], reduction='sum')
        share = alpha if distill else 0.0
        total = total + weight * ((1 - share) * hard + share * soft(logits_m.softmax(-1), logits).sum())
    return {'LM': total / len(batch['input_ids'])}


def ranking(state, batch, answers, k):
    """(b, answers): scores of the k best answers, -inf for the others."""
    states, rows = question(state, batch), []
    for i in range(len(states)):
        mask = batch['attention_mask'][i:i + 1]
        first = decode(state, answers[:1, :1], states[i:i + 1], mask)[0, 0].softmax(-1)[answers[:, 1]]
        row = torch.full((len(answers),), -torch.inf)
        for place in first.topk(k).indices.tolist():
            ids = answers[place][answers[place] != 0][None]
            logits = decode(state, ids, states[i:i + 1], mask)[:, :-1]
            row[place] = first[place].log() - F.cross_entropy(logits[0], ids[0, 1:], reduction='sum')
        rows.append(row)
    return torch.stack(rows)


def classes(state, batch, twin='', images=1):
    at, ids = f'text_encoder{twin}.', batch['input_ids']
    tokens = vit(state, batch['pixels'], twin).unflatten(0, (len(ids), images)).unbind(1)
    hidden = layers(state, at, embed(state, at, ids), batch['attention_mask'], 0, FUSION + images * 2, tokens)[:, 0]
    return linear(F.relu(linear(hidden, state, f'cls_head{twin}.0')), state, f'cls_head{twin}.2')


def classifying(state, batch, alpha, images=1, distill=True):
    logits = classes(state, batch, '', images)
    answer = batch['label_answer']
    with torch.no_grad():
        targets = classes(state, batch, '_m', images).softmax(1)
    share = alpha if distill else 0.0
    return {'CE': (1 - share) * F.cross_entropy(logits, answer) + share * soft(targets, logits).mean()}


def adamw(leaves, gradients, averages, step, lr, decay=0.02, betas=(0.9, 0.999), eps=1e-8):
    """PyTorch's AdamW at step 1, 2, ...; one-dimensional tensors do not decay."""
    with torch.no_grad():
        for name, p in leaves.items():
            if gradients.get(name) is None:
                continue
            m, v = averages.setdefault(name, (torch.zeros_like(p), torch.zeros_like(p)))
            p.mul_(1 - lr * decay * (p.ndim != 1))
            m.mul_(betas[0]).add_(gradients[name], alpha=1 - betas[0])
            v.mul_(betas[1]).add_(gradients[name] ** 2, alpha=1 - betas[1])
            p.sub_(lr * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps))
