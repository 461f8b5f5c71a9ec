"""What a job computes. Every field has a line that says its unit and effect; a key that is not here is an error.

Numbers that switch something off are 0, so that a resolved recipe can be written as TOML with every key in it.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from cifarscale.config.keys import dotted, set_key
from cifarscale.config.validation import explain

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[tuple[str, NonNegativeFloat], Field(strict=False)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
MAY_CHANGE = (
    "training.learning_rate",
    "training.gradient_clip_norm",
    "training.ema_decay",
    "training.ema_statistics",
    "optimizer.weight_decay",
    "optimizer.momentum",
    "optimizer.betas",
    "generator_optimizer.",
    "discriminator_optimizer.",
    "augmentation.",
    "label_smoothing",
    "objective.r1",
    "objective.r2",
    "objective.penalty_every",
)
"""Keys, and the beginnings of keys, that may change in the middle of a run: what was trained before fits them all."""
UNHASHED_VALUES: dict[str, Any] = {
    "later": [],
    "modules": [],
    "code": "",
    "training.rates": [],
    "training.ema_statistics": 0,
    "augmentation.alternating_flip": False,
    "augmentation.padding": "black",
    "augmentation.resolution": 0,
    "augmentation.own": {},
    "evaluation.metrics": [],
    "distillation": {"teacher": "", "weights": "", "temperature": 4.0, "weight": 0.5},
    "objective.penalty_every": 1,
    "discriminator_updates": 1,
    "generator_optimizer": {},
    "discriminator_optimizer": {},
    "test_time_flip": False,
    "flip": False,
}
"""Keys, or sections, that not all recipes have had, each with the value that changes nothing: with that value a key is
no part of a recipe's hash, so that older runs keep theirs."""
MOST_MICROBATCHES = 64
"""Up to so many parts a batch is cut into where the recipe leaves that open: more feed more ranks, each with less."""
LEAST_SAMPLES, LEAST_NORMALISED_SAMPLES = 16, 32
"""Samples that each of these parts has at least, without and with statistics that are taken of it."""
NormalisationKind = Literal["none", "batch", "sync_batch", "group"]
"""`batch` takes the statistics of each microbatch; `sync_batch` those of the global batch, and needs 0 of them."""


class Section(BaseModel):
    """Frozen, and closed to unknown keys; strict enough that "0.1" in quotes is not taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    dataset: str = "cifar100"
    """Name of the set: `cifar100`, `cifar10`, `synthetic`, one that `modules` registers, or one that was built under
    this name."""
    fingerprint: str = ""
    """Identity of the shards; filled in at the first start, and shards with another one are then refused."""
    reader: Literal["in_memory", "streaming"] = "in_memory"
    """`in_memory` decodes the set once into memory on the device; `streaming` reads shards as it goes."""
    num_validation: NonNegativeInt = 0
    """Training samples set aside for validation, chosen by a fixed seed; 0 trains on all of them."""
    canonical_partitions: PositiveInt = 16
    """Streaming only: sequences that are read side by side. Part of what defines the order of the samples."""
    shuffle_buffer: PositiveInt = 2048
    """Streaming only: samples a partition holds to draw the next one from."""

    @model_validator(mode="after")
    def _validation_needs_the_in_memory_reader(self) -> Self:
        if self.num_validation and self.reader == "streaming":
            raise ValueError("data.num_validation needs data.reader = 'in_memory': partitions stream whole shards")
        return self


class AdamWConfig(Section):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); with weight_decay 0 it is Adam."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    """Decays a step of the running means of the gradient and of its square."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second mean, so that nothing is divided by 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Applied to weights of two and more dimensions: not to biases and normalisation."""


