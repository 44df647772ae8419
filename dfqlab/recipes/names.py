"""The recipes by name, as strings, so that help needs no torch."""

RECIPES: dict[str, tuple[str, str]] = {"zeroq": ("dfqlab.recipes.zeroq", "ZeroQ")}
"""Name to the module and the class of its settings."""
