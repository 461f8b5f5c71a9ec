"""The Fréchet distance between the Gaussians that two sets of features are taken for."""

import torch

from cifarscale.errors import EvaluationError
from cifarscale.evaluation.moments import Statistics


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Squared Fréchet distance of two Gaussians: |m_a - m_b|² + Tr(C_a + C_b - 2 (C_a^½ C_b C_a^½)^½), at least 0.

    The product of the three is symmetric, so its root's trace is the sum of the roots of its eigenvalues, which are
    real; C_a C_b has the same ones, but is not symmetric.

    An eigenvalue of a symmetric (d, d) matrix M is off by up to about e = d · 2.2e-16 · |M|. Below e it is taken for 0:
    its root alone would be up to sqrt(e). So the trace of the root is off by up to about d · sqrt(e) in the worst case,
    that all of them are as small (relative to Tr(C_a) + Tr(C_b) 1e-6 for d = 2,048 and eigenvalues of one size), and
    by e times a sum of reciprocal roots otherwise.

    Raises: EvaluationError if the dimensions differ, or a covariance has an eigenvalue below 0.
    Source: Dowson & Landau 1982; Heusel et al. 2017 (arXiv 1706.08500), equation 6.
    """
    if a.mean.shape != b.mean.shape:
        raise EvaluationError(
            f"statistics of {len(a.mean)} and of {len(b.mean)} features cannot be compared; compute both with the same "
            "--features"
        )
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * _without_noise(values).sqrt()) @ vectors.T
    product = root @ b.covariance @ root
    _without_noise(torch.linalg.eigvalsh(b.covariance))  # a check
    values = _without_noise(torch.linalg.eigvalsh((product + product.T) / 2))
    difference = a.mean - b.mean
    distance = difference @ difference + a.covariance.trace() + b.covariance.trace() - 2 * values.sqrt().sum()
    return max(0.0, float(distance))


def require_samples(num_samples: int, dim: int, what: str) -> None:
    """Raises: EvaluationError for so few samples that the covariance of `dim` features is singular."""
    if num_samples <= dim:
        raise EvaluationError(
            f"{num_samples:,} {what} images are too few for {dim:,} features: their covariance would be singular. At "
            f"least {dim + 1:,} are needed; --allow-few-samples goes on, for a figure that compares with nothing else"
        )


def _without_noise(values: torch.Tensor) -> torch.Tensor:
    """The eigenvalues (d,) of a covariance, with 0 for what rounding has left of 0.

    Raises: EvaluationError if one is farther below 0 than rounding leaves it.
    """
    noise = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    if float(values.min()) < -100 * noise:
        raise EvaluationError(
            f"a covariance has the eigenvalue {float(values.min()):.3g}, and none may be below 0: it is not one"
        )
    return torch.where(values > noise, values, 0.0)
