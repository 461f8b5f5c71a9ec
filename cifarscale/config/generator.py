"""What the recipes of all generators share: how the images that they make are compared with real ones."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, model_validator

from cifarscale.config.distance import FEATURES_PATTERN, DistanceConfig
from cifarscale.config.recipe import Metric, TrainingRecipe


class TrainingDistanceConfig(DistanceConfig):
    features: Annotated[str, Field(pattern=FEATURES_PATTERN)] = "none"
    """`inception` for FID, or `cnn:RUN` for the features of a classifier that was trained here; `none` is off."""
    every: NonNegativeInt = 0
    """Steps between two measurements, a multiple of evaluation.every; 0 measures the final generator alone."""


class GeneratorRecipe(TrainingRecipe):
    """Trains what generates images."""

    distance: TrainingDistanceConfig = TrainingDistanceConfig()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        if self.distance.features == "none":
            return ()
        name = "fid" if self.distance.features == "inception" else "frechet_distance"
        evaluated = (Metric(name, "min"),) if self.distance.every else ()
        return (*evaluated, Metric("distance.distance", "min", is_final=True))

    @property
    def compared_every(self) -> int:
        return self.distance.every

    def scaled_steps(self, factor: int) -> dict[str, int]:
        steps = super().scaled_steps(factor)
        if self.distance.every:
            evaluations = self.distance.every // self.evaluation.every
            steps["distance.every"] = evaluations * steps["evaluation.every"]
        return steps

    @model_validator(mode="after")
    def _distances_are_evaluations(self) -> Self:
        every, evaluation = self.distance.every, self.evaluation.every
        if every and (not evaluation or every % evaluation):
            raise ValueError(f"distance.every = {every} must be a multiple of evaluation.every = {evaluation}")
        if every and self.distance.features == "none":
            raise ValueError(f"distance.every = {every} has no effect with distance.features = 'none'")
        return self
