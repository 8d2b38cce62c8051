"""Our tokenizer, on the Rust library, cuts text as BERT's pure-Python one does."""

# ruff: noqa: RUF001 - letters that look like others are what is tested

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from bert.tokenization import BertTokenizer

VOCAB = Path(__file__).parents[2] / 'shared/data/vocab/bert-base-uncased-vocab.txt'
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
# Single characters as whole words and as continuations, so that many words are cut rather than unknown.
PIECES = [*SPECIAL, *'abcdefghijklmnopqrstuvwxyz0123456789.,!?-\'"()[]#$%&*+/:;<=>@_`^{|}~', *'éñöøßασςд中日한の',
          *(f'##{c}' for c in 'abcdefghijklmnopqrstuvwxyzøßασςд한のã'), 'the', 'cat', '##cat', 'mask', 'un', '##able']

AWKWARD = [
    '', ' ', '\n\t ', 'the cat', '  The   CAT\tis\nred.  ', "don't", 'e-mail: a_b@c.org/?q=1&r=2', '$5.00 (50%) [x] {y}',
    '`^~|<>+=', 'CAFÉ Ångström naïve über', 'cafe\u0301 A\u030a n\u0303', '\u0301', '\u0301abc', 'a\u0301\u0302\u0323',
    'İstanbul ıI', 'ẞ straße', 'ﬁsh ﬂ', 'Ǆ ǅ ǆ', 'K Å Ω', 'ſ ŉ', '½ ² ™ №', 'ａｂｃ', '𝐚𝐛𝐜',
    '中国 日本語テスト', 'abc中def', '한국어 하나', '\u1112\u1161\u11ab', 'ไทย क्षि ﷺ עברית العربية', '\U00020000\U0002a6d6 豈',
    'a\x00b\x07c\x1fd\x7fe\x85f', 'a\u200bb\u200dc\u00add\ufeffe\ufffdf', 'a\u00a0b\u2003c\u3000d', 'a\u2028b\u2029c',
    '\x00', '\u200b', 'a\x1cb\x1dc\x0bd\x0ce',
    'a' * 99, 'a' * 100, 'a' * 101, 'a' * 200, 'é' * 100, 'é' * 101, 'e\u0301' * 100, '!' * 200, 'a' * 200 + ' cat',
    '😀', 'cat😀cat 👍🏽 ❤️', '👩‍👩‍👧', '🇩🇪', '¿qué? ¡no! “x” ‘y’ — – …', 'οδός σας', 'Привет Мир',
    '[MASK]', 'the [MASK] cat', 'the[MASK]cat', '[MASK][MASK]', '[[MASK]]', '[mask]', '[Mask]', '[ MASK ]', '[MASK', 'MASK]',
    '[MASK].', ' [MASK] ', '[MASK]\n[MASK]', '[CLS] the [SEP]', '[PAD]', '[UNK]x', '[unused1]', '##able', 'un##able', '# #s',
]


BLOCKS = [(0, 0x52f), (0x590, 0x6ff), (0x900, 0x97f), (0xe00, 0xe7f), (0x1100, 0x11ff), (0x1e00, 0x206f), (0x2070, 0x2bff),
          (0x3000, 0x30ff), (0x4e00, 0x9fa5), (0xac00, 0xd7a3), (0xe000, 0xe0ff), (0xf900, 0xfaff), (0xfb00, 0xffff),
          (0x1d400, 0x1d7ff), (0x1f300, 0x1f6d0), (0x20000, 0x2a6d0)]


def texts():
    """Mixtures of letters, marks and characters of many scripts.

    Left out, because the two tokenizers differ there: characters that Python's unicodedata (14.0 for 3.11) does not know (Python
    drops them, Rust makes [UNK]); U+061D, punctuation only since Unicode 14, newer than the Rust library's tables; and the
    capital sigma, which Python lower-cases to a final sigma at the end of a word.
    """
    scripts = [st.characters(min_codepoint=first, max_codepoint=last, exclude_categories=('Cn', 'Cs'),
                             exclude_characters='\u061dΣ') for first, last in BLOCKS]
    letters = st.sampled_from('abcdefghijklmnopqrstuvwxyzABCXYZ')
    parts = st.one_of(letters, letters, st.sampled_from(" .,'-!?\t\n"), st.one_of(scripts),
                      st.sampled_from(['[MASK]', '[SEP]', 'the', '\u0301', '\u0300', '##']))
    return st.lists(parts, max_size=30).map(''.join)


@pytest.fixture(scope='module', params=['small', pytest.param('bert', marks=[
    pytest.mark.shared, pytest.mark.skipif(not VOCAB.is_file(), reason=f'{VOCAB} is not here')])])
def tokenizers(request, tmp_path_factory):
    """(ours, BERT's own in Python) over a small vocabulary and over that of bert-base-uncased."""
    path = VOCAB
    if request.param == 'small':
        path = tmp_path_factory.mktemp('vocab') / 'vocab.txt'
        path.write_text('\n'.join(PIECES) + '\n', encoding='utf-8')
    return BertTokenizer(path), BertTokenizerLegacy(path)


