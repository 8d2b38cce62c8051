"""Texts of the hard world: rare words, and combinations of a colour and a shape that no training text names.

Both are made from the sentences of the ordinary generators: names are exchanged for synonyms, whose frequencies follow Zipf's
law, and training texts that name a held-out combination are left out.
"""
import random
import re
from collections.abc import Iterable, Iterator

from shapes.questions import SIZE_WORDS
from shapes.scene import COLOURS, SHAPES

HELD_OUT = {('red', 'star'), ('orange', 'cross'), ('yellow', 'square'), ('green', 'triangle'), ('blue', 'circle'),
            ('purple', 'diamond'), ('black', 'cross'), ('white', 'star')}
# From common to rare; answers and the names of classes are always the common ones.
SYNONYMS = {
    'red': ('crimson', 'scarlet', 'ruby'), 'orange': ('tangerine', 'apricot', 'pumpkin'), 'yellow': ('golden', 'lemon', 'canary'),
    'green': ('emerald', 'jade', 'olive'), 'blue': ('azure', 'cobalt', 'navy'), 'purple': ('violet', 'plum', 'lilac'),
    'black': ('ebony', 'inky', 'sable'), 'white': ('ivory', 'snowy', 'chalky'),
    'circle': ('disc', 'ball', 'roundel'), 'square': ('block', 'tile', 'quadrate'), 'triangle': ('wedge', 'pyramid', 'trigon'),
    'star': ('pentagram', 'asterisk', 'estoile'), 'cross': ('plus', 'crucifix', 'rood'),
    'diamond': ('rhombus', 'lozenge', 'kite'),
    'small': ('tiny', 'wee'), 'large': ('huge', 'giant'), 'above': ('over', 'atop'), 'below': ('beneath', 'underneath')}
EXPONENT = 3  # the word of rank r, the common one being the first, is as frequent as r ** -EXPONENT
RARE = 3  # a word of this rank or a later one is rare

_WORD = re.compile(rf'(?:\b(an?) )?\b({"|".join(SYNONYMS)})(?:s|es)?\b', re.IGNORECASE)
_RARE = re.compile(rf'\b(?:{"|".join(rare for names in SYNONYMS.values() for rare in names[RARE - 2:])})', re.IGNORECASE)
_COMMON = {word: name for name, words in SYNONYMS.items() for word in words}
_SYNONYM = re.compile(rf'\b({"|".join(_COMMON)})(s|es)?\b', re.IGNORECASE)
_COLOUR, _SHAPE = '|'.join(COLOURS), '|'.join(SHAPES)
_PHRASE = re.compile(rf'(?:(?:(, the|or the|the|an?) )?(?:(?:two|only) )?(?:(?:{"|".join(sum(SIZE_WORDS.values(), ()))}) )?'
                     rf'(?:\b({_COLOUR}) )?\b({_SHAPE}|thing|object)(?:s|es)?|\b({_COLOUR}))\b')


def combinations(sentence: str, answers: Iterable[str] = ()) -> set[tuple[str, str]]:
    """The (colour, shape) that a sentence in common words ascribes to a thing or asks about: 'the red star', 'Is the star red?',
    or 'What color is the star?' with the answer red."""
    named, subject, said = set(), None, [*answers]
    for article, colour, shape, predicate in _PHRASE.findall(sentence.lower()):
        if predicate:
            said.append(predicate)
        elif colour and shape in SHAPES:
            named.add((colour, shape))
        elif article != 'the' and article and shape in SHAPES:
            said.append(shape)
        if subject is None and article == 'the':
            subject = colour, shape
    colour, shape = subject or ('', '')
    if shape in SHAPES and not colour:
        named |= {(word, shape) for word in said if word in COLOURS}
    elif colour and shape not in SHAPES:
        named |= {(colour, word) for word in said if word in SHAPES}
    return named


