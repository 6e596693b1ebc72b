"""Decoding: every file as a viewer shows it, in 8 bits, or one sentence that names it."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlap_kernels.data import DataError
from dmlap_kernels.data.pictures import image_header, is_picture, open_image, shown

pil = pytest.importorskip("PIL.Image")

# A grey ramp of 12 x 8 pixels whose corners all differ, and a colour picture.
RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12) * 2 + 30
COLOR = np.stack((RAMP, RAMP[::-1], RAMP[:, ::-1]), 2)


def _read(path: Path, **options: Any) -> np.ndarray:
    image = open_image(path, "a test", **options)
    assert image.mode in ("L", "RGB")
    return np.asarray(image)


def _saved(path: Path, array: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = pil.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


# What a viewer does to the stored pixels for each value of the EXIF orientation.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["png", "tif", "webp", "jpg"])
def test_photographs_are_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = pil.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    options |= {"lossless": True} if kind == "webp" else {}
    path = _saved(tmp_path / f"a.{kind}", COLOR, exif=exif, **options)
    error = np.abs(_read(path).astype(int) - TURNS[orientation](COLOR))
    assert error.max() <= (12 if kind == "jpg" else 0)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"x"])
@pytest.mark.filterwarnings("ignore")
def test_a_broken_exif_does_not_matter(exif: bytes, tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.png", COLOR, exif=exif)
    assert np.array_equal(_read(path), COLOR)


def _palette_with_transparency() -> Any:
    image = pil.fromarray(RAMP).convert("P")
    image.putpixel((0, 0), 7)
    return image


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *((kind, mode) for kind in ("png", "webp", "tif", "tga", "avif") for mode in ("RGBA",)),
        *((kind, "LA") for kind in ("png", "tga", "tif")),
    ],
)
def test_transparent_parts_are_white(kind: str, mode: str, tmp_path: Path) -> None:
    """Half of the picture is black and clear, the rest is opaque."""
    alpha = np.full((8, 12), 255, np.uint8)
    alpha[:, :6] = 0
    bands = (np.where(alpha > 0, RAMP, 0),) * (3 if mode == "RGBA" else 1)
    image = pil.merge(mode, [pil.fromarray(band) for band in (*bands, alpha)])
    try:
        image.save(tmp_path / f"a.{kind}", **({"lossless": True} if kind == "webp" else {}))
    except (KeyError, ValueError, OSError) as error:
        pytest.skip(f"this Pillow does not write {kind}: {error}")
    got = _read(tmp_path / f"a.{kind}").astype(int)
    assert got.ndim == (3 if mode == "RGBA" else 2)
    slack = 16 if kind == "avif" else 0
    assert got[:, :4].min() >= 255 - slack
    shades = got[..., 0] if got.ndim == 3 else got
    assert np.abs(shades[:, 8:] - RAMP[:, 8:]).max() <= slack


@pytest.mark.parametrize("kind", ["P", "P bytes", "gif", "L", "RGB", "1", "I;16", "half"])
def test_keyed_transparency_is_white(kind: str, tmp_path: Path) -> None:
    """A color, an entry of the palette, or an opacity for each entry of it."""
    path = tmp_path / ("a.gif" if kind == "gif" else "a.png")
    if kind in ("P", "P bytes", "gif"):
        image = pil.new("P", (2, 1))
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.putpixel((1, 0), 1)
        image.save(path, transparency=b"\0\xff" if kind == "P bytes" else 0)
        want = [[[255] * 3, [90] * 3]]
    elif kind == "RGB":
        pil.fromarray(np.array([[[0, 0, 0], [90] * 3]], np.uint8)).save(path, transparency=(0,) * 3)
        want = [[[255] * 3, [90] * 3]]
    elif kind == "half":
        pil.fromarray(np.array([[[0, 0, 0, 127], [90, 90, 90, 255]]], np.uint8)).save(path)
        want = [[[128] * 3, [90] * 3]]
    else:
        values = {"L": [0, 90], "1": [0, 255], "I;16": [0, 90 * 257]}[kind]
        array = np.array([values], np.uint16 if kind == "I;16" else np.uint8)
        image = pil.fromarray(array)
        (image.convert("1") if kind == "1" else image).save(path, transparency=0)
        want = [[255, 255 if kind == "1" else 90]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _read(path).tolist() == want


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_has_its_own_bits(bits: int, tmp_path: Path) -> None:
    """Two pixels by hand: of the transparent grey and of another, both neither black nor white."""
    clear, other = (1, 0) if bits == 1 else (1, 2)
    values = clear << bits | other
    row = (values << (-2 * bits) % 8).to_bytes(-(-2 * bits // 8), "big")
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", clear)),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + checksum
    (tmp_path / "a.png").write_bytes(content)
    assert _read(tmp_path / "a.png").tolist() == [[255, round(other * 255 / (2**bits - 1))]]


@pytest.mark.parametrize("name", ["png", "jp2", "little.tif", "big.tif", "pgm", "inverse.tif"])
def test_sixteen_bits_are_scaled(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{name}"
    deep = RAMP.astype(np.uint16) * 257
    if name == "pgm":
        path.write_bytes(b"P5 12 8 65535\n" + deep.astype(">u2").tobytes())
    elif name == "big.tif":
        image = pil.frombytes("I;16B", (12, 8), deep.astype(">u2").tobytes())
        image.save(path)
        assert pil.open(path).mode == "I;16B"
    else:
        options = {"tiffinfo": {262: 0}} if name == "inverse.tif" else {}
        options |= {"irreversible": False} if name == "jp2" else {}
        pil.fromarray(~deep if name == "inverse.tif" else deep).save(path, **options)
    assert np.array_equal(_read(path), RAMP)
    assert image_header(path, "a test") == ((12, 8), True)


def test_twelve_bits_are_scaled(tmp_path: Path) -> None:
    """A TIFF by hand: two pixels of 12 bits, 4095 and 2048, in three bytes."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    tags.append((279, 3))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    ifd = struct.pack("<H", len(tags)) + entries + bytes(4)
    content = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00" + b"\0" + ifd
    (tmp_path / "a.tif").write_bytes(content)
    assert _read(tmp_path / "a.tif").tolist() == [[255, 128]]


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1, np.int32), (257, np.int32), (1 / 255, np.float32), (1, np.float32), (257, np.float32)],
)
def test_numbers_of_32_bits_are_scaled_by_their_range(
    scale: float, dtype: type, tmp_path: Path
) -> None:
    array = (RAMP.astype(np.float64) * scale).astype(dtype)
    for name in ("a.tif", "a.pfm") if dtype is np.float32 else ("a.tif",):
        assert np.array_equal(_read(_saved(tmp_path / name, array)), RAMP)


