"""The recipe of a DCGAN's training."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from cifarscale.config.generator import GeneratorRecipe
from cifarscale.config.recipe import Beta, NormalisationKind, OptimizerConfig, Section, check_sync_batch
from cifarscale.config.registry import DataSpec
from cifarscale.errors import ConfigError

_SIZES = (8, 16, 32, 64, 128, 256)
"""Pixels a side: 4, doubled once or more."""


class DcganModelConfig(Section):
    """Radford et al. 2016; for 32 x 32 with the defaults 370,624 parameters generate and 167,808 discriminate."""

    latent_size: PositiveInt = 100
    """Standard normal numbers that an image is generated from."""
    generator_width: PositiveInt = 32
    """Channels of the generator's last hidden layer; each one before has twice as many."""
    discriminator_width: PositiveInt = 32
    """Channels of the discriminator's first layer; each one after it has twice as many."""
    generator_normalisation: NormalisationKind = "batch"
    """`batch` takes the statistics of each microbatch; `sync_batch` those of the global batch, and needs 0 of them."""
    discriminator_normalisation: NormalisationKind = "batch"
    """The same for the discriminator; `none` goes with `spectral` and with gradient penalties."""
    upsampling: Literal["transposed", "residual"] = "transposed"
    """The generator's layers: 4x4 transposed convolutions, or residual blocks of two 3x3 convolutions."""
    downsampling: Literal["strided", "residual"] = "strided"
    """The discriminator's: 4x4 convolutions with stride 2, or residual blocks with average pooling."""
    spectral: bool = False
    """Divides each of the discriminator's weights by its largest singular value (Miyato et al. 2018)."""
    minibatch: Literal["none", "discrimination", "stddev"] = "none"
    """What the discriminator sees of the other samples of a microbatch: their distances (Salimans et al. 2016), or
    their standard deviation (Karras et al. 2018)."""
    conditional: bool = False
    """Whether images are generated and judged by class: an embedding appended to the noise, and a projection."""
    class_embedding: PositiveInt = 32
    """Numbers a class that are appended to the noise; conditional only."""

    def check_data(self, data: DataSpec) -> None:
        """Raises: ConfigError for images that the networks do not make."""
        _, height, width = data.image_shape
        if height != width or height not in _SIZES:
            raise ConfigError(
                f"the networks of task gan make squares of {', '.join(map(str, _SIZES))} pixels a side, and the images "
                f"of the data set have {width} x {height}. Build its shards with one of these as --size"
            )


class GanAugmentationConfig(Section):
    """`flip` changes the training set; the others change whatever the discriminator sees, real or generated, and let
    the gradient through (DiffAugment: Zhao et al. 2020)."""

    flip: bool = False
    """Mirrors half of the real images left to right."""
    colour: bool = False
    """Random brightness, saturation and contrast."""
    translation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Largest shift, as a fraction of the image's side; 0 is off, the paper's is 0.125."""
    cutout: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Side of a blanked square, as a fraction of the image's; 0 is off, the paper's is 0.5."""


class ObjectiveConfig(Section):
    name: Literal["bce", "hinge", "relativistic"] = "bce"
    """`bce` is the non-saturating loss of Goodfellow et al. 2014; `hinge` that of Lim & Ye 2017; `relativistic`
    compares each generated image with a real one (Jolicoeur-Martineau 2018)."""
    r1: NonNegativeFloat = 0.0
    """Weight gamma of half the squared gradient of the logits at real images (Mescheder et al. 2018); 0 is off."""
    r2: NonNegativeFloat = 0.0
    """The same at generated images; 0 is off."""
    penalty_every: PositiveInt = 1
    """Takes r1 and r2 in one of so many steps, with so many times their weights: lazy regularization (Karras et al.
    2020)."""


class NetworkOptimizerConfig(Section):
    """What one network's optimizer does otherwise; what is left out is as `optimizer` and `training` have it."""

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate, in place of `training.learning_rate`."""
    weight_decay: NonNegativeFloat | None = None
    """In place of `optimizer.weight_decay`."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] | None = None
    """In place of `optimizer.betas`."""
    momentum: Annotated[float, Field(gt=0, lt=1)] | None = None
    """In place of `optimizer.momentum`."""

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def given(self) -> dict[str, Any]:
        """The values that are not left out."""
        return {key: value for key, value in self if value is not None}


