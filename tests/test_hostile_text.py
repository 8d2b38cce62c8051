"""Files of strangers: json, texts and flags that are damaged, absurd or forged end in an error of one line."""

import gzip
import json

import pytest
import torch
from damage import byte_damage, limits, same_or_error, value_damage
from hypothesis import HealthCheck, given, settings

from annotations.answer_table import read_table
from annotations.examples import PAIR, QUESTION, TEXT_QUESTION, ExampleSchema, read_examples
from annotations.raw_data import json_lines
from annotations.spec import DatasetSpec, read_answers
from bert.tokenization import SPECIAL_TOKENS, BertTokenizer
from cli import run_main
from explain.drawing import photo_path
from files import json_files, memory, text
from files.json_files import DataError, check_json, read_json, stream
from images.ids import find_pictures
from lxrt.config import LxrtConfig
from lxrt.pretraining import LXRTPretraining
from param import Options
from regions.class_names import ClassNames
from run_folder import RunFolder, read_run
from tasks.checkpoints import difference, model_type
from tasks.gqa import GQA
from tasks.nlvr2 import NLVR2
from tasks.scoring import Subset
from tasks.task import Task
from tasks.vqa import VQA
from tools.encode import read_pairs
from tools.ensemble import mean
from tools.model_card import model_card

PIECES = [*SPECIAL_TOKENS, 'a', 'cat', '##s']
VQA_ROWS = [{'img_id': f'COCO_val2014_00000000000{i}', 'question_id': i, 'sent': f'Is it {i}?', 'label': {'yes': 1.0, 'no': 0.3},
             'answer_type': 'yes/no', 'question_type': 'is it'} for i in range(1, 4)]
GQA_ROWS = [{'img_id': str(i), 'question_id': f'q{i}', 'sent': f'Is it {i}?', 'label': {'yes': 1}} for i in range(3)]
PAIRS = [{'identifier': f'dev-{i}-0-0', 'img0': f'dev-{i}-0-img0', 'img1': f'dev-{i}-0-img1', 'sent': 'Both are red.', 'label': 1,
          'uid': 'x'} for i in range(3)]
BOXES = [{'img_id': '1', 'question_id': i, 'sent': 'the cat', 'box': [1, 2.5, 30, 40]} for i in range(3)]
CHOICES = [{'img_id': '1', 'question_id': i, 'sent': 'It is', 'choices': ['a', 'b', 'c', 'd'], 'label': 2} for i in range(3)]
CAPTIONS = [{'img_id': str(i), 'question_id': i, 'sent': ['A cat.', 'Cats.']} for i in range(3)]
DATASET = {'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'answers': 'answers.json', 'detector': 'mine', 'splits': {
    'train': {'annotations': 'train.json', 'features': ['a.tsv', 'b.tsv']},
    'dev': {'annotations': 'dev.json', 'images': 'pictures', 'whole': True}}}
OFFICIAL_VQA = {'annotations': [{'question_id': i, 'question_type': 'is it', 'answer_type': 'yes/no',
                                 'answers': [{'answer': 'yes', 'answer_id': 1}] * 10} for i in range(3)]}
OFFICIAL_GQA = {f'q{i}': {'question': 'Is it?', 'answer': 'yes', 'isBalanced': True, 'entailed': ['q0'], 'types': {
    'structural': 'verify', 'semantic': 'attr', 'detailed': 'verifyAttr'}} for i in range(3)}
OFFICIAL_NLVR2 = ''.join(json.dumps({'identifier': f'dev-{i}-0-0', 'label': 'True', 'sentence': 'x'}) + '\n' for i in range(3))
LINES = ''.join(json.dumps({'identifier': f'dev-{i}-0-0', 'sentence': 'Both.'}) + '\n' for i in range(3))


def answers_of_vqa(folder):
    (folder / 'p.json').write_text(json.dumps([{'question_id': i, 'answer': 'yes'} for i in range(3)]))
    return VQA.evaluate(folder / 'p.json', folder / 'x.json', Subset(None, None, False))


