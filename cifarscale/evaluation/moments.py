"""Mean and covariance of features, summed as they come; and pytorch-fid's file of them."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from cifarscale.distributed import Group
from cifarscale.errors import EvaluationError
from cifarscale.files import write_atomically


@dataclass(frozen=True)
class Statistics:
    """The first two moments of a set of features.

    Attributes:
        mean: (d,) float64.
        covariance: (d, d) float64, unbiased: divided by n - 1.
        num_samples: n; None where a file does not say.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    num_samples: int | None = None

    def save(self, path: Path, **arrays: NDArray[Any]) -> None:
        """Saves them as `mu` and `sigma` in a `.npz`, as pytorch-fid does, with more arrays beside them."""
        count = {} if self.num_samples is None else {"num_samples": np.array(self.num_samples)}
        named: dict[str, Any] = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy(), **count, **arrays}
        write_atomically(path, lambda file: np.savez(file, **named))

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` or pytorch-fid wrote.

        Raises: EvaluationError if there is no such file, or it does not hold a mean and a covariance.
        """
        try:
            with np.load(path) as file:
                mean, covariance = (torch.from_numpy(file[key].astype(np.float64)) for key in ("mu", "sigma"))
                count = int(file["num_samples"]) if "num_samples" in file else None
        except FileNotFoundError:
            raise EvaluationError(f"no file of statistics {path}. Make one with --save-statistics") from None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise EvaluationError(
                f"{path} is not a file of statistics with the arrays mu and sigma, as pytorch-fid writes them: {error}"
            ) from error
        if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
            shapes = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}"
            raise EvaluationError(f"{path} holds {shapes}, and these are no mean and covariance")
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise EvaluationError(f"{path} holds numbers that are not finite")
        return cls(mean, covariance, count)


class Moments:
    """Count, sum and sum of outer products of features, in float64.

    The covariance is what is left of the mean square when the squared mean is taken away, and so loses as many digits
    as the mean is larger than the spread: of 15, one for features of a network, whose mean and spread are alike.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def add(self, features: torch.Tensor) -> None:
        """Takes in features (b, d)."""
        features = features.double()
        self.count += len(features)
        self._sum += features.sum(0)
        self._outer.addmm_(features.T, features)

    def sum_over(self, group: Group) -> None:
        """Adds up what all ranks have taken in, by one all-reduce."""
        count = torch.tensor([self.count], dtype=torch.float64)
        total = group.sum_(torch.cat([count, self._sum.cpu(), self._outer.flatten().cpu()]))
        dim = len(self._sum)
        self.count = int(total[0])
        self._sum.copy_(total[1 : 1 + dim])
        self._outer.copy_(total[1 + dim :].view(dim, dim))

    def statistics(self) -> Statistics:
        """Mean and covariance of everything taken in.

        Raises: EvaluationError for fewer than 2 samples, or if they are not finite.
        """
        if self.count < 2:
            raise EvaluationError(f"a covariance needs at least 2 samples, and there are {self.count}")
        mean = self._sum / self.count
        covariance = (self._outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise EvaluationError(
                f"the features of {self.count} samples are not finite: the network that computes them, or the one that "
                "generated the samples, has overflowed. Use a checkpoint before that, or --precision exact"
            )
        return Statistics(mean.cpu(), ((covariance + covariance.T) / 2).cpu(), self.count)
