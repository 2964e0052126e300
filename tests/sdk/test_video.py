import os

import cv2
import numpy as np
import pytest

from sdk.errors import InputError
from sdk.sources import open_source, read_image
from sdk.video import FolderSink, ImageSink, VideoSink, open_sink

PICTURE = np.full((48, 64, 3), 90, np.uint8)


def _open(path, **options):
    return open_sink(path, **({"fps": 25.0, "wh": (64, 48)} | options))


@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "OUT.MP4"])
def test_a_video_plays_and_appears_when_complete(tmp_path, name):
    path = tmp_path / name
    with VideoSink(path, 25.0, (64, 48)) as sink:
        for value in range(12):
            sink.write(np.full((48, 64, 3), value * 20, np.uint8))
        assert not path.exists()
    assert os.listdir(tmp_path) == [name]
    with open_source(path) as source:
        frames = list(source)
        assert (source.fps, source.wh) == (25.0, (64, 48))
    assert [round(frame.image.mean() / 20) for frame in frames] == list(range(12))


def test_a_repeated_picture_stands_longer(tmp_path):
    with _open(tmp_path / "out.mp4") as sink:
        sink.write(PICTURE, repeat=3)
        sink.write(PICTURE)
    assert open_source(tmp_path / "out.mp4").num_frames == 4


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    with _open(tmp_path / "out.mp4", wh=(63, 47)) as sink:
        sink.write(PICTURE[:47, :63])
    assert open_source(tmp_path / "out.mp4").wh == (62, 46)


def test_an_image_appears_when_complete(tmp_path):
    path = tmp_path / "out.png"
    with _open(path) as sink:
        sink.write(PICTURE)
        assert not path.exists()
    np.testing.assert_array_equal(read_image(path), PICTURE)
    assert os.listdir(tmp_path) == ["out.png"]


def test_a_folder_appears_when_complete(tmp_path):
    path = tmp_path / "out"
    with _open(path) as sink:
        sink.write(PICTURE)
        sink.write(PICTURE, name="a.png")
        sink.write(PICTURE, name="a.png")
        sink.write(PICTURE, name="b")
        assert not path.exists()
    assert sorted(os.listdir(path)) == ["a.png", "a_000002.png", "b.jpg", "frame_000000.jpg"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_exists_keeps_its_other_files(tmp_path):
    (tmp_path / "a.png").write_text("old")
    (tmp_path / "notes.txt").write_text("kept")
    with _open(tmp_path) as sink:
        sink.write(PICTURE, name="a.png")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "notes.txt"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURE)


def test_the_output_is_replaced(tmp_path):
    (tmp_path / "out.png").write_text("old")
    with _open(tmp_path / "out.png") as sink:
        sink.write(PICTURE)
    assert read_image(tmp_path / "out.png").shape == (48, 64, 3)


@pytest.mark.parametrize("name", ["out.mp4", "out.png", "out"])
def test_an_exception_leaves_nothing_behind(tmp_path, name):
    with pytest.raises(ZeroDivisionError), _open(tmp_path / name) as sink:
        sink.write(PICTURE)
        _ = 1 / 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.png", "out"])
def test_without_a_frame_there_is_no_output_and_a_warning(tmp_path, name, caplog):
    with _open(tmp_path / name):
        pass
    assert os.listdir(tmp_path) == []
    assert f"no frame was written, so there is no {tmp_path / name}" in caplog.text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.xyz", {}, "out.xyz has the suffix '.xyz'; expected a video \\(.mp4 .avi\\), an image"),
        ("missing/out.mp4", {}, "missing/out.mp4 cannot be written: No such file or directory"),
        ("missing/out.png", {}, "missing/out.png cannot be written: No such file or directory"),
        ("missing/out", {}, "missing/out cannot be written: No such file or directory"),
        ("file", {}, "file is a file; expected a folder"),
        ("out.mp4", {"fps": 0.0}, "a video needs a frame rate above 0, got 0.0"),
        ("out.mp4", {"wh": (1, 48)}, "a video needs at least 2x2 pixels, got 1x48"),
        ("out.png", {"num_frames": 7}, "out.png is one image, for 7 pictures"),
    ],
)
def test_what_cannot_be_written_is_an_error_at_once(tmp_path, name, options, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=message):
        _open(tmp_path / name, **options)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_named_like_a_video_is_an_error(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(InputError, match=r"out\.mp4 is a folder; expected the name of a file"):
        VideoSink(tmp_path / "out.mp4", 25.0, (64, 48))


def test_pictures_that_do_not_fit_are_errors(tmp_path):
    with _open(tmp_path / "out.mp4") as sink:
        sink.write(PICTURE)
        with pytest.raises(InputError, match=r"picture 1 is 48x64, the video .* is 64x48; .* to a folder"):
            sink.write(PICTURE.transpose(1, 0, 2))
        with pytest.raises(InputError, match=r"takes \(H, W, 3\) uint8 pictures, got float64"):
            sink.write(PICTURE / 255)
    with ImageSink(tmp_path / "out.png") as sink:
        sink.write(PICTURE)
        with pytest.raises(InputError, match="is one image and got a second"):
            sink.write(PICTURE)
    with pytest.raises(InputError, match="after it had been closed"):
        sink.write(PICTURE)


def test_a_picture_that_no_encoder_takes_is_an_error(tmp_path):
    too_wide = np.zeros((4, 20000, 3), np.uint8)
    with pytest.raises(InputError, match=r"cannot encode .*out\.webp"), ImageSink(tmp_path / "out.webp") as sink:
        sink.write(too_wide)
    assert os.listdir(tmp_path) == []


def test_a_video_that_cannot_be_finished_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be finished; is the disk full"), _open(tmp_path / "out.mp4") as sink:
        sink.write(PICTURE)
        for file in tmp_path.iterdir():  # as if the disk had lost it
            file.rename(tmp_path / "elsewhere")
            file.write_bytes(b"")
    assert os.listdir(tmp_path) == ["elsewhere"]


def test_folders_take_any_size(tmp_path):
    with FolderSink(tmp_path / "out") as sink:
        sink.write(PICTURE)
        sink.write(cv2.resize(PICTURE, (10, 10)))
    assert len(os.listdir(tmp_path / "out")) == 2
