"""Questions and answers in the files of other datasets (json, json lines, csv), read as rows with the same keys."""

import ast
import csv
import io
import json
import re
from collections import Counter
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import ijson

from files.json_files import MAX_BYTES, MAX_DEPTH, DataError, JsonBlocks, layout, opened, some, stream
from images.ids import without_ending

# The names of a row's keys in published files, the more exact ones first: a picture's file name says more than its number.
KEYS = {
    'question': ('question', 'sent', 'query'),
    'id': ('question_id', 'questionid', 'qid', 'question_index', 'identifier', 'id'),
    'image': ('image_name', 'img_name', 'image_filename', 'file_name', 'filename', 'image_path', 'img_path', 'image_file',
              'img_file', 'image', 'image_id', 'imageid', 'img_id', 'img', 'image_url'),
    'answers': ('answers', 'direct_answers', 'answer', 'label', 'multiple_choice_answer'),
    'answer_type': ('answer_type',),
    'question_type': ('question_type', 'content_type'),
}
IDENTIFYING = {*KEYS['question'], *KEYS['answers']}  # a json object with one of these keys is a row
FORMS = ('a list of rows, an object with a list of rows, an object {question id: row}, json lines, or csv with a header; a row '
         f'has a question ({", ".join(KEYS["question"])}) or answers ({", ".join(KEYS["answers"])})')
TABLES = {'.csv': ',;\t|', '.tsv': '\t'}  # possible delimiters


def read_rows(path):
    """Yields (row, its place for messages) of each row (dict) of a file. Rows of an object {id: row} get the id as 'questionId'.

    Raises DataError that names the file, and for a layout that is not supported what it looks like.
    """
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix == '.gz' else path.suffix
    if suffix in ('.pkl', '.pickle'):
        raise DataError(f'{path}: a pickle can run any code and is never read; if you trust it, save it as json: '
                        f"json.dump(pickle.load(open('{path.name}', 'rb')), open('{path.stem}.json', 'w'))")
    if suffix in TABLES:
        rows = read_table(path, TABLES[suffix])
    elif (prefix := find_rows(path)) is None:
        rows = ({'questionId': key} | row if isinstance(row, dict) else row for key, row in stream(path, '', 'rows', pairs=True))
    else:
        rows = stream(path, prefix, 'rows')
    for number, row in enumerate(rows, 1):
        place = f'{path}: row {number}'
        if not isinstance(row, dict):
            raise DataError(f'{place}: expected an object with a question or answers, found {row!r:.100}; correct it')
        yield row, place


def find_rows(path):
    """Where the rows of a json file are, as ijson's prefix; None for an object {question id: row}. Raises DataError."""
    containers, nested = [], None
    with opened(path) as file:
        try:
            for prefix, event, value in ijson.parse(JsonBlocks(file, path, MAX_DEPTH), multiple_values=True):
                if event.startswith('start_'):
                    containers.append(event.removeprefix('start_'))
                elif event.startswith('end_'):
                    containers.pop()
                elif event == 'map_key' and value.lower() in IDENTIFYING:
                    match containers:
                        case ['map'] if layout(path) != 'lines':
                            raise DataError(f'{path}: expected {FORMS}; found one object with the key "{value}"; if it is a '
                                            'table of columns, write its rows, with pandas as to_json(orient="records")')
                        case ['map'] | ['array', 'map']:
                            return 'item'
                        case ['map', 'array', 'map']:
                            return prefix
                        case ['map', 'map']:
                            return None
                    nested = nested or f'{prefix}.{value}'.lstrip('.')
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(f'{path}: incomplete or invalid json ({" ".join(str(error).split())}); download it again, '
                            'or name it .csv if it is a table') from None
    where = f'the first at {nested}, which is nested deeper; write a list of them' if nested else 'none; is it the right file?'
    raise DataError(f'{path}: expected {FORMS}; found {where}')


