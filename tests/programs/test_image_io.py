"""Picture files of every kind that people have, made on the spot: each is read right, or refused with a typed error."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.programs.image_io import ORIENTATION, ImageLimits, ImageTooLarge
from tutelage.programs.values import Image

SCENE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def saved(picture: PIL.Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def hwc(image: Image) -> np.ndarray:
    return image.bytes.transpose(1, 2, 0)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["PNG", "BMP", "TIFF", "PPM", "WEBP"]), st.integers(0, 2**32 - 1))
def test_lossless_files_are_read_as_they_were_written(width: int, height: int, format: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    options = {"lossless": True} if format == "WEBP" else {}
    image = Image.from_bytes(saved(PIL.Image.fromarray(pixels), format, **options))
    np.testing.assert_array_equal(hwc(image), pixels)
    assert image.notes == () and image.key == Image.from_array(pixels.transpose(2, 0, 1)).key


@given(st.integers(1, 8))
def test_every_orientation_is_brought_upright(turn: int) -> None:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = turn
    stored = PIL.Image.fromarray(SCENE)
    image = Image.from_bytes(saved(stored, exif=exif))
    upright = {
        1: SCENE,
        2: SCENE[:, ::-1],
        3: SCENE[::-1, ::-1],
        4: SCENE[::-1],
        5: SCENE.transpose(1, 0, 2),
        6: SCENE[::-1].transpose(1, 0, 2),
        7: SCENE[::-1, ::-1].transpose(1, 0, 2),
        8: SCENE[:, ::-1].transpose(1, 0, 2),
    }
    np.testing.assert_array_equal(hwc(image), upright[turn])
    assert image.notes == (() if turn == 1 else ("turned upright",))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_note_of_the_camera_is_no_broken_picture() -> None:
    good = saved(PIL.Image.fromarray(SCENE), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert Image.from_bytes(good).notes == ()


def test_grey_and_palette_and_two_levels() -> None:
    grey = SCENE[..., 0]
    for mode in ("L", "P", "1"):
        picture = PIL.Image.fromarray(grey).convert(mode)
        want = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(hwc(Image.from_bytes(saved(picture))), want)


def test_transparent_parts_are_laid_over_white() -> None:
    layers = np.zeros((2, 2, 4), np.uint8)
    layers[0] = (200, 0, 0, 255)
    layers[1, 0] = (0, 0, 0, 127)  # half black
    image = Image.from_bytes(saved(PIL.Image.fromarray(layers)))
    assert hwc(image).tolist() == [[[200, 0, 0]] * 2, [[128] * 3, [255] * 3]]
    assert image.notes == ("transparent parts laid over white",)
    layers[..., 3] = 255
    assert Image.from_bytes(saved(PIL.Image.fromarray(layers))).notes == ()


def test_a_palette_with_a_transparent_colour() -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    image = Image.from_bytes(saved(picture, transparency=0))
    assert hwc(image).tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(format: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    image = Image.from_bytes(saved(PIL.Image.fromarray(values), format))
    assert hwc(image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert image.notes == ("sixteen bits scaled to eight",)


def test_numbers_of_no_known_range_are_refused() -> None:
    for values in (np.full((2, 2), 70_000, np.int32), np.full((2, 2), -1, np.int32), np.ones((2, 2), np.float32)):
        with pytest.raises(InputError, match="no known range") as refused:
            Image.from_bytes(saved(PIL.Image.fromarray(values), "TIFF"))
        assert "8 or 16 bits" in str(refused.value)


def test_cmyk_is_converted_and_said_so() -> None:
    red = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image = Image.from_bytes(saved(red, "JPEG", quality=100))
    r, g, b = hwc(image)[4, 4].astype(int)
    assert r > 240 and g < 16 and b < 16
    assert image.notes == ("CMYK converted without its colour profile",)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    red, blue = PIL.Image.new("RGB", (8, 8), (255, 0, 0)), PIL.Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if format == "WEBP" else {}
    image = Image.from_bytes(saved(red, format, save_all=True, append_images=[blue], **options))
    assert hwc(image)[0, 0].tolist() == [255, 0, 0]
    assert image.notes == ("the first of several frames",)


@pytest.mark.filterwarnings("ignore:Truncated File")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_file_is_refused_or_whole(format: str, share: float) -> None:
    """Never half a picture: what is cut is refused (a trailer without pixels may be missing)."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = saved(PIL.Image.fromarray(noise), format)
    with pytest.raises(InputError, match="photo.x: .*image"):
        Image.from_bytes(whole[: int(len(whole) * share)], where="photo.x")


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"P6 "]))
def test_any_bytes_are_a_picture_or_a_typed_error(data: bytes, magic: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.from_bytes(magic + data)
    except InputError as error:
        assert error.remedy
    else:
        assert image.bytes.dtype == np.uint8 and image.width * image.height > 0


def test_what_is_no_picture(tmp_path: Path) -> None:
    cases = {
        "empty.png": b"",
        "text.png": b"hello, I am a text",
        "figure.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            Image.from_file(tmp_path / name)
    with pytest.raises(InputError, match="no such image"):
        Image.from_file(tmp_path / "absent.png")
    with pytest.raises(InputError, match="cannot read"):
        Image.from_file(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(10_000, 6_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    """60 megapixels; more than Pillow itself opens; more than there are."""
    with pytest.raises(ImageTooLarge, match="at most 50,000,000 pixels") as refused:
        Image.from_bytes(png_header(width, height), where="bomb.png")
    assert "bomb.png" in str(refused.value) and "remedy: reduce" in str(refused.value)


def test_limits_are_the_callers() -> None:
    data = saved(PIL.Image.fromarray(SCENE))
    assert Image.from_bytes(data, ImageLimits(bytes=len(data), pixels=24)).width == 6
    with pytest.raises(ImageTooLarge, match="at most 23 pixels"):
        Image.from_bytes(data, ImageLimits(pixels=23))
    with pytest.raises(ImageTooLarge, match=f"more than {len(data) - 1} bytes"):
        Image.from_bytes(data, ImageLimits(bytes=len(data) - 1))


def test_an_endless_file_is_read_to_the_limit_alone() -> None:
    with pytest.raises(ImageTooLarge, match="more than 1,000 bytes"):
        Image.from_file("/dev/zero", ImageLimits(bytes=1000))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_large_picture_is_reduced_where_the_caller_says_so(format: str) -> None:
    half = np.zeros((300, 400, 3), np.uint8)
    half[:, 200:] = 255
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.from_bytes(saved(PIL.Image.fromarray(half), format, exif=exif), ImageLimits(longest_side=40))
    assert (image.width, image.height) == (30, 40)
    assert image.bytes[:, 5].max() < 10 and image.bytes[:, 35].min() > 245
    assert image.notes == ("turned upright", "reduced from 400 x 300")
    small = Image.from_bytes(saved(PIL.Image.fromarray(SCENE)), ImageLimits(longest_side=40))
    assert (small.width, small.notes) == (6, ())


def test_pillows_settings_are_left_alone() -> None:
    before = PIL.Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageTooLarge):
        Image.from_bytes(png_header(30_000, 30_000))
    assert before == PIL.Image.MAX_IMAGE_PIXELS
