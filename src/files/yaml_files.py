"""Reads yaml files of the original codes: plain values only, no aliases, no objects."""

import re

import yaml

from files.json_files import DataError, read_text
from files.text import shown


class PlainLoader(yaml.SafeLoader):
    """Refuses aliases (*name), with which a file of a few lines holds billions of values; no published file has any. 1e-4 is a
    number, as in YAML 1.2, which the original codes read."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f'aliases are not read, found *{self.peek_event().anchor}; write its value out')
        return super().compose_node(parent, index)


PlainLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?\d+(\.\d*)?[eE][-+]?\d+$'), list('-+0123456789'))


def read_yaml(path, what):
    """The object in a yaml file. what: the file's description, for messages. Raises FileNotFoundError, or DataError that names
    the file."""
    text = read_text(path, what)
    try:
        values = yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that there is not
        raise DataError(f'{path}: is not plain yaml ({" ".join(str(error).split())[:200]}); get the file again') from None
    if not isinstance(values, dict):
        raise DataError(f'{path}: expected {what}, keys with values, found {shown(values)}; get the file again')
    return values