class SGDConfig(Section):
    name: Literal["sgd"] = "sgd"
    momentum: Fraction = 0.9
    """Share of the last update that is kept; 0 is off."""
    nesterov: bool = True
    """Takes the gradient where the momentum leads (Nesterov 1983)."""
    weight_decay: NonNegativeFloat = 0.0
    """Applied to weights of two and more dimensions: not to biases and normalisation."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0")
        return self


class MuonConfig(Section):
    """Momentum made orthogonal (Jordan et al. 2024) for dense kernels of convolutions, AdamW for all else.

    Both take training.learning_rate: an orthogonal update is scaled to the size that AdamW's usually has.
    """

    name: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    """Share of the last update of a kernel that is kept; 0 is off."""
    nesterov: bool = True
    """Takes the gradient of a kernel where the momentum leads (Nesterov 1983)."""
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    """Of AdamW: decays a step of the running means of the gradient and of its square."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Of AdamW: added to the root of the second mean, so that nothing is divided by 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Applied to weights of two and more dimensions: not to biases and normalisation."""


OptimizerConfig = Annotated[AdamWConfig | SGDConfig | MuonConfig, Field(discriminator="name")]


class ScheduleConfig(Section):
    name: Literal["constant", "cosine", "one_cycle"] = "constant"
    """Shape of the learning rate over the run; `one_cycle` is Smith & Topin 2018 with cosine sides."""
    warmup_steps: NonNegativeInt = 0
    """Optimisation steps of linear warm-up from 0; for one_cycle the length of its rising side (0: 30 % of the run)."""
    final_fraction: Fraction = 0.0
    """What the rate ends at, as a fraction of `training.learning_rate`; cosine and one_cycle only."""


class TrainingConfig(Section):
    max_steps: PositiveInt = 10_000
    """Optimisation steps of the whole run."""
    global_batch_size: PositiveInt = 64
    """Samples a step, over all ranks and accumulation steps."""
    microbatches: NonNegativeInt = 4
    """Equal parts of the global batch, a power of two. Each is computed by itself, on one core or one GPU, and their
    gradients are summed in a fixed order: the run is the same to the last bit on any number of ranks up to this one.
    Several microbatches a rank are also gradient accumulation: more of them need less memory. 0 is one a rank, summed
    by all-reduce, as DistributedDataParallel does: ranks that divide the batch, equal to rounding only. `"auto"`
    becomes the largest number up to 64 that leaves each 16 samples or more, or 32 where batch normalisation takes its
    statistics of them; the recipe then is the one with that number."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    rates: tuple[Rate, ...] = Field(default=(), strict=False)
    """Factors of the learning rate for parameters by their names: `[["classifier.*", 2.0]]` doubles that of the layer
    `classifier`. Of several patterns that match, the first one counts; 0 leaves parameters as they were drawn."""
    gradient_clip_norm: NonNegativeFloat = 0.0
    """Largest Euclidean norm of a network's gradient; 0 is off."""
    ema_decay: Fraction = 0.0
    """Decay a step of an exponential moving average of the weights, which is then what is evaluated; 0 is off. Where it
    changes in `later` the average goes on; where it was 0 before, the average begins as the weights are then."""
    ema_statistics: NonNegativeInt = 0
    """Batches, of the steps to come, on which batch normalisation's statistics are estimated for the averaged weights
    before these are evaluated or saved (Izmailov et al. 2018); 0 takes those of the weights that are trained."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights stay float32. `fp32` is IEEE's everywhere; `tf32` rounds the
    inputs of products to 10 bits on GPUs that can; `bf16` and `fp16` are automatic mixed precision."""
    compile: bool = False
    """Runs the networks through torch.compile, with microbatches = 0 only: compiled arithmetic rounds differently on
    every kind of machine, and by how many cores it has. Where it fails, says so and goes on without."""
    log_every: PositiveInt = 50
    """Steps between two lines in metrics.jsonl."""
    checkpoint_every: PositiveInt = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept; older ones are removed."""

    @model_validator(mode="after")
    def _compiled_is_not_exact(self) -> Self:
        if self.compile and self.microbatches:
            raise ValueError(
                "training.compile = true gives other numbers on every kind of machine, and "
                f"training.microbatches = {self.microbatches} promises the same ones: "
                "set training.microbatches=0 too, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _statistics_are_of_an_average(self) -> Self:
        if self.ema_statistics and not self.ema_decay:
            raise ValueError(f"training.ema_statistics = {self.ema_statistics} needs training.ema_decay above 0")
        return self

    @model_validator(mode="after")
    def _microbatches_cut_the_batch_evenly(self) -> Self:
        if self.microbatches & (self.microbatches - 1):
            raise ValueError(f"training.microbatches = {self.microbatches} is not a power of two, and not 0")
        if self.microbatches and self.global_batch_size % self.microbatches:
            raise ValueError(
                f"training.microbatches = {self.microbatches} does not divide "
                f"training.global_batch_size = {self.global_batch_size}"
            )
        return self


class EvaluationConfig(Section):
    every: NonNegativeInt = 1000
    """Steps between two evaluations during training; 0 is off. A classifier's accuracy on `validation` where there is
    one, else on `test`; a generator's grid of samples from the same noise each time."""
    batch_size: PositiveInt = 500
    """Samples evaluated at a time. Fixed here so that the metrics do not depend on the number of ranks."""


