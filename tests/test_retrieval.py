"""Image-text retrieval: hard negatives, ranks, the program, its files, raw data and the captions of the sample world."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import SHARED, data_script, write_random_snapshot

import models
from annotations.dataset import ExampleDataset
from annotations.examples import Examples, read_examples, repeated_captions
from files.json_files import DataError
from heads import Head, Match, Recipe
from lxrt.modeling import LxrtConfig, LXRTPretraining
from param import Options
from regions import tsv
from regions.arrays import RegionArrays
from shapes import captions, report, retrieval, scene
from tasks import ranking
from tasks.matcher import Matcher
from tasks.program import main
from tasks.retrieval import Retrieval
from tasks.retrieval_files import read_ranks
from tools import check_dataset, evaluate

CPU = torch.device('cpu')


# ---- hard negatives

class Scores(Match):
    """A Match whose logit of text i with image j is table[i, j]; features hold the image's number, input_ids the text's."""

    def __init__(self, table, candidates):
        Head.__init__(self, torch.nn.Identity(), Recipe('match', candidates=candidates))
        self.table, self.scored = torch.nn.Parameter(table), []

    def logits(self, batch):
        texts, images = batch['input_ids'][:, 0], batch['features'][:, 0, 0].long()
        self.scored.append(list(zip(texts.tolist(), images.tolist(), strict=True)))
        return self.table[texts, images]


def batch_of(images, texts=None):
    b = len(images)
    numbers = torch.arange(b)
    return {'examples': b, 'image_id': torch.tensor(images), 'input_ids': numbers[:, None] if texts is None else
            torch.tensor(texts)[:, None], 'features': numbers.float()[:, None, None], 'boxes': torch.zeros(b, 1, 4)}


def test_negatives_are_the_hardest_candidates_of_texts_and_of_images():
    torch.manual_seed(0)
    # So far apart that the draw by softmax is that of the highest.
    table, batch = 100.0 * (torch.randperm(36).view(6, 6) - 20), batch_of([0, 1, 2, 3, 4, 5])
    head = Scores(table, candidates=2)
    loss, metrics = head(batch, head.counts([batch]))
    near = [[(j - i) % 6 in (1, 2) for j in range(6)] for i in range(6)]
    hard = [(i, max((j for j in range(6) if near[i][j]), key=lambda j, i=i: table[i, j])) for i in range(6)]
    hard += [(max((i for i in range(6) if near[i][j]), key=lambda i, j=j: table[i, j]), j) for j in range(6)]
    assert head.scored[-1] == hard and head.scored[-2] == [(i, i) for i in range(6)] and len(head.scored) == 4
    expected = -sum(torch.nn.functional.logsigmoid(table[i, i]) for i in range(6))
    expected -= sum(torch.nn.functional.logsigmoid(-table[pair]) for pair in hard)
    assert loss['BCE'].item() == pytest.approx(float(expected) / 18, rel=1e-5)
    assert metrics['examples'] == 18
    assert metrics['score'] == sum(table[i, i] > 0 for i in range(6)) + sum(table[pair] <= 0 for pair in hard)


def test_equal_scores_draw_any_candidate_and_scores_weigh_them():
    torch.manual_seed(0)
    batch, table = batch_of([0, 1, 2, 3]), torch.zeros(4, 4)
    head = Scores(table, candidates=3)
    drawn = torch.stack([head.hard(batch, head.candidates(batch))[0] for _ in range(300)])
    counts = torch.bincount(drawn[:, 0], minlength=4)
    assert counts[0] == 0 and (counts[1:] > 70).all()
    head.table.data[0, 2] = np.log(8)  # 0.8 of exp(0), exp(0), exp(log 8)
    drawn = torch.stack([head.hard(batch, head.candidates(batch))[0] for _ in range(300)])
    assert 210 < (drawn[:, 0] == 2).sum() < 270


def test_captions_of_one_image_and_of_the_same_words_are_no_negatives():
    head = Scores(torch.zeros(4, 4), candidates=3)
    batch = batch_of([7, 7, 8, 9], texts=[0, 1, 2, 0])  # texts 0 and 3 have the same words, though of other images
    assert head.candidates(batch).tolist() == [[False, False, True, False], [False, False, True, True], [True, True, False, True],
                                               [False, True, True, False]]
    assert head.counts([batch])['BCE'] == 12
    alone = batch_of([5, 5])
    loss, metrics = head(alone, head.counts([alone]))  # no negative at all
    assert head.counts([alone])['BCE'] == 2 and metrics['examples'] == 2
    assert loss['BCE'].item() == pytest.approx(np.log(2), rel=1e-5)


# ---- ranks

def captions_dataset(n, captions_of, features=4, seed=0):
    """An ExampleDataset of n images with one region each, and captions of the words a b c ...; captions_of: image of each."""
    rng = np.random.default_rng(seed)
    ids, conf = np.zeros(1, np.int64), np.zeros(1, np.float32)
    images = [tsv.ImageRegions(f'{i:04d}', 9, 9, ids, conf, ids, conf, np.float32([[0, 0, 5, 5]]),
                               rng.standard_normal((1, features)).astype(np.float32)) for i in range(n)]
    examples = Examples.unlabelled([[f'{i:04d}'] for i in captions_of], [f'caption {c}' for c in range(len(captions_of))])

    class Encoder:
        needs, blank, mirror = frozenset({'regions', 'boxes'}), False, ''

        def write(self, texts, max_length, blank=False):
            numbers = np.array([int(text.split()[1]) for text, in texts])
            return {'input_ids': np.stack([1 + numbers, np.where(numbers % 3, 1, 0)], 1)}  # of two lengths

    regions = RegionArrays.of_images('regions', images)
    rows = regions.rows([f'{i:04d}' for i in captions_of])[:, None]
    return ExampleDataset(examples, regions, rows, Encoder(), [], 20)


class Product(torch.nn.Module):
    """The logit of a pair is a product of an image's features with a vector of the caption."""

    def __init__(self, captions, features=4, decimals=None):
        super().__init__()
        self.vectors, self.decimals, self.largest = torch.randn(captions, features), decimals, 0

    def match_logits(self, batch):
        n, b = len(batch['input_ids']), batch['examples']
        self.largest = max(self.largest, n)
        features = batch['features'][:, 0].repeat_interleave(n // b, 0)
        scores = (features * self.vectors[batch['input_ids'][:, 0] - 1]).sum(1)
        return scores if self.decimals is None else scores.round(decimals=self.decimals)

    @staticmethod
    def probabilities(logits):
        return logits.sigmoid()


def by_hand(dataset, head):
    """The ranks from the matrix of all pairs."""
    features = [dataset.regions.image(row).features[0] for row in range(len(dataset.regions))]
    features = torch.from_numpy(np.stack(features))
    texts = torch.arange(len(dataset))
    matrix = head.match_logits({'examples': len(features), 'features': features[:, None],
                                'input_ids': (1 + texts)[:, None].repeat(len(features), 1)}).view(len(features), -1)  # (i, c)
    image, ranks = torch.from_numpy(dataset.rows[:, 0]), []
    for c in range(len(dataset)):
        own, column, row = matrix[image[c], c], matrix[:, c], matrix[image[c]]
        others = torch.arange(len(features)) != image[c]
        ranks.append([1 + int((column[others] >= own - 1e-5).sum()), 1 + int((row[image != image[c]] >= own - 1e-5).sum())])
    return np.array(ranks)


@pytest.mark.parametrize('decimals', [None, 0])  # with 0 there are many ties
def test_ranks_are_those_of_the_whole_matrix(decimals, capsys):
    torch.manual_seed(1)
    dataset = captions_dataset(21, [i % 21 for i in range(50)])
    head = Product(50, decimals=decimals)
    ranks, probabilities = ranking.rank(head, dataset, Options(evalBatchSize=40), CPU)
    assert head.largest <= 40 and '21 images x 50 different captions, 1,050 pairs' in capsys.readouterr().out
    assert np.array_equal(ranks, by_hand(dataset, head)) and 0 < probabilities.min() < probabilities.max() < 1
    again, _ = ranking.rank(head, dataset, Options(evalBatchSize=3), CPU)  # less than a chunk of images
    assert np.array_equal(again, ranks)


def test_ties_count_against_us():
    dataset = captions_dataset(5, [0, 0, 1, 2, 3, 4])
    head = Product(6)
    head.vectors[:] = 0  # all scores are equal
    ranks, _ = ranking.rank(head, dataset, Options(evalBatchSize=7), CPU)
    assert ranks[:, 0].tolist() == [5] * 6 and ranks[:, 1].tolist() == [5, 5, 6, 6, 6, 6]


def test_a_part_of_the_images_is_ranked_among_itself():
    dataset = captions_dataset(10, [i // 2 for i in range(20)])
    head = Product(20)
    ranks, _ = ranking.rank(head, dataset, Options(evalBatchSize=16), CPU, most=3)
    ranked = np.flatnonzero(ranks[:, 0])
    assert dataset.rows[ranked, 0].tolist() == [0, 0, 4, 4, 9, 9]
    assert ranks[ranked, 0].max() <= 3 and ranks[ranked, 1].max() <= 5
    figures, mean, queries = ranking.recalls(ranks, dataset.examples.images[:, 0])
    assert queries == {'text': 3, 'image': 6} and figures['image', 5] == 100 and 0 < mean <= 100


def test_recalls_by_hand():
    ranks = np.array([[1, 3], [2, 1], [6, 11], [11, 7], [1, 1]])
    figures, mean, queries = ranking.recalls(ranks, np.array([0, 0, 1, 1, 2]))
    assert queries == {'text': 3, 'image': 5}
    assert figures == {('text', 1): pytest.approx(200 / 3), ('text', 5): pytest.approx(200 / 3), ('text', 10): 100.0,
                       ('image', 1): 40.0, ('image', 5): 60.0, ('image', 10): 80.0}
    assert mean == pytest.approx((400 / 3 + 100 + 180) / 6)


def test_processes_share_the_images(monkeypatch):
    dataset, options = captions_dataset(40, [i % 40 for i in range(50)]), Options(evalBatchSize=32)
    head = Product(50)
    first, texts = np.arange(40), np.arange(50)
    complete = ranking.matching_scores(head, dataset, np.arange(50), 7, options, CPU)
    rows, summed = np.zeros((40, 50)), 0
    for rank in range(3):
        monkeypatch.setattr(ranking.dist, 'rank', lambda rank=rank: rank)
        monkeypatch.setattr(ranking.dist, 'world_size', lambda: 3)
        monkeypatch.setattr(ranking.dist, 'sum_over_ranks', lambda tensor: tensor)
        summed = summed + ranking.matching_scores(head, dataset, np.arange(50), 7, options, CPU)
        for images, scores in ranking.scores_of_images(head, dataset, first, texts, 32, options, CPU, 'Ranking'):
            rows[images] += scores
    np.testing.assert_array_equal(summed, complete)
    np.testing.assert_array_equal(rows[dataset.rows[:, 0], np.arange(50)], complete.astype(np.float64))


# ---- the program

def run(world, output, *flags):
    return main(Retrieval, ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--batchSize', '7',
                            '--output', str(output), *map(str, flags)])


TRAIN = ['--train', 'coco_test', '--valid', 'coco_valid', '--epochs', '1']


@pytest.mark.parametrize('model', ['lxmert', 'vlbert'])
def test_the_program_trains_ranks_and_is_evaluated(world, tmp_path, capsys, model):
    assert run(world, tmp_path / 'run', *TRAIN, '--fromScratch', '--model', model) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert '2 images x 10 different captions, 20 pairs.' in printed and 'right pairs among right and hard wrong ones' in printed
    assert 'Epoch 0: Valid' in printed and 'images for a text' in printed
    test = ['--test', 'coco_test', '--load', tmp_path / 'run/BEST']
    assert run(world, tmp_path / 'test', *test) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    ranks, annotations = tmp_path / 'test/coco_test_predict.json', world / 'retrieval/coco_test.json'
    rows, items = json.loads(ranks.read_text()), json.loads(annotations.read_text())
    assert [(row['img_id'], row['caption']) for row in rows] == [(item['img_id'], i) for item in items for i in range(5)]
    assert evaluate.main(['retrieval', str(ranks), str(annotations), '--out', str(tmp_path / 'figures.json')]) == 0
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert f'Score on coco_test: {figures["accuracy"]:.2f}' in printed
    report.main([str(world), str(ranks), '--task', 'retrieval'])
    assert f'Score {figures["accuracy"]:.1f}, without pictures {retrieval.chance(items):.1f}: ' in capsys.readouterr().out
    assert figures['by']['image retrieval']['R@5']['accuracy'] == 100 and figures['by']['text retrieval']['R@1']['questions'] == 4

    # run/match.bash and the library score the same pairs with the snapshot.
    matcher = Matcher.from_pretrained(tmp_path / 'run/BEST', max_length=24)
    images = {image.img_id: image for _, image in tsv.read(world / 'mscoco_imgfeat/val2014_obj36.tsv')}
    scores = matcher.match([images[row['img_id']] for row in rows], [text for item in items for text in item['sent']])
    np.testing.assert_allclose(scores, [row['match'] for row in rows], atol=2e-6)
    with pytest.raises(ValueError, match='has no head of masked words'):
        matcher.fill(images[items[0]['img_id']], 'a [MASK] star')


@pytest.fixture
def pretrained(world, tmp_path):
    """Weights of pre-training with their sidecars: the path that --load takes."""
    config = LxrtConfig.from_json(world / 'bert/config.json')
    model = LXRTPretraining(config, num_answers=3)
    torch.nn.init.normal_(model.cls.seq_relationship.weight)  # scores that differ
    (tmp_path / 'pretrained').mkdir()
    torch.save(model.state_dict(), tmp_path / 'pretrained/model_LXRT.pth')
    for name in ('config.json', 'vocab.txt'):
        shutil.copy(world / 'bert' / name, tmp_path / 'pretrained')
    return tmp_path / 'pretrained/model', model


def test_pretrained_weights_rank_without_training_and_start_it(world, tmp_path, capsys, pretrained):
    path, model = pretrained
    assert run(world, tmp_path / 'test', '--test', 'coco_test', '--load', path) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / 'test/coco_test_predict.json').read_text())
    items = json.loads((world / 'retrieval/coco_test.json').read_text())
    images = {image.img_id: image for _, image in tsv.read(world / 'mscoco_imgfeat/val2014_obj36.tsv')}
    scores = Matcher.from_pretrained(path, max_length=24).match_all([images[item['img_id']] for item in items], [
        text for item in items for text in item['sent']])  # (4, 20) by the heads of pre-training
    for c, row in enumerate(rows):
        own = scores[c // 5, c]
        assert row['match'] == pytest.approx(own, abs=2e-6)
        others = np.delete(scores[c // 5], np.arange(c // 5 * 5, c // 5 * 5 + 5))
        # Scores that differ by rounding alone may change places.
        for rank, column in ((row['image_rank'], np.delete(scores[:, c], c // 5)), (row['text_rank'], others)):
            assert (column >= own + 1e-5).sum() < rank <= 1 + (column >= own - 1e-5).sum()

    assert run(world, tmp_path / 'run', *TRAIN, '--loadLXMERT', path, '--lr', '1e-9') == 0, capsys.readouterr().err
    state = torch.load(tmp_path / 'run/LAST.pth', weights_only=True)
    assert not {name for name in state if not name.startswith(('lxrt_encoder.model.bert.', 'cls.seq_relationship.'))}
    torch.testing.assert_close(state['cls.seq_relationship.weight'], model.cls.seq_relationship.weight.data, rtol=0, atol=1e-6)


def test_weights_without_a_trained_matching_head_are_refused(world, tmp_path, capsys, pretrained):
    write_random_snapshot(tmp_path / 'tuned', 'vqa', world)
    assert run(world, tmp_path / 'test', '--test', 'coco_test', '--load', tmp_path / 'tuned/BEST') == 1
    assert 'BEST.pth: has no matching head (cls.seq_relationship.weight)' in capsys.readouterr().err
    options = {'task': 'lxmert', 'options': {'taskMatched': False}}
    (pretrained[0].parent / 'options.json').write_text(json.dumps(options))
    assert run(world, tmp_path / 'test', '--test', 'coco_test', '--load', pretrained[0]) == 1
    assert 'was pre-trained without --taskMatched' in capsys.readouterr().err
    head = models.build('vlbert', 'vqa', models.package('vlbert').config_from_json(world / 'bert/config.json'), ['a', 'b'])
    torch.save({name: tensor for name, tensor in head.original_state().items() if 'final_mlp' not in name},
               tmp_path / 'tuned/vlbert.pth')
    (tmp_path / 'tuned/config.json').unlink()
    assert run(world, tmp_path / 'test', '--test', 'coco_test', '--load', tmp_path / 'tuned/vlbert', '--model', 'vlbert') == 1
    assert 'final_mlp' in capsys.readouterr().err


@pytest.mark.parametrize(('flags', 'fault'), [
    (['--batchSize', '1'], '--batchSize 1: expected at least 2 captions'),
    (['--batchSize', '5', '--accumulate', '3'], '--batchSize 5: expected at least 2 captions'),
    (['--test', 'coco_test', '--load', 'x', '--dumpProbs', '3'], '--dumpProbs: does not apply to retrieval')])
def test_flags_that_cannot_be_are_named(world, tmp_path, capsys, pretrained, flags, fault):
    flags = [pretrained[0] if flag == 'x' else flag for flag in flags]
    assert run(world, tmp_path / 'run', *(TRAIN if '--test' not in flags else []), *flags,
               *(['--fromScratch'] if '--test' not in flags else [])) == 1
    assert fault in capsys.readouterr().err


# ---- files

def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(('item', 'fault'), [
    ({'sent': ['a']}, 'key "img_id": expected an image id .* found no such key'),
    ({'img_id': 'x'}, 'key "sent": expected a list'),
    ({'img_id': 'x', 'sent': []}, 'key "sent": expected a list of sentences, at least one'),
    ({'img_id': 'x', 'sent': ['a', ' ']}, 'key "sent": .* none of them empty'),
    ({'img_id': 'x', 'sent': 'a'}, 'key "sent": expected a list'), ({'img_id': 7, 'sent': ['a']}, 'key "img_id"')])
def test_a_text_or_an_image_alone_is_an_error(tmp_path, item, fault):
    path = write(tmp_path / 'x.json', [{'img_id': 'y', 'sent': ['b']}, item])
    with pytest.raises(DataError, match=f'x.json: example 1: {fault}'):
        read_examples([path], Retrieval.schema, ())


def test_repeated_captions_are_counted(tmp_path, capsys):
    items = [{'img_id': 'y', 'sent': ['b', 'c', 'b']}, {'img_id': 'z', 'sent': ['c', 'd']}, {'img_id': 'y', 'sent': ['b']}]
    examples = read_examples([write(tmp_path / 'x.json', items)], Retrieval.schema, ())
    assert repeated_captions(examples) == (2, 2)
    splits = {'test': {'annotations': 'x.json', 'features': ['x.tsv']}}
    path = write(tmp_path / 'mine.json', {'kind': 'retrieval', 'name': 'mine', 'max_length': 20, 'splits': splits})
    one, ids = np.zeros(1, np.float32), np.zeros(1, np.int64)
    tsv.write(tmp_path / 'x.tsv', [tsv.ImageRegions(name, 9, 9, ids, one, ids, one, np.float32([[0, 0, 5, 5]]),
                                                    np.float32([[1, 2]])) for name in 'yz'])
    assert check_dataset.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert 'test: 6 sentences on 2 images' in printed
    assert '2 captions repeat one of the same image; 2 are those of several images' in printed


def row(img_id, caption, image_rank=1, text_rank=1):
    return {'img_id': img_id, 'caption': caption, 'image_rank': image_rank, 'text_rank': text_rank}


RIGHT = [row('y', 0), row('z', 0), row('y', 1, 2, 2)]


@pytest.mark.parametrize(('rows', 'fault'), [
    (RIGHT[:2], '1 captions not ranked: y, caption 1'), ([*RIGHT, RIGHT[0]], '1 captions ranked again: y, caption 0'),
    ([*RIGHT[:2], row('y', 1, 3)], '1 ranks beyond the 2 images'), ([*RIGHT[:2], row('y', 1, 1, 3)], '1 ranks beyond the 2'),
    ([*RIGHT[:2], row('y', 1, 0)], '1 ranks beyond'), ([*RIGHT, row('q', 0)], '1 captions that are not in'),
    ([*RIGHT[:2], row('y', 1, 1.0)], '1 rows that are not'), ([*RIGHT[:2], 3], '1 rows that are not'),
    ({'a': [{'b': 1}]}, '1 files that are no list')])
def test_faulty_ranks_are_named(tmp_path, capsys, rows, fault):
    annotations = write(tmp_path / 'x.json', [{'img_id': 'y', 'sent': ['b', 'c']}, {'img_id': 'z', 'sent': ['d']}])
    right = read_ranks(write(tmp_path / 'right.json', RIGHT), read_examples([annotations], Retrieval.schema, ()), annotations)
    assert right.tolist() == [[1, 1], [2, 2], [1, 1]]
    assert evaluate.main(['retrieval', str(write(tmp_path / 'ranks.json', rows)), str(annotations)]) == 1
    error = capsys.readouterr().err
    assert 'every caption must be ranked exactly once' in error and fault in error


def test_a_part_of_the_captions_is_not_scored(tmp_path, capsys):
    annotations = write(tmp_path / 'x.json', [{'img_id': 'y', 'sent': ['b', 'c']}, {'img_id': 'z', 'sent': ['d']}])
    assert evaluate.main(['retrieval', str(write(tmp_path / 'r.json', RIGHT)), str(annotations), '--subset']) == 1
    assert '--only and --subset: do not apply to retrieval' in capsys.readouterr().err


# ---- raw data

@pytest.fixture
def process():
    return data_script('retrieval/process_retrieval').main


def karpathy(*images):
    return {'dataset': 'coco', 'images': [
        {'filename': f'COCO_val2014_{number:012d}.jpg', 'split': split, 'sentences': [{'raw': text} for text in texts]}
        for number, split, texts in images]}


def test_splits_of_karpathy(process, tmp_path, capsys):
    raw = karpathy((1, 'train', ['a b', ' ']), (2, 'restval', ['c', 'c']), (3, 'val', ['d']), (4, 'test', ['e ', 'f']),
                   (5, 'test', ['e']))
    process(['--karpathy', str(write(tmp_path / 'dataset_coco.json', raw)), '--out', str(tmp_path / 'out')])
    made = {path.name: json.loads(path.read_text()) for path in (tmp_path / 'out').iterdir()}
    name = 'COCO_val2014_{:012d}'.format
    assert made == {'coco_train.json': [{'img_id': name(1), 'sent': ['a b']}, {'img_id': name(2), 'sent': ['c', 'c']}],
                    'coco_valid.json': [{'img_id': name(3), 'sent': ['d']}],
                    'coco_test.json': [{'img_id': name(4), 'sent': ['e', 'f']}, {'img_id': name(5), 'sent': ['e']}]}
    printed = capsys.readouterr().out
    assert 'coco_train: 3 captions of 2 images kept.\n  1 empty captions dropped' in printed
    assert '1 captions repeat one of the same image; 0 captions have several images\ncoco_valid' in printed
    assert "0 captions repeat one of the same image; 1 captions have several images (such as 'e')" in printed


def test_json_lines_and_albefs_json(process, tmp_path, capsys):
    (tmp_path / 'x.jsonl').write_text('{"sentences": ["a"], "id": "12", "img_path": "12.jpg"}\n'
                                      '{"sentences": ["b"], "id": "13"}\n')
    albef = [{'image': 'flickr30k-images/1.jpg', 'caption': 'a', 'image_id': 'f_1'},
             {'image': 'flickr30k-images/1.jpg', 'caption': ['b', 'c']}]
    one, ids = np.zeros(1, np.float32), np.zeros(1, np.int64)
    tsv.write(tmp_path / 'x.tsv', [tsv.ImageRegions(name, 9, 9, ids, one, ids, one, np.float32([[0, 0, 5, 5]]),
                                                    np.float32([[1, 2]])) for name in ('1', '12')])
    process(['--split', 'one', str(tmp_path / 'x.jsonl'), '--split', 'two', str(write(tmp_path / 'y.json', albef)),
             '--features', str(tmp_path / 'x.tsv'), '--out', str(tmp_path / 'out')])
    assert json.loads((tmp_path / 'out/one.json').read_text()) == [{'img_id': '12', 'sent': ['a']}]
    assert json.loads((tmp_path / 'out/two.json').read_text()) == [{'img_id': '1', 'sent': ['a', 'b', 'c']}]
    assert "1 images without regions dropped (such as '13')" in capsys.readouterr().out


@pytest.mark.parametrize(('items', 'fault'), [
    ([{'image': '1.jpg'}], 'item 0: a text or an image alone'), ([{'sentences': ['a']}], 'item 0: key "img_path": expected str'),
    ([{'image': '1.jpg', 'caption': 3}], 'item 0: key "caption": expected a text or a list'), ([7], 'item 0: a text or an image'),
    ([{'image': 'a/1.jpg', 'caption': 'a'}, {'image': 'b/1.png', 'caption': 'b'}],
     "item 1: expected a new image id, found 1 of 'b/1.png', which is that of 'a/1.jpg'"),
    ([{'image': 'a/', 'caption': 'a'}], "item 0: expected the name of an image, found 'a/'"),
    ([{'image': '1.jpg', 'caption': [' ']}], 'one: 1 images have no caption'),
    ([{'image': 'z/2.jpg', 'caption': 'a'}], 'image 2: expected in one split, found in zero and in one')])
def test_faulty_raw_data_leaves_nothing(process, tmp_path, items, fault):
    other = write(tmp_path / 'zero.json', [{'image': '2.jpg', 'caption': 'a'}])
    with pytest.raises(DataError, match=fault):
        process(['--split', 'zero', str(other), '--split', 'one', str(write(tmp_path / 'x.json', items)), '--out',
                 str(tmp_path / 'out')])
    assert not list(tmp_path.glob('out/*'))


@pytest.mark.shared
def test_real_captions(process, tmp_path, capsys):
    for split, file in (('flickr30k_test', 'retrieval/flickr30k_test.json'), ('coco_test', 'retrieval/coco_test_1000.json'),
                        ('flickr30k_valid', 'flickr30k/valid_ann_500.jsonl')):
        process(['--split', split, str(SHARED / file), '--out', str(tmp_path)])
    printed = capsys.readouterr().out
    for line in ('flickr30k_test: 5,000 captions of 1,000 images kept.', 'coco_test: 5,001 captions of 1,000 images kept.',
                 'flickr30k_valid: 2,500 captions of 500 images kept.'):
        assert line in printed
    examples = read_examples([tmp_path / 'coco_test.json'], Retrieval.schema, ())
    assert len(examples) == 5001 and examples.images[0, 0] == b'COCO_val2014_000000391895'


# ---- the sample world

def test_the_recalls_of_a_ranking_at_random():
    counts, rng = [5, 2, 4, 5] * 4, np.random.default_rng(0)
    image, means = np.repeat(np.arange(len(counts)), counts), []
    for _ in range(2000):
        hits = []
        for k in (1, 5, 10):
            captions = rng.random((len(counts), len(image))).argsort(1)[:, :k]  # the first for each image
            hits += [(image[captions] == np.arange(len(counts))[:, None]).any(1).mean(), k / len(counts)]
        means.append(np.mean(hits))
    assert retrieval.chance([{'sent': ['x'] * count} for count in counts]) == pytest.approx(100 * np.mean(means), abs=0.5)
    assert retrieval.chance([{'sent': ['x']}]) == 100


def test_near_misses_differ_in_one_word(made_world):
    pairs = json.loads((made_world / 'retrieval/near_misses.json').read_text())
    scenes = {str(i): scene.sample(7, i) for i in range(60)}
    more = retrieval.near_misses(scenes, random.Random(0))
    assert len(pairs) == 4 and len(more) > 50
    for pair in pairs + more:
        assert captions.fits(pair['sent'])
        both = list(zip(pair['sent'].lower().split(), pair['foil'].lower().split(), strict=True))
        assert sum(one != other for one, other in both) == 1
        assert not {tuple(sorted(pair)) for pair in both if pair[0] != pair[1]} & {('diamond', 'square')}
    train, test = (json.loads((made_world / f'retrieval/coco_{split}.json').read_text()) for split in ('train', 'test'))
    assert len(train) == 40 and len(test) == 4 and all(len(item['sent']) == 5 for item in train + test)
    assert not {item['img_id'] for item in train} & {item['img_id'] for item in test}
