"""Other people's checkpoints as denoisers of ours."""

from models.importers.load import SOURCES, load_checkpoint
from models.importers.recipe import Recipe
from models.importers.verdict import Verdict

__all__ = ["SOURCES", "Recipe", "Verdict", "load_checkpoint"]
