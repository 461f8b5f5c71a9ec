"""The recipe of a sweep: a base job, the space of its keys that is searched, and how."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from cifarscale.config.keys import dotted
from cifarscale.config.recipe import Recipe, Section
from cifarscale.config.validation import nearest
from cifarscale.errors import ConfigError

KINDS = ("choice", "uniform", "loguniform", "quniform", "randint")
"""How a key's values may be distributed."""


class Distribution(Section):
    """What a key of the base is drawn from: exactly one of these."""

    choice: list[Any] = Field(default=[])
    """Any of these values, all as likely."""
    uniform: list[float] = Field(default=[])
    """[low, high]: a number between them."""
    loguniform: list[float] = Field(default=[])
    """[low, high]: a number between them whose logarithm is uniform."""
    quniform: list[float] = Field(default=[])
    """[low, high, step]: a multiple of step between them; whole where all three are."""
    randint: list[int] = Field(default=[])
    """[low, high]: a whole number from low to high - 1."""
    when: dict[str, Any] = Field(default={})
    """Values that other keys must have; elsewhere this key stays as the base has it."""

    @property
    def kind(self) -> str:
        """The one of KINDS that is given."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value}


class NoSchedulerConfig(Section):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


class AshaConfig(Section):
    """Stops the worse trials early (Li et al. 2020, arXiv 1810.05934)."""

    name: Literal["asha"] = "asha"
    grace_steps: PositiveInt = 1000
    """Steps that every trial may run, at which the first are stopped."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One in so many trials goes on at each rung; the next rung is so many times as far."""


class PbtConfig(Section):
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846): num_trials members train side by side, and
    every so often the worse go on from checkpoints of the better, with changed values."""

    name: Literal["pbt"] = "pbt"
    interval_steps: PositiveInt = 1000
    """Steps that all members train before they are compared; a multiple of evaluation.every."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the members that is replaced, each by one of as many at the top."""
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How likely a key's value is drawn anew, rather than changed a little."""


class RandomConfig(Section):
    """Trial i is a function of the sweep's recipe and i alone; no two are the same."""

    name: Literal["random"] = "random"


class GridConfig(Section):
    """All combinations of `choice`, `quniform` and `randint`."""

    name: Literal["grid"] = "grid"


class OptunaConfig(Section):
    """A tree-structured Parzen estimator (Bergstra et al. 2011); needs `pip install optuna`."""

    name: Literal["optuna"] = "optuna"
    num_random: PositiveInt = 8
    """First trials, which are drawn at random."""


