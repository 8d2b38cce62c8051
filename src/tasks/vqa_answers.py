"""How the official VQA evaluator (vqaEval.py of GT-Vision-Lab/VQA) makes answers alike before comparing them, quirks included."""

import re

ARTICLES = {'a', 'an', 'the'}
NUMBERS = {'none': '0', 'zero': '0', 'one': '1', 'two': '2', 'three': '3', 'four': '4', 'five': '5', 'six': '6', 'seven': '7',
           'eight': '8', 'nine': '9', 'ten': '10'}

# What a word becomes that is one of these but for one missing apostrophe. Forms that the official table has and that no
# lower-cased word can reach (I'd've, I'm, I've), or that it does not have (she'd, we'd, I'd, she'll), are not here.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've"""
CONTRACTIONS = {form[:place] + form[place + 1:]: form for form in CONTRACTED.split()
                for place, character in enumerate(form) if character == "'"}
CONTRACTIONS["somebody'd"] = 'somebodyd'  # the official table has this one the wrong way round

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r'\d,\d')
# The official pattern means to spare a period between digits on both sides, but its look-behind is a look-ahead that
# always holds; and it hands re.UNICODE (32) over as the number of periods to drop.
PERIOD, PERIODS = re.compile(r'\.(?!\d)'), 32


def without_punctuation(answer):
    """An answer without its punctuation: what the official evaluator does to human answers that are not all the same.

    A mark that stands beside a space anywhere, and every mark of an answer with a number such as 1,000, is dropped, others
    become a space; the first 32 periods without a digit after them are dropped. Apostrophes and colons stay.
    """
    in_number = COMMA_IN_NUMBER.search(answer) is not None
    bare = answer
    for mark in PUNCTUATION:
        if mark in answer:
            drop = in_number or f'{mark} ' in answer or f' {mark}' in answer
            bare = bare.replace(mark, '' if drop else ' ')
    return PERIOD.sub('', bare, count=PERIODS)


def normalise(answer):
    """An answer as the official evaluator makes a prediction before it compares it: str -> str.

    Newlines and tabs become spaces, punctuation goes as above, words are lower-cased, number words up to ten become digits
    ('none' too: 0), articles are dropped, contractions get their apostrophe back, and words are joined by single spaces.
    """
    words = without_punctuation(answer.replace('\n', ' ').replace('\t', ' ').strip()).lower().split()
    words = [NUMBERS.get(word, word) for word in words]
    return ' '.join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
