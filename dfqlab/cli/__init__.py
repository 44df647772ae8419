"""`dfqlab ...`: the library from the command line."""

from dfqlab.cli.main import main

__all__ = ["main"]
