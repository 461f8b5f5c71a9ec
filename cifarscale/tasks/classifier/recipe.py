"""The recipe of a classifier's training."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, Union

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    create_model,
    model_validator,
)

from cifarscale.config.recipe import (
    EvaluationConfig,
    Fraction,
    Metric,
    NormalisationKind,
    Section,
    TrainingRecipe,
    check_sync_batch,
)
from cifarscale.config.registry import (
    DataSpec,
    RegisteredMetric,
    RegisteredNetwork,
    augmentations,
    is_imported,
    metrics,
    networks,
    register_network,
)
from cifarscale.config.validation import explain, nearest
from cifarscale.errors import ConfigError
from cifarscale.tasks.text import OF_EVERY_EVALUATION

EVERY_EVALUATION: dict[str, Literal["max", "min"]] = {"top1": "max", "top5": "max", "loss": "min"}
"""The metrics that need not be named, with what of each is better."""
_LEAST_SIDE = 8
"""Pixels a side of the smallest images that the built-in networks take: they halve it up to three times."""


class AugmentationConfig(Section):
    crop_padding: NonNegativeInt = 0
    """Pixels of border around an image, up to half of its side, from which a random crop of the original size is cut; 0
    is off."""
    padding: Literal["black", "reflect"] = "black"
    """What that border shows: nothing, or the image mirrored at its edge."""
    flip: bool = False
    """Mirrors half of the images left to right."""
    alternating_flip: bool = False
    """Mirrors a random half of the images in the first epoch, the others in the next one, and so on (Jordan 2024)."""
    cutout: NonNegativeInt = 0
    """Side in pixels, up to the image's, of a square that is blanked at a random place (DeVries & Taylor 2017); 0 is
    off."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of the Beta distribution from which a batch's mixing weight is drawn (Zhang et al. 2018); 0 is off."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha for pasting a box of one image into another (Yun et al. 2019); 0 is off. With mixup, steps draw one."""
    resolution: NonNegativeInt = 0
    """Pixels of a side to which images are scaled in training (Touvron et al. 2019); 0 leaves them as they are. May
    change in `later`."""
    own: dict[str, SerializeAsAny[Section]] = Field(default={})
    """Augmentations of your own by name, each a section of its keys: applied in this order to what the crop and the
    flip leave, and before images are blanked and combined."""

    def check_data(self, data: DataSpec) -> None:
        """Raises: ConfigError for what would leave nothing of such images."""
        side = min(data.image_shape[1:])
        if self.crop_padding > side // 2:
            raise _too_much("crop_padding", self.crop_padding, side // 2, f"images of {_pixels(data)}")
        if self.cutout > (most := self.resolution or side):
            where = f"augmentation.resolution = {most}" if self.resolution else f"images of {_pixels(data)}"
            raise _too_much("cutout", self.cutout, most, where)

    @property
    def mixes(self) -> bool:
        """Whether two images of a batch are combined."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _flips_in_one_way(self) -> Self:
        if self.flip and self.alternating_flip:
            raise ValueError("augmentation.flip and augmentation.alternating_flip are two ways to flip: choose one")
        return self

    @model_validator(mode="after")
    def _padding_is_of_a_crop(self) -> Self:
        if self.padding != "black" and not self.crop_padding:
            raise ValueError(f"augmentation.padding = {self.padding!r} needs augmentation.crop_padding above 0")
        return self


Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=5, strict=False)]
"""One value for each stage; after five stages 32x32 pixels are 2x2."""


class ClassifierEvaluationConfig(EvaluationConfig):
    metrics: tuple[str, ...] = Field(default=(), strict=False)
    """Registered metrics that evaluations report beside top1, top5 and loss."""


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

    def check_data(self, data: DataSpec) -> None:
        _check_size(self.name, data)


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

    def check_data(self, data: DataSpec) -> None:
        _check_size(self.name, data)


def _check_size(name: str, data: DataSpec, least: int = _LEAST_SIDE) -> None:
    if min(data.image_shape[1:]) < least:
        raise ConfigError(
            f"model.name = {name!r} takes images of {least} x {least} pixels and more, and these have "
            f"{_pixels(data)}. Build the shards with --size {least} or more"
        )


def _too_much(key: str, value: int, most: int, where: str) -> ConfigError:
    return ConfigError(f"augmentation.{key} = {value} is too much for {where}: at most {most}")


def _pixels(data: DataSpec) -> str:
    _, height, width = data.image_shape
    return f"{width} x {height}"


