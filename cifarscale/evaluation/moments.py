"""Mean and covariance of features, summed over batches and ranks, and kept in files that pytorch-fid reads too."""

import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from cifarscale.distributed.all_reduce import sum_in_parts
from cifarscale.distributed.group import Group
from cifarscale.errors import EvaluationError
from cifarscale.runs.files import write_atomically

NUM_LANES = 16
"""Sums that are kept apart, each by one rank."""
_ASYMMETRY = 1e-6
"""Relative to the largest entry: what float32 leaves, in which some tools compute."""


@dataclass(frozen=True)
class Statistics:
    """A Gaussian fitted to features.

    Attributes:
        mean: (d,) float64, on the CPU.
        covariance: (d, d) float64, on the CPU; symmetric, and unbiased (over n - 1) as from numpy.cov.
        num_samples: how many it was fitted to; None where a file does not say.
    Raises: EvaluationError if the shapes do not fit, a value is not finite, or the covariance is not symmetric.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    num_samples: int | None = None

    def __post_init__(self) -> None:
        mean, covariance = self.mean, self.covariance
        dim = len(mean) if mean.ndim == 1 else 0
        if dim == 0 or covariance.shape != (dim, dim):
            raise EvaluationError(
                f"a mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(covariance.shape)} do not fit: "
                "they must be (d,) and (d, d). Compute the statistics again"
            )
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise EvaluationError(
                f"the mean or the covariance of {dim} features has values that are not finite, and all must be. "
                "Compute the statistics again, in float32 or better"
            )
        asymmetry = float((covariance - covariance.T).abs().max())
        if asymmetry > _ASYMMETRY * float(covariance.abs().max()):
            raise EvaluationError(
                f"a covariance of {dim} features differs from its transpose by {asymmetry:.3g}, and must be symmetric. "
                "Compute the statistics again"
            )

    def save(self, path: Path, **arrays: ArrayLike) -> None:
        """Writes an .npz with `mu` and `sigma`, as pytorch-fid names them, `num_samples` if known, and more arrays.

        Raises: CifarscaleError if the file cannot be written.
        """
        more: dict[str, Any] = {**arrays}
        if self.num_samples is not None:
            more["num_samples"] = np.int64(self.num_samples)
        write_atomically(path, partial(np.savez, mu=self.mean.numpy(), sigma=self.covariance.numpy(), **more))

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Reads what `save` wrote, or `pytorch-fid --save-stats`, which does not say the number of samples.

        Raises: EvaluationError if the file is missing, damaged, no .npz, or does not hold valid statistics.
        """
        remedy = "Name an .npz with mu and sigma, such as `pytorch-fid --save-stats` writes"
        try:
            with np.load(path) as file:  # a plain .npy has no `files`, hence the AttributeError
                if missing := [key for key in ("mu", "sigma") if key not in file.files]:
                    names = ", ".join(file.files) or "nothing"
                    raise EvaluationError(f"{path} holds {names}, and lacks {' and '.join(missing)}. {remedy}")
                mean, covariance = (torch.from_numpy(file[key].astype(np.float64)) for key in ("mu", "sigma"))
                num_samples = int(file["num_samples"]) if "num_samples" in file.files else None
        except OSError as error:
            raise EvaluationError(f"cannot read {path}: {error.strerror or error}. {remedy}") from error
        except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise EvaluationError(f"{path} is damaged, or no .npz of numbers. {remedy}") from error
        try:
            # numpy.cov of a single feature has no dimension.
            return cls(mean, covariance.reshape(1, 1) if covariance.ndim == 0 else covariance, num_samples)
        except EvaluationError as error:
            raise EvaluationError(f"{path}: {error}") from error


