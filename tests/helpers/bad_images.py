"""Image files as they lie about: cut off, mislabelled, hostile, in odd modes or under odd names; and what is right."""

import functools
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from photographs import FOLDER, ROTATED, open_photograph
from PIL import Image, features


HAS_AVIF = bool(features.check("avif"))
UNKNOWN = "no image in a known format"
CUT = "truncated|missing|known format|could not create decoder|Truncated|broken|buffer"
ZLIB_BOMB = zlib.compress(bytes(10**8))
SCAN = b"\xff\xda"


@dataclass(frozen=True)
class BadImage:
    """
    A file, and what is right to make of it.

    Args:
        content: of the file; None where it is none.
        reference: the pixels in RGB; None where it cannot be read.
        reason: a pattern of why not.
        note: a pattern of what there is to note on an image that is read.
    """

    content: bytes | None = None
    reference: Image.Image | None = None
    reason: str | None = None
    note: str | None = None


def right(content: bytes, reference: Image.Image | None = None, note: str | None = None) -> BadImage:
    """An image that is read, by default as Pillow reads it."""
    if reference is None:
        with Image.open(io.BytesIO(content)) as image:
            reference = image.convert("RGB")
    return BadImage(content, reference.convert("RGB"), note=note)


def wrong(content: bytes | None, reason: str) -> BadImage:
    return BadImage(content, reason=reason)


@functools.cache
def photograph() -> Image.Image:
    return open_photograph("coffee.png").resize((121, 87))


