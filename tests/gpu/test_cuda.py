from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sdk.backends.cuda import Cuda, CudaPython

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_what_goes_to_the_gpu_comes_back(cuda: Cuda, dtype: type[np.generic]) -> None:
    values = np.arange(1000).astype(dtype).reshape(10, 100)

    def there_and_back() -> None:
        with cuda.active():
            stream, buffer = cuda.create_stream(), cuda.allocate(values.shape, dtype)
            buffer.host[...] = values
            cuda.upload(buffer, stream)
            cuda.synchronize(stream)
            if not buffer.zero_copy:
                buffer.host.fill(0)
            cuda.download(buffer, stream)
            cuda.synchronize(stream)
            np.testing.assert_array_equal(buffer.host, values)
            cuda.free(buffer)
            cuda.destroy_stream(stream)
            del stream

    there_and_back()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(there_and_back).result()


def test_a_graph_copies_what_the_buffer_holds_when_it_is_launched(cuda: Cuda) -> None:
    if not isinstance(cuda, CudaPython):
        pytest.skip("pycuda has no CUDA graphs")
    with cuda.active():
        stream, buffer = cuda.create_stream(), cuda.allocate((100,), np.float32)
        if buffer.zero_copy:
            pytest.skip("nothing is copied on a GPU that shares the memory of the CPU")
        graph = cuda.capture(stream, lambda: cuda.upload(buffer, stream))
        for value in (1, 2):
            buffer.host.fill(value)
            graph.launch()
            cuda.synchronize(stream)
            buffer.host.fill(0)
            cuda.download(buffer, stream)
            cuda.synchronize(stream)
            np.testing.assert_array_equal(buffer.host, np.full(100, value, np.float32))
        graph.destroy()
        cuda.free(buffer)
        cuda.destroy_stream(stream)
