"""The Fréchet distance: pytorch-fid's figures, closed forms, its symmetries, and the bound on its error."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from cifarscale.errors import EvaluationError
from cifarscale.evaluation.frechet import frechet_distance, require_samples
from cifarscale.evaluation.moments import Moments, Statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_fid.fid_score import calculate_frechet_distance

EPS = torch.finfo(torch.float64).eps


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(dim: int, seed: int = 9) -> torch.Tensor:
    return torch.linalg.qr(normals(dim, dim, seed=seed))[0]


def fitted(num: int, dim: int, seed: int, offset: float = 0.0) -> Statistics:
    """Statistics of samples whose features are correlated."""
    moments = Moments(dim, torch.device("cpu"))
    moments.add(normals(num, dim, seed=seed) @ normals(dim, dim, seed=seed + 100) / math.sqrt(dim) + offset)
    return moments.statistics()


def with_spectrum(values: torch.Tensor, basis: torch.Tensor, mean: torch.Tensor | None = None) -> Statistics:
    covariance = (basis * values) @ basis.T
    return Statistics(torch.zeros_like(values) if mean is None else mean, (covariance + covariance.T) / 2)


def theirs(a: Statistics, b: Statistics) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, on what pytorch-fid asks of it
        arrays = (a.mean.numpy(), a.covariance.numpy(), b.mean.numpy(), b.covariance.numpy())
        return float(calculate_frechet_distance(*arrays))


def bound(a: Statistics, b: Statistics) -> float:
    """On the error, as the docstring of `frechet_distance` has it."""
    dim = len(a.mean)
    largest, roots, traces = [], [], []
    for statistics in (a, b):
        values = torch.linalg.eigvalsh(statistics.covariance)
        largest.append(float(values[-1]))
        traces.append(float(statistics.covariance.trace()))
        t, smallest = 2 * dim * EPS * largest[-1], float(values[0])
        roots.append(min(math.sqrt(dim * t), math.sqrt(dim) * t / math.sqrt(smallest) if smallest > 0 else math.inf))
    error = 2 * (roots[0] * math.sqrt(traces[1]) + roots[1] * math.sqrt(traces[0]))
    error += 4 * dim**2 * EPS * math.sqrt(largest[0] * largest[1])
    return error + dim * EPS * (float((a.mean - b.mean).square().sum()) + sum(traces))


@pytest.mark.parametrize("dim", [2, 16, 100])
def test_well_conditioned_statistics_give_the_distance_of_pytorch_fid(dim: int) -> None:
    a, b = fitted(1000 + 20 * dim, dim, seed=1), fitted(900 + 20 * dim, dim, seed=2, offset=0.3)
    assert frechet_distance(a, b) == pytest.approx(theirs(a, b), rel=1e-9)


@pytest.mark.parametrize(("num_a", "num_b"), [(20, 2000), (2000, 20), (20, 30), (2, 2)])
def test_singular_statistics_give_the_distance_of_pytorch_fid(num_a: int, num_b: int) -> None:
    a, b = fitted(num_a, 64, seed=1), fitted(num_b, 64, seed=2, offset=0.3)
    assert frechet_distance(a, b) == pytest.approx(theirs(a, b), rel=1e-3)


def test_identical_statistics_are_at_distance_0() -> None:
    for statistics in (fitted(1000, 32, seed=1), fitted(10, 32, seed=1, offset=5.0)):
        assert frechet_distance(statistics, statistics) <= bound(statistics, statistics)


def test_one_dimension() -> None:
    a = Statistics(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    b = Statistics(torch.tensor([3.0]).double(), torch.tensor([[9.0]]).double())
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2, rel=1e-14)


def test_diagonal_covariances() -> None:
    x, y, mean = normals(20, seed=1).exp(), normals(20, seed=2).exp(), normals(20, seed=3)
    a, b = with_spectrum(x, torch.eye(20).double()), with_spectrum(y, torch.eye(20).double(), mean)
    expected = float(mean.square().sum() + (x.sqrt() - y.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("num", [20, 2000])
def test_a_shift_costs_its_square_and_a_scale_its_share_of_the_trace(num: int) -> None:
    a = fitted(num, 32, seed=1)
    shift = normals(32)
    shifted = Statistics(a.mean + shift, a.covariance)
    assert frechet_distance(a, shifted) == pytest.approx(float(shift.square().sum()), abs=bound(a, shifted))
    scaled = Statistics(a.mean, a.covariance * 9)
    assert frechet_distance(a, scaled) == pytest.approx((3 - 1) ** 2 * float(a.covariance.trace()), rel=1e-9)


def test_covariances_with_nothing_in_common() -> None:
    """Of points, or in directions at right angles: what is left are the traces."""
    zero = Statistics(torch.zeros(4).double(), torch.zeros(4, 4).double())
    x = with_spectrum(torch.tensor([1.0, 2.0, 0.0, 0.0]).double(), torch.eye(4).double())
    y = with_spectrum(torch.tensor([0.0, 0.0, 3.0, 4.0]).double(), torch.eye(4).double())
    assert frechet_distance(zero, zero) == 0
    assert frechet_distance(zero, x) == 3
    assert frechet_distance(x, y) == pytest.approx(10, rel=1e-14)


@pytest.mark.parametrize(("num_a", "num_b"), [(1000, 900), (20, 2000), (20, 30)])
def test_it_is_symmetric_and_no_rotation_changes_it(num_a: int, num_b: int) -> None:
    a, b = fitted(num_a, 64, seed=1), fitted(num_b, 64, seed=2, offset=0.3)
    basis = rotation(64)
    rotated = []
    for statistics in (a, b):
        covariance = basis @ statistics.covariance @ basis.T
        rotated.append(Statistics(basis @ statistics.mean, (covariance + covariance.T) / 2))
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-13)
    assert frechet_distance(*rotated) == pytest.approx(distance, rel=1e-10)


def test_eigenvalues_are_not_taken_of_the_product_which_is_not_symmetric() -> None:
    """`eigvalsh` reads one triangle of S1 S2 and gives a plausible number that is wrong."""
    a, b = fitted(500, 16, seed=1), fitted(500, 16, seed=2)
    product = a.covariance @ b.covariance
    right = float(torch.linalg.eigvals(product).real.sqrt().sum())
    trap = float(torch.linalg.eigvalsh(product).clamp(min=0).sqrt().sum())
    traces = float(a.covariance.trace() + b.covariance.trace() + (a.mean - b.mean).square().sum())
    assert abs(trap - right) > 0.01 * right
    assert frechet_distance(a, b) == pytest.approx(traces - 2 * right, rel=1e-9)


def test_small_eigenvalues_keep_their_digits() -> None:
    """They would lose half of them as eigenvalues of S1^½ S2 S1^½, where they are products."""
    x, y, basis = torch.logspace(0, -9, 128).double(), torch.logspace(0.3, -8, 128).double(), rotation(128)
    a, b = with_spectrum(x, basis), with_spectrum(y, basis)
    assert frechet_distance(a, b) == pytest.approx(float((x.sqrt() - y.sqrt()).square().sum()), rel=1e-12)


@pytest.mark.parametrize("decades", [0, 2, 8, 14, 30])
@pytest.mark.parametrize("rank", [1, 10, 64])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_the_error_is_within_its_bound(decades: float, rank: int, scale: float) -> None:
    """For covariances with common eigenvectors, whose distance is known: any rank, and any condition number."""
    values = [torch.zeros(64).double(), torch.zeros(64).double()]
    values[0][:rank] = torch.logspace(0, -decades, rank).double()
    values[1][64 - rank :] = torch.logspace(1, -decades, rank).double()
    for other, factor in ((values[0] * 2, 1.0), (values[1], scale), (torch.ones(64).double(), scale)):
        pair = (values[0], other * factor)
        expected = float((pair[0].sqrt() - pair[1].sqrt()).square().sum())
        a, b = (with_spectrum(spectrum, rotation(64)) for spectrum in pair)
        assert abs(frechet_distance(a, b) - expected) <= bound(a, b)


def test_the_bound_says_something() -> None:
    full = with_spectrum(torch.linspace(1, 2, 64).double(), rotation(64))
    singular = with_spectrum(torch.arange(64).double().clamp(max=1), rotation(64))
    assert bound(full, full) < 1e-12 * float(full.covariance.trace())
    assert bound(singular, singular) < 1e-5 * float(singular.covariance.trace())


def test_it_grows_with_the_number_of_samples_missing() -> None:
    """Fewer samples are further from the truth, and no jump marks the fewest that span all features."""
    truth = fitted(20_000, 32, seed=1)
    samples = normals(500, 32, seed=5) @ normals(32, 32, seed=101) / math.sqrt(32)
    distances = []
    for num in (8, 16, 31, 32, 33, 34, 64, 500):
        moments = Moments(32, torch.device("cpu"))
        moments.add(samples[:num])
        distances.append(frechet_distance(truth, moments.statistics()))
    assert distances[0] > distances[1] > distances[2] > distances[5] > distances[6] > distances[7] > 0
    assert all(abs(x - y) < 0.1 * x for x, y in pairwise(distances[2:6]))


@pytest.mark.parametrize("num", [2, 10, 63])
def test_rounding_of_a_singular_covariance_is_excused_even_far_from_0(num: int) -> None:
    near, far = fitted(num, 64, seed=1), fitted(num, 64, seed=1, offset=1e4)
    assert float(torch.linalg.eigvalsh(far.covariance)[0]) < 0
    truth = fitted(1000, 64, seed=2)
    moved = Statistics(truth.mean + 1e4, truth.covariance)
    assert frechet_distance(far, moved) == pytest.approx(frechet_distance(near, truth), rel=1e-3)


def test_statistics_of_other_features_cannot_be_compared() -> None:
    with pytest.raises(EvaluationError, match=r"^statistics of 3 features and of 4 cannot be compared, only of equal"):
        frechet_distance(fitted(10, 3, seed=1), fitted(10, 4, seed=1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(EvaluationError, match="not finite"):
        frechet_distance(fitted(10, 3, seed=1), Statistics(torch.full((3,), value), torch.eye(3)))


@pytest.mark.parametrize("swap", [False, True])
def test_a_covariance_with_a_negative_eigenvalue_is_refused(swap: bool) -> None:
    good = fitted(100, 3, seed=1)
    bad = with_spectrum(torch.tensor([1.0, 0.5, -1e-9]).double(), rotation(3))
    message = r"^a covariance of 3 features has the eigenvalue -1e-09, and rounding excuses none below -7e-16\. Compute"
    with pytest.raises(EvaluationError, match=message):
        frechet_distance(*((bad, good) if swap else (good, bad)))


def test_a_covariance_has_full_rank_with_one_sample_more_than_features() -> None:
    for num, rank in ((8, 7), (9, 8)):
        assert np.linalg.matrix_rank(fitted(num, 8, seed=1).covariance.numpy()) == rank
    require_samples(9, 8, "real images")
    require_samples(None, 8, "real images")
    message = (
        "^the Fréchet distance over 8 features needs at least 9 real images, and there are 8: .*--allow-few-samples$"
    )
    with pytest.raises(EvaluationError, match=message):
        require_samples(8, 8, "real images")
