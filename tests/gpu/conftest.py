"""What runs on a GPU is skipped without one, with the reason."""

from __future__ import annotations

import pytest

from sdk.backends.cuda import Cuda, open_cuda
from sdk.engine_files import find_gpu
from sdk.errors import BackendUnavailable


@pytest.fixture
def cuda() -> Cuda:
    """The binding that is installed, on the GPU."""
    if find_gpu() is None:
        pytest.skip("needs an NVIDIA GPU; no driver answers")
    try:
        return open_cuda()
    except BackendUnavailable as err:
        pytest.skip(str(err))