def check(tokenizers, texts, length):
    ours, legacy = tokenizers
    ids = ours.encode(texts, max_length=length)
    assert ids.shape == (len(texts), length) and ids.dtype == np.int32
    for text, row in zip(texts, ids.tolist(), strict=True):
        pieces = legacy.tokenize(text)
        assert ours.tokenize(text) == pieces, ascii(text)
        expected = legacy.convert_tokens_to_ids(['[CLS]', *legacy.tokenize(text.strip())[:length - 2], '[SEP]'])
        assert row == expected + [0] * (length - len(expected)), ascii(text)


@pytest.mark.parametrize('length', [20, 3])
def test_awkward_text_is_cut_as_by_berts_own_tokenizer(tokenizers, length):
    check(tokenizers, AWKWARD, length)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=texts())
def test_random_text_is_cut_as_by_berts_own_tokenizer(tokenizers, text):
    check(tokenizers, [text], 20)


@pytest.mark.parametrize('length', [20, 7, 6, 4])
def test_pairs_are_cut_as_by_transformers(tokenizers, length):
    """One by one off the longer text, of two equal ones the second; also of one text alone, in the same call."""
    ours, legacy = tokenizers
    rng = random.Random(0)
    texts = [' '.join(rng.choices(['the', 'cat', 'unable', '?'], k=k)) for k in (0, 1, 2, 3, 4, 5, 9, 10, 30)]
    pairs = [*((one, other) for one in texts for other in texts), *zip(AWKWARD, AWKWARD[::-1], strict=True),
             *((one,) for one in texts), *texts]
    ids, types = ours.encode_pairs(pairs, length)
    assert ids.dtype == types.dtype == np.int32 and ids.shape == types.shape == (len(pairs), length)
    np.testing.assert_array_equal(ours.encode(pairs, length), ids)
    for pair, *rows in zip(pairs, ids.tolist(), types.tolist(), strict=True):
        stripped = [text.strip() for text in ((pair,) if isinstance(pair, str) else pair)]
        expected = legacy(*stripped, truncation='longest_first', max_length=length, padding='max_length',
                          return_token_type_ids=True)
        assert rows == [expected['input_ids'], expected['token_type_ids']], ascii(pair)


@pytest.mark.shared
@pytest.mark.skipif(not VOCAB.is_file(), reason=f'{VOCAB} is not here')
def test_known_ids_of_bert_base_uncased():
    """As published by others for this model (C. McCormick, "BERT Word Embeddings Tutorial", 2019)."""
    ids = [101, 2182, 2003, 1996, 6251, 1045, 2215, 7861, 8270, 4667, 2015, 2005, 1012, 102]
    assert BertTokenizer(VOCAB).encode(['Here is the sentence I want embeddings for.'])[0].tolist() == ids + [0] * 6


@pytest.fixture
def small(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join(PIECES) + '\n', encoding='utf-8')
    return BertTokenizer.from_pretrained(tmp_path)


def test_a_sentence_is_stripped_cut_to_18_pieces_and_padded_to_20(small):
    cat = PIECES.index('cat')
    ids = small.encode(['cat ' * 17, 'cat ' * 18, 'cat ' * 19, '', ' cat\n'])
    assert ids.tolist() == [[2] + [cat] * 17 + [3, 0], [2] + [cat] * 18 + [3], [2] + [cat] * 18 + [3], [2, 3] + [0] * 18,
                            [2, cat, 3] + [0] * 17]
    assert small.encode([]).shape == (0, 20)


def test_chunks_change_nothing(small, monkeypatch):
    at_once = small.encode(AWKWARD)
    monkeypatch.setattr('bert.tokenization.CHUNK', 7)
    np.testing.assert_array_equal(small.encode(AWKWARD), at_once)


def test_pieces_and_ids(small):
    assert len(small) == len(PIECES)
    assert small.convert_tokens_to_ids(['[MASK]', 'cat', 'dog']) == [4, PIECES.index('cat'), 1]
    assert small.convert_ids_to_tokens([0, 4, PIECES.index('##cat')]) == ['[PAD]', '[MASK]', '##cat']
    assert BertTokenizer.from_pretrained(small.vocab_file).vocab == small.vocab


def test_line_ends_of_windows_and_a_missing_last_one_change_nothing(small, tmp_path):
    for data in ('\r\n'.join(PIECES) + '\r\n', '\n'.join(PIECES)):
        (tmp_path / 'other.txt').write_bytes(data.encode())
        assert BertTokenizer(tmp_path / 'other.txt').vocab == small.vocab


@pytest.mark.parametrize(('data', 'says'), [
    (b'', r'\[PAD\]'),
    ('\n'.join(SPECIAL[:-1]).encode(), r'\[MASK\]'),
    ('\n'.join([*SPECIAL[1:], '[PAD]']).encode(), 'line 5'),
    (b'[PAD]\n\xff\xfe', 'UTF-8'),
])
def test_a_faulty_vocabulary_is_named(tmp_path, data, says):
    (tmp_path / 'vocab.txt').write_bytes(data)
    with pytest.raises(ValueError, match=rf'vocab\.txt.*{says}'):
        BertTokenizer(tmp_path / 'vocab.txt')


def test_an_absent_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'vocab\.txt'):
        BertTokenizer.from_pretrained(tmp_path)
