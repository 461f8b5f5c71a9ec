"""Cluster profiles: that those that we bring are valid, and what is said of one that is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from cifarscale.errors import ConfigError
from cifarscale.runs.options import RunOptions, Timeouts
from cifarscale.slurm.profile import (
    PROFILE_VARIABLE,
    Profile,
    load_profile,
    minutes,
    profile_files,
    profile_toml,
    with_options,
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(PROFILE_VARIABLE, raising=False)


def refusal(text: str) -> str:
    """What loading a profile of this text says."""
    Path("own.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_profile("own.toml")
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["cpu", "gpu", "local", "testcluster"])
def test_every_bundled_profile_loads_and_says_what_it_is(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description


def test_all_bundled_profiles_are_tested() -> None:
    assert set(profile_files()) == {"cpu", "gpu", "local", "testcluster"}


def test_gpu_is_taken_where_none_is_named_or_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_profile().name == "gpu"
    monkeypatch.setenv(PROFILE_VARIABLE, "cpu")
    assert load_profile().name == "cpu"
    assert load_profile("local").name == "local"


def test_yours_hide_those_that_come_with_the_package() -> None:
    for folder, partition in ((Path("config/cifarscale/profiles"), "of the home"), (Path("slurm/profiles"), "of here")):
        folder.mkdir(parents=True)
        (folder / "gpu.toml").write_text(f'partition = "{partition}"')
        assert load_profile("gpu").partition == partition


@pytest.mark.parametrize("name", ["cpu", "gpu", "local", "testcluster"])
def test_a_profile_written_out_is_the_same_one(name: str) -> None:
    profile = load_profile(name)
    Path("shown.toml").write_text(profile_toml(profile), encoding="utf-8")
    assert load_profile("shown.toml") == profile


def test_lists_and_tables_survive_being_written_out() -> None:
    profile = Profile(
        name="all",
        setup=("module load cuda", "echo 'ü \"quoted\"'"),
        environment={"A": "b c"},
        sbatch={"reservation": "class", "nice": 5, "exclusive": True, "hold": False},
    )
    Path("shown.toml").write_text(profile_toml(profile), encoding="utf-8")
    assert load_profile("shown.toml") == profile


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 90),
        ("1", 1),
        ("30:00", 30),
        ("0:30", 1),
        ("1:30", 2),
        ("04:00:00", 240),
        ("00:00:01", 1),
        ("1-0", 1440),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("2-01:02:03", 2943),
    ],
)
def test_times_are_read_as_slurm_reads_them_and_rounded_up(time: str, expected: int) -> None:
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["", "4h", "-1", "1:2:3:4", "1-", "infinite", " 5", "1.5"])
def test_what_is_no_time_is_refused(time: str) -> None:
    with pytest.raises(ConfigError, match="is not a time such as"):
        minutes(time)


@pytest.mark.parametrize("time", ["0", "0:00", "00:00:00", "0-0"])
def test_no_time_at_all_is_refused_since_slurm_takes_it_for_no_limit(time: str) -> None:
    with pytest.raises(ConfigError, match="no time at all"):
        minutes(time)


def test_an_unknown_profile_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'gpus', did you mean 'gpu'\?"):
        load_profile("gpus")
    with pytest.raises(ConfigError, match="cifarscale profiles list"):
        load_profile("none.toml")


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    assert "unknown key 'partion', did you mean 'partition'?" in refusal('partion = "gpu"')
    assert "own.toml" in refusal("gpus = 1")


@pytest.mark.parametrize("key", ["partition", "account", "constraint", "python", "container", "interface"])
@pytest.mark.parametrize("character", ["\\n", "\\r", "\\u0000", "\\u007f", "\\t"])
def test_control_characters_cannot_leave_their_line_of_the_script(key: str, character: str) -> None:
    assert key in refusal(f'{key} = "a{character}#SBATCH --uid=root"')


@pytest.mark.parametrize(
    "text",
    [
        'setup = ["a\\nb"]',
        '[environment]\nA = "a\\nb"',
        '[environment]\n"A\\nB" = "a"',
        '[sbatch]\nreservation = "a\\nb"',
    ],
)
def test_nor_can_those_of_lists_and_tables(text: str) -> None:
    assert "own.toml: " in refusal(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("gpus_per_node = 4\ntasks_per_node = 2", "there is one task a GPU"),
        ("gpus_per_node = -1", "gpus_per_node = -1"),
        ('gpus_per_node = "4"', "gpus_per_node = '4'"),
        ("cpus_per_task = 0", "cpus_per_task = 0"),
        ('launcher = "pbs"', "launcher = 'pbs'"),
        ('time = "4h"', "time = '4h' is not a time"),
        ('time = "2"\nwarning_seconds = 120', "warning_seconds = 120 must be below time = '2'"),
        ("warning_seconds = 5", "warning_seconds = 5"),
        ('[environment]\n"1A" = "x"', "environment.1A is not the name of an environment variable"),
        ('[environment]\n"A B" = "x"', "environment.A B is not the name"),
        *(
            (f"[sbatch]\n{key} = {value}", f"sbatch.{key} = {shown} has no place here: {decides} decides it")
            for key, value, shown, decides in (
                ("ntasks", "3", "3", "tasks_per_node = …, or gpus_per_node = …"),
                ("nodes", "3", "3", "cifarscale submit --nodes"),
                ("array", '"0-3"', "'0-3'", "cifarscale submit --array"),
                ("output", '"x"', "'x'", "cifarscale logs"),
                ("signal", '"B:USR1"', "'B:USR1'", "warning_seconds = …"),
                ("time", "60", "60", "time = …"),
                ("gres", '"gpu:2"', "'gpu:2'", 'gpus_per_node = …, with gpu_request = "gres"'),
                ("gpus-per-task", "1", "1", 'gpu_request = "gpus_per_task"'),
                ("wrap", '"x"', "'x'", "the sbatch script"),
            )
        ),
        (
            "memory_gb = 4\n[sbatch]\nmem-per-cpu = 5",
            "sbatch.mem-per-cpu = 5 has no place here: memory_gb = 4 decides it",
        ),
        ('[sbatch]\n"--reservation" = "x"', "sbatch.--reservation is not an option of sbatch"),
        ("memory_gb = inf", "memory_gb = inf"),
        ("= 1", "is not valid TOML"),
    ],
)
def test_what_does_not_fit_is_named(text: str, part: str) -> None:
    assert part in refusal(text)


def test_one_task_a_gpu_may_be_said_twice() -> None:
    assert Profile(gpus_per_node=4, tasks_per_node=4).tasks_per_node == 4


def test_options_change_what_they_name_and_nothing_else() -> None:
    profile = load_profile("gpu")
    assert with_options(profile, gpus_per_node=None, time=None) == profile
    changed = with_options(profile, gpus_per_node=2, time="1-0")
    assert (changed.gpus_per_node, changed.time) == (2, "1-0")
    assert with_options(changed, gpus_per_node=1, time=profile.time) == profile


def test_gpus_on_the_command_line_replace_tasks_of_the_profile() -> None:
    changed = with_options(load_profile("testcluster"), gpus_per_node=4)
    assert (changed.gpus_per_node, changed.tasks_per_node) == (4, 0)


@pytest.mark.parametrize(
    ("options", "part"),
    [({"time": "soon"}, "time = 'soon'"), ({"time": "1"}, "warning_seconds"), ({"gpus_per_node": -1}, "gpus_per_node")],
)
def test_options_are_checked_as_the_file_is(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part) as raised:
        with_options(load_profile("gpu"), **options)
    assert "profile gpu" in str(raised.value)


def test_timeouts_reach_the_ranks() -> None:
    profile = Profile(rendezvous_timeout_s=7, collective_timeout_s=8, control_timeout_s=9)
    options = RunOptions(Path("shards"), "cuda", timeouts=profile.timeouts)
    assert RunOptions.from_plain(json.loads(json.dumps(options.as_plain()))) == options
    assert options.timeouts == Timeouts(rendezvous=7, collective=8, control=9)
    assert Profile().timeouts == Timeouts()