class GanRecipe(GeneratorRecipe):
    """Trains a generator against a discriminator. A step updates the discriminator, then the generator."""

    task: Literal["gan"] = "gan"
    model: DcganModelConfig = DcganModelConfig()
    augmentation: GanAugmentationConfig = GanAugmentationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    discriminator_updates: PositiveInt = 1
    """Updates of the discriminator a step, each on real images and noise of its own: a step reads so many global
    batches. The generator is then updated once, on the noise of the last."""
    generator_optimizer: NetworkOptimizerConfig = NetworkOptimizerConfig()
    discriminator_optimizer: NetworkOptimizerConfig = NetworkOptimizerConfig()

    @property
    def samples_per_step(self) -> int:
        return self.discriminator_updates * self.training.global_batch_size

    @property
    def may_keep_statistics(self) -> bool:
        return self.model.generator_normalisation in ("batch", "sync_batch")

    def optimizer_of(self, network: str) -> tuple[OptimizerConfig, float]:
        own = getattr(self, f"{network}_optimizer").given()
        learning_rate = own.pop("learning_rate", self.training.learning_rate)
        return self.optimizer.model_copy(update=own), learning_rate

    @model_validator(mode="after")
    def _optimizers_have_what_is_set(self) -> Self:
        valid = ["learning_rate", *(key for key in NetworkOptimizerConfig.model_fields if hasattr(self.optimizer, key))]
        for table in ("generator_optimizer", "discriminator_optimizer"):
            if unknown := [key for key in getattr(self, table).given() if key not in valid]:
                raise ValueError(
                    f"{table}.{unknown[0]} has no effect with optimizer.name = {self.optimizer.name!r}; "
                    f"valid are {', '.join(valid)}"
                )
        return self

    @model_validator(mode="after")
    def _normalisations_suit_the_rest(self) -> Self:
        for network in ("generator", "discriminator"):
            kind = getattr(self.model, f"{network}_normalisation")
            check_sync_batch(f"model.{network}_normalisation", kind, self.training)
        return self

    @model_validator(mode="after")
    def _widths_suit_the_layers(self) -> Self:
        residual = {"generator": self.model.upsampling, "discriminator": self.model.downsampling}
        for network, layers in residual.items():
            width = getattr(self.model, f"{network}_width")
            grouped = getattr(self.model, f"{network}_normalisation") == "group"
            # A residual generator's last stage has half its width, and channels are cut into four groups.
            halved = 2 if network == "generator" and layers == "residual" else 1
            needed = halved * (4 if grouped else 1)
            if width % needed:
                raise ValueError(f"model.{network}_width = {width} must be a multiple of {needed} with these layers")
        return self

    @model_validator(mode="after")
    def _embedding_has_an_effect(self) -> Self:
        model = self.model
        if not model.conditional and model.class_embedding != DcganModelConfig().class_embedding:
            raise ValueError(
                f"model.class_embedding = {model.class_embedding} has no effect with model.conditional = false"
            )
        return self

    @model_validator(mode="after")
    def _penalties_need_samples_apart(self) -> Self:
        kind = self.model.discriminator_normalisation
        if (self.objective.r1 or self.objective.r2) and kind in ("batch", "sync_batch"):
            raise ValueError(
                "objective.r1 and r2 are gradients of each sample's own logit, which "
                f"model.discriminator_normalisation = {kind!r} mixes with the others'; use 'none' or 'group'"
            )
        return self

    @model_validator(mode="after")
    def _penalties_that_are_seldom_exist(self) -> Self:
        objective = self.objective
        if objective.penalty_every > 1 and not objective.r1 and not objective.r2:
            raise ValueError(
                f"objective.penalty_every = {objective.penalty_every} has no effect with objective.r1 and r2 = 0"
            )
        return self

    @model_validator(mode="after")
    def _penalties_need_eager_networks(self) -> Self:
        if self.training.compile and (self.objective.r1 or self.objective.r2):
            raise ValueError(
                "objective.r1 and r2 are differentiated twice, which torch.compile cannot do: "
                "set training.compile = false, or both to 0"
            )
        return self