class ResidualStagesConfig(Section):
    """Stages of residual blocks, for small budgets; with the defaults 56,452 parameters on 100 classes."""

    name: Literal["residual_stages"] = "residual_stages"
    widths: Widths = (40, 64, 88)
    """Channels of each stage; each stage after the first has half the height and width of the one before."""
    blocks: Widths = (4, 3, 2)
    """Blocks of each stage."""
    block: Literal["basic", "bottleneck", "gated_depthwise"] = "bottleneck"
    """`basic` is two 3x3 convolutions, `bottleneck` a 3x3 between two 1x1 (He et al. 2016); `gated_depthwise` is
    `x + BN(1x1(attention(act(a) * b)))` with a, b = BN(1x1) of BN(depthwise 3x3)."""
    inner_widths: Annotated[tuple[PositiveInt, ...], Field(max_length=5, strict=False)] = ()
    """Channels of the 3x3 convolutions in the bottlenecks of each stage; empty for a quarter of `widths`."""
    repeat: PositiveInt = 1
    """How often each block is applied, with the same convolutions and with norms of each time's own."""
    attention: Literal["none", "squeeze_excitation", "efficient_channel"] = "none"
    """Scales channels in each block (Hu et al. 2018; Wang et al. 2020)."""
    downsampling: Literal["average_pool", "max_pool", "depthwise", "stride"] = "average_pool"
    """How a stage begins: 2x2 pooling, or a depthwise 3x3 convolution of stride 2, before a 1x1 convolution; or a
    3x3 convolution of stride 2."""
    activation: Literal["relu", "leaky_relu", "silu"] = "relu"
    """Follows each convolution of `basic` and `bottleneck` and each sum; in `gated_depthwise` it is the gate's."""
    normalisation: NormalisationKind = "batch"
    """`batch` takes the statistics of each microbatch; `sync_batch` those of the global batch, and needs 0 of them."""
    zero_init: bool = True
    """Each block begins as the identity: the gain of its last norm starts at 0 (Goyal et al. 2017)."""

    def check_data(self, data: DataSpec) -> None:
        _check_size(self.name, data, 2 ** (len(self.widths) - 1))

    @property
    def num_channels(self) -> set[int]:
        """The numbers of channels that are normalised."""
        inner = self.inner_widths or tuple(max(1, width // 4) for width in self.widths)
        return {*self.widths, *(inner if self.block == "bottleneck" else ())}

    @model_validator(mode="after")
    def _lists_have_a_value_for_each_stage(self) -> Self:
        if self.inner_widths and self.block != "bottleneck":
            raise ValueError(f"model.inner_widths is for model.block = 'bottleneck', and not for {self.block!r}")
        for key, values in (("blocks", self.blocks), ("inner_widths", self.inner_widths)):
            if values and len(values) != len(self.widths):
                raise ValueError(
                    f"model.{key} = {list(values)} needs a value for each stage: model.widths = {list(self.widths)}"
                )
        return self


class UnreadSection(Section):
    """The section of something whose code is not imported: it can be shown, and not be built."""

    model_config = ConfigDict(extra="allow")


class UnreadNetwork(UnreadSection):
    name: str


@register_network("resnet", config=ResNetConfig)
@register_network("residual_stages", config=ResidualStagesConfig)
def _residual(config: ResNetConfig | ResidualStagesConfig, data: DataSpec) -> Any:
    from cifarscale.tasks.classifier.networks import classifier

    return classifier(num_classes=data.num_classes, **config.model_dump())


@register_network("small_filters_cnn", config=SmallFiltersCNNConfig)
def _small_filters_cnn(config: SmallFiltersCNNConfig, data: DataSpec) -> Any:
    from cifarscale.tasks.classifier.networks import classifier

    return classifier(num_classes=data.num_classes, image_size=data.image_shape[1:], **config.model_dump())


ClassifierConfig = Annotated[SmallFiltersCNNConfig | ResNetConfig | ResidualStagesConfig, Field(discriminator="name")]


class DistillationConfig(Section):
    """Learning what another classifier takes the images for (Hinton et al. 2015), beside their labels."""

    teacher: str = ""
    """Folder of that classifier's run, which is complete and of the same data; empty is off."""
    weights: str = ""
    """Digest of the teacher's weights; filled in at the first start, and a teacher with another one is then refused."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """By which the logits of both are divided; the higher, the more of what the teacher thinks less probable counts."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the teacher in the loss; the labels have the rest."""

    @model_validator(mode="after")
    def _needs_a_teacher(self) -> Self:
        if not self.teacher and (changed := self.model_dump(exclude_defaults=True)):
            key, value = next(iter(changed.items()))
            raise ValueError(f"distillation.{key} = {value!r} has no effect without distillation.teacher: name a run")
        return self


class ClassifierRecipe(TrainingRecipe):
    """Trains an image classifier."""

    needs_validation: ClassVar[bool] = True

    task: Literal["classifier"] = "classifier"
    model: ClassifierConfig = SmallFiltersCNNConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    distillation: DistillationConfig = DistillationConfig()
    evaluation: ClassifierEvaluationConfig = ClassifierEvaluationConfig()
    label_smoothing: Fraction = 0.0
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2016)."""
    test_time_flip: bool = False
    """Also evaluates, at the end, by the mean logits of an image and its mirror image: `test_flip` in the result."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        kinds = {**EVERY_EVALUATION, **{metric.name: metric.direction for metric in self.own_metrics}}
        evaluated = (Metric(f"validation_{name}", mode) for name, mode in kinds.items())
        return (*evaluated, *(Metric(f"validation.{name}", mode, is_final=True) for name, mode in kinds.items()))

    @property
    def own_metrics(self) -> tuple[RegisteredMetric, ...]:
        """Those of `evaluation.metrics`, as far as their code is imported."""
        known = metrics(self.code)
        return tuple(known[name] for name in self.evaluation.metrics if name in known)

    @property
    def order(self) -> tuple[str, ...]:
        own = tuple(self.augmentation.own)
        return own if len(own) > 1 else ()

    @model_validator(mode="before")
    @classmethod
    def _own_augmentations_are_registered(cls, values: Any) -> Any:
        """Makes their sections what their code says."""
        table = values.get("augmentation") if isinstance(values, Mapping) else None
        if not isinstance(table, Mapping) or not isinstance(own := table.get("own"), Mapping):
            return values
        code = str(values.get("code", ""))
        sections = {name: _own_augmentation(name, section, code) for name, section in own.items()}
        return {**values, "augmentation": {**table, "own": sections}}

    @model_validator(mode="after")
    def _own_metrics_are_registered(self) -> Self:
        known = metrics(self.code)
        for name in self.evaluation.metrics:
            if name in EVERY_EVALUATION:
                raise ValueError(f"evaluation.metrics: {name!r} is part of every evaluation; leave it out")
            if name not in known and _is_known(self.code):
                raise ValueError(f"evaluation.metrics: unknown metric {name!r}{_registered(name, known)}")
        return self

    @property
    def samples_together(self) -> int:
        return 2 if self.augmentation.mixes else 1

    @property
    def takes_batch_statistics(self) -> bool:
        """Of a network of a user's own, what it is made of; those of the package say it in their options."""
        if super().takes_batch_statistics or not self.code:
            return super().takes_batch_statistics
        return _has_batch_norm(self.model, self.code)

    @property
    def may_keep_statistics(self) -> bool:
        return self.takes_batch_statistics or getattr(self.model, "normalisation", "none") == "sync_batch"

    @property
    def changes_input(self) -> bool:
        return self.augmentation.resolution > 0

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
        check_sync_batch("model.normalisation", getattr(self.model, "normalisation", "none"), self.training)
        return self

    @model_validator(mode="after")
    def _groups_divide_the_channels(self) -> Self:
        model = self.model
        if getattr(model, "normalisation", "none") != "group":
            return self
        if isinstance(model, SmallFiltersCNNConfig | ResNetConfig) and model.width % 4:
            raise ValueError(f"model.normalisation = 'group' needs model.width = {model.width} to be a multiple of 4")
        if isinstance(model, ResidualStagesConfig) and any(channels % 4 for channels in model.num_channels):
            raise ValueError(
                "model.normalisation = 'group' needs multiples of 4 channels, and the network has "
                f"{', '.join(map(str, sorted(model.num_channels)))}"
            )
        return self


def _own_augmentation(name: str, section: Any, code: str) -> Section:
    """Raises: ValueError for a section that its code does not know."""
    known, where = augmentations(code), f"augmentation.own.{name}"
    if not isinstance(section, Mapping):
        raise ValueError(f"{where} = {section!r} is not a section of its keys, such as {{}}")
    if name not in known:
        if _is_known(code):
            raise ValueError(f"augmentation.own: unknown augmentation {name!r}{_registered(name, known)}")
        return UnreadSection.model_validate(section)
    try:
        return known[name].config.model_validate(section)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error, known[name].config)}") from error


