"""Where every verb prints: at most 100 columns wide."""

import shutil

from rich.console import Console

console = Console(width=min(100, shutil.get_terminal_size((100, 24)).columns), highlight=False)