def encode(format: str, image: Image.Image | None = None, **options) -> bytes:
    file = io.BytesIO()
    (image or photograph()).save(file, format=format, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, *extra: bytes, bits: int = 1) -> bytes:
    """A grey PNG of compressed pixels, with other chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def replaced(content: bytes, at: int, new: bytes) -> bytes:
    assert len(content) >= at + len(new)
    return content[:at] + new + content[at + len(new) :]


def with_jpeg_size(jpeg: bytes, width: int, height: int) -> bytes:
    frame = jpeg.index(b"\xff\xc0")
    return replaced(jpeg, frame + 5, struct.pack(">HH", height, width))


def cut_off() -> Iterator[tuple[str, BadImage]]:
    """Files that end too soon."""
    whole = {
        "baseline.jpg": encode("JPEG"),
        "progressive.jpg": encode("JPEG", progressive=True),
        "cut.png": encode("PNG"),
        "cut.gif": encode("GIF"),
        "cut.webp": encode("WEBP"),
        "lossless.webp": encode("WEBP", lossless=True),
        "cut.bmp": encode("BMP"),
        "cut.tif": encode("TIFF"),
        "lzw.tif": encode("TIFF", compression="tiff_lzw"),
        "cut.ppm": encode("PPM"),
        "cut.tga": encode("TGA"),
        "cut.jp2": encode("JPEG2000"),
    }
    if HAS_AVIF:
        whole["cut.avif"] = encode("AVIF")
    for name, content in whole.items():
        for percent in (1, 35, 70, 95):
            yield f"{percent}-percent-{name}", wrong(content[: len(content) * percent // 100], CUT)
    for missing in (1, 2, 3):
        yield f"{missing}-bytes-short.jpg", wrong(encode("JPEG")[:-missing], "end of the image is missing")


def filled_up() -> Iterator[tuple[str, BadImage]]:
    """Files of the right length, with zeros or nothing in the place of some of the image."""
    kinds = {
        "baseline": encode("JPEG"),
        "best": encode("JPEG", quality=97, subsampling=0),
        "restarts": encode("JPEG", restart_marker_blocks=4),
        "grey": encode("JPEG", photograph().convert("L")),
        "cmyk": encode("JPEG", photograph().convert("CMYK")),
        "progressive": encode("JPEG", progressive=True),
    }
    for kind, jpeg in kinds.items():
        scan = jpeg.index(SCAN)
        half = (scan + len(jpeg)) // 2
        yield f"{kind}-zeros-to-the-end.jpg", wrong(jpeg[:half] + bytes(9999), "end of the image is missing")
    thumbnail = Image.Exif()
    thumbnail[0x010E] = encode("JPEG", photograph().resize((16, 12))).decode("latin-1")
    jpeg = encode("JPEG", exif=thumbnail.tobytes())
    yield "whole-thumbnail.jpg", wrong(jpeg[:-500] + bytes(500), "end of the image is missing")
    content = encode("PNG")
    yield "zeros-to-the-end.png", wrong(content[:-2000] + bytes(2000), "checksum|broken|truncated|unrecognized")
    yield "hole.png", wrong(replaced(content, len(content) // 2, bytes(500)), "checksum|broken|unrecognized")
    pixels = content.index(b"IDAT")
    end = pixels + 4 + struct.unpack(">I", content[pixels - 4 : pixels])[0]
    yield "wrong-checksum.png", wrong(replaced(content, end, bytes(4)), "checksum of the pixels is wrong")
    yield "wrong-header-checksum.png", wrong(replaced(content, 29, bytes(4)), UNKNOWN)
    content = encode("TIFF", compression="tiff_lzw")
    yield "hole.tif", wrong(replaced(content, len(content) // 2, bytes(300)), "decoder error")
    yield "ends-early.gif", wrong(encode("GIF")[:4000] + b"\0;", "truncated")


def whole_though_it_looks_cut() -> Iterator[tuple[str, BadImage]]:
    """Whole images that resemble damaged ones."""
    grey, white = (Image.new("RGB", (1200, 1200), colour) for colour in ((128, 128, 128), (255, 255, 255)))
    for kind, options in {"plain": {}, "optimised": {"optimize": True}, "progressive": {"progressive": True}}.items():
        yield f"all-grey-{kind}.jpg", right(encode("JPEG", grey, **options), grey)
        yield f"all-white-{kind}.jpg", right(encode("JPEG", white, **options), white)
    jpeg = encode("JPEG")
    scan = jpeg.index(SCAN)
    yield "padded-marker.jpg", right(jpeg[:scan] + b"\xff\xff" + jpeg[scan:], as_encoded("JPEG"))
    for name, content in {"trailer.jpg": jpeg, "trailer.png": encode("PNG")}.items():
        yield f"zeros-{name}", right(content + bytes(5000))
    yield "a-preview-too.mpo.jpg", right(encode("MPO", save_all=True, append_images=[photograph().resize((40, 30))]))
    text = chunk(b"tEXt", b"Comment\0IDAT")
    yield "names-a-chunk.png", right(png(80, 80, zlib.compress(bytes(11 * 80)), text), Image.new("L", (80, 80)))


def mislabelled() -> Iterator[tuple[str, BadImage]]:
    """What the suffix does not say."""
    yield "a-png.jpg", right(encode("PNG"), photograph())
    yield "a-gif.png", right(encode("GIF", photograph().quantize(64)))
    yield "a-webp.jpeg", right(encode("WEBP"))
    yield "a-jpeg.tga", right(encode("JPEG"))
    yield "a-bmp.JPG", right(encode("BMP"), photograph())
    yield "empty.jpg", wrong(b"", "empty")
    yield "zeros.jpg", wrong(bytes(5000), UNKNOWN)
    yield "text.png", wrong(b"not an image\n", UNKNOWN)
    yield "not-found.jpg", wrong(b"<!DOCTYPE html><html><body>404 Not Found</body></html>", UNKNOWN)
    yield "vectors.png", wrong(b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNKNOWN)
    yield (
        "postscript.jpg",
        wrong(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", UNKNOWN),
    )
    yield "pdf.jpg", wrong(b"%PDF-1.4\n%%EOF\n", UNKNOWN)
    yield "an-icon.png", wrong(encode("ICO"), UNKNOWN)
    yield "signature-alone.jpg", wrong(b"\xff\xd8\xff", UNKNOWN)


def bombs() -> Iterator[tuple[str, BadImage]]:
    """Small files that would take a lot of memory or time."""
    yield "20000x20000.png", wrong(png(20000, 20000, zlib.compress(bytes(20000 * 2501))), "decompression bomb")
    yield "huge-header.png", wrong(png(2**31 - 1, 2**31 - 1, b""), "decompression bomb")
    yield "large-header.png", wrong(png(13000, 13000, b"", bits=8), "truncated")
    yield "no-width.png", wrong(png(0, 5, b""), UNKNOWN)
    yield "no-height.jpg", wrong(with_jpeg_size(encode("JPEG"), 121, 0), "broken|cannot|dimension|positive|format")
    yield "huge-header.jpg", wrong(with_jpeg_size(encode("JPEG"), 65500, 65500), "decompression bomb")
    yield "huge-header.gif", wrong(replaced(encode("GIF"), 6, b"\xff\xff\xff\xff"), "decompression bomb")
    yield "huge-header.bmp", wrong(replaced(encode("BMP"), 18, struct.pack("<ii", 10**5, 10**5)), "decompression bomb")
    yield "text-bomb.png", wrong(png(8, 8, b"", chunk(b"zTXt", b"k\0\0" + ZLIB_BOMB)), "too large")
    yield "profile-bomb.png", wrong(png(8, 8, b"", chunk(b"iCCP", b"k\0\0" + ZLIB_BOMB)), "too large")
    progressive = encode("JPEG", progressive=True)
    last = progressive.rindex(SCAN)
    yield "many-scans.jpg", wrong(progressive[:last] + 100 * progressive[last:-2] + b"\xff\xd9", "more than 100 scans")
    thin = Image.new("RGB", (4000, 1), "red")
    yield "thin.png", right(encode("PNG", thin), thin)


def modes() -> Iterator[tuple[str, BadImage]]:
    """Images in other modes than RGB of 8 bits."""
    grey = photograph().convert("L")
    cmyk = encode("JPEG", photograph().convert("CMYK"))
    yield "cmyk.jpg", right(cmyk)
    yield "ycck.jpg", right(replaced(cmyk, cmyk.index(b"Adobe") + 11, b"\2"))
    yield "rgb.jpg", right(encode("JPEG", keep_rgb=True))
    yield "cmyk.tif", right(encode("TIFF", photograph().convert("CMYK")))
    yield "lab.tif", right(encode("TIFF", Image.new("LAB", (20, 20), (50, 20, 90))))
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 2)
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) * 2)
    clipped = Image.fromarray(np.minimum(np.asarray(grey).astype(int) * 2, 255).astype(np.uint8))
    for name, content in {
        "sixteen.png": encode("PNG", sixteen),
        "sixteen.tif": encode("TIFF", sixteen),
        "sixteen.pgm": b"P5 121 87 65535\n" + np.asarray(sixteen).astype(">u2").tobytes(),
        "float.tif": encode("TIFF", floats),
    }.items():
        yield name, right(content, clipped, note="values above 255 are clipped")
    yield "not-a-number.tif", wrong(encode("TIFF", Image.new("F", (9, 9), float("nan"))), "not all values are finite")
    yield "bilevel.png", right(encode("PNG", photograph().convert("1")))
    yield "fax.tif", right(encode("TIFF", photograph().convert("1"), compression="group4"), photograph().convert("1"))
    yield "grey-alpha.png", right(encode("PNG", grey.convert("LA")), grey)
    yield "transparent.png", right(encode("PNG", photograph().convert("RGBA")), photograph())
    palette = photograph().quantize(64)
    yield "palette.png", right(encode("PNG", palette), palette)
    yield "palette-transparent.png", right(encode("PNG", palette, transparency=bytes(range(64))), palette)
    yield "interlaced.gif", right(encode("GIF", palette, interlace=True), palette)
    yield "run-lengths.tga", right(encode("TGA", compression="tga_rle"), photograph())
    yield "thirteen-channels.tif", wrong(thirteen_channels(), "^13 channels, but the model takes 3$")


def thirteen_channels() -> bytes:
    """A TIFF as of satellites' pictures; Pillow writes to its log that it cannot read it."""
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 200, 277: 13, 278: 4, 279: 4 * 4 * 13}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(600)


