"""Fréchet distance of two Gaussians; the FID where they are fitted to features of the Inception network."""

import torch

from cifarscale.errors import EvaluationError
from cifarscale.evaluation.moments import Statistics

_EPS = torch.finfo(torch.float64).eps


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Squared Fréchet distance |mu1 - mu2|² + Tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½) between two Gaussians.

    The last trace is the sum of the singular values of S1^½ S2^½, with both roots by symmetric eigenvalues. Those of
    S1^½ S2 S1^½ itself are their squares: to take roots of them would lose half of the digits.

    Rounding: let L be a covariance's largest eigenvalue plus |mu|², since it is a difference of numbers as large, l its
    smallest eigenvalue, and eps = 2.2e-16. Eigenvalues below d·eps·L are noise, and set to 0, so that covariances of
    fewer samples than features give a stable result. With the rounding
    of the eigenvalues, this replaces S by a matrix at most t = 2·d·eps·L away, and its root by one at most
    r = sqrt(d·t) away in the Frobenius norm (Powers & Størmer 1970), or √d·t / √l if that is less. The nuclear norm of
    a product is at most the product of the Frobenius norms, so the result is wrong by at most

        2 (r1 sqrt(Tr S2) + r2 sqrt(Tr S1)) + 4·d²·eps·sqrt(L1 L2) + d·eps·(|mu1 - mu2|² + Tr S1 + Tr S2):

    about 1e-13 of the traces for well-conditioned covariances of 64 features, 1e-5 for singular ones at the very worst.

    Returns: a number >= 0, in the features' squared units; what rounding leaves below 0 is 0.
    Raises: EvaluationError if the numbers of features differ, or an eigenvalue is below 0 by more than d·eps·L.
    Source: Heusel et al. 2017 (arXiv 1706.08500), section 2; Dowson & Landau 1982, "The Fréchet distance between
        multivariate normal distributions".
    """
    if len(a.mean) != len(b.mean):
        raise EvaluationError(
            f"statistics of {len(a.mean)} features and of {len(b.mean)} cannot be compared, only of equal numbers. "
            "Compute both with the same network"
        )
    overlap = torch.linalg.svdvals(_root(a).T @ _root(b)).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(float(distance), 0.0)


def _root(statistics: Statistics) -> torch.Tensor:
    """R of shape (d, rank), whose columns are orthogonal, with R Rᵀ = the covariance: its root in its eigenbasis."""
    values, vectors = torch.linalg.eigh(statistics.covariance)
    noise = len(values) * _EPS * (values[-1].clamp(min=0) + statistics.mean.square().sum())
    if values[0] < -noise:
        raise EvaluationError(
            f"a covariance of {len(values)} features has the eigenvalue {float(values[0]):.3g}, and rounding excuses "
            f"none below {float(-noise):.1g}. Compute the statistics again, in float64"
        )
    kept = values > noise
    root: torch.Tensor = vectors[:, kept] * values[kept].sqrt()
    return root


def require_samples(num_samples: int | None, dim: int, what: str) -> None:
    """Checks that a covariance of `dim` features can have full rank; a number that is not known (None) passes.

    Args:
        what: names the samples in the message, such as "generated images".
    Raises: EvaluationError if there are fewer than dim + 1.
    """
    if num_samples is not None and num_samples <= dim:
        raise EvaluationError(
            f"the Fréchet distance over {dim} features needs at least {dim + 1} {what}, and there are {num_samples}: "
            "with fewer their covariance is singular. Give more, or go on regardless with --allow-few-samples"
        )
