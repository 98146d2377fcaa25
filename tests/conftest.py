"""What all tests share: Hypothesis profiles, the reference material, the machine at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Set before anything imports these libraries; commands that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network
os.environ["MPLBACKEND"] = "Agg"
# Tensors are tiny here, and threads that wait for each other on a busy machine cost ten times more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Two runs of one state must agree, so the examples are fixed unless someone asks to explore:
# HYPOTHESIS_PROFILE=dev draws new ones on every run.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("dev", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: published configs and measurements.

    It belongs to the maintainers' machines and is no part of the project, so tests that read it
    are skipped where it is absent.
    """
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the reference material in the folder `shared` beside the repository")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