def answers_of_gqa(folder):
    (folder / 'p.json').write_text(json.dumps([{'questionId': f'q{i}', 'prediction': 'yes'} for i in range(3)]))
    return GQA.evaluate(folder / 'p.json', folder / 'x.json', Subset(None, None, False))


def answers_of_nlvr2(folder):
    (folder / 'p.csv').write_text(''.join(f'dev-{i}-0-0,True\n' for i in range(3)))
    return NLVR2.evaluate(folder / 'p.csv', folder / 'x.json', Subset(None, None, False))


def predictions_of(task, annotations, name):
    def read(folder):
        (folder / 'a.json').write_text(annotations if isinstance(annotations, str) else json.dumps(annotations))
        return task.evaluate(folder / name, folder / 'a.json', Subset(None, None, False))
    return read


def examples(schema):
    return lambda folder: read_examples([folder / 'x.json'], schema, ('yes', 'no'))


def table(rows):
    return lambda folder: rows(folder / 'x.json')


# Kind of file: (its name, its healthy content (a value for json, or text), how it is read from a folder)
FILES = {
    'config': ('config.json', {'hidden_size': 24, 'l_layers': 1, 'hidden_act': 'gelu', 'initializer_range': 0.02, 'other': [1]},
               lambda folder: LxrtConfig.from_json(folder / 'config.json')),
    'vocabulary': ('vocab.txt', '\n'.join(PIECES) + '\n', BertTokenizer.from_pretrained),
    'tokenizer': ('tokenizer.json', {'model': {'type': 'WordPiece', 'vocab': {piece: i for i, piece in enumerate(PIECES)}}},
                  BertTokenizer.from_pretrained),
    'answers': ('x.json', ['yes', 'no', 'café', '2'], table(read_answers)),
    'answer table': ('x.json', [{'ans': 'yes', 'dsets': ['vqa', 'gqa']}, {'ans': 'no', 'dsets': ['vqa']}], table(read_table)),
    'dataset': ('x.json', DATASET, table(DatasetSpec.from_json)),
    'options': ('options.json', {'task': 'vqa', 'options': {'mceLoss': False, 'dataset': 'x.json', 'dataRoot': 'data'}},
                read_run),
    'vqa': ('x.json', VQA_ROWS, examples(QUESTION)),
    'gqa': ('x.json', GQA_ROWS, examples(TEXT_QUESTION)),
    'nlvr2': ('x.json', PAIRS, examples(PAIR)),
    'boxes': ('x.json', BOXES, examples(ExampleSchema('question_id', int, box='box'))),
    'choices': ('x.json', CHOICES, examples(ExampleSchema('question_id', int, choices='choices'))),
    'captions': ('x.json', CAPTIONS, examples(ExampleSchema('question_id', int, captions=True))),
    'official vqa': ('x.json', OFFICIAL_VQA, answers_of_vqa),
    'official gqa': ('x.json', OFFICIAL_GQA, answers_of_gqa),
    'official nlvr2': ('x.json', OFFICIAL_NLVR2, answers_of_nlvr2),
    'vqa predictions': ('p.json', [{'question_id': i, 'answer': 'yes'} for i in range(1, 4)],
                        predictions_of(VQA, VQA_ROWS, 'p.json')),
    'gqa predictions': ('p.json', [{'questionId': f'q{i}', 'prediction': 'yes'} for i in range(3)],
                        predictions_of(GQA, OFFICIAL_GQA, 'p.json')),
    'nlvr2 predictions': ('p.csv', ''.join(f'dev-{i}-0-0,True\n' for i in range(3)),
                          predictions_of(NLVR2, OFFICIAL_NLVR2, 'p.csv')),
    'probabilities': ('x.json', [{'id': i, 'answers': [['yes', 0.9], ['no', 0.1]]} for i in range(3)],
                      lambda folder: list(mean([folder / 'x.json'] * 2, 'answer'))),
    'json lines': ('x.json', LINES, lambda folder: list(json_lines(folder / 'x.json', 'identifier', 'there'))),
    'pairs': ('x.tsv', ''.join(f'{i}\tIs it?\n' for i in range(3)), lambda folder: read_pairs(folder / 'x.tsv')),
    'json pairs': ('x.json', VQA_ROWS, table(read_pairs)),
    'class names': ('objects_vocab.txt', 'cat\ndog,puppy\n', lambda folder: ClassNames(folder).lists),
    'list of pictures': ('x.txt', 'a.jpg\nb/c.png\n', lambda folder: find_pictures(folder / 'x.txt')),
}


