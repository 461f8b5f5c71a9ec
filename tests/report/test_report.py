"""`cifarscale report`: what stands in the page, and that it works in a real browser without a network."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe, load_training_recipe
from cifarscale.errors import CifarscaleError
from cifarscale.report.page import write_report
from cifarscale.report.recipes import differences
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.view import View
from cifarscale.tracking.charts import Line, restarts, run_drawings
from cifarscale.tracking.parts import Fact

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement


def written(folder: Path, out: Path, data: Path | None = None) -> str:
    """The page of a folder, whose white space does not count."""
    write_report([folder], out, str(data) if data else None)
    return re.sub(r"\s+", " ", out.read_text(encoding="utf-8"))


def files(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_a_page_and_nothing_else(cnn_run: Path, shards: Path, tmp_path: Path) -> None:
    before = files(cnn_run)
    out = tmp_path / "page.html"
    ended = CliRunner().invoke(main, ["report", str(cnn_run), "--out", str(out), "--data", str(shards)])
    assert ended.exit_code == 0, ended.output
    assert str(out) in ended.output
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert files(cnn_run) == before


def test_the_page_of_one_run_lies_in_its_folder(begun: RunFolder) -> None:
    ended = CliRunner().invoke(main, ["report", str(begun.path)])
    assert ended.exit_code == 0, ended.output
    assert (begun.path / "report.html").is_file()


def test_the_page_of_several_runs_lies_here(begun: RunFolder, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(begun.path.parent)
    ended = CliRunner().invoke(main, ["report", str(begun.path), str(swept)])
    assert ended.exit_code == 0, ended.output
    assert Path("report.html").is_file()


def test_a_classifier_s_page_shows_what_it_confuses(cnn_run: Path, shards: Path, tmp_path: Path) -> None:
    text = written(cnn_run, tmp_path / "page.html", shards)
    assert "200 images of the test split, after step 40" in text
    assert text.count('scope="col"><span>') == 20
    assert text.count("Most often taken for") >= 1
    assert re.search(r'alt="An image of [\w ]+, taken for [\w ]+"', text)
    assert "cifarscale train recipe.toml --device cpu" in text


def test_restarts_are_marked(cnn_run: Path, shards: Path, tmp_path: Path) -> None:
    assert len(RunFolder(cnn_run).environment()["starts"]) == 2
    assert "started again after step 10." in written(cnn_run, tmp_path / "page.html", shards)


def test_a_restart_stands_at_the_last_line_before_it() -> None:
    lines = [{"step": step, "time": time} for step, time in ((50, 100), (100, 110), (150, 300))]
    assert restarts(lines, ["1970-01-01T00:01:30+00:00", "1970-01-01T00:03:20+00:00"]) == [100]
    assert restarts([{"step": 50}], ["1970-01-01T00:01:30+00:00"]) == []


def test_throughput_is_drawn_by_rank_where_that_was_logged() -> None:
    line = {"images_per_second": 100.0, "images_per_second_rank_0": 60.0, "images_per_second_rank_1": 40.0}
    whole, by_rank = run_drawings("run", [], [{"step": 50, **line}, {"step": 100, **line}], {})
    assert "rank 1" not in whole.svg
    assert all(label in by_rank.svg for label in ("rank 0", "rank 1"))


def test_steps_that_are_not_timed_are_no_points_of_the_throughput() -> None:
    lines = [{"step": step, "images_per_second": rate} for step, rate in ((5, 0.0), (15, 80.0), (20, 90.0))]
    (drawing,) = run_drawings("run", [], lines, {})
    assert "80 at step 15, 90 at step 20" in drawing.spoken
    assert run_drawings("run", [], lines[:1], {}) == []


def test_of_many_ranks_the_slowest_and_the_fastest_are_drawn() -> None:
    line = {f"images_per_second_rank_{rank}": 100.0 - rank for rank in range(16)}
    (by_rank,) = run_drawings("run", [], [{"step": 50, **line}], {})
    assert re.findall(r"rank \d+: ", by_rank.spoken) == ["rank 15: ", "rank 0: "]


def test_a_job_that_trains_nothing_has_a_page(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "fid")
    run.prepare(load_recipe("fid", ["images=runs/some"]))
    result = {"metric": "FID", "distance": 12.5, "against": "cifar100 train"}
    (run.path / "result.json").write_text(json.dumps(result))
    text = written(run.path, tmp_path / "page.html")
    assert "12.50" in text
    assert "cifarscale submit recipe.toml" in text


def test_without_shards_the_page_says_so_and_goes_on(
    cnn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = written(cnn_run, tmp_path / "page.html")
    assert "the shards of synthetic are not here" in text
    assert "Run it again" in text
    assert "Accuracy" in text


def test_a_generator_s_page_names_each_distance_by_its_own_name(dcgan_run: Path, shards: Path, tmp_path: Path) -> None:
    text = written(dcgan_run, tmp_path / "page.html", shards)
    assert "Fréchet distance (cnn:resnet)" in text
    assert not re.search(r"\bFID\b", text)
    assert text.count('alt="Generated image ') == 8
    assert text.count('alt="Real: ') == 40
    shown = re.findall(r"<figure data-step=\"([\d,]+)\"( hidden)?>", text)
    assert shown == [("10", " hidden"), ("20", " hidden"), ("30", " hidden"), ("40", "")]


def test_a_sweep_s_page_says_what_the_figures_are_of(swept: Path, tmp_path: Path) -> None:
    text = written(swept, tmp_path / "page.html")
    assert "4 trials by validation top-1; on the validation split" in text
    assert "40.0 %" in text
    assert "cifarscale sweep recipe.toml" in text
    assert text.count('role="img"') == 2


def test_nothing_from_a_folder_is_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_pages_are_the_same_each_time_and_small(
    page: Path, cnn_run: Path, dcgan_run: Path, swept: Path, shards: Path
) -> None:
    again = page.with_name("again.html")
    write_report([cnn_run, dcgan_run, swept], again, str(shards))
    assert again.read_bytes() == page.read_bytes()
    assert page.stat().st_size < 2_000_000


def test_a_run_that_has_just_begun_has_a_page(begun: RunFolder, shards: Path, tmp_path: Path) -> None:
    text = written(begun.path, tmp_path / "page.html", shards)
    assert "No metrics have been logged yet" in text
    assert "has no checkpoint yet" in text


def test_of_a_task_of_ones_own_the_metrics_that_it_declares_come_first(begun: RunFolder) -> None:
    recipe = begun.load_recipe()
    lines: list[Line] = [{"step": 10, "validation_top1": 0.25}, {"step": 20, "loss": 1.0}]
    running = View().facts(begun, recipe, None, lines)
    assert running == [Fact("validation top1 so far", "0.25", "at step 10"), Fact("step", "20", "of 1,000")]
    complete = View().facts(begun, recipe, {"steps": 40, "validation": {"top1": 0.5, "hits": 3}}, lines)
    assert complete == [Fact("validation top1", "0.5")]


def test_the_page_shows_what_differs_from_the_defaults() -> None:
    name, found = differences(load_training_recipe("demo", ["optimizer.name=sgd", "optimizer.momentum=0.5", "seed=3"]))
    keys = {each.key: (each.value, each.named, each.default) for each in found}
    assert name == "demo"
    assert keys["optimizer.name"] == ("sgd", "adamw", "adamw")
    assert keys["optimizer.momentum"] == (0.5, "not set", 0.9)
    assert keys["seed"] == (3, 0, 0)
    assert "training.learning_rate" not in keys


def test_a_folder_without_a_recipe_is_refused_in_one_line(tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert ended.exit_code == 1
    assert "is not a run folder" in ended.output
    assert ended.output.count("\n") == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json"])
def test_what_a_crash_has_damaged_keeps_no_page_from_being_made(begun: RunFolder, tmp_path: Path, name: str) -> None:
    (begun.path / name).write_text("{broken\n")
    write_report([begun.path], tmp_path / "page.html")
    assert "begun" in (tmp_path / "page.html").read_text()


def test_a_recipe_that_cannot_be_read_is_said_in_one_line(begun: RunFolder, tmp_path: Path) -> None:
    begun.recipe.write_text("{broken\n")
    with pytest.raises(CifarscaleError) as caught:
        write_report([begun.path], tmp_path / "page.html")
    assert "recipe.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_of_another_set_is_not_looked_at(dcgan_run: Path, shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["coarse_names"][0] = "another"
    (other / "manifest.json").write_text(json.dumps(manifest))
    text = written(dcgan_run, tmp_path / "page.html", other)
    assert "Not computed: " in text
    assert "with fingerprint" in text


def test_a_sweep_that_was_interrupted_has_a_page(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept, tmp_path / "sweep")
    (tmp_path / "sweep" / "result.json").unlink()
    text = written(tmp_path / "sweep", tmp_path / "page.html")
    assert '<span class="state interrupted">' in text


def test_a_sweep_without_any_figure_has_a_page(swept: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    for name in ("recipe.toml", "base.toml"):
        shutil.copy(swept / name, sweep)
    text = written(sweep, tmp_path / "page.html")
    assert '<span class="state not-begun">' in text
    assert "No metrics have been logged yet" in text


def test_a_damaged_checkpoint_is_said_in_the_page(cnn_run: Path, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(cnn_run, run)
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.write_bytes(b"damaged")
    assert "its weights are lost" in written(run, tmp_path / "page.html", shards)


def opened(browser: "Chrome", page: Path, width: int = 1200) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for log in ("browser", "performance"):
        browser.get_log(log)  # forgets what came before
    browser.get(page.as_uri())


def find(browser: "Chrome", selector: str) -> "list[WebElement]":
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)


@pytest.mark.browser
def test_it_opens_without_errors_and_fetches_nothing(browser: "Chrome", page: Path) -> None:
    opened(browser, page)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    fetched = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in fetched
    assert all(url == page.as_uri() or url.startswith("data:") for url in fetched)
    assert browser.execute_script("return window.ran") is None
    assert browser.execute_script("return [...document.images].every((image) => image.naturalWidth > 0)")


@pytest.mark.browser
def test_the_policy_forbids_other_scripts_and_any_request(browser: "Chrome", page: Path) -> None:
    opened(browser, page)
    browser.execute_script(
        "const script = document.createElement('script');"
        "script.text = 'window.ran = true'; document.body.append(script);"
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);"
    )
    assert browser.execute_script("return window.ran") is None
    assert all("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


@pytest.mark.browser
def test_the_slider_moves_by_keyboard_and_changes_the_picture(browser: "Chrome", page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    (slider,) = find(browser, "input[type=range]")
    assert slider.accessible_name == "Training step"
    sources = []
    for key, step in ((Keys.HOME, "10"), (Keys.ARROW_RIGHT, "20"), (Keys.END, "40")):
        slider.send_keys(key)
        shown = [figure for figure in find(browser, ".grids figure") if figure.is_displayed()]
        assert [figure.get_attribute("data-step") for figure in shown] == [step]
        assert slider.get_attribute("aria-valuetext") == f"step {step}"
        assert find(browser, ".grids output")[0].text == f"step {step}"
        sources.append(find(browser, ".grids figure:not([hidden]) img")[0].get_attribute("src"))
    assert len(set(sources)) == 3


@pytest.mark.browser
def test_the_table_of_trials_sorts_by_keyboard(browser: "Chrome", page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)

    def column(number: int) -> list[str]:
        return [cell.text for cell in find(browser, f"table.sortable tbody tr > :nth-child({number})")]

    buttons = {button.text.split(" ↕")[0]: button for button in find(browser, "table.sortable th button")}
    assert column(1) == ["2", "0", "1", "3"]
    buttons["training.learning_rate"].send_keys(Keys.ENTER)
    assert column(1) == ["2", "0", "3", "1"]
    buttons["validation top-1"].send_keys(Keys.SPACE)
    assert column(1) == ["1", "0", "2", "3"]
    buttons["validation top-1"].send_keys(Keys.SPACE)
    assert column(1) == ["2", "0", "1", "3"]
    (header,) = find(browser, "th[aria-sort]")
    assert header.get_attribute("aria-sort") == "descending"


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_is_wider_than_the_window(browser: "Chrome", page: Path, width: int) -> None:
    opened(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_what_a_screen_reader_needs_is_there(browser: "Chrome", page: Path) -> None:
    opened(browser, page)
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    named = browser.execute_script(
        "return [...document.querySelectorAll('[aria-labelledby]')].every("
        "(element) => document.getElementById(element.getAttribute('aria-labelledby')))"
    )
    assert named
    assert browser.execute_script("return [...document.images].every((image) => image.alt)")
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map((heading) => Number(heading.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert browser.execute_script("return document.documentElement.lang") == "en"
