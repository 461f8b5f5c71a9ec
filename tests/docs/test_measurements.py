"""`docs/measurements/run.sh` without a GPU: the page that it writes, whatever becomes of its parts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT

SCRIPT = ROOT / "docs/measurements/run.sh"
PARTS = ("Hardware and versions", "Tests", "Resumed", "Throughput of training", "Against the plain loop")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"CIFARSCALE_REAL_DATA": "somewhere", "PYTHON": sys.executable} | environment
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=variables, check=False)


@pytest.fixture
def half_broken(tmp_path: Path) -> str:
    """An interpreter that can do everything but to measure throughput."""
    path = tmp_path / "python"
    path.write_text(
        "#!/bin/sh\necho printed by $1\ncase $1 in *bench_gpu*) echo 'no memory left' >&2; exit 3;; esac\n",
        encoding="utf-8",
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("options", [("--device", "cpu", "--quick"), ("--device", "cuda")])
def test_a_dry_run_names_every_part_with_files_that_exist(options: tuple[str, ...], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = run(*options, "--dry-run", "--out", str(page))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(page), "")
    text = page.read_text(encoding="utf-8")
    assert [title for title in PARTS if f"\n## {title}\n" not in text] == []
    assert all((ROOT / name).exists() for name in re.findall(r"tests/\S+\.py", text))
    assert "Failed" not in text


def test_all_parts_together_are_at_most_ten_minutes(tmp_path: Path) -> None:
    run("--dry-run", "--out", str(tmp_path / "page.md"))
    limits = re.findall(r"at most (\d+) s", (tmp_path / "page.md").read_text(encoding="utf-8"))
    assert sum(map(int, limits)) <= 600


def test_a_part_that_fails_is_named_and_the_others_go_on(half_broken: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = run("--device", "cpu", "--quick", "--out", str(page), PYTHON=half_broken)
    text = page.read_text(encoding="utf-8")
    assert done.returncode == 1
    assert "**Failed** with exit code 3: `no memory left`" in text
    assert text.count("\nTook ") == 5
    assert text.endswith("## What failed\n\n- Throughput of training\n")
    assert "printed by tests/bench/bench_gpu.py" in text


def test_without_the_real_data_the_page_says_what_is_missing(half_broken: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run("--device", "cpu", "--quick", "--out", str(page), PYTHON=half_broken, CIFARSCALE_REAL_DATA="")
    assert "Not measured: CIFARSCALE_REAL_DATA does not name" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--fast",), {}, "run.sh: unknown option --fast; valid are --device, --quick, --dry-run and --out"),
        (("--device", "tpu"), {}, "run.sh: --device tpu is neither cuda nor cpu"),
        ((), {"PYTHON": "/nowhere"}, "run.sh: there is no /nowhere. Run: make install, or set PYTHON"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: tuple[str, ...], environment: dict[str, str], message: str) -> None:
    done = run(*arguments, **environment)
    assert (done.returncode, done.stderr.strip()) == (2, message)
