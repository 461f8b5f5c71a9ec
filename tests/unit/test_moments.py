"""Moments of features: those of NumPy however the samples are cut, and files that pytorch-fid and we both read."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifarscale.errors import CifarscaleError, EvaluationError
from cifarscale.evaluation.moments import NUM_LANES, Moments, Statistics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_fid.fid_score import compute_statistics_of_path

N, D = 101, 7
CPU = torch.device("cpu")
Over = Callable[[int, Callable[..., Any]], list[Any]]


def features(num: int = N, dim: int = D, offset: float = 2.0) -> torch.Tensor:
    """(num, dim) float64, correlated, and away from 0."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mix + offset


def moments(values: torch.Tensor, batch_size: int = N) -> Moments:
    result = Moments(values.shape[1], CPU)
    for batch in values.split(batch_size):
        result.add(batch)
    return result


def assert_those_of_numpy(statistics: Statistics, values: torch.Tensor) -> None:
    scale = float(values.square().mean())
    assert statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    np.testing.assert_allclose(statistics.mean, values.numpy().mean(0), rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(statistics.covariance, np.cov(values.numpy().T), rtol=0, atol=1e-12 * scale)
    assert statistics.num_samples == len(values)
    assert torch.equal(statistics.covariance, statistics.covariance.T)


@pytest.mark.parametrize("batch_size", [1, 2, 10, 100, 101])
def test_moments_are_those_of_numpy_for_any_batches(batch_size: int) -> None:
    assert_those_of_numpy(moments(features(), batch_size).statistics(), features())


@pytest.mark.parametrize("world_size", [2, 3, 4, 20])
def test_every_bit_is_the_same_on_any_number_of_ranks(over_ranks: Over, world_size: int) -> None:
    def on_rank(group: Any) -> Statistics:
        mine = Moments(D, CPU)
        for number, batch in enumerate(features().split(3)):
            if number % NUM_LANES % group.ranks.world_size == group.ranks.rank:
                mine.add(batch, number)
        mine.sum_over(group)
        return mine.statistics()

    (alone,) = over_ranks(1, on_rank)
    assert_those_of_numpy(alone, features())
    for result in over_ranks(world_size, on_rank):
        assert torch.equal(result.mean, alone.mean)
        assert torch.equal(result.covariance, alone.covariance)


def test_a_rank_without_samples_adds_none(over_ranks: Over) -> None:
    def on_rank(group: Any) -> Statistics:
        mine = moments(features()[: N * group.ranks.is_first])
        mine.sum_over(group)
        return mine.statistics()

    for result in over_ranks(3, on_rank):
        assert_those_of_numpy(result, features())


def test_a_sample_that_is_dropped_or_doubled_is_noticed() -> None:
    values = features()
    whole = moments(values).statistics()
    for other in (values[1:], torch.cat([values, values[:1]])):
        statistics = moments(other).statistics()
        assert statistics.num_samples != whole.num_samples
        assert not torch.allclose(statistics.covariance, whole.covariance, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_of_any_dtype_are_in_double_precision(dtype: torch.dtype) -> None:
    values = features().to(dtype)
    assert_those_of_numpy(moments(values, 10).statistics(), values.double())


def test_features_with_gradients_or_from_inference_leave_no_graph() -> None:
    with torch.inference_mode():
        inferred = features() * 1
    result = Moments(D, CPU)
    result.add(inferred[:50])
    result.add(features()[50:].requires_grad_())
    assert_those_of_numpy(result.statistics(), features())
    assert not result.statistics().covariance.requires_grad


def test_the_error_stays_within_the_bound_for_a_mean_far_above_the_spread() -> None:
    values = features(num=1000, offset=1e4)
    error = (moments(values, 10).statistics().covariance - torch.from_numpy(np.cov(values.numpy().T))).abs()
    rms = values.square().mean(0).sqrt()
    bound = len(values) * np.finfo(float).eps * torch.outer(rms, rms)
    assert (error < bound).all()
    assert (error < bound / 10).all()  # √n in place of n


def test_samples_of_other_dimensions_are_refused_and_not_counted() -> None:
    result = Moments(D, CPU)
    for wrong in (torch.ones(5, D + 1), torch.ones(5, 1), torch.ones(D)):
        with pytest.raises(RuntimeError):
            result.add(wrong)
    result.add(features())
    assert_those_of_numpy(result.statistics(), features())


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_samples_have_no_covariance(num: int) -> None:
    with pytest.raises(
        EvaluationError, match=f"^a covariance needs at least 2 samples, and there are {num}. Give more$"
    ):
        moments(features()[:num]).statistics()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_sums_that_are_not_finite_are_an_error_on_every_rank(over_ranks: Over, value: float) -> None:
    def on_rank(group: Any) -> str:
        values = features()
        if group.ranks.is_first:
            values[3, 2] = values[5, 4] = value
        mine = moments(values)
        mine.sum_over(group)
        with pytest.raises(EvaluationError, match=r"float32$") as caught:
            mine.statistics()
        return str(caught.value)

    for message in over_ranks(2, on_rank):
        # Each of the two makes the products with itself infinite; those are counted in the later column.
        assert "of 7 features are not finite when summed over 202 samples: " in message
        assert "\n" not in message


# Files


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "stätistics of it.npz"
    moments(features()).statistics().save(path, **arrays)
    return path


def test_a_file_reads_back_as_it_was(tmp_path: Path) -> None:
    statistics, again = moments(features()).statistics(), Statistics.load(saved(tmp_path))
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.covariance, statistics.covariance)
    assert again.num_samples == N
    assert [path.name for path in tmp_path.iterdir()] == ["stätistics of it.npz"]


def test_pytorch_fid_reads_our_file(tmp_path: Path) -> None:
    mean, covariance = compute_statistics_of_path(str(saved(tmp_path, note="hello")), None, 1, D, CPU)
    np.testing.assert_array_equal(mean, moments(features()).statistics().mean)
    np.testing.assert_array_equal(covariance, moments(features()).statistics().covariance)
    assert mean.dtype == covariance.dtype == np.float64


def test_more_arrays_stand_beside_the_statistics(tmp_path: Path) -> None:
    with np.load(saved(tmp_path, labels=np.arange(3), network="inception")) as file:
        assert set(file.files) == {"mu", "sigma", "num_samples", "labels", "network"}
        assert file["labels"].tolist() == [0, 1, 2]
        assert str(file["network"]) == "inception"
    with pytest.raises(TypeError):
        saved(tmp_path, mu=np.zeros(D))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_we_read_what_pytorch_fid_writes(tmp_path: Path, dtype: type) -> None:
    values = features().numpy()
    covariance = np.cov(values.T).astype(dtype)
    np.savez_compressed(tmp_path / "theirs.npz", mu=values.mean(0).astype(dtype), sigma=covariance)
    statistics = Statistics.load(tmp_path / "theirs.npz")
    np.testing.assert_array_equal(statistics.covariance, covariance)
    assert statistics.covariance.dtype == statistics.mean.dtype == torch.float64
    assert statistics.num_samples is None


def test_we_read_a_single_feature_of_which_numpy_gives_a_number(tmp_path: Path) -> None:
    values = features()[:, :1].numpy()
    np.savez(tmp_path / "one.npz", mu=values.mean(0), sigma=np.cov(values.T))
    assert Statistics.load(tmp_path / "one.npz").covariance.shape == (1, 1)


def test_a_number_of_samples_that_is_not_known_is_not_written(tmp_path: Path) -> None:
    Statistics(torch.zeros(2), torch.eye(2)).save(tmp_path / "new" / "it.npz")
    with np.load(tmp_path / "new" / "it.npz") as file:
        assert set(file.files) == {"mu", "sigma"}
    assert Statistics.load(tmp_path / "new" / "it.npz").num_samples is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def full(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(CifarscaleError, match="No space left"):
        saved(tmp_path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def write_npz(path: Path, **arrays: Any) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.eye(2))


def write_part(path: Path) -> None:
    write_npz(path, mu=np.zeros(50), sigma=np.eye(50))
    path.write_bytes(path.read_bytes()[:5000])


def write_with_a_bit_flipped(path: Path) -> None:
    write_npz(path, mu=np.zeros(50), sigma=np.eye(50))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


UNSYMMETRIC = np.array([[2.0, 0.5], [0.25, 1.0]])
REMEDY = r" Name an \.npz with mu and sigma, such as `pytorch-fid --save-stats` writes$"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"^cannot read \S+it\.npz: No such file or directory\." + REMEDY),
        (lambda path: path.mkdir(), r"^cannot read \S+it\.npz: Is a directory\." + REMEDY),
        (lambda path: path.write_bytes(b""), "is damaged, or no .npz of numbers." + REMEDY),
        (lambda path: path.write_text("hello"), "is damaged, or no .npz of numbers." + REMEDY),
        (write_npy, "is damaged, or no .npz of numbers." + REMEDY),
        (write_part, "is damaged, or no .npz of numbers." + REMEDY),
        (write_with_a_bit_flipped, "is damaged, or no .npz of numbers." + REMEDY),
        (lambda p: write_npz(p, mu=np.array([{}]), sigma=np.eye(1)), "is damaged, or no .npz of numbers." + REMEDY),
        (lambda p: write_npz(p, mu=["a"], sigma=np.eye(1)), "is damaged, or no .npz of numbers." + REMEDY),
        (lambda p: write_npz(p, mu=[0.0], sigma=[[1.0]], num_samples=[1, 2]), "is damaged, or no .npz of numbers."),
        (lambda p: write_npz(p, mu=np.zeros(2)), r"holds mu, and lacks sigma\." + REMEDY),
        (lambda p: write_npz(p), r"holds nothing, and lacks mu and sigma\." + REMEDY),
        (
            lambda p: write_npz(p, mu=np.zeros(2), sigma=np.eye(3)),
            r"^\S+it\.npz: a mean of shape \(2,\) and a covariance of shape \(3, 3\) do not fit: they must be \(d,\)",
        ),
        (lambda p: write_npz(p, mu=np.zeros((2, 2)), sigma=np.eye(2)), r"of shape \(2, 2\) and .* do not fit"),
        (lambda p: write_npz(p, mu=np.zeros(0), sigma=np.eye(0)), r"of shape \(0,\) and .* do not fit"),
        (lambda p: write_npz(p, mu=[0.0, np.nan], sigma=np.eye(2)), "of 2 features has values that are not finite"),
        (
            lambda p: write_npz(p, mu=np.zeros(2), sigma=np.full((2, 2), np.inf)),
            "has values that are not finite, and all",
        ),
        (
            lambda p: write_npz(p, mu=np.zeros(2), sigma=UNSYMMETRIC),
            "of 2 features differs from its transpose by 0.25,",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "it.npz"
    write(path)
    with pytest.raises(EvaluationError, match=message) as caught:
        Statistics.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