class Moments:
    """Count, sum and sum of outer products of features, in float64; the same to the last bit on any number of ranks.

    Sums depend on their order. So batches are added up in `NUM_LANES` lanes, each by one rank in the order of the
    batches, and then the lanes are: a part of them by each rank.

    The covariance is the mean outer product less that of the mean. The error of entry (i, j) is at most about
    n·eps·rms_i·rms_j, with n samples, eps = 2.2e-16 and rms the root of the mean square, and usually √n·eps in place of
    n·eps: with 50,000 samples whose mean is as large as their spread, ten digits are certain and thirteen usual.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self._dim, self._device = dim, device
        self._lanes: dict[int, torch.Tensor] = {}
        """Each (d² + d + 1,): the sum of outer products, the sum, and the count."""

    @property
    def count(self) -> int:
        """Samples taken in so far."""
        return sum(int(lane[-1]) for lane in self._lanes.values())

    @torch.no_grad()
    def add(self, features: torch.Tensor, batch: int = 0) -> None:
        """Takes in features (b, d) of any float dtype, the batch of this number among all that there are."""
        lane = batch % NUM_LANES
        if lane not in self._lanes:
            self._lanes[lane] = self._zeros()
        outer, total, count = self._parts(self._lanes[lane])
        values = features.to(total)
        outer.addmm_(values.mT, values)
        total += values.sum(0)
        count += len(values)

    def sum_over(self, group: Group) -> None:
        """Adds up the lanes of all ranks, in the lanes' order, into one."""
        lanes = sorted(self._lanes)
        keys = [[(lane, rank) for lane in each] for rank, each in enumerate(group.of_all(lanes))]
        rows = [self._lanes.pop(lane).cpu() for lane in lanes]
        total = self._zeros().cpu()
        if any(keys):
            sum_in_parts(rows, keys, group.ranks.rank, _in_turn, total, group.transfer)
        self._lanes = {0: total.to(self._device)}

    def statistics(self) -> Statistics:
        """Mean and covariance of everything taken in, after `sum_over`.

        Raises: EvaluationError if a sum is not finite, or with fewer than 2 samples.
        """
        if self.count < 2:
            raise EvaluationError(f"a covariance needs at least 2 samples, and there are {self.count}. Give more")
        (lane,) = self._lanes.values()
        outer, total, _ = self._parts(lane)
        if wrong := int((~(total.isfinite() & outer.isfinite().all(0))).sum()):
            raise EvaluationError(
                f"{wrong} of {len(total)} features are not finite when summed over {self.count} samples: the images or "
                "the network's weights are not finite, or half precision overflowed. Compute the features in float32"
            )
        mean = total / self.count
        covariance = (outer - torch.outer(total, mean)) / (self.count - 1)
        return Statistics(mean.cpu(), ((covariance + covariance.T) / 2).cpu(), self.count)

    def _zeros(self) -> torch.Tensor:
        """The sums of nothing."""
        return torch.zeros(self._dim**2 + self._dim + 1, dtype=torch.float64, device=self._device)

    def _parts(self, lane: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of the sum of outer products (d, d), the sum (d,), and the count (1,)."""
        outer, total, count = torch.split(lane, [self._dim**2, self._dim, 1])
        return outer.view(self._dim, self._dim), total, count


def _in_turn(rows: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """The sum of lanes, one after the other."""
    (_, first), *others = sorted(rows.items())
    for _, row in others:
        first += row
    return first


def require_features(real: torch.Tensor, generated: torch.Tensor, num_needed: int, metric: str) -> None:
    """Checks two sets of features that are to be compared, (n, d) and (m, d).

    Raises: EvaluationError if a set has fewer than `num_needed` samples, a value that is not finite, or another d.
    """
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < num_needed:
            raise EvaluationError(
                f"{metric} needs at least {num_needed} samples of each set, and there are {len(features)} {name} ones. "
                "Give more"
            )
        if wrong := int((~features.isfinite().all(1)).sum()):
            raise EvaluationError(
                f"{wrong} of {len(features)} {name} samples have features that are not finite: the images or the "
                "network's weights are not, or half precision overflowed. Compute the features in float32"
            )
    if real.shape[1] != generated.shape[1]:
        raise EvaluationError(
            f"the real samples have {real.shape[1]} features and the generated ones {generated.shape[1]}, and only "
            "equal numbers can be compared. Compute both with the same network"
        )