class SweepRecipe(Recipe):
    """Searches for better values of a training's keys."""

    one_rank_a_node: ClassVar[bool] = True

    task: Literal["sweep"] = "sweep"
    base: str = "cnn"
    """Recipe that is varied, a name or a path."""
    set: dict[str, Any] = Field(default={})
    """Keys of the base that are changed in every trial, with their values."""
    metric: str = "validation_top1"
    """What trials are compared by: a metric of an evaluation, as in metrics.jsonl, or a dotted key of result.json."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better, or less."""
    num_trials: PositiveInt = 12
    """Trials to start; fewer if the space has no more points."""
    max_concurrent: NonNegativeInt = 0
    """Trials side by side; 0 for as many as the CPUs and GPUs allow."""
    workers_per_trial: PositiveInt = 1
    """Ranks that a trial is trained by, with the same metrics as by one."""
    cpus_per_trial: PositiveInt = 1
    """CPU cores of a trial, or of each of its workers."""
    gpus_per_trial: NonNegativeFloat = 0.0
    """GPUs of a trial, or of each of its workers; a fraction shares one, 0 computes on CPU cores."""
    retries: NonNegativeInt = 1
    """How often a trial whose process died is started again, from its newest checkpoint."""
    time_budget_min: NonNegativeFloat = 0.0
    """Minutes after which no trial goes on; 0 is no limit."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What is drawn follows from it. The trials' own seed is the base's."""
    scheduler: Annotated[NoSchedulerConfig | AshaConfig | PbtConfig, Field(discriminator="name")] = NoSchedulerConfig()
    searcher: Annotated[RandomConfig | GridConfig | OptunaConfig, Field(discriminator="name")] = RandomConfig()
    space: dict[str, Distribution] = Field(default={})
    """What each searched key is drawn from."""

    @model_validator(mode="before")
    @classmethod
    def _sections_of_the_base_stand_in_set(cls, values: Any) -> Any:
        for section, table in values.items() if isinstance(values, Mapping) else ():
            if isinstance(table, Mapping) and section not in cls.model_fields:
                key, _ = next(dotted({section: table}))
                raise ValueError(
                    f"a sweep has no section {section!r}, only scheduler, searcher, set and space; "
                    f"for this key of its base: set.{key}"
                )
        return values

    @field_validator("set", mode="before")
    @classmethod
    def _dotted_set(cls, value: Any) -> Any:
        return dict(dotted(value)) if isinstance(value, Mapping) else value

    @field_validator("space", mode="before")
    @classmethod
    def _dotted_space(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        space = dict(_distributions(value))
        for key, distribution in space.items():
            if not isinstance(distribution, Mapping | Distribution):
                raise ValueError(
                    f"space.{key} = {distribution!r} is not a distribution, such as {{ choice = [1, 2] }}; "
                    f"valid are {', '.join(KINDS)}"
                )
            if isinstance(distribution, Mapping) and isinstance(distribution.get("when"), Mapping):
                space[key] = {**distribution, "when": dict(dotted(distribution["when"]))}
        return space

    @model_validator(mode="after")
    def _distributions_have_bounds(self) -> Self:
        if not self.space:
            raise ValueError(
                'space is empty: name a key, such as "training.learning_rate" = { loguniform = [1e-4, 1] }'
            )
        for key, distribution in self.space.items():
            if problem := _problem(distribution):
                raise ValueError(f"space.{key}: {problem}")
            if key in self.set:
                raise ValueError(f"{key} stands in [set] and in [space]; leave one out")
        return self

    @model_validator(mode="after")
    def _grid_is_finite(self) -> Self:
        for key, distribution in self.space.items():
            if self.searcher.name == "grid" and distribution.kind in ("uniform", "loguniform"):
                raise ValueError(
                    f"space.{key}: {distribution.kind} has no end of values, and searcher.name = 'grid' tries all; "
                    "use choice or quniform"
                )
        return self

    @model_validator(mode="after")
    def _conditions_go_round_in_no_circle(self) -> Self:
        in_order(self.space)
        return self

    def check_nodes(self, num_nodes: int, num_cpus: int, num_gpus: int, where: str, are_reserved: bool = False) -> None:
        cpus, gpus, workers = self.cpus_per_trial, self.gpus_per_trial, self.workers_per_trial
        if cpus > num_cpus:
            raise ConfigError(f"cpus_per_trial = {cpus}, and {where} has {num_cpus} cores")
        if gpus > num_gpus:
            raise ConfigError(f"gpus_per_trial = {gpus:g}, and {where} has {num_gpus} GPUs")
        if gpus > 1:
            raise ConfigError(
                f"gpus_per_trial = {gpus:g}: a worker uses one GPU; for more of them add --workers-per-trial"
            )
        if workers > 1 and 0 < gpus < 1:
            raise ConfigError(
                f"gpus_per_trial = {gpus:g}: two workers of a trial cannot share a GPU; "
                "take 1, or workers_per_trial = 1"
            )
        if (fit := self.workers_that_fit(num_cpus, num_gpus) * num_nodes) < workers:
            raise ConfigError(
                f"workers_per_trial = {workers} of {cpus} cores{f' and {gpus:g} GPUs' if gpus else ''} each, and "
                f"{f'{num_nodes} times ' if num_nodes > 1 else ''}{where} has room for {fit}"
            )
        if are_reserved and num_gpus and not gpus:
            raise ConfigError(
                f"gpus_per_trial = 0 would leave the {num_gpus} GPUs of {where} idle. "
                "Add --set gpus_per_trial=1, or a part of one such as 0.25; or take --profile cpu"
            )

    def plan_rows(self, num_nodes: int, num_cpus: int, num_gpus: int) -> dict[str, str]:
        at_once = num_nodes * self.workers_that_fit(num_cpus, num_gpus) // self.workers_per_trial
        at_once = min(at_once, self.num_trials, self.max_concurrent or self.num_trials)
        return {"trials": f"{self.num_trials}, {at_once} at a time"}

    def workers_that_fit(self, num_cpus: int, num_gpus: int) -> int:
        """How many workers of trials a node has room for."""
        fit = num_cpus // self.cpus_per_trial
        return min(fit, int(num_gpus / self.gpus_per_trial + 1e-6)) if self.gpus_per_trial else fit


def in_order(space: Mapping[str, Distribution]) -> list[str]:
    """The keys of a space, each after those that its `when` names. Raises: ValueError if they wait for each other."""
    ordered: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [key for key in waiting if not any(other in waiting for other in space[key].when)]
        if not ready:
            raise ValueError(f"space: the conditions of {' and '.join(waiting)} wait for each other")
        ordered += ready
        waiting = [key for key in waiting if key not in ready]
    return ordered


def _distributions(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The (dotted key, value) pairs of a space; a table with a field of Distribution in it is a value."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value and not set(value) & set(Distribution.model_fields):
            if any(isinstance(inner, list) for inner in value.values()):
                word = next(iter(value))
                raise ValueError(
                    f"space.{prefix}{key}: unknown distribution {word!r}{nearest(word, KINDS)}; "
                    f"valid are {', '.join(KINDS)}"
                )
            yield from _distributions(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _problem(distribution: Distribution) -> str:
    """What is wrong with its values; empty if nothing."""
    if empty := [kind for kind in KINDS if kind in distribution.model_fields_set and not getattr(distribution, kind)]:
        return f"{empty[0]} = [] is empty: it needs at least one value"
    given = [kind for kind in KINDS if getattr(distribution, kind)]
    if len(given) != 1:
        what = " and ".join(given) or "nothing"
        return f"{what} is given, and exactly one is needed of {', '.join(KINDS)}"
    kind = given[0]
    bounds = getattr(distribution, kind)
    if kind == "choice":
        return ""
    form = "[low, high, step]" if kind == "quniform" else "[low, high]"
    if len(bounds) != (3 if kind == "quniform" else 2):
        return f"{kind} = {bounds} is not of the form {form}"
    low, high, *step = bounds
    if low >= high:
        return f"{kind} = {bounds}: low = {low} must be below high = {high}"
    if kind == "loguniform" and low <= 0:
        return f"{kind} = {bounds}: low = {low} must be above 0, for its logarithm"
    if step and (step[0] <= 0 or math.ceil(low / step[0] - 1e-9) > math.floor(high / step[0] + 1e-9)):
        return f"{kind} = {bounds}: step = {step[0]} must be above 0 and have a multiple between low and high"
    return ""