def words(name: str) -> list[str]:
    """A word and its synonyms, each also in the plural."""
    return [form for word in (name, *SYNONYMS[name]) for form in (word, plural(word))]


def plural(word: str) -> str:
    return f'{word}{"es" if word.endswith(("s", "x")) else "s"}'


def reword(sentence: str, rng: random.Random) -> str:
    """The sentence with some of its words exchanged for synonyms."""
    def exchange(match):
        article, word = match.groups()
        words = (word, *SYNONYMS[word.lower()])
        synonym = rng.choices(words, [(rank + 1) ** -EXPONENT for rank in range(len(words))])[0]
        if synonym == word:
            return match[0]
        synonym = synonym.capitalize() if word[0].isupper() else synonym
        article = article and article[0] + ('n ' if synonym[0].lower() in 'aeiou' else ' ')
        return (article or '') + (synonym if match[0].endswith(word) else plural(synonym))
    return _WORD.sub(exchange, sentence)


def plain(sentence: str) -> str:
    """The sentence in common words again."""
    def exchange(match):
        name = _COMMON[match[1].lower()]
        return plural(name) if match[2] else name
    return _SYNONYM.sub(exchange, sentence)


def near_miss(sentences: tuple[str, str], seed: int) -> list[str]:
    """Two sentences that differ in one word, and still do when some of their words are exchanged."""
    reworded = [reword(sentence, random.Random(seed)) for sentence in sentences]
    differing = sum(one != other for one, other in zip(*(sentence.split() for sentence in reworded), strict=True))
    return reworded if differing == 1 else list(sentences)  # more where an article differs, too


def lines(sentences: Iterable[str], training: bool, rng: random.Random) -> list[str]:
    """Sentences of the hard world from those of the ordinary generators."""
    return [reword(sentence, rng) for sentence in sentences if not (training and combinations(sentence) & HELD_OUT)]


def examples(items: Iterable[dict], training: bool, rng: random.Random) -> Iterator[dict]:
    """Annotations of the hard world from those of the ordinary generators. `tags` tell what is hard about them: 'held out',
    'nested' (a thing is described by its place) and 'rare words'. The same sentence in a row keeps its words."""
    before, sent = None, ''
    for item in items:
        label = item.get('label')
        held_out = combinations(item['sent'], label if isinstance(label, dict) else ()) & HELD_OUT
        if training and held_out:
            continue
        if item['sent'] != before:
            before, sent = item['sent'], reword(item['sent'], rng)
        yield item | {'sent': sent, 'tags': tags(sent, bool(held_out))}


def tags(sentence: str, held_out: bool) -> list[str]:
    found = {'held out': held_out, 'nested': ' that is ' in sentence, 'rare words': _RARE.search(sentence)}
    return [tag for tag, present in found.items() if present]


def pointing_examples(items: Iterable[dict], training: bool, rng: random.Random) -> Iterator[dict]:
    """The same for examples of VCR, whose texts are lists of words and of things. Wrong choices of training texts name no
    held-out combination either: otherwise it would always be wrong."""
    for item in items:
        choices = {kind: item[f'{kind}_choices'] for kind in ('answer', 'rationale')}
        read = {kind: [' '.join(word if isinstance(word, str) else f'the {item["names"][word[0]]}' for word in text)
                       for text in texts] for kind, texts in choices.items()}
        named = {kind: [combinations(text) for text in texts] for kind, texts in read.items()}
        if training and HELD_OUT & set().union(*named['answer'], *named['rationale']):
            continue
        held_out = any(HELD_OUT & named[kind][item[f'{kind}_label']] for kind in named)
        question, *others = ([reword(word, rng) if isinstance(word, str) else word for word in text]
                             for text in (item['question'], *choices['answer'], *choices['rationale']))
        words = ' '.join(word for text in (question, *others) for word in text if isinstance(word, str))
        yield item | {'question': question, 'answer_choices': others[:4], 'rationale_choices': others[4:],
                      'tags': tags(words, held_out)}
