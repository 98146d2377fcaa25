"""One thread for torch, and Triton interpreted where there is no GPU."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the measuring package needs torch")

# Before anything imports triton, whose own library is interpreted or compiled from then on.
if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tests are small, and threads that wait for each other are slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # runs collect garbage, and would look through all that tests have imported
    yield
    gc.unfreeze()
    torch.set_num_threads(before)
