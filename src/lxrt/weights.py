from bert.weights import *  # noqa
