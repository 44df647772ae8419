"""Parse the command line, run a verb, turn errors into sentences and exit codes."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields

import jsonargparse

from dfqlab.cli.options import VERBS
from dfqlab.errors import DfqlabError
from dfqlab.progress import Cancelled

OK, WRONG_USE, CANCELLED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 2 wrong use or input, 130 cancelled with what there was kept."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(arguments)
    verb = parsed.subcommand
    values = {k: v for k, v in parsed[verb].as_dict().items() if k != "config"}
    if "leaves" in values:
        values["leaves"] = tuple(values["leaves"])
    options = VERBS[verb](**values)
    try:
        from dfqlab.cli import commands  # late: it loads torch, which help does not need

        commands.COMMANDS[verb](options, shlex.join(["dfqlab", *arguments]))
    except DfqlabError as error:
        print(f"dfqlab {verb}: {error}", file=sys.stderr)
        return WRONG_USE
    except (Cancelled, KeyboardInterrupt):
        print(f"dfqlab {verb}: cancelled", file=sys.stderr)
        return CANCELLED
    return OK


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="dfqlab",
        description="Data-free model compression: from a trained network alone to a small model that runs.",
    )
    verbs = parser.add_subcommands(title="verbs", metavar="VERB", description="dfqlab VERB --help tells more")
    for name, options in VERBS.items():
        sub = jsonargparse.ArgumentParser(description=(options.__doc__ or "").split("\n")[0])
        sub.add_argument("--config", action="config", help="read options from a YAML file")
        switches = [f.name for f in fields(options) if f.type is bool]
        sub.add_class_arguments(options, as_group=False, skip=set(switches))
        for switch in switches:
            sub.add_argument(f"--{switch}", action="store_true", help="replace the results of an earlier run")
        verbs.add_subcommand(name, sub, help=(options.__doc__ or "").split("\n")[0])
    return parser
