"""Parse the command line, run a verb, turn errors into sentences and exit codes."""

import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

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
        _command(verb)(options, shlex.join(["dfqlab", *arguments]))
    except DfqlabError as error:
        print(f"dfqlab {verb}: {error}", file=sys.stderr)
        return WRONG_USE
    except (Cancelled, KeyboardInterrupt):
        print(f"dfqlab {verb}: cancelled", file=sys.stderr)
        return CANCELLED
    return OK


def _command(verb: str) -> Callable[[Any, str], None]:
    """What carries a verb out, imported late: most of them load torch, which help and the lessons do not need."""
    if verb == "lesson":
        from dfqlab.cli.lesson import lesson

        return lesson
    from dfqlab.cli import commands

    return commands.COMMANDS[verb]


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="dfqlab",
        description="Data-free model compression: from a trained network alone to a small model that runs.",
    )
    verbs = parser.add_subcommands(title="verbs", metavar="VERB", description="dfqlab VERB --help tells more")
    for name, options in VERBS.items():
        doc = options.__doc__ or ""
        sub = jsonargparse.ArgumentParser(description=doc.split("\n")[0])
        sub.add_argument("--config", action="config", help="read options from a YAML file")
        positional = [f.name for f in fields(options) if f.metadata.get("positional")]
        switches = [f.name for f in fields(options) if f.type is bool]
        for argument in positional:
            sub.add_argument(argument, nargs="?", type=str, help=_described(argument, doc))
        sub.add_class_arguments(options, as_group=False, skip={*positional, *switches})
        for switch in switches:
            sub.add_argument(f"--{switch}", action="store_true", help=_described(switch, doc))
        verbs.add_subcommand(name, sub, help=doc.split("\n")[0])
    return parser


def _described(name: str, doc: str) -> str:
    """The line of a docstring that describes an attribute."""
    (line,) = re.findall(rf"^ +{name}: (.+)$", doc, re.MULTILINE)
    return str(line)
