"""What is evaluated: a classifier on a split."""

from typing import Literal

from cifarscale.config.recipe import Recipe


class EvaluateRecipe(Recipe):
    """Evaluates a trained classifier."""

    task: Literal["evaluate"] = "evaluate"
    run: str = ""
    """Folder of the classifier's run."""
    split: Literal["test", "validation", "train"] = "test"
    """Which part of the data set is classified."""
    flip: bool = False
    """Also classifies by the mean of the logits of each image and its mirror image: `flip` in the result."""