def _has_batch_norm(section: Any, code: str) -> bool:
    """Whether a network of the user's own has batch normalisation, as far as it can be built for any data."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    try:
        with torch.device("meta"):
            network = networks(code)[section.name].build(section, DataSpec(num_classes=100))
        return any(isinstance(module, _BatchNorm) for module in network.modules())
    except Exception:  # what is wrong with it is said where it is built for its data
        return True


def _is_known(code: str) -> bool:
    """Whether all that a recipe's code registers is known."""
    return not code or is_imported(code)


def _registered(name: str, known: Mapping[str, Any]) -> str:
    return f"{nearest(name, known)}; registered are: {', '.join(known) or 'none, since modules names no code'}"


def check_metric_names(code: str) -> None:
    """Raises: ConfigError for registered metrics that would hide a part of every evaluation."""
    if taken := sorted(metrics(code).keys() & set(OF_EVERY_EVALUATION)):
        raise ConfigError(f"metric {taken[0]!r} is part of every evaluation already; choose another name")


@cache
def classifier_recipe(networks: tuple[RegisteredNetwork, ...], is_open: bool) -> type[ClassifierRecipe]:
    """The class of recipes that can name these networks.

    Args:
        is_open: whether there are others, of which nothing is known.
    """
    sections = tuple(network.config for network in networks)
    if sections == (ResidualStagesConfig, ResNetConfig, SmallFiltersCNNConfig) and not is_open:
        return ClassifierRecipe
    model: Any = Annotated[Union[sections], Field(discriminator="name")]  # noqa: UP007 (of a tuple)
    if is_open:
        model = Annotated[model | UnreadNetwork, Field(union_mode="left_to_right")]
    schema = create_model("ClassifierRecipe", __base__=ClassifierRecipe, model=(model, SmallFiltersCNNConfig()))
    schema.__doc__ = ClassifierRecipe.__doc__
    return schema
