import logging
import os
import threading
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from sdk.errors import SourceEnded, SourceError, SourceOpenError
from sdk.sources import open_source, read_image, redact
from sdk.sources.live import LiveSource
from tests.fakes import FakeCapture, FakeSource

DATA = Path(os.environ.get("CENTEREDGE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def _picture(value=0, wh=(64, 48)):
    picture = np.full((wh[1], wh[0], 3), value, np.uint8)
    picture[:8, :8] = 255 - value  # not flat, so that it compresses to more than a header
    return picture


def _write_video(path, *, num_frames=20, codec="mp4v", wh=(64, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25.0, wh)
    noise = np.random.default_rng(0)
    for _ in range(num_frames):
        writer.write(noise.integers(0, 255, (wh[1], wh[0], 3), np.uint8))
    writer.release()
    return path


def _cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


# One image


def test_an_image_is_one_frame(tmp_path):
    cv2.imwrite(str(tmp_path / "one.png"), _picture(40))
    with open_source(tmp_path / "one.png") as source:
        before = time.monotonic_ns()
        frames = list(source)
        assert (source.num_frames, source.wh, source.fps, source.is_live) == (1, (64, 48), None, False)
        assert source.read() is None
    (frame,) = frames
    np.testing.assert_array_equal(frame.image, _picture(40))
    assert frame.image.flags.c_contiguous
    assert frame.index == 0
    assert frame.source == str(tmp_path / "one.png")
    assert before <= frame.capture_ns <= time.monotonic_ns()


def test_gray_and_transparent_images_become_bgr(tmp_path):
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((4, 6), 9, np.uint8))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.full((4, 6, 4), 9, np.uint8))
    for name in ("gray.png", "alpha.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), np.full((4, 6, 3), 9, np.uint8))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_a_truncated_image_is_an_error(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    assert read_image(path).shape == (48, 64, 3)
    _cut(path, 0.6)
    with pytest.raises(SourceOpenError, match=f"half{suffix}.*(cut short|damaged)"):
        open_source(path)


def test_a_progressive_jpeg_with_a_tail_is_no_truncated_one(tmp_path):
    path = tmp_path / "phone.jpg"
    cv2.imwrite(str(path), _picture(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1])
    path.write_bytes(path.read_bytes() + b"\xff\xda trailing data of a phone")
    assert read_image(path).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "is empty"),
        ("text.jpg", b"not an image", "damaged or no image"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"not a video" * 50, "no frame of the video .* can be decoded"),
        ("notes.txt", b"text", "suffix '.txt'; expected an image"),
        ("plain", b"text", "suffix ''; expected an image"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceOpenError, match=f"{name}.*{message}|{message}"):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("missing.mp4", "'missing.mp4' does not exist; expected an image, a video"),
        ("", "'' does not exist"),
        ("x" * 5000, "cannot be opened: File name too long"),
        ("nowhere/*.jpg", "the glob 'nowhere/\\*.jpg' matches no file"),
        ("webrtc://host", "a source of kind webrtc:// is not known"),
        (-1, "'-1' is no camera; expected a number from 0"),
        (93, "camera 93 cannot be opened; is it plugged in"),
        ("/dev/video93", "/dev/video93 cannot be opened"),
        ("/dev/null", "'/dev/null' is no camera"),
        ("synthetic://?wdith=3", "no option 'wdith'; known are width, height"),
        ("synthetic://?width=abc", "width is 'abc', expected a number"),
        ("synthetic://?fps=0", "fps is 0, expected 0.1 to 1000"),
        ("synthetic://?fps=nan", "fps is nan, expected"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_error(uri, message):
    with pytest.raises(SourceOpenError, match=message):
        open_source(uri)


# Folders and globs


def _write_folder(folder, names):
    for value, name in enumerate(names):
        cv2.imwrite(str(folder / name), _picture(value))


def test_a_folder_gives_its_images_in_natural_order(tmp_path):
    _write_folder(tmp_path, ["10.png", "9.png", "b.png", "a.PNG"])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    with open_source(tmp_path) as source:
        frames = list(source)
    assert [Path(frame.source).name for frame in frames] == ["9.png", "10.png", "a.PNG", "b.png"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert source.num_frames == 4


def test_a_glob_gives_what_it_matches(tmp_path):
    _write_folder(tmp_path, ["a1.png", "a2.png", "b.png"])
    with open_source(str(tmp_path / "a*")) as source:
        assert [Path(frame.source).name for frame in source] == ["a1.png", "a2.png"]
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SourceOpenError, match="matches 1 files, none of them an image"):
        open_source(str(tmp_path / "*.txt"))


def test_a_name_with_brackets_is_a_file_if_there_is_one(tmp_path):
    cv2.imwrite(str(tmp_path / "a[1].png"), _picture())
    assert open_source(tmp_path / "a[1].png").num_frames == 1


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(SourceOpenError, match="holds no image; expected files ending in"):
        open_source(tmp_path)


def test_an_unreadable_image_in_a_folder_is_named(tmp_path):
    _write_folder(tmp_path, ["1.png", "2.png"])
    _cut(tmp_path / "2.png", 0.5)
    with open_source(tmp_path) as source:
        assert source.read() is not None
        with pytest.raises(SourceError, match=r"2\.png is cut short"):
            source.read()


# Videos


def test_a_video_gives_every_frame(tmp_path, caplog):
    with open_source(_write_video(tmp_path / "v.mp4")) as source:
        frames = list(source)
        assert (source.num_frames, source.wh, source.fps, source.is_live) == (20, (64, 48), 25.0, False)
    assert [frame.index for frame in frames] == list(range(20))
    assert all(frame.image.shape == (48, 64, 3) and frame.image.flags.c_contiguous for frame in frames)
    assert not np.array_equal(frames[0].image, frames[1].image)
    assert not caplog.records


def test_a_video_that_ends_early_gives_what_it_has_and_a_warning(tmp_path, caplog):
    path = _cut(_write_video(tmp_path / "v.avi", num_frames=40, codec="MJPG"), 0.5)
    with open_source(path) as source, caplog.at_level(logging.WARNING):
        frames = list(source)
        assert source.read() is None
    assert 10 <= len(frames) <= 25
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} ended early: got {len(frames)} of the 40 frames that it announces; it is cut short or damaged"
    ]