def reader(kind, folder):
    """read() of a kind of file in a folder. The lines of a list of faults, which are indented, are joined for the judge."""
    def read():
        try:
            return FILES[kind][2](folder)
        except ValueError as error:
            raise type(error)(str(error).replace('\n  ', ' ')) from error
    return read


def content(kind):
    value = FILES[kind][1]
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def damage_of(kind):
    """Draws the content of a damaged file."""
    data, value = content(kind), FILES[kind][1]
    damaged = byte_damage(len(data)).map(lambda change: change(data))
    return damaged if isinstance(value, str) else damaged | value_damage(value).map(
        lambda change: json.dumps(change(value)).encode())


@pytest.mark.parametrize('kind', FILES)
def test_damaged_files_are_errors_of_one_line_that_name_them(tmp_path, kind):
    path = tmp_path / FILES[kind][0]
    path.write_bytes(content(kind))
    reader(kind, tmp_path)()

    @settings(derandomize=True, max_examples=40, deadline=None, database=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(damage_of(kind))
    def damaged(data):
        path.write_bytes(data)
        same_or_error(reader(kind, tmp_path), lambda value: True, tmp_path)

    damaged()


# ---- nesting, encodings and sizes

STREAMED = [kind for kind, (name, value, _) in FILES.items() if name.endswith('.json') and not isinstance(value, str)]


@pytest.mark.parametrize('text', ['[' * 40_000, '[' * 100_000, '{"a":' * 50_000, '[{"a":' * 101, '[' * 500 + ']' * 500])
@pytest.mark.parametrize('kind', STREAMED)
def test_nested_json_is_refused_in_little_memory(tmp_path, kind, text):
    (tmp_path / FILES[kind][0]).write_text(text)
    message = same_or_error(reader(kind, tmp_path), lambda value: False, tmp_path)
    assert 'levels of brackets' in message or 'found' in message


@pytest.mark.parametrize('read', [lambda path: read_json(path, 'x'), lambda path: list(stream(path, 'item', 'x')), check_json])
def test_a_hundred_levels_are_read_and_one_more_is_not(tmp_path, read):
    path = tmp_path / 'x.json'
    for depth, fits in ((100, True), (101, False)):
        path.write_text('[' + r'"[[[\"[\\", ' * 30_000 +  # those in strings do not count
                        '[' * (depth - 1) + ']' * depth)
        if fits:
            read(path)
        else:
            with pytest.raises(DataError, match=r'x\.json: more than 100 levels of brackets'):
                read(path)


@pytest.mark.parametrize('kind', FILES)
def test_a_byte_order_mark_changes_nothing(tmp_path, kind):
    path = tmp_path / FILES[kind][0]
    path.write_bytes(content(kind))
    expected = reader(kind, tmp_path)()
    path.write_bytes(b'\xef\xbb\xbf' + content(kind))
    value = reader(kind, tmp_path)()
    assert repr(getattr(value, 'vocab', value)) == repr(getattr(expected, 'vocab', expected))


@pytest.mark.parametrize('kind', ['config', 'vocabulary', 'vqa', 'official gqa', 'official nlvr2', 'pairs', 'answers'])
def test_other_encodings_are_named(tmp_path, kind):
    (tmp_path / FILES[kind][0]).write_bytes(content(kind).decode().encode('utf-16'))
    assert 'UTF-16' in same_or_error(reader(kind, tmp_path), lambda value: False, tmp_path)


def test_byte_order_marks_in_compressed_files(tmp_path):
    path = tmp_path / 'x.json.gz'
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf[1, 2]'))
    assert list(stream(path, 'item', 'numbers')) == [1, 2]


@pytest.mark.parametrize(('text', 'fault'), [
    ('{"a": 1, "a": 2}', "key 'a' is given twice"), ('{"b": {"a": NaN}}', "NaN is no number of json, key 'a'"),
    ('[-Infinity]', '-Infinity is no number'), ('[' + '1' * 5000 + ']', 'a number of thousands of digits'),
    ('["\\ud800"]', "half of a character, '.ud800'"), ('[1] [2]', 'Extra data'), ('\0' * 100, 'Expecting value'),
    ('["a\0"]', 'Invalid control character')])
def test_what_is_no_json_is_said(tmp_path, text, fault):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(DataError, match=rf'x\.json: incomplete or invalid json \({fault}'):
        read_json(tmp_path / 'x.json', 'a list')


@pytest.mark.parametrize(('head', 'filling'), [('', ' '), ('["', 'a'), ('[', '1'), ('{"', 'a'), ('[{"a": [', '[],')])
def test_compressed_bombs_are_refused_in_little_memory(tmp_path, head, filling):
    path = tmp_path / 'x.json.gz'
    path.write_bytes(gzip.compress((head + filling * (33 << 20)).encode()[:33 << 20], 1))
    same_or_error(lambda: list(stream(path, 'item', 'items')), lambda value: False, path)


def test_a_file_that_expands_enormously_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, 'FREE_EXPANSION', 1 << 20)
    path = tmp_path / 'x.json.gz'
    path.write_bytes(gzip.compress(b'[' + b'1, ' * 1_000_000 + b'1]'))
    with pytest.raises(DataError, match=r'x\.json\.gz: expands to more than 200 times its size'):
        list(stream(path, 'item', 'items'))


