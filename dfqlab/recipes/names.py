"""The recipes by name, as strings, so that help needs no torch."""

RECIPES: dict[str, tuple[str, str]] = {
    "zeroq": ("dfqlab.recipes.zeroq", "ZeroQ"),
    "knowledge_within": ("dfqlab.recipes.knowledge_within", "KnowledgeWithin"),
    "deepinversion": ("dfqlab.recipes.deepinversion", "DeepInversion"),
    "mixmix": ("dfqlab.recipes.mixmix", "MixMix"),
    "dsg": ("dfqlab.recipes.dsg", "DSG"),
}
"""Recipes that make images: name to the module and the class of its settings."""

WITHOUT_IMAGES: dict[str, tuple[str, str]] = {"dfq": ("dfqlab.recipes.dfq", "DFQ")}
"""Recipes that compress a network from its weights and its BatchNorm layers alone."""
