"""The recipes by name, as strings, so that help needs no torch."""

RECIPES: dict[str, tuple[str, str]] = {
    "zeroq": ("dfqlab.recipes.zeroq", "ZeroQ"),
    "knowledge_within": ("dfqlab.recipes.knowledge_within", "KnowledgeWithin"),
    "deepinversion": ("dfqlab.recipes.deepinversion", "DeepInversion"),
    "mixmix": ("dfqlab.recipes.mixmix", "MixMix"),
    "dsg": ("dfqlab.recipes.dsg", "DSG"),
}
"""Name to the module and the class of its settings."""