def test_large_items_and_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, 'MAX_BYTES', 1 << 17)
    monkeypatch.setattr(json_files, 'MAX_ITEM', 1 << 17)
    path = tmp_path / 'x.json'
    path.write_text('[' + '[1, 2], ' * 100_000 + '3]')  # many small items
    assert sum(1 for _ in stream(path, 'item', 'items')) == 100_001
    path.write_text('[1, [' + '[1, 2], ' * 100_000 + '3]]')
    with pytest.raises(DataError, match=r'x\.json: an item of more than 0 MB'):
        list(stream(path, 'item', 'items'))
    with pytest.raises(DataError, match=r'x\.json: 800,008 bytes; expected at most'):
        read_json(path, 'a list')
    with pytest.raises(DataError, match=r'x\.json:1: a line of more than'):
        list(json_files.numbered_lines(path))


def test_many_answers_are_checked_in_linear_time(tmp_path):
    answers = [f'answer {i}' for i in range(200_000)]
    (tmp_path / 'x.json').write_text(json.dumps([*answers, answers[-1]]))
    message = same_or_error(lambda: read_answers(tmp_path / 'x.json'), lambda value: False, tmp_path)
    assert "the answer 'answer 199999' is listed twice" in message
    with limits():
        assert difference(answers, answers[1:]) == "different: 'answer 0'"


# ---- absurd sizes


@pytest.mark.parametrize(('key', 'value'), [
    ('l_layers', 10 ** 9), ('l_layers', 1001), ('hidden_size', 12 * 10 ** 8), ('hidden_size', 10 ** 400), ('visual_pos_dim', 5),
    ('vocab_size', 2 ** 31 - 1), ('max_position_embeddings', 2 * 10 ** 9), ('type_vocab_size', 2 * 10 ** 9),
    ('hidden_act', '\x1b[2J'),
    ('intermediate_size', 10 ** 9), ('num_object_labels', 2 * 10 ** 9), ('visual_feat_dim', True), ('initializer_range', -1)])
