"""Weights for VL-BERT: files of the original code, of BERT, and snapshots. Loading is strict (bert.weights)."""

import re

import torch

from bert.weights import POSITION_IDS, WeightsError, canonical_name, fill, read_state, renamed
from vlbert.cnn import resnet_name

PROJECTION = 'image_feature_extractor.obj_downsample.1.weight'  # of a region's geometry and feature
PIXELS = r'image_feature_extractor\.(?!obj_downsample)'  # the convolutional branch of files trained end to end
HEADS = (r'vlbert\.(mlm_head|mvrc_head|relationsip_head)\.', r'object_mask_', r'aux_text_visual_embedding\.', r'final_mlp\.',
         r'cnn_loss_reg\.')
# What starts the first layer of a task's head, as in the original code: the transform of masked words, or of masked regions.
WORD_TRANSFORM, REGION_TRANSFORM = 'vlbert.mlm_head.predictions.transform.', 'vlbert.mvrc_head.transform.'
VCR_PREFIX = 'vlbert._module.'  # of VCR's models, where others have vlbert.
RESNET = 'conv1.weight'  # the first tensor of a ResNet's file
RELATIONSHIP = 'vlbert.relationsip_head.caption_image_relationship.'
WORDS, SEGMENTS = 'vlbert.word_embeddings.weight', 'vlbert.token_type_embeddings.weight'
BERT_NAMES = (  # BERT's prefix, ours; the first that matches counts
    ('bert.embeddings.LayerNorm.', 'vlbert.embedding_LayerNorm.'), ('bert.embeddings.', 'vlbert.'), ('bert.', 'vlbert.'),
    ('cls.predictions.', 'vlbert.mlm_head.predictions.'))


def vlbert_name(name):
    """canonical_name, without the further module of VCR's models."""
    return re.sub(f'^{re.escape(VCR_PREFIX)}', 'vlbert.', canonical_name(name))


def file_name_of(head):
    """A function: the name that a head's parameter has in what read_vlbert returns."""
    return lambda name: vlbert_name(head.original_name(name))


def read_vlbert(path):
    """The tensors of a file by the names of the original code, on the CPU. Raises FileNotFoundError or WeightsError."""
    state = read_state(path, vlbert_name)
    if WORDS not in state:
        raise WeightsError(f'{path}: expected weights of VL-BERT, found no {WORDS}; give a vl-bert-*.model of the original code '
                           'or a snapshot of this model')
    return state


def load_encoder_weights(head, state, path):
    """Fills the encoder of a head, in pre-training also its heads as far as the file has them, and of a task of answers or
    regions the first layer of its head, which starts from the head of masked words or regions. Where a ResNet's features have
    another size than those of the file, their projection stays as it is. Returns the LoadReport."""
    if not hasattr(head, 'mlm_head'):
        transform = transform_of(state, original_state(head))
        state = {name: tensor for name, tensor in state.items() if not re.match('|'.join(HEADS), name)} | transform
    may_miss = [*HEADS, r'vlbert\.pooler\.']
    if not any(re.match(PIXELS, name) for name in state):  # of a model of region features
        may_miss.append(PIXELS)
        config = head.encoder.config
        if config.pixels and PROJECTION in state and state[PROJECTION].shape[1] != config.geometry_size + config.visual_feat_dim:
            del state[PROJECTION]
            may_miss.append(re.escape(PROJECTION))
    return fill(head, state, str(path), may_miss, (*HEADS, PIXELS, r'vlbert\.pooler\.'), file_name_of(head))


def load_resnet(head, path):
    """Fills the ResNet of a head from a file with the names of torchvision's, whose fc. is left aside. Returns the LoadReport."""
    state = read_state(path)
    if RESNET not in state:
        raise WeightsError(f'{path}: expected a ResNet under the names of torchvision, found no {RESNET}; give a file such as '
                           'resnet101-pt-vgbua-0000.model')
    return fill(head.encoder.model.image_feature_extractor.cnn, state, str(path), may_have=(r'fc\.',), rename=resnet_name)


def original_state(head):
    """The tensors of a head by the names of read_vlbert."""
    rename = file_name_of(head)
    return {rename(name): tensor for name, tensor in head.state_dict().items()}


def transform_of(state, parameters):
    """{name: tensor} of the first layer of a task's head, as far as the head's `parameters` are of that shape: of answers, which
    has a layer norm, from the transform of masked words; of regions, and of the classes of VCR's regions, from that of masked
    regions."""
    words = 'final_mlp.0.LayerNorm.weight' in parameters
    sources = {'final_mlp.0.': WORD_TRANSFORM if words else REGION_TRANSFORM, 'cnn_loss_reg.0.': REGION_TRANSFORM}
    renamed_state = {name.replace(source, layer): tensor for layer, source in sources.items()
                     for name, tensor in state.items() if name.startswith(source)}
    return {name: tensor for name, tensor in renamed_state.items()
            if name in parameters and parameters[name].shape == tensor.shape}


def load_bert(head, path):
    """Fills words, positions, the first two of the three segments, layers and, where there are any, the pooler and the head of
    masked words from BERT's weights. The rest keeps its initial weights, as in the original code. Returns the LoadReport."""
    state = read_state(path)
    if 'embeddings.word_embeddings.weight' in state:  # an encoder alone
        state = {f'bert.{name}': tensor for name, tensor in state.items()}
    state = renamed({name: tensor for name, tensor in state.items() if not re.match(POSITION_IDS, name)}, bert_name, path)
    parameters = original_state(head)
    state |= transform_of(state, parameters)
    rows = state.get(SEGMENTS)
    if rows is not None and rows.shape == (2, parameters[SEGMENTS].shape[1]):
        state[SEGMENTS] = torch.cat([rows.to(parameters[SEGMENTS]), parameters[SEGMENTS][2:]])
    initial = ('vlbert.end_embedding.', 'vlbert.visual_ln_', 'object_linguistic_', 'image_feature_extractor.')
    return fill(head, state, str(path), (*map(re.escape, initial), *HEADS, r'vlbert\.pooler\.'),
                (r'vlbert\.mlm_head\.', r'cls\.seq_relationship\.', r'vlbert\.pooler\.'), file_name_of(head))


def bert_name(name):
    for prefix, ours in BERT_NAMES:
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name
