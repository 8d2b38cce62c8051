"""The hard sample world: the files of the ordinary one, answers that hold, held-out combinations, rare words."""
import json
import random
import re
from collections import Counter
from itertools import chain

import pytest
from test_shapes import clearly, contents, things_of

from shapes import captions, expressions, gqa_questions, hard_text, make, pairs, questions, report, scene, statements, world
from shapes.baselines import TRAIN, masked, score_table
from tools import check_dataset

SETTINGS = world.Settings(images=40, seed=3, questions=6, captions=4, hard=True)
WHERE = {words: side for side, wordings in questions.WHERE_WORDS.items() for words in wordings}
SIDE = '|'.join(sorted(WHERE, key=len, reverse=True))


@pytest.fixture(scope='module')
def hard_world(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes') / 'hard'
    return out, world.make(out, SETTINGS, processes=1)


@pytest.fixture(scope='module')
def scenes():
    return {str(i): scene.sample(7, i, scene.HARD) for i in range(120)}


def read(out, name):
    return json.loads((out / f'{name}.json').read_text())


def sentences(out, *names):
    """(sentence, its answers) of files of texts, in common words."""
    for name in names:
        for item in read(out, name):
            if name.startswith('vcr'):
                for text in (*item['answer_choices'], *item['rationale_choices']):
                    yield ' '.join(word if isinstance(word, str) else item['names'][word[0]] for word in text), ()
                continue
            sents = chain.from_iterable(item['sentf'].values()) if 'sentf' in item else item['sent']
            for sent in [sents] if isinstance(sents, str) else sents:
                label = item.get('label')
                yield hard_text.plain(sent).lower(), label if isinstance(label, dict) else ()


def named(sentence, answers):
    """The held-out combinations that a sentence names or asks for, found independently of `shapes`."""
    for colour, shape in hard_text.HELD_OUT:
        asked = re.fullmatch(rf'(?:what|which) color (?:is|does) the (?:\S+ )?{shape}(?: that is .*| have)?\?', sentence)
        said = re.search(rf'\b{colour} {shape}|\bthe (?:(?:small|little|large|big) )?{shape}(?: that is .*)? is {colour}\b|'
                         rf'^{shape} is {colour}', sentence)
        if said or (asked and colour in answers):
            yield colour, shape


def test_the_hard_world_has_the_same_files(made_world, hard_world, tmp_path, capsys):
    ordinary, hard = ({name for name in contents(out) if not name.endswith('.png')} for out in (made_world, hard_world[0]))
    cached = r'_obj36\.store|\.index\.npy'  # that other tests' trainings write beside a world's files
    assert hard <= ordinary and all(re.search(cached, name) for name in ordinary - hard)
    out, annotations = hard_world
    assert read(out, 'world')['hard'] is True and 'hard' not in read(made_world, 'world')
    for name in ('vqa/test', 'gqa/submit', 'nlvr2/hidden', 'vcr/test'):
        assert not any({'label', 'answer_label', 'tags'} & item.keys() for item in read(out, name))
    counts = {name: Counter(len(item['sentf']['cc']) for item in read(out, name)) for name in ('cc/train', 'cc/val')}
    assert {*counts['cc/val']} == {4} and 0 not in counts['cc/train'] and counts['cc/train'][4] > 0.8 * counts['cc/train'].total()
    described = {'kind': 'lxmert', 'name': 'hard', 'max_length': 20, 'answers': f'{out}/lxmert/all_ans.json', 'splits': {
        file: {'annotations': f'{out}/lxmert/{file}.json', 'features': [f'{out}/mscoco_imgfeat/train2014_obj36.tsv']}
        for file in ('mscoco_train', 'vgnococo')}}
    (tmp_path / 'hard.json').write_text(json.dumps(described))
    assert check_dataset.main([str(tmp_path / 'hard.json'), '--bert', str(out / 'bert')]) == 0
    printed = capsys.readouterr().out
    assert printed.count('0.0 % of the word pieces are [UNK], 0 of') == 2
    table, _, _ = score_table(annotations['vqa']['train'], annotations['vqa']['minival'] + annotations['gqa']['testdev'])
    assert {'held out', 'nested', 'rare words'} <= {line[:13].strip() for line in table.splitlines()}


def test_held_out_combinations_are_named_in_evaluation_only(hard_world):
    out, _ = hard_world
    trained = ('vqa/train', 'vqa/nominival', 'gqa/train', 'gqa/valid', 'nlvr2/train', 'entailment/train', 'refcoco/train',
               'retrieval/coco_train', 'cc/train', 'vcr/train', *(f'lxmert/{file}' for file in TRAIN['lxmert']))
    corpus = [(hard_text.plain(line).lower(), ()) for line in (out / 'corpus/shapes.txt').read_text().splitlines()]
    texts = [*sentences(out, *trained), *corpus]
    assert len(texts) > 2000 and not [text for text in texts if any(named(*text))]
    evaluated = ('vqa/minival', 'gqa/testdev', 'nlvr2/valid', 'refcoco/val')
    assert sum(any(named(sent, answers)) for sent, answers in sentences(out, *evaluated)) >= 5
    assert sum('held out' in item['tags'] for name in evaluated for item in read(out, name)) >= 5


def test_a_hard_world_is_no_ordinary_one(hard_world, capsys):
    argv = ['--out', str(hard_world[0]), '--images', '40', '--seed', '3', '--questions', '6', '--captions', '4']
    make.main([*argv, '--hard'])
    assert 'nothing to do' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        make.main(argv)
    assert "'hard': True}, expected {" in (error := capsys.readouterr().err) and 'choose another --out' in error


def test_the_report_of_expressions_has_a_row_for_each_tag(hard_world, tmp_path):
    items = read(hard_world[0], 'refcoco/val')
    path = tmp_path / 'val_predict.json'
    path.write_text(json.dumps([{'ref_id': item['ref_id'], 'box': item['box'] if 'nested' in item['tags'] else [0, 0, 1, 1]}
                                for item in items]))
    printed = report.report(hard_world[0], path, 'refcoco')
    count = sum('nested' in item['tags'] for item in items)
    assert count and re.search(rf'tag: nested +{count} +\d+\.\d +100\.00', printed)


def placed(words, the_scene):
    """The things that match a phrase such as 'small star that is above the cross left of the red thing'."""
    match = re.fullmatch(rf'(.+?)(?: that is)? ({SIDE}) (?:the|an?) (.+)', words)
    if not match:
        return things_of(words, the_scene)
    return [thing for thing in things_of(match[1], the_scene)
            if any(thing is not other and clearly([thing], [other], WHERE[match[2]]) for other in placed(match[3], the_scene))]


@pytest.mark.parametrize('generator', [questions, gqa_questions])
def test_nested_answers_hold_when_read_plainly(scenes, generator):
    checked = Counter()
    for question in generator.generate(scenes, 8, 0, random.Random(1)):
        sent = re.sub(' in this (picture|image)', '', question['sent'])
        for start, value in (('What color is', 'colour'), ('What shape is', 'shape'), ('How big is', 'size')):
            if match := re.fullmatch(rf'{start} the (.+ ({SIDE}) .+)\?', sent):
                (thing,) = placed(match[1], scenes[question['img_id']])
                assert max(question['label'], key=question['label'].get) == getattr(thing, value), question
                checked[len(re.findall(SIDE, match[1]))] += 1
        assert questions.fits(question['sent'])
    assert checked[1] >= 10 and checked[2] >= 10


def test_expressions_mean_one_thing(scenes):
    checked = Counter()
    for item in expressions.generate(scenes, 6, 0, random.Random(1)):
        if item['question_type'] == 'relation':
            (thing,) = placed(item['sent'].removeprefix('the '), scenes[item['img_id']])
            assert [round(side, 2) for side in thing.box] == item['box']
            checked['that is' in item['sent']] += 1
    assert min(checked.values()) >= 30


def test_statements_hold_when_read_plainly(scenes):
    checked = Counter()
    for one in pairs.generate(scenes, 60, 'train', random.Random(1)):
        if match := re.fullmatch(r'There is an? (.+) in the (left|right) (?:picture|image)\.', one['sent']):
            shown = placed(match[1], scenes[one['img0' if match[2] == 'left' else 'img1']])
            assert one['label'] == bool(shown)
            checked[one['question_type']] += 1
    for one in statements.generate(scenes, 150, 'dev', random.Random(1)):
        if match := re.fullmatch(rf'The (.+) is ({SIDE}) both the (.+) and the (.+)\.', one['sent']):
            x, *others = (things_of(words, scenes[one['img_id']]) for words in match.groups() if words not in WHERE)
            if one['label'] != 'neutral':
                assert (one['label'] == 'entailment') == all(clearly(x, other, WHERE[match[2]]) for other in others)
            checked['chain', one['label']] += 1
    assert min(checked[key] for key in ('relation', 'side', ('chain', 'entailment'), ('chain', 'contradiction'))) >= 3


def test_captions_with_three_things_are_true(scenes):
    checked = 0
    for img_id, of_scene in captions.generate(scenes, 3, random.Random(1)).items():
        for caption in of_scene:
            if match := re.fullmatch(rf'(?:There is )?an? (.+?) (({SIDE}) an? .+ that is ({SIDE}) an? .+)\.', caption.sent, re.I):
                assert placed(f'{match[1]} {match[2]}', scenes[img_id]), caption
                checked += 1
    assert checked >= 50


def test_scenes_are_full_and_nothing_is_hidden(scenes):
    counts, hidden = Counter(), []
    for the_scene in scenes.values():
        counts[len(the_scene.things)] += 1
        for place, thing in enumerate(the_scene.things):
            hidden.append(sum(scene.covered(thing.box, other.box) for other in the_scene.things[place + 1:]))
    assert {*counts} == {*range(6, 13)} and max(hidden) <= 0.5 and sum(share > 0.1 for share in hidden) > 50


def test_words_are_exchanged_by_zipfs_law():
    rng, counts = random.Random(1), Counter()
    for _ in range(4000):
        text = hard_text.reword('A red star and two crosses above an orange cross.', rng)
        plain = re.sub(r'^An? | an? ', ' ', hard_text.plain(text))
        assert plain == ' red star and two crosses above orange cross.'
        assert re.fullmatch(r'An? \S+ \S+ and two \S+ \S+ an? \S+ \S+\.', text)
        assert not re.search(r'\ba [aeiou]|\ban [^aeiou]', text.lower())
        counts[text.split()[1]] += 1
    assert [counts[word] / counts['red'] for word in hard_text.SYNONYMS['red']] == pytest.approx([1 / 8, 1 / 27, 1 / 64], rel=0.5)
    assert masked('Is the crimson pentagram huge?') == 'is the COLOUR SHAPE SIZE?'


def test_combinations_by_hand():
    for sentence, answers, expected in (
            ('What color is the big star that is above the red cross?', ['blue'], {('blue', 'star'), ('red', 'cross')}),
            ('What color is the thing left of the star?', ['red'], set()), ('Is the star red?', ['no'], {('red', 'star')}),
            ('Is the red thing a star or a cross?', ['star'], {('red', 'star'), ('red', 'cross')}),
            ('Which is the red thing, the star or the cross?', ['star'], {('red', 'star'), ('red', 'cross')}),
            ('The two red things are a star and a cross.', [], {('red', 'star'), ('red', 'cross')}),
            ('A large red thing above a star.', [], set()), ('How many red stars are there?', ['2'], {('red', 'star')})):
        assert hard_text.combinations(sentence, answers) == expected, sentence