def read_table(path, delimiters):
    """Yields the rows of a csv with a header line."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, 'utf-8-sig', newline='')
        try:
            header = text.readline(MAX_BYTES)
            names = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in delimiters}
            delimiter = max(names, key=lambda one: len(names[one]))
            if not any(name.strip().lower() in IDENTIFYING for name in names[delimiter]):
                raise DataError(f'{path}: expected a first line that names the columns, with a question '
                                f'({", ".join(KEYS["question"])}), found {header.strip()[:100]!r}; add it, or rename the columns')
            rows = csv.DictReader(text, [name.strip() for name in names[delimiter]], delimiter=delimiter)
            for row in rows:
                if None in row:
                    raise DataError(f'{path}:{rows.line_num + 1}: expected {len(names[delimiter])} columns, found '
                                    f'{len(names[delimiter]) + len(row[None])}; put texts with {delimiter!r} into quotes')
                yield row
        except csv.Error as error:
            raise DataError(f'{path}:{rows.line_num + 1}: invalid csv ({error}); correct this line') from None
        except UnicodeDecodeError as error:
            raise DataError(f'{path}: expected a csv in UTF-8 ({error}); save it as UTF-8') from None


def value_of(row, kind):
    """The value of a row under the first of the names of KEYS[kind] that it has, ignoring case; None if it has none."""
    lowered = {key.lower(): value for key, value in row.items() if value not in (None, '')}
    return next((lowered[name] for name in KEYS[kind] if name in lowered), None)


def text_of(value):
    """A text, number or truth value as text; None for anything else."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return str(value).strip() if isinstance(value, (str, int, float)) else None


def _answers_value(row):
    """The value of a row's answers; a list or {answer: score} where a csv cell has one as Python or NumPy prints it."""
    value = value_of(row, 'answers')
    if isinstance(value, str) and value.startswith(('[', '{')):
        commas = re.sub(r'(?<=[\'"}])\s+(?=[\'"{])', ', ', value)  # NumPy's ['a' 'b'] would be the one text 'ab'
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # an answer that begins with a bracket
            parsed = ast.literal_eval(commas)
            return parsed if isinstance(parsed, (list, dict)) else value
    return value


def answers_of(row, place):
    """(answers of a row, list of str; whether they are annotators' answers, None if that is unknown).

    Answers may be one text or number, a list of them, a list of objects with "answer", a csv cell with a list, or {answer:
    score}. No answers: []. Raises DataError with `place` (file, row).
    """
    value, annotators = _answers_value(row), None
    if value is None:
        return [], None
    values = list(value) if isinstance(value, (list, dict)) else [value]
    if values and all(isinstance(one, dict) for one in values):
        values, annotators = [one.get('answer') for one in values], True
    texts = [text_of(one) for one in values]
    if None in texts:
        raise DataError(f'{place}: expected answers as one text, a list of texts, or a list of objects with "answer", found '
                        f'{json.dumps(value)[:150]}; correct it')
    return [text for text in texts if text], annotators


def scores_of(row, place):
    """The label of a row that gives {answer: score from 0 to 1} itself, else None. Raises DataError with `place`."""
    value = _answers_value(row)
    if not isinstance(value, dict):
        return None
    if not all(isinstance(score, (int, float)) and 0 <= score <= 1 for score in value.values()):
        raise DataError(f'{place}: expected a label {{answer: score from 0 to 1}}, found {json.dumps(value)[:150]}; correct it')
    return value


def types_of(row):
    """{'answer_type', 'question_type'} of a row, as far as it has them; GQA's structural type is both."""
    types = row.get('types')
    if isinstance(types, dict) and isinstance(kind := types.get('structural'), str):
        return {'answer_type': 'open' if kind == 'query' else 'binary', 'question_type': kind}
    return {kind: text for kind in ('answer_type', 'question_type') if (text := text_of(value_of(row, kind)))}


def pair(questions, annotations, advice):
    """Yields (question, annotation) with the same id; at the end those without a counterpart, with None.

    Both are iterables of (id, item). Where the files are in the same order, hardly any item is kept waiting; in another order
    memory grows. Raises DataError, which ends with `advice`, if an id occurs twice while its counterpart is missing.
    """
    unpaired = ({}, {})  # of questions and annotations: {id: item}
    for both in zip_longest(questions, annotations):
        for side, (key, item) in ((side, entry) for side, entry in enumerate(both) if entry is not None):
            if key in unpaired[side]:
                raise DataError(f'question_id {key} occurs twice; expected each once: {advice}')
            unpaired[side][key] = item
            if key in unpaired[1 - side]:
                yield unpaired[0].pop(key), unpaired[1].pop(key)
    yield from ((question, None) for question in unpaired[0].values())
    yield from ((None, annotation) for annotation in unpaired[1].values())


# ---- image ids

RULES = {'name': str, 'path': without_ending, 'stem': lambda name: without_ending(name).rpartition('/')[2]}
COCO = re.compile(r'train2014|val2014|test2015')


