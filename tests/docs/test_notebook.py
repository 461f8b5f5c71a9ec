"""The notebook of examples/ runs from top to bottom in a real Jupyter kernel, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook/first_run.ipynb"
PATIENCE_S = 600
MORE = (
    """
    short = {"training.max_steps": 8, "training.log_every": 4, "evaluation.every": 0}
    two = cs.train("demo", set=short, nproc=2)  # there is no __main__ to guard, and an event loop runs
    assert two.result["world_size"] == 2
    """,
    """
    import signal
    import sys
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(cs.train, "demo", set=short, seed=2).result().result["steps"] == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert hasattr(sys, "ps1")  # by which a second Ctrl-C knows that it is not to end this process
    """,
)
"""Cells that follow those of the notebook."""


def test_it_stands_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of our own follow, which see that ranks, threads and signals are as in a script."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, 4)
    own = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells += [new_code_cell("\n".join(line[4:] for line in text.splitlines())) for text in MORE]
    NotebookClient(notebook, timeout=PATIENCE_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    trained = next(cell for cell in own if "cs.train(" in cell.source)
    kinds = {kind for output in trained.outputs for kind in output.get("data", ())}
    assert "application/vnd.jupyter.widget-view+json" in kinds, "no progress bar is shown"
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "Traceback" not in printed
    assert (tmp_path / "generated.png").is_file()