def test_absurd_configs_are_refused_with_file_and_key(tmp_path, key, value):
    (tmp_path / 'config.json').write_text(json.dumps({key: value}))
    message = same_or_error(lambda: LxrtConfig.from_json(tmp_path / 'config.json'), lambda value: False, tmp_path / 'config.json')
    assert f'config.json: {key}: expected ' in message


@pytest.mark.parametrize('sizes', [{}, {'hidden_size': 24, 'l_layers': 2, 'x_layers': 0, 'vocab_size': 77, 'visual_feat_dim': 9}])
def test_the_number_of_parameters_is_known_before_a_model_is_made(sizes):
    config = LxrtConfig(**sizes)
    with torch.device('meta'):
        for answers in (0, 17):
            model = LXRTPretraining(config, task_qa=answers > 0, num_answers=answers)
            assert config.parameters(answers) == sum(p.numel() for p in model.parameters())


def test_a_model_that_exceeds_the_memory_is_refused(monkeypatch):
    config = LxrtConfig()
    monkeypatch.setattr(memory, 'memory_size', lambda: 10 ** 9)
    with pytest.raises(ValueError, match=r'the model of .* parameters needs at least 2 GB of memory; there are 1 GB'):
        LxrtConfig()
    with pytest.raises(ValueError, match='answers: expected a size that fits this machine, found 9,000,000'):
        config.check_memory(answers=9_000_000)


@pytest.mark.parametrize(('flag', 'value'), [
    ('llayers', 10 ** 9), ('batchSize', 10 ** 12), ('evalBatchSize', 10 ** 12), ('accumulate', 10 ** 12), ('numWorkers', 10 ** 6),
    ('epochs', 10 ** 12), ('dumpProbs', 10 ** 12), ('seed', 2 ** 70), ('saveSteps', 10 ** 12), ('seed', -1)])
def test_absurd_flags_are_refused(flag, value):
    with pytest.raises(ValueError, match=rf'--{flag}: expected at (least|most) \d+, found -?\d+$'):
        Options(**{flag: value})


# ---- text on its way to a terminal

FORGED = '\x1b[31mred\x9b\r\nBest 100.00\u202e\u2028\ud800'


def test_texts_of_data_are_printed_in_one_line():
    assert text.printable('é 中 "x"') == 'é 中 "x"'
    assert text.printable(FORGED).isprintable() and r'\x1b[31mred\x9b\r\nBest 100.00\u202e' in text.printable(FORGED)
    error = DataError(f'x.json: {FORGED}\n  an own line\n  \x1b')
    assert [line.isprintable() for line in str(error).split('\n')] == [True] * 3 and 'Best' in str(error).split('\n')[0]
    assert len(str(DataError('x' * 10 ** 6))) < 10 ** 4 and text.shown(['x' * 10 ** 6]).endswith('x...')


def test_no_text_of_data_forges_a_line_of_the_log(tmp_path, capsys):
    folder = RunFolder(str(tmp_path / 'run'))
    folder.log('Epoch 0: Train 1.00', f'Epoch 0: Valid {FORGED}')
    folder.close()
    log = (tmp_path / 'run/log.log').read_text()
    assert log.count('\n') == 2 and all(line.isprintable() and not line.startswith('Best') for line in log.splitlines())
    printed = capsys.readouterr().out
    assert all(line.isprintable() and not line.startswith('Best') for line in printed.split('\n'))


def test_no_error_forges_a_line(capsys):
    def fail():
        raise ValueError(FORGED)

    assert run_main('x', fail) == 1
    assert capsys.readouterr().err.strip().isprintable()