@pytest.mark.parametrize("value", [-1.0, 1e6, np.nan, np.inf])
def test_numbers_of_no_known_scale_are_refused(value: float, tmp_path: Path) -> None:
    array = RAMP.astype(np.float32)
    array[0, 0] = value
    path = _saved(tmp_path / "a.tif", array)
    with pytest.raises(DataError, match=r"a\.tif is not a readable image: its pixels go from"):
        _read(path)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "1", "P", "L"])
def test_other_modes(mode: str, tmp_path: Path) -> None:
    plain = np.zeros((8, 12, 3), np.uint8)
    plain[:, 6:] = 255
    image = pil.fromarray(plain)
    if mode == "LAB":
        image = pil.merge("LAB", [image.getchannel(0)] + [pil.new("L", (12, 8), 128)] * 2)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.tif")
    got = _read(tmp_path / "a.tif").astype(int)
    assert got.ndim == (2 if mode in "1L" else 3)
    assert np.abs(got - (plain[..., 0] if got.ndim == 2 else plain)).max() <= 2
    image_header(tmp_path / "a.tif", "a test")


@pytest.mark.parametrize("kind", ["gif", "apng", "webp", "tif"])
def test_the_first_frame_counts(kind: str, tmp_path: Path) -> None:
    frames = [pil.new("L", (9, 9), shade) for shade in (0, 250, 120)]
    path = tmp_path / f"a.{kind}"
    path = path.with_suffix(".png") if kind == "apng" else path
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert _read(path).max() <= 2


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "bmp", "tif", "webp", "jp2", "tga"])
@pytest.mark.filterwarnings("ignore")
def test_broken_files_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"caf\udce9.{kind}"
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    try:
        _saved(tmp_path / f"b.{kind}", noise)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow does not write {kind}: {error}")
    whole = (tmp_path / f"b.{kind}").read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:30], b"\0" * 200):
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            _read(path)
        message = str(caught.value)
        assert f"caf\\xe9.{kind} is not a readable image: " in message and "\n" not in message
        message.encode()  # can be printed


def test_huge_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(tmp_path / "a.png", RAMP)
    monkeypatch.setattr(pil, "MAX_IMAGE_PIXELS", 40)
    for call in (open_image, image_header):
        with pytest.raises(DataError, match=r"a\.png is not a readable image: .*96 pixels"):
            call(path, "a test")
    assert is_picture(path, "a test")


def test_large_photographs_are_reduced_while_they_are_decoded(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.jpg", np.tile(COLOR, (100, 100, 1)))  # 1,200 x 800
    assert _read(path).shape == (800, 1200, 3)
    for side, height in ((800, 800), (400, 400), (150, 200), (9, 100)):
        least = {(1200, 800): side}
        found = _read(path, least=lambda *size: least[size])  # noqa: B023
        assert found.shape == (height, height * 3 // 2, 3)


def test_names_that_are_no_utf_8_can_be_shown() -> None:
    assert shown("caf\udce9") == "caf\\xe9" and shown("café") == "café"
