"""A look inside a model: `python -m show.main SUBCOMMAND ...` (run/show.bash), see --help.

Exit status 0: well; 1: a fault of what was given; 2: wrong usage.
"""

import argparse
import sys

from show import attention, pointing

COMMANDS = (attention, pointing)  # each a module with add(commands), which sets `run`


def parser():
    top = argparse.ArgumentParser(prog='run/show.bash', description='A look inside a model. Computes on the CPU.',
                                  allow_abbrev=False)
    commands = top.add_subparsers(required=True, metavar='SUBCOMMAND')
    for command in COMMANDS:
        command.add(commands)
    return top


def main(argv=None):
    """Runs a subcommand; returns the exit status."""
    flags = parser().parse_args(argv)
    try:
        return flags.run(flags)
    except (ValueError, OSError) as error:
        print(f'show.bash: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nshow.bash: interrupted', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