def test_names_of_types_are_escaped_in_the_table_of_scores(tmp_path):
    (tmp_path / 'x.json').write_text(json.dumps([VQA_ROWS[0] | {'question_type': FORGED.rstrip('\ud800')}]))

    class Dataset:
        examples = read_examples([tmp_path / 'x.json'], QUESTION, ('yes',))
        scores = staticmethod(lambda predictions: torch.ones(1).numpy())

    task = Task(Options())
    lines = task.table(Dataset, (torch.zeros(1, 1).numpy(),)).split('\n')
    assert len(lines) == 4 and all(line.isprintable() for line in lines)


def test_many_types_of_questions_take_little_memory(tmp_path):
    rows = [VQA_ROWS[0] | {'question_id': i, 'question_type': str(i)} for i in range(50_000)]
    (tmp_path / 'x.json').write_text(json.dumps(rows))
    with limits():
        assert Task.types(read_examples([tmp_path / 'x.json'], QUESTION, ('yes',)))['question_type'] == []


def test_a_model_card_holds_no_markup_of_the_run(tmp_path):
    (tmp_path / 'options.json').write_text(json.dumps({
        'command': ['a`b', FORGED.rstrip('\ud800')], 'git': '<script>',
        'options': {'seed|': '[x](http://y)\n# Title', 'lr': '|'}}))
    (tmp_path / 'log.log').write_bytes(b'Epoch 0: Valid 1\x1b[2J\n')
    card = model_card(tmp_path / 'BEST.pth', LxrtConfig(), 'me/it', ['yes'], 'LxmertForQuestionAnswering')
    assert all(line.isprintable() for line in card.split('\n'))
    assert '<script>' not in card and '[x](' not in card and '\n# Title' not in card and "`a'b " in card


# ---- names that lead elsewhere


def test_model_type_and_task_are_texts(tmp_path):
    (tmp_path / 'config.json').write_text('{"model_type": []}')
    with pytest.raises(DataError, match='key "model_type": expected str, found '):
        model_type(tmp_path / 'x.pth')
    (tmp_path / 'config.json').write_text('{"model_type": "uniter"}')
    with pytest.raises(DataError, match=r"expected one of lxmert, .*, bert, .*, found 'uniter'; add the model"):
        model_type(tmp_path / 'x.pth')
    (tmp_path / 'options.json').write_text('{"task": [], "options": {}}')
    with pytest.raises(DataError, match='key "task": expected a text, found '):
        read_run(tmp_path)


def test_image_ids_do_not_lead_out_of_the_folder_of_pictures(tmp_path):
    folder = tmp_path / 'pictures'
    for path in (folder / 'a.jpg', folder / 'sub/b.jpg', tmp_path / 'secret.jpg', tmp_path / 'elsewhere/c.jpg'):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (folder / 'link').symlink_to(tmp_path / 'elsewhere')
    assert photo_path(folder, 'a') == folder / 'a.jpg' and photo_path(folder, 'sub/b') == folder / 'sub/b.jpg'
    for img_id in ('../secret', 'sub/../../secret', str(tmp_path / 'secret'), 'link/c', 'a\0', 'x' * 5000, '', '..'):
        assert photo_path(folder, img_id) is None
    assert photo_path(folder, 'sub/../a') == folder / 'sub/../a.jpg'


@pytest.mark.parametrize('name', ['../x', 'a/b', 'a\\b', 'a,b', '', '.x', ' a', 'a\n', '\x1b', 'x' * 101])
def test_names_of_splits_can_be_names_of_files(tmp_path, name):
    splits = {name: DATASET['splits']['train']}
    with pytest.raises(DataError, match=r'x\.json: key "splits": expected names'):
        DatasetSpec.from_dict(DATASET | {'splits': splits}, tmp_path, tmp_path / 'x.json')


def test_identifiers_with_commas_are_read_back(tmp_path):
    NLVR2.write(tmp_path / 'p.csv', [('dev-1,x-0-0', 'True')])
    (tmp_path / 'a.json').write_text(json.dumps({'identifier': 'dev-1,x-0-0', 'label': 'True'}))
    assert NLVR2.evaluate(tmp_path / 'p.csv', tmp_path / 'a.json', Subset(None, None, False))['accuracy'] == 100
