import threading
import time

import numpy as np
import pytest

from sdk.errors import ConfigError, SourceEnded, SourceOpenError, SourceTimeout
from sdk.stream import Stream
from tests.fakes import FakeDetector, FakeSource


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    deadline = time.monotonic() + 10.0
    while any(thread.name == "centeredge-capture" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a capture thread is left"
        time.sleep(0.01)


def _read_all(stream):
    for _ in stream:
        pass


def test_every_frame_of_a_file_comes_in_order():
    with Stream(FakeDetector(infer_s=0.002), FakeSource(20)) as stream:
        results = list(stream)
        assert stream.policy == "all"
        assert next(stream, "ended") == "ended"
    assert [result.frame.index for result in results] == list(range(20))
    assert [result.dropped for result in results] == [0] * 20
    np.testing.assert_allclose([r.detections.scores[0] for r in results], np.arange(20) / 255, atol=1e-6)


def test_a_result_says_how_long_it_took():
    with Stream(FakeDetector(infer_s=0.02), FakeSource(2)) as stream:
        result = next(stream)
    assert set(result.ms) == {"preprocess", "inference", "decode"}
    assert 20 <= result.ms["inference"] < 5000
    assert result.ms["inference"] < result.age_ms < 5000
    assert result.to_dict()["ms"]["inference"] == round(result.ms["inference"], 3)


def test_the_network_runs_in_the_callers_thread():
    detector = FakeDetector()
    with Stream(detector, FakeSource()) as stream:
        next(stream)
    here = threading.current_thread().name
    assert (detector.threads["infer"], detector.threads["decode"]) == (here, here)
    assert detector.threads["preprocess"] == "centeredge-capture"


def test_latest_drops_and_counts_and_ends_with_the_last_frame():
    source = FakeSource(60, wait_s=0.005)
    with Stream(FakeDetector(infer_s=0.03), source, policy="latest") as stream:
        results = list(stream)
    assert 2 < len(results) < 40
    assert len(results) + sum(result.dropped for result in results) == 60
    assert results[-1].frame.index == 59
    gaps = np.diff([-1] + [result.frame.index for result in results])
    assert [result.dropped for result in results] == (gaps - 1).tolist()


def test_latest_gives_young_frames_where_all_gives_old_ones():
    ages = {}
    for policy in ("latest", "all"):
        with Stream(FakeDetector(infer_s=0.02), FakeSource(30, wait_s=0.002), policy=policy) as stream:
            ages[policy] = np.median([result.age_ms for result in stream])
    assert ages["latest"] < 0.9 * ages["all"]


def test_latest_plays_a_file_at_its_rate():
    with Stream(FakeDetector(), FakeSource(11, fps=50.0), policy="latest") as stream:
        results = list(stream)
    times = [result.frame.capture_ns / 1e9 for result in results]
    assert 0.19 <= times[-1] - times[0] < 5.0
    assert results[-1].age_ms < 1000


def test_a_live_source_that_stalls_is_a_timeout():
    source = FakeSource(is_live=True, stall_at=2)
    with (
        pytest.raises(SourceTimeout, match=r"fake delivered no frame for 0\.1 s; check the camera"),
        Stream(FakeDetector(), source, timeout_s=0.1) as stream,
    ):
        assert stream.policy == "latest"
        _read_all(stream)
    source.close()


def test_a_source_that_dies_raises_after_its_frames():
    seen = []
    with (
        pytest.raises(RuntimeError, match="the cable was cut"),
        Stream(FakeDetector(), FakeSource(fail_at=3)) as stream,
    ):
        for result in stream:
            seen.append(result.frame.index)
    assert seen == [0, 1, 2]


def test_after_its_error_a_stream_has_ended():
    with Stream(FakeDetector(), FakeSource(fail_at=0)) as stream:
        with pytest.raises(RuntimeError):
            next(stream)
        assert list(stream) == []


@pytest.mark.parametrize("stage", ["preprocess", "infer", "decode"])
def test_a_stage_that_fails_raises_in_the_loop(stage):
    detector = FakeDetector(fail_in=stage, fail_at=2)
    with pytest.raises(RuntimeError, match=f"{stage} failed"), Stream(detector, FakeSource()) as stream:
        _read_all(stream)


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_an_error_of_the_callers_ends_all(policy):
    source = FakeSource(1000)
    with pytest.raises(ZeroDivisionError), Stream(FakeDetector(), source, policy=policy) as stream:
        next(stream)
        time.sleep(0.05)  # the buffer is full
        _ = 1 / 0
    assert not source.is_released, "a source that was passed in stays the caller's"


def test_leaving_early_ends_all_and_closes_what_the_stream_opened():
    with Stream(FakeDetector(), "synthetic://?width=64&height=48") as stream:
        next(stream)
    assert list(stream) == []
    with pytest.raises(SourceEnded):
        stream.source.read()


def test_leaving_a_paced_source_does_not_wait():
    start = time.monotonic()
    with Stream(FakeDetector(), "synthetic://?width=64&height=48&fps=0.1") as stream:
        next(stream)
    with Stream(FakeDetector(), FakeSource(fps=0.1), policy="latest") as stream:
        next(stream)
    assert time.monotonic() - start < 5.0


def test_closing_from_another_thread_ends_the_loop():
    with Stream(FakeDetector(), "synthetic://?width=64&height=48&fps=0.1") as stream:
        threading.Timer(0.2, stream.close).start()
        assert [result.frame.index for result in stream] == [0]


def test_a_stall_leaves_no_thread_once_the_source_is_closed(caplog):
    with Stream(FakeDetector(), source := FakeSource(stall_at=0)):
        pass
    assert "fake is still waiting for a frame" in caplog.text
    source.close()


def test_what_cannot_be_opened_raises_at_once():
    with pytest.raises(SourceOpenError, match=r"'missing\.mp4' does not exist"):
        Stream(FakeDetector(), "missing.mp4")


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ConfigError, match="policy is 'newest', expected one of latest, all"):
        Stream(FakeDetector(), FakeSource(), policy="newest")


def test_a_stream_outside_a_with_block_says_so():
    with pytest.raises(ConfigError, match=r"open it with `with sdk\.Stream"):
        next(Stream(FakeDetector(), FakeSource()))
