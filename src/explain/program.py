"""Explains what a model does. The program of run/show.bash (which adds the pointing game), see --help.

Exit status: 0 success; 1 invalid input; 2 wrong usage.
"""

import argparse
import importlib
import sys

from cli import run_main

COMMANDS = {  # name: (module with add_arguments(parser) and run(args) -> exit status, what it does)
    'attention': ('explain.attention', 'which words, regions or patches an answer rests on, and what each head or word looks at'),
    'errors': ('explain.error_report',
               'one HTML page of a validation run: scores by type and answer, confusions, the worst mistakes'),
}


def make_parser(commands):
    parser = argparse.ArgumentParser(prog='run/show.bash', description='Explains what a model does.', allow_abbrev=False,
                                     epilog='Exit status: 0 success, 1 invalid input, 2 wrong usage.')
    subparsers = parser.add_subparsers(metavar='SUBCOMMAND', required=True)
    for name, (module, text) in commands.items():
        part = importlib.import_module(module)
        command = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        part.add_arguments(command)
        command.set_defaults(run=part.run)
    return parser


def main(argv=None, commands=COMMANDS):
    """Runs one of the subcommands; returns its exit status."""
    args = make_parser(commands).parse_args(argv)
    return run_main('show.bash', lambda: args.run(args))


if __name__ == '__main__':
    sys.exit(main())
