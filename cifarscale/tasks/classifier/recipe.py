"""The recipe of a classifier's training."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from cifarscale.config.recipe import Fraction, Metric, NormalisationKind, Section, TrainingRecipe, check_sync_batch


class AugmentationConfig(Section):
    crop_padding: Annotated[int, Field(ge=0, le=16)] = 0
    """Pixels of black border from which a random crop of the original size is cut; 0 is off."""
    flip: bool = False
    """Mirrors half of the images left to right."""
    cutout: Annotated[int, Field(ge=0, le=32)] = 0
    """Side in pixels of a square that is blanked at a random place (DeVries & Taylor 2017); 0 is off."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of the Beta distribution from which a batch's mixing weight is drawn (Zhang et al. 2018); 0 is off."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha for pasting a box of one image into another (Yun et al. 2019); 0 is off. With mixup, steps draw one."""

    @property
    def mixes(self) -> bool:
        """Whether two images of a batch are combined."""
        return self.mixup > 0 or self.cutmix > 0


class SmallFiltersCNNConfig(Section):
    """The baseline's CNN; with the defaults 57,332 parameters on 100 classes."""

    name: Literal["small_filters_cnn"] = "small_filters_cnn"
    width: PositiveInt = 8
    """Channels of the first block; the next two have twice and four times as many."""
    activation: Literal["relu", "leaky_relu", "silu"] = "relu"
    """Follows each convolution."""
    normalisation: NormalisationKind = "none"
    """`batch` takes the statistics of each microbatch; `sync_batch` those of the global batch, and needs 0 of them."""
    residual: bool = False
    """Adds a residual block to each stage."""
    attention: Literal["none", "squeeze_excitation", "self_attention"] = "none"
    """Channels scaled in each stage (Hu et al. 2018), or attention over the positions of the second stage."""


class ResNetConfig(Section):
    """A wide residual network, for when a stronger classifier is wanted."""

    name: Literal["resnet"] = "resnet"
    width: PositiveInt = 32
    """Channels of the first stage; the next two have twice and four times as many."""
    blocks_per_stage: PositiveInt = 1
    """Residual blocks of two convolutions in each of the three stages."""
    activation: Literal["relu", "leaky_relu", "silu"] = "relu"
    """Follows each convolution."""
    normalisation: NormalisationKind = "batch"
    """`batch` takes the statistics of each microbatch; `sync_batch` those of the global batch, and needs 0 of them."""


ClassifierConfig = Annotated[SmallFiltersCNNConfig | ResNetConfig, Field(discriminator="name")]


class ClassifierRecipe(TrainingRecipe):
    """Trains an image classifier."""

    needs_validation: ClassVar[bool] = True

    task: Literal["classifier"] = "classifier"
    model: ClassifierConfig = SmallFiltersCNNConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    label_smoothing: Fraction = 0.0
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2016)."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        kinds: tuple[tuple[str, Literal["max", "min"]], ...] = (("top1", "max"), ("top5", "max"), ("loss", "min"))
        evaluated = (Metric(f"validation_{name}", mode) for name, mode in kinds)
        return (*evaluated, *(Metric(f"validation.{name}", mode, is_final=True) for name, mode in kinds))

    @property
    def samples_together(self) -> int:
        return 2 if self.augmentation.mixes else 1

    @model_validator(mode="after")
    def _mixing_needs_pairs(self) -> Self:
        microbatches = self.training.microbatches or 1
        if self.augmentation.mixes and self.training.global_batch_size % (2 * microbatches):
            raise ValueError(
                "augmentation.mixup and cutmix pair the samples of a microbatch: training.global_batch_size = "
                f"{self.training.global_batch_size} must be a multiple of {2 * microbatches}"
            )
        return self

    @model_validator(mode="after")
    def _sync_batch_spans_microbatches(self) -> Self:
        check_sync_batch("model.normalisation", self.model.normalisation, self.training)
        return self

    @model_validator(mode="after")
    def _groups_divide_the_channels(self) -> Self:
        if self.model.normalisation == "group" and self.model.width % 4:
            raise ValueError(
                f"model.normalisation = 'group' needs model.width = {self.model.width} to be a multiple of 4"
            )
        return self
