"""Answer normalisation of the official VQA evaluator (vqaEval.py of GT-Vision-Lab/VQA), including its bugs."""

import re

ARTICLES = {'a', 'an', 'the'}
NUMBERS = {'none': '0', 'zero': '0', 'one': '1', 'two': '2', 'three': '3', 'four': '4', 'five': '5', 'six': '6', 'seven': '7',
           'eight': '8', 'nine': '9', 'ten': '10'}

# A word that equals one of these without one apostrophe gets the apostrophe. The official table also has I'd've, I'm and I've,
# which no lower-cased word can match; it lacks she'd, we'd, I'd and she'll.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've"""
CONTRACTIONS = {form[:i] + form[i + 1:]: form for form in CONTRACTED.split()
                for i, character in enumerate(form) if character == "'"}
CONTRACTIONS["somebody'd"] = 'somebodyd'  # reversed in the official table

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r'\d,\d')
# The official pattern should keep periods between two digits, but its look-behind is a look-ahead that always matches; and it
# passes re.UNICODE (32) as the count of re.sub.
PERIOD, PERIODS = re.compile(r'\.(?!\d)'), 32


def without_punctuation(answer):
    """Removes punctuation, as the official evaluator does for annotators' answers that are not all the same.

    A punctuation mark that occurs next to a space is removed, as are all marks of an answer with a number such as 1,000; other
    marks become a space. The first 32 periods that no digit follows are removed. Apostrophes and colons are kept.
    """
    has_comma_in_number = COMMA_IN_NUMBER.search(answer) is not None
    stripped = answer
    for mark in PUNCTUATION:
        if mark in answer:
            remove = has_comma_in_number or f'{mark} ' in answer or f' {mark}' in answer
            stripped = stripped.replace(mark, '' if remove else ' ')
    return PERIOD.sub('', stripped, count=PERIODS)


def normalise(answer):
    """Normalises a prediction as the official evaluator does: str -> str.

    Newlines and tabs become spaces, punctuation is removed as above, words are lower-cased, number words up to ten ('none': 0)
    become digits, articles are removed, apostrophes of contractions are restored, and words are joined by single spaces.
    """
    words = without_punctuation(answer.replace('\n', ' ').replace('\t', ' ').strip()).lower().split()
    words = [NUMBERS.get(word, word) for word in words]
    return ' '.join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