class BudgetConfig(Section):
    """What a run may cost; one that would cost more is refused before it begins. No part of the recipe's hash."""

    max_parameters: NonNegativeInt = 0
    """Trainable parameters of all networks that are trained together; 0 is no limit."""
    max_steps: NonNegativeInt = 0
    """Optimisation steps; 0 is no limit."""


class TrackingConfig(Section):
    """Whether Weights & Biases is told of a run, and as what. No part of what is computed, nor of the recipe's hash."""

    wandb: Literal["auto", "online", "offline", "off"] = "off"
    """`online` uploads while it trains, and writes files where the server does not answer; `offline` writes files for
    `cifarscale sync`; `auto` is online where a key, a login or a WANDB_* variable says that there is an account, else
    off."""
    project: str = "cifarscale"
    """W&B's project; the variable WANDB_PROJECT, where it is set, says another."""
    group: str = ""
    """What runs are grouped by; empty for the sweep that a trial belongs to, else for the recipe's name."""
    tags: tuple[str, ...] = Field(default=(), strict=False)
    """Labels of the run."""
    artifact: bool = False
    """Uploads the last checkpoint with the run's end."""


class Recipe(Section):
    """What all recipes share."""

    one_rank_a_node: ClassVar[bool] = False
    """Whether a rank takes a whole node, and shares it out by itself, as that of a sweep does among trials."""

    task: str
    """What is done: `classifier`, `gan` and `flow` train one, `distance` compares images, `evaluate` evaluates a
    classifier, `sweep` searches for better values of a training's keys, and plugins add theirs."""
    name: Annotated[str, Field(pattern=r"^(\w[\w .+-]*)?$")] = ""
    """Name of the job; the file's name where it is empty. Run folders are named after it."""
    description: str = ""
    """One line for people."""

    def check_nodes(self, num_nodes: int, num_cpus: int, num_gpus: int, where: str, are_reserved: bool = False) -> None:
        """Checks that nodes have what is needed, for a recipe with one_rank_a_node.

        Args:
            num_cpus, num_gpus: of a node.
            where: names a node.
            are_reserved: whether what is not used of them is lost for others.
        Raises: ConfigError if they do not.
        """

    def plan_rows(self, num_nodes: int, num_cpus: int, num_gpus: int) -> dict[str, str]:
        """What a plan shows of this recipe on such nodes, beside what it shows of every recipe."""
        return {}


