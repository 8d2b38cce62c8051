from bert.tokenization import BertTokenizer  # noqa