def metadata() -> Iterator[tuple[str, BadImage]]:
    """Rotations, and metadata that is damaged, of which Pillow warns."""
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    yield "rotated.jpg", right(encode("JPEG", exif=exif))
    yield "rotated.png", right(encode("PNG", exif=exif), photograph())
    yield "rotated.webp", right(encode("WEBP", exif=exif, lossless=True), photograph())
    garbage = b"garbage" * 20
    yield (
        "damaged-exif.jpg",
        right(encode("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + garbage), as_encoded("JPEG")),
    )
    yield "damaged-exif.png", right(encode("PNG", exif=b"II*\0\xff\xff\xff\xff" + garbage), photograph())
    for format, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tif")):
        yield f"damaged-profile.{suffix}", right(encode(format, icc_profile=garbage), as_encoded(format))
    tiff = encode("TIFF", description="x" * 100)
    tag = tiff.index(struct.pack("<HH", 270, 2))
    yield "damaged-tag.tif", right(replaced(tiff, tag + 4, b"\xff\xff\xff\x7f"), photograph())


def as_encoded(format: str) -> Image.Image:
    """The photograph, as it is when no metadata is saved with it."""
    with Image.open(io.BytesIO(encode(format))) as image:
        return image.convert("RGB")


def frames() -> Iterator[tuple[str, BadImage]]:
    """Animations, and files of many pages."""
    first = photograph().quantize(64).convert("RGB")
    others = [first.transpose(turn) for turn in (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_LEFT_RIGHT)]
    note = "the first of several frames or pages"
    formats = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
    for format, options in formats.items():
        content = encode(format, first, save_all=True, append_images=others, **options)
        yield f"frames.{format.lower()}", right(content, first, note)
    second = len(encode("GIF", first))
    yield (
        "second-frame-cut.gif",
        right(encode("GIF", first, save_all=True, append_images=others)[:second], first, note),
    )
    if HAS_AVIF:
        yield "frames.avif", right(encode("AVIF", first, save_all=True, append_images=others), note=note)


def names() -> Iterator[tuple[str, BadImage]]:
    """Names that a shell, a line of text or UTF-8 cannot hold."""
    image = right(encode("PNG"), photograph())
    yield from (
        (name, image)
        for name in (
            "with spaces in it.png",
            " a space before and after .png ",
            'it\'s "quoted".png',
            "a new\nline.png",
            "a\ttab and a \\ backslash.png",
            "-rf.png",
            "--help.png",
            "*.png",
            "$HOME;`true`.png",
            "%s{0}.png",
            "ünïcödé-雪-🦖.png",
            os.fsdecode(b"no-utf-8-\xff\xfe.png"),
            "n" * 251 + ".png",
            ".hidden.png",
            "two.dots.jpg.png",
            "UPPER.PNG",
            "no-suffix",
            "broken-off.png.part",
        )
    )
    yield 'damaged\n"name" of a file.png', wrong(encode("PNG")[:900], "truncated")


def write_bad_images(folder: Path) -> dict[str, BadImage]:
    """
    Writes them all.

    Returns:
        name -> what is right to make of it; folders, which a search enters, are not among them.
    """
    kinds = (cut_off, filled_up, whole_though_it_looks_cut, mislabelled, bombs, modes, metadata, frames, names)
    images = [image for kind in kinds for image in kind()]
    for name, image in images:
        (folder / name).write_bytes(image.content)
    return dict(images) | write_what_is_no_file(folder)


def write_what_is_no_file(folder: Path) -> dict[str, BadImage]:
    """Links, pipes, sockets and folders under the names of images."""
    (folder / "folder.jpg").mkdir()
    (folder / "link-to-a-folder.jpg").symlink_to("folder.jpg")
    (folder / "circle").mkdir()
    (folder / "circle" / "above").symlink_to("..")
    (folder / "link-to-nothing.jpg").symlink_to("nothing.jpg")
    (folder / "link-to-itself.jpg").symlink_to("link-to-itself.jpg")
    (folder / "link-to-a-device.jpg").symlink_to(os.devnull)
    (folder / "link-to-a-photograph.jpg").symlink_to(FOLDER / "rocket.jpg")
    os.mkfifo(folder / "pipe.jpg")
    os.mknod(folder / "socket.jpg", stat.S_IFSOCK | 0o600)
    with open(folder / "gigabyte.jpg", "wb") as file:
        file.truncate(2**30 + 1)
    return {
        "link-to-nothing.jpg": wrong(None, "no such file"),
        "link-to-itself.jpg": wrong(None, "symbolic link"),
        "link-to-a-device.jpg": wrong(None, "not a file"),
        "link-to-a-photograph.jpg": right((FOLDER / "rocket.jpg").read_bytes()),
        "pipe.jpg": wrong(None, "not a file"),
        "socket.jpg": wrong(None, "not a file"),
        "gigabyte.jpg": wrong(None, "larger than 1024 MiB"),
    }