class Change(Section):
    """Keys that have other values from a step on."""

    step: PositiveInt
    """Steps that are trained before the change."""
    set: dict[str, Any]
    """The keys, dotted, with their values; only those that say how to go on, such as `training.learning_rate`."""

    @field_validator("set", mode="before")
    @classmethod
    def _dotted_set(cls, value: Any) -> Any:
        return dict(dotted(value)) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Metric:
    """A value that a run reports, by which runs can be compared.

    Attributes:
        name: in metrics.jsonl, or a dotted key of result.json.
        mode: whether more of it is better, `max`, or less, `min`.
        is_final: whether it is known at the end of a run only.
    """

    name: str
    mode: Literal["max", "min"]
    is_final: bool = False


class TrainingRecipe(Recipe):
    """What all trainings share."""

    needs_validation: ClassVar[bool] = False
    """Whether runs are compared on samples that they did not train on, which data.num_validation sets aside."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Initial weights, order of the samples, augmentation and noise all follow from it."""
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    budget: BudgetConfig = BudgetConfig()
    tracking: TrackingConfig = TrackingConfig()
    modules: list[str] = Field(default=[])
    """Your own code: files, relative to the recipe's, or importable modules, that register what the recipe names."""
    code: str = ""
    """Digest of that code; filled in when the recipe is read. A run folder holds a copy."""
    later: list[Change] = Field(default=[])
    """Keys that change in the middle of the run, in the order of their steps; what population-based training finds."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """By what runs of this recipe can be compared."""
        return ()

    @property
    def order(self) -> tuple[str, ...]:
        """Keys of a table in which their order counts; to the recipe's hash that of all others is the same."""
        return ()

    @property
    def compared_every(self) -> int:
        """Steps between two reports of its metrics."""
        return self.evaluation.every

    @property
    def samples_together(self) -> int:
        """Samples that must lie in one microbatch."""
        return 1

    @property
    def takes_batch_statistics(self) -> bool:
        """Whether a network normalises by statistics of a microbatch, as keys that end in `normalisation` say."""
        return any(key.endswith("normalisation") and value == "batch" for key, value in dotted(resolved(self)))

    @property
    def least_samples_of_microbatch(self) -> int:
        """Samples that a microbatch has at least where their number is left open."""
        return LEAST_NORMALISED_SAMPLES if self.takes_batch_statistics else LEAST_SAMPLES

    @property
    def samples_per_step(self) -> int:
        """Training samples that a step reads."""
        return self.training.global_batch_size

    def optimizer_of(self, network: str) -> tuple[OptimizerConfig, float]:
        """The optimizer of one of the networks that are trained together, and its peak learning rate."""
        return self.optimizer, self.training.learning_rate

    @property
    def may_keep_statistics(self) -> bool:
        """Whether what is evaluated may have batch normalisation, whose statistics are those of batches in training."""
        return True

    @property
    def changes_input(self) -> bool:
        """Whether networks are trained on samples of another shape than those of the data."""
        return False

    @model_validator(mode="wrap")
    @classmethod
    def _microbatches_are_chosen(cls, values: Any, validated: ModelWrapValidatorHandler[Self]) -> Self:
        """Puts a number in the place of `training.microbatches = "auto"`."""
        training = values.get("training") if isinstance(values, Mapping) else None
        if not isinstance(training, Mapping) or training.get("microbatches") != "auto":
            return validated(values)
        recipe = validated({**values, "training": {**training, "microbatches": 0}})
        batch, least = recipe.training.global_batch_size, recipe.least_samples_of_microbatch
        numbers = [1 << n for n in range(MOST_MICROBATCHES.bit_length())]
        even = [n for n in numbers if batch % (n * recipe.samples_together) == 0 and batch // n >= least]
        return validated({**values, "training": {**training, "microbatches": max(even, default=1)}})

    def scaled_steps(self, factor: int) -> dict[str, int]:
        """What is counted in steps, by dotted keys, as it is with batches that are `factor` times as large.

        Steps stand at the same number of images, but for rounding; what is off stays off.
        """
        warmup, training = self.schedule.warmup_steps, self.training
        steps = {
            "training.max_steps": -(-training.max_steps // factor),
            "training.log_every": fewer_steps(training.log_every, factor),
            "training.checkpoint_every": fewer_steps(training.checkpoint_every, factor),
            "evaluation.every": fewer_steps(self.evaluation.every, factor),
        }
        return steps | {"schedule.warmup_steps": min(fewer_steps(warmup, factor), steps["training.max_steps"] - 1)}

    @model_validator(mode="after")
    def _warmup_fits_the_run(self) -> Self:
        if self.schedule.warmup_steps >= self.training.max_steps:
            raise ValueError(
                f"schedule.warmup_steps = {self.schedule.warmup_steps} must be below "
                f"training.max_steps = {self.training.max_steps}"
            )
        return self

    @model_validator(mode="after")
    def _statistics_are_of_batch_normalisation(self) -> Self:
        if self.training.ema_statistics and not self.may_keep_statistics:
            raise ValueError(
                f"training.ema_statistics = {self.training.ema_statistics} is for batch normalisation, and the network "
                "has none: set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _steps_are_within_the_budget(self) -> Self:
        if 0 < self.budget.max_steps < self.training.max_steps:
            raise ValueError(
                f"training.max_steps = {self.training.max_steps} is more than "
                f"budget.max_steps = {self.budget.max_steps}"
            )
        return self

    @model_validator(mode="after")
    def _changes_come_in_order_before_the_end(self) -> Self:
        steps = [0, *(change.step for change in self.later), self.training.max_steps]
        for before, step in itertools.pairwise(steps):
            if step <= before:
                raise ValueError(
                    f"later: step = {before} is not before {step}: changes stand in the order of their steps, and "
                    f"before training.max_steps = {self.training.max_steps}; later = [] is without any"
                )
        return self

    @model_validator(mode="after")
    def _changes_are_valid(self) -> Self:
        stages_of(self)
        return self


def fewer_steps(steps: int, factor: int) -> int:
    """So many steps in batches that are `factor` times as large, to the nearest; 0 stays 0."""
    return max(1, round(steps / factor)) if steps else 0


@dataclass(frozen=True)
class Stage:
    """A part of a run in which no key changes.

    Attributes:
        recipe: with the values of this part.
        until: the last step of the part.
    """

    recipe: TrainingRecipe
    until: int


def stages_of(recipe: TrainingRecipe) -> list[Stage]:
    """The parts of a run, in their order; a single one where nothing changes. Raises: ValueError for a bad change."""
    values = resolved(recipe)
    changes = values.pop("later", [])
    ends = [*(change["step"] for change in changes), recipe.training.max_steps]
    stages = [Stage(recipe.model_copy(update={"later": []}), ends[0])]
    for change, until in zip(changes, ends[1:], strict=True):
        for key, value in change["set"].items():
            if not key.startswith(MAY_CHANGE):
                raise ValueError(
                    f"later: {key} cannot change at step {change['step']}, in the middle of a run; "
                    f"valid are {may_change()}"
                )
            set_key(values, key, value)
        try:
            stages.append(Stage(type(recipe).model_validate(values), until))
        except ValidationError as error:
            raise ValueError(f"later: at step {change['step']}: {explain(error, type(recipe))}") from None
    return stages


def may_change() -> str:
    """MAY_CHANGE for people."""
    return ", ".join(f"{key}*" if key.endswith(".") else key for key in MAY_CHANGE)


def check_sync_batch(key: str, kind: NormalisationKind, training: TrainingConfig) -> None:
    """Raises: ValueError for a normalisation over ranks where microbatches are computed by themselves."""
    if kind == "sync_batch" and training.microbatches:
        raise ValueError(f"{key} = 'sync_batch' needs training.microbatches = 0: its statistics span ranks")


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The job as plain values with every default written out, ready for TOML or JSON."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    scalars = {key: value for key, value in values.items() if not isinstance(value, dict)}
    return scalars | {key: value for key, value in values.items() if isinstance(value, dict)}
