from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """These networks are tiny; and the same sums in the same order, whatever machine this is."""
    torch.set_num_threads(1)