class QuestionImages:
    """Image ids of rows, by a rule: a key of RULES, 'number', or a pattern of a row's keys (COCO_val2014_{image_id:012d})."""

    def __init__(self, rule=None, regions=()):
        """rule: None: the one by which most images are in `regions`; without regions a COCO id for rows that name their COCO
        split, else the stem, or the path where two pictures have the same stem. regions: image ids of regions, an iterable of
        str."""
        self.rule, self.regions, self.names = rule, set(regions), {}
        numbers = [(int(digits[0]), key) for key in self.regions if (digits := re.search(r'[0-9]+$', key))]
        counts = Counter(number for number, _ in numbers)
        self.numbers = {number: key for number, key in numbers if counts[number] == 1}
        if rule and rule not in (*RULES, 'number') and '{' not in rule:
            raise DataError(f'--ids {rule}: expected {", ".join(RULES)}, or a pattern with keys in braces, such as '
                            '{image_id} or COCO_val2014_{image_id:012d}')
        if rule == 'number' and not self.regions:
            raise DataError('--ids number: expected --features too, whose ids end in the numbers')

    def add(self, row, path, place):
        """Takes note of the image of a row, before the rule is chosen."""
        value = value_of(row, 'image')
        if (self.rule is None or '{' not in self.rule) and (isinstance(value, bool) or not isinstance(value, (int, str))):
            raise DataError(f'{place}: expected an image ({", ".join(KEYS["image"])}), found {value!r:.100}; has it another key? '
                            'Then name it: --ids {KEY}')
        self.names[str(value)] = self.coco_split(row, path)

    @staticmethod
    def coco_split(row, path):
        """'train2014' of a row or of its file's name, or None."""
        name = row.get('coco_split') or ((match := COCO.search(Path(path).name)) and match[0])
        return name if isinstance(name, str) and isinstance(value_of(row, 'image'), int) else None

    def choose(self):
        """Chooses the rule if none was given. Raises DataError if by none of them an image has regions."""
        if self.rule is None and self.regions:
            matches = {rule: sum(self.named(rule, name) in self.regions for name in self.names) for rule in (*RULES, 'number')}
            self.rule = max(matches, key=matches.get)
            if not matches[self.rule]:
                raise DataError(f'none of the {len(self.names):,} images has regions: images are {some(self.names)}, regions '
                                f'{some(sorted(self.regions))}; give --ids with a pattern that turns one into the other, or the '
                                'regions of these images')
        elif self.rule is None:
            self.rule = 'coco' if all(self.names.values()) else 'stem'
            if self.rule == 'stem' and len({self.named('stem', name) for name in self.names}) < len(self.names):
                self.rule = 'path'

    def named(self, rule, name):
        if rule == 'number':
            return self.numbers.get(int(name)) if re.fullmatch(r'[0-9]{1,15}', name) else None
        return RULES[rule](name)

    def of(self, row, path, place):
        """The image id of a row. Raises DataError with `place`."""
        if '{' in self.rule:
            try:
                return self.rule.format_map({key: int(value) if isinstance(value, str) and re.fullmatch(r'0|[1-9]\d{0,14}', value)
                                             else value for key, value in row.items()})
            except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
                raise DataError(f'{place}: --ids {self.rule}: {type(error).__name__} {error}; the keys of this row are '
                                f'{", ".join(map(str, row))}') from None
        name = str(value_of(row, 'image'))
        if self.rule == 'coco':
            return f'COCO_{self.coco_split(row, path)}_{int(name):012d}'
        return self.named(self.rule, name) or name


# ---- soft scores

def soft_score(count, annotators):
    """The soft score of an answer that `count` of so many annotators gave, from 0 to 1.

    As the official VQA evaluator scores it: the mean over annotators of min(1, matches among the others / 3); of ten annotators
    1, 2, 3, 4 give 0.3, 0.6, 0.9, 1. Fewer than four annotators cannot agree that often: their share, so that one answer is 1.
    """
    if annotators < 4:
        score = count / annotators
    else:
        score = ((annotators - count) * min(1, count / 3) + count * min(1, (count - 1) / 3)) / annotators
    return 1 if score > 0.9999 else round(score, 4)


def soft_scores(answers, vocabulary):
    """{answer: soft score} of annotators' answers (list of str), only for answers of the vocabulary (a set)."""
    return {answer: soft_score(count, len(answers)) for answer, count in Counter(answers).items() if answer in vocabulary}
