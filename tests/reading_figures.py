"""Reads pictures and text back from PDF and SVG files, without the library that wrote them."""

import base64
import io
import re
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
from PIL import Image

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def svg_pictures(path):
    """The embedded pictures in the order of the file: (pixels uint8 [H, W, 3], scale, left edge, top edge)."""
    found = []
    for item in ElementTree.parse(path).iter(f"{SVG}image"):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(item.get(LINK).split(",")[1]))).convert("RGB"))
        place = re.match(r"matrix\((\S+) 0 0 \S+ (\S+) (\S+)\)", item.get("transform") or "")
        found.append((pixels, *map(float, place.groups())) if place else (pixels, None, None, None))
    return found


def svg_texts(path):
    """Every text, with the place (x, y) of its anchor in points."""
    found = []
    for item in ElementTree.parse(path).iter(f"{SVG}text"):
        place = item.get("transform")
        x, y = item.get("x"), item.get("y")
        if x is None:
            x, y = re.match(r"translate\((\S+) (\S+)\)", place).groups()
        found.append((item.text, float(x), float(y)))
    return found


def pdf_pictures(path):
    """The true-colour pictures uint8 [H, W, 3] in the order of the file; those with a palette are left out.

    They are stored upside down and drawn with a negative height, which is checked.
    """
    found, content = [], path.read_bytes()
    streams = re.findall(rb"/FlateDecode >>\s*stream\r?\n(x.*?)\r?\nendstream", content, re.DOTALL)
    drawn = b"".join(zlib.decompress(stream) for stream in streams)
    assert re.search(rb" 0 0 -\S+ 0 \S+ cm /I\d+ Do", drawn) and not re.search(rb" 0 0 \d\S* 0 \S+ cm /I\d+ Do", drawn)
    for match in re.finditer(rb"/Subtype /Image(.*?)stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL):
        if b"/Indexed" in match[1]:
            continue
        assert b"/Predictor 10" in match[1] and b"/Colors 3" in match[1]
        width, height = (int(re.search(rb"/%s (\d+)" % name, match[1])[1]) for name in (b"Width", b"Height"))
        found.append(_png(match[2], width, height)[::-1])
    return found


def _png(stream, width, height):
    """What a PDF calls predictor 10 is the inside of a PNG."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    return np.asarray(Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)))
