"""The program of run/show.bash: the subcommands of explain.program, and the pointing game, which needs the sample world."""
import sys

from explain import program

COMMANDS = {**program.COMMANDS,
            'pointing': ('shapes.pointing', 'how often relevance points at the object that a question names (sample world)')}


def main(argv=None):
    """Runs a subcommand; returns its exit status."""
    return program.main(argv, COMMANDS)


if __name__ == '__main__':
    sys.exit(main())
