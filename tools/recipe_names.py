"""The recipes by name, as several tools list or take them."""

from collections.abc import Mapping
from typing import Any

from ld_plugin import recipes

RECIPES: Mapping[str, Mapping[str, Any]] = {
    name: recipe
    for name, recipe in vars(recipes).items()
    if isinstance(recipe, dict) and not name.startswith('_')
}