def test_a_video_without_its_index_is_an_error(tmp_path):
    path = _cut(_write_video(tmp_path / "v.mp4"), 0.5)
    with pytest.raises(SourceOpenError, match=r"v\.mp4 .* cut short"):
        open_source(path)


@pytest.mark.skipif(not (DATA / "videos").is_dir(), reason="no videos in CENTEREDGE_DATA")
def test_real_videos_announce_what_they_have(caplog):
    with open_source(DATA / "videos" / "car-detection.mp4") as source:
        assert sum(1 for _ in source) == source.num_frames == 377
    assert not caplog.records


# The drawn scene


def test_the_scene_is_the_same_for_the_same_seed():
    url = "synthetic://?width=96&height=64&people=2&seed=3&frames=4"
    first, second = ([frame.image for frame in open_source(url)] for _ in range(2))
    assert [image.shape for image in first] == [(64, 96, 3)] * 4
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[3])


def test_the_scene_has_no_end_unless_told():
    with open_source("synthetic://?width=64&height=48") as source:
        assert (source.num_frames, source.is_live, source.fps) == (None, False, 30.0)
        assert sum(1 for _ in islice(source, 40)) == 40


def test_the_scene_is_paced_when_it_has_a_rate():
    with open_source("synthetic://?width=64&height=48&fps=50&frames=11") as source:
        times = np.array([frame.capture_ns for frame in source]) / 1e9
    assert 0.19 <= times[-1] - times[0] < 5.0


def test_closing_interrupts_a_paced_scene():
    source = open_source("synthetic://?width=64&height=48&fps=0.1")
    source.read()
    threading.Timer(0.1, source.close).start()
    start = time.monotonic()
    source.read()
    assert time.monotonic() - start < 5.0


# Cameras and streams


def test_a_live_source_throws_its_first_picture_away_and_fails_when_it_is_lost():
    source = LiveSource(FakeCapture(num_pictures=3), "camera 0", advice="look")
    assert (source.is_live, source.fps, source.wh, source.num_frames) == (True, 25.0, (64, 48), None)
    frames = [source.read(), source.read()]
    assert [frame.index for frame in frames] == [0, 1]
    with pytest.raises(SourceError, match="camera 0 stopped delivering after 2 frames; check the cable"):
        source.read()


def test_a_camera_without_pictures_is_an_error():
    with pytest.raises(SourceOpenError, match="camera 0 is open but delivers no picture; look here"):
        LiveSource(FakeCapture(num_pictures=0), "camera 0", advice="look here")


def test_a_password_never_shows():
    with pytest.raises(SourceOpenError) as caught:
        open_source("rtsp://admin:pa:s@s/word@127.0.0.1:9/live")
    assert "rtsp://admin:***@127.0.0.1:9/live cannot be opened" in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("rtsp://host:554/a", "rtsp://host:554/a"),
        ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
        ("rtsp://user@host/a", "rtsp://user@host/a"),
        ("rtsp://u:p@host:554/a", "rtsp://u:***@host:554/a"),
        ("rtsp://u:p@ss/word@host/a", "rtsp://u:***@host/a"),
        ("failed on rtsp://u:p@h/a twice", "failed on rtsp://u:***@h/a twice"),
        ("rtsp://h/?user=u&Password=p&channel=1", "rtsp://h/?user=u&Password=***&channel=1"),
        ("video.mp4", "video.mp4"),
    ],
)
def test_redact(text, redacted):
    assert redact(text) == redacted


# Closing


def test_reading_after_closing_is_an_error():
    source = FakeSource()
    source.close()
    source.close()
    with pytest.raises(SourceEnded, match="fake was read after it had been closed"):
        source.read()


def test_closing_during_a_read_lets_the_reader_release():
    source = FakeSource(stall_at=0)
    reader = threading.Thread(target=source.read)
    reader.start()
    source.close()
    reader.join(10.0)
    assert not reader.is_alive()
    assert source.is_released
