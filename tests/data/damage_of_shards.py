"""Damage to folders of shards: cases by codec, each a small harm that somebody's disk, script or malice might do."""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from corpus import Case, cut, edit_json, flip
from PIL import Image

FIRST, SECOND = "shard-000000", "shard-000001"
MANIFEST = "manifest.json"
FILES = (f"{FIRST}.tar", f"{SECOND}.tar", f"{FIRST}.idx", f"{SECOND}.idx", MANIFEST)
SHARD_FILES = (f"{FIRST}.tar", f"{FIRST}.idx", MANIFEST)
COMPONENTS = ("obs", "act", "rew", "flags", "meta")


@dataclass
class Member:
    """One entry of a tar file, to be changed and written again."""

    name: str
    data: bytes
    kind: bytes = tarfile.REGTYPE
    link: str = ""


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path, "r:") as archive:
        return archive.getmembers()


def member(path: Path, stem: str, component: str) -> tarfile.TarInfo:
    return next(info for info in members(path) if info.name.startswith(f"{stem}.{component}"))


def rebuild(folder: Path, change: Callable[[list[Member]], object], shard: str = FIRST, pax: bool = False) -> None:
    """Write a shard anew with other members, its index and the manifest's checksums made to agree."""
    path = folder / f"{shard}.tar"
    with tarfile.open(path, "r:") as archive:
        entries = [Member(info.name, archive.extractfile(info).read()) for info in archive]
    change(entries)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.size, info.type, info.linkname = len(entry.data), entry.kind, entry.link
            if pax:
                info.pax_headers = {"comment": "made elsewhere"}
            archive.addfile(info, io.BytesIO(entry.data) if info.isreg() else None)
    lines, stems = [], []
    for info in members(path):
        stem, _, ending = info.name.rpartition("/")[2].partition(".")
        if not stems or stems[-1] != stem:
            stems.append(stem)
            lines.append([])
        lines[-1] += [ending, str(info.offset_data), str(info.size), info.name]
    index = "".join(f"{line}\n" for line in [f"v1.2 {len(lines)}", *map(" ".join, lines)])
    (folder / f"{shard}.idx").write_bytes(index.encode(errors="surrogateescape"))
    sign(folder, shard)


def sign(folder: Path, shard: str = FIRST) -> None:
    """Make the manifest's size and checksums those of the files."""
    content, index = (folder / f"{shard}.tar").read_bytes(), (folder / f"{shard}.idx").read_bytes()

    def change(manifest: dict) -> None:
        entry = next(entry for entry in manifest["shards"] if entry["file"] == f"{shard}.tar")
        entry.update(
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    edit_json(folder / MANIFEST, change)


def forge(component: str, change: Callable[[bytes], bytes], stem: str = "000000_000000") -> Callable[..., str]:
    """Change the bytes of one member of a chunk, with every checksum made to agree."""

    def damage(folder: Path, random: np.random.Generator) -> str:
        def edit(entries: list[Member]) -> None:
            (meta,) = (entry for entry in entries if entry.name == f"{stem}.meta")
            (entry,) = (entry for entry in entries if entry.name.startswith(f"{stem}.{component}"))
            entry.data = change(entry.data)
            if entry is not meta:
                fields = json.loads(meta.data)
                fields["crc32"][entry.name.partition(".")[2]] = zlib.crc32(entry.data)
                meta.data = json.dumps(fields).encode()

        rebuild(folder, edit)
        return f"{stem}.{component}: forged"

    return damage


def flip_in(component: str, stem: str, place: str = "data") -> Callable[[Path, np.random.Generator], str]:
    """Flip a bit in a member: its tar `header`, its `data`, or the part of the data where a JPEG's tables lie."""

    def damage(folder: Path, random: np.random.Generator) -> str:
        path = folder / f"{SECOND if stem > '000002' else FIRST}.tar"
        info = member(path, stem, component)
        first, end = {
            "header": (info.offset, info.offset + 512),
            "data": (info.offset_data, info.offset_data + info.size),
            "tables": (info.offset_data, info.offset_data + 600),
            "end": (info.offset_data + info.size - 2, info.offset_data + info.size),
        }[place]
        return f"{info.name}, {place}; " + flip(path, random, first, end)

    return damage


def edited(change: Callable[[dict], object]) -> Callable[[Path, np.random.Generator], str]:
    def damage(folder: Path, random: np.random.Generator) -> str:
        edit_json(folder / MANIFEST, change)
        return "manifest edited"

    return damage


def text(old: str, new: str, name: str = f"{FIRST}.idx") -> Callable[[Path, np.random.Generator], str]:
    """Replace words once in a text file, and sign it, so that only its meaning can give it away."""

    def damage(folder: Path, random: np.random.Generator) -> str:
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new, 1))
        sign(folder)
        return f"{name}: {old!r} became {new!r}"

    return damage


def rebuilt(change: Callable[[list[Member]], object], **options: bool) -> Callable[[Path, np.random.Generator], str]:
    def damage(folder: Path, random: np.random.Generator) -> str:
        rebuild(folder, change, **options)
        return "members changed; index and checksums agree"

    return damage


def replaced(name: str, how: Callable[[Path], object]) -> Callable[[Path, np.random.Generator], str]:
    def damage(folder: Path, random: np.random.Generator) -> str:
        (folder / name).unlink()
        how(folder / name)
        return f"{name}: replaced"

    return damage


def whole_file(name: str, damage: Callable[[Path, np.random.Generator], str]) -> Callable[..., str]:
    return lambda folder, random: damage(folder / name, random)


def _random_places(codec: str, each: int) -> list[Case]:
    """Cuts and single bits, in every file and every component."""
    cases = []
    for name in FILES:
        for n in range(each):
            cases.append(Case(f"{codec}/cut {name} {n}", whole_file(name, cut), (name,), refused=True))
            # Of a file as a whole: padding and what nothing needs may be hit.
            cases.append(
                Case(f"{codec}/bit of {name} {n}", whole_file(name, flip), (name, MANIFEST, f"{name[:-4]}.tar"))
            )
    for component in COMPONENTS:
        for episode, start in ((0, 16), (2, 16)):
            stem, shard = f"{episode:06d}_{start:06d}", SECOND if episode == 2 else FIRST
            for n in range(each):
                name = f"{codec}/bit of {component} in {stem} {n}"
                # A bit of the meta member may be in a space, or turn a name into one that is not looked at.
                chunk = None if component == "meta" else (episode, 1)
                cases.append(Case(name, flip_in(component, stem), (f"{shard}.tar",), chunk, refused=chunk is not None))
        name = f"{codec}/bit of the header of {component}"
        cases.append(Case(name, flip_in(component, "000000_000016", "header"), (f"{FIRST}.tar",)))
    return cases


def _first(entries: list[Member], component: str) -> int:
    return next(i for i, entry in enumerate(entries) if entry.name.startswith(f"000000_000016.{component}"))


def _rename(component: str, name: str) -> Callable[[list[Member]], None]:
    def change(entries: list[Member]) -> None:
        entries[_first(entries, component)].name = name

    return change


def _retype(component: str, kind: bytes, link: str = "") -> Callable[[list[Member]], None]:
    def change(entries: list[Member]) -> None:
        entry = entries[_first(entries, component)]
        entry.kind, entry.link, entry.data = kind, link, b""

    return change


def _swap(entries: list[Member]) -> None:
    """Two chunks whole, each under the other's name."""
    for a, b in zip(range(0, 5), range(5, 10), strict=True):
        entries[a].data, entries[b].data = entries[b].data, entries[a].data


def _members() -> list[Case]:
    changes: dict[str, Callable[[list[Member]], object]] = {}
    for part in COMPONENTS:
        changes[f"{part} removed"] = lambda e, part=part: e.pop(_first(e, part))
        changes[f"{part} twice"] = lambda e, part=part: e.insert(_first(e, part), e[_first(e, part)])
        changes[f"{part} renamed"] = _rename(part, f"000000_000016.x{part}")
        changes[f"{part} of another chunk"] = _rename(part, f"000000_000032.{part}")
    for way, name in (("upwards", "../../000000_000016.act"), ("to the root", "/000000_000016.act")):
        changes[f"name leads {way}"] = _rename("act", name)
        changes[f"name of pixels leads {way}"] = _rename("obs", name.replace("act", "obs.raw"))
    changes |= {
        "symbolic link": _retype("act", tarfile.SYMTYPE, "/etc/passwd"),
        "hard link": _retype("act", tarfile.LNKTYPE, "../../etc/passwd"),
        "device": _retype("act", tarfile.CHRTYPE),
        "folder": _retype("act", tarfile.DIRTYPE),
        "chunk removed": lambda e: e.__delitem__(slice(5, 10)),
        "chunk twice": lambda e: e.extend(e[5:10]),
        "chunks swapped": _swap,
        "chunks in another order": lambda e: e.extend([e.pop(0) for _ in range(5)]),
        "members in another order": lambda e: e.insert(0, e.pop(1)),
        "capital letters": lambda e: [setattr(m, "name", m.name.upper()) for m in e],
        "pickle beside": lambda e: e.insert(5, Member("000000_000000.pyd", b"cos\nsystem\n(S'exit'\ntR.")),
        "a file before": lambda e: e.insert(0, Member("README", b"hello")),
        "no members": lambda e: e.clear(),
        "name not text": _rename("act", "000000_\udcff00016.act"),
        "empty name": _rename("act", ""),
    }
    files = SHARD_FILES
    cases = [Case(f"raw/members/{name}", rebuilt(change), files, refused=True) for name, change in changes.items()]
    cases.append(Case("raw/members/pax headers", rebuilt(lambda e: None, pax=True), files))
    return cases


def _set(table: str, row: int, **fields: object) -> Callable[[dict], object]:
    return lambda m: m[table][row].update(fields)


def _statistic(name: str, value: object) -> Callable[[dict], object]:
    return lambda m: m["action_statistics"][name].__setitem__(0, value)


def _manifest() -> list[Case]:
    changes: dict[str, Callable[[dict], object]] = {
        "newer": lambda m: m.update(version=3),
        "older": lambda m: m.update(version=0),
        "version true": lambda m: m.update(version=True),
        "version text": lambda m: m.update(version="1"),
        "version NaN": lambda m: m.update(version=float("nan")),
        "version huge": lambda m: m.update(version=10**400),
        "another format": lambda m: m.update(format="webdataset"),
        "unknown codec": lambda m: m.update(codec="webp"),
        "codec a list": lambda m: m.update(codec=["raw"]),
        "other codec": lambda m: m.update(codec="png"),
        "lossy": lambda m: m.update(lossy=True),
        "lossy 0": lambda m: m.update(lossy=0),
        "image size": lambda m: m.update(image_size=128),
        "chunk length": lambda m: m.update(strip_length=8),
        "chunk length NaN": lambda m: m.update(strip_length=float("nan")),
        "wider actions": lambda m: m.update(action_dim=4),
        "actions of no width": lambda m: m.update(action_dim=0),
        "width true": lambda m: m.update(action_dim=True),
        "convention": lambda m: m.update(convention="actions[t] led to frame t"),
        "environment a number": lambda m: m.update(environment=3),
        "notes text": lambda m: m.update(notes="none"),
        "split seed text": lambda m: m.update(split_seed="x"),
        "encoder a number": lambda m: m.update(encoder=7),
        "mean NaN": _statistic("mean", float("nan")),
        "std infinite": _statistic("std", float("inf")),
        "min text": _statistic("min", "x"),
        "max null": _statistic("max", None),
        "statistics a list": lambda m: m.update(action_statistics=[1, 2, 3, 4]),
        "statistic missing": lambda m: m["action_statistics"].pop("std"),
        "statistic nested": lambda m: m["action_statistics"].update(mean=[[1.0], [2.0], [3.0]]),
        "no shards": lambda m: m.update(shards=[]),
        "no episodes": lambda m: m.update(episodes=[]),
        "shards null": lambda m: m.update(shards=None),
        "episodes a table": lambda m: m.update(episodes={"0": m["episodes"][0]}),
        "shard twice": lambda m: m["shards"].append(m["shards"][0]),
        "shards swapped": lambda m: m["shards"].reverse(),
        "shard missing": lambda m: m["shards"].pop(),
        "shard upwards": _set("shards", 0, file="../shards/shard-000000.tar"),
        "shard absolute": _set("shards", 0, file="/dev/zero"),
        "shard a number": _set("shards", 0, file=0),
        "shard not there": _set("shards", 0, file="shard-000009.tar"),
        "both shards the same file": _set("shards", 1, file="shard-000000.tar"),
        "size wrong": _set("shards", 0, bytes=512),
        "size negative": _set("shards", 0, bytes=-1),
        "size fraction": _set("shards", 0, bytes=0.5),
        "fewer samples": _set("shards", 0, samples=2),
        "samples huge": _set("shards", 0, samples=10**18),
        "length longer": _set("episodes", 0, length=25),
        "length shorter": _set("episodes", 0, length=23),
        "length zero": _set("episodes", 1, length=0),
        "length negative": _set("episodes", 1, length=-5),
        "length text": _set("episodes", 1, length="5"),
        "length huge": _set("episodes", 0, length=10**18),
        "id": _set("episodes", 1, id=7),
        "id fraction": _set("episodes", 1, id=1.0),
        "shard of episode": _set("episodes", 1, shard=1),
        "shard of episode negative": _set("episodes", 2, shard=-1),
        "first sample": _set("episodes", 1, first_sample=0),
        "first sample negative": _set("episodes", 1, first_sample=-2),
        "split": _set("episodes", 0, split="test"),
        "split null": _set("episodes", 0, split=None),
        "lengths exchanged": lambda m: (_set("episodes", 0, length=5)(m), _set("episodes", 1, length=24)(m)),
        "unknown field": lambda m: m.update(licence="mine"),
        "unknown field of an episode": _set("episodes", 0, note="x"),
        **{f"without {name}": lambda m, name=name: m.pop(name) for name in ("format", "version", "codec", "shards")},
        **{f"episode without {name}": lambda m, name=name: m["episodes"][2].pop(name) for name in ("id", "split")},
        "shard without sha256": lambda m: m["shards"][1].pop("sha256"),
    }
    files = (*SHARD_FILES, "shard-000009.tar")
    cases = [Case(f"raw/manifest/{n}", edited(c), files, refused=True) for n, c in changes.items()]
    # What only a deep look compares.
    deep = {
        "mean wrong": _statistic("mean", 0.5),
        "sha256 wrong": _set("shards", 0, sha256="0" * 64),
        "sha256 null": _set("shards", 0, sha256=None),
        "sha256 of the index wrong": _set("shards", 1, index_sha256="0" * 64),
    }
    return cases + [Case(f"raw/manifest/{n}", edited(c), (*FILES, "manifest")) for n, c in deep.items()]


def _index() -> list[Case]:
    changes = {
        "misnamed": text("000000_000016.act", "000000_000000.act"),
        "upwards": text("000000_000016.act", "../../../x.act"),
        "to the root": text("000000_000016.act", "/etc/passwd"),
        "count less": text("v1.2 3", "v1.2 2"),
        "count more": text("v1.2 3", "v1.2 30"),
        "version": text("v1.2 3", "v1.1 3"),
        "no version": text("v1.2 ", ""),
        "negative": text("rew ", "rew -"),
        "far outside": text("rew ", "rew 99999999"),
        "beyond 64 bits": text("rew ", "rew 9999999999999999999999"),
        "not a number": text("rew ", "rew x"),
        "number with an underscore": text("rew 1", "rew 1_0"),
        "another member": text("rew ", "extra 1 2 3 rew "),
        "two spaces": text("rew ", "rew  "),
    }
    cases = [Case(f"raw/index/{n}", damage, SHARD_FILES, refused=True) for n, damage in changes.items()]
    return [*cases, Case("raw/index/a line end of Windows", text("\n", "\r\n"), SHARD_FILES)]


def _float(place: int, value: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: 4 * place] + np.float32(value).tobytes() + data[4 * place + 4 :]


def _picture(**options: object) -> Callable[[bytes], bytes]:
    """The picture of a chunk stored in another way."""
    mode, size = options.pop("mode", "RGB"), options.pop("size", None)

    def change(data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as image:
            image = image.convert(mode)
            image = image.resize(size) if size else image
            buffer = io.BytesIO()
            image.save(buffer, **options)
        return buffer.getvalue()

    return change


def _png_size(width: int, height: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:29]
        return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]

    return change


def _jpeg_size(width: int, height: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]

    return change


def _forged() -> list[Case]:
    """Chunks whose checksums are right and whose content is not."""
    raw: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
        "NaN action": ("act", _float(5, np.nan)),
        "infinite action": ("act", _float(5, np.inf)),
        "NaN reward": ("rew", _float(3, np.nan)),
        "infinite reward": ("rew", _float(3, -np.inf)),
        "actions in double precision": ("act", lambda d: np.frombuffer(d, "<f4").astype("<f8").tobytes()),
        "actions in half precision": ("act", lambda d: np.frombuffer(d, "<f4").astype("<f2").tobytes()),
        "an action more": ("act", lambda d: d + d[:12]),
        "a reward less": ("rew", lambda d: d[:-4]),
        "no rewards": ("rew", lambda d: b""),
        "a flag less": ("flags", lambda d: d[:-1]),
        "an end in the middle": ("flags", lambda d: d[:2] + b"\1" + d[3:]),
        "a frame less": ("obs", lambda d: d[:-12288]),
        "half a frame less": ("obs", lambda d: d[:-6144]),
        "frames in floats": ("obs", lambda d: np.frombuffer(d, np.uint8).astype("<f4").tobytes()),
        "no frames": ("obs", lambda d: b""),
        "meta null": ("meta", lambda d: b"null"),
        "meta a list": ("meta", lambda d: b"[]"),
        "meta deep": ("meta", lambda d: b"[" * 100_000),
        "meta of another episode": ("meta", lambda d: d.replace(b'"episode":0', b'"episode":1')),
        "meta of another start": ("meta", lambda d: d.replace(b'"start":0', b'"start":16')),
        "meta longer": ("meta", lambda d: d.replace(b'"length":16', b'"length":17')),
        "meta without checksums": ("meta", lambda d: json.dumps({**json.loads(d), "crc32": {}}).encode()),
        "meta with infinite checksum": ("meta", lambda d: d.replace(b'"act":', b'"act":1e999,"x":')),
        "meta not text": ("meta", lambda d: b"\xff\xfe" + d),
    }
    pictures: dict[tuple[str, str], Callable[[bytes], bytes]] = {
        ("png", "empty"): lambda d: b"",
        ("png", "half"): lambda d: d[: len(d) // 2],
        ("png", "header alone"): lambda d: d[:50],
        ("png", "a bomb"): _png_size(60_000, 60_000),
        ("png", "taller"): _png_size(64, 16 * 64 + 1),
        ("png", "of no size"): _png_size(0, 0),
        ("png", "wider"): _picture(format="PNG", size=(128, 1024)),
        ("png", "grey"): _picture(format="PNG", mode="L"),
        ("png", "with a palette"): _picture(format="PNG", mode="P"),
        ("png", "with transparency"): _picture(format="PNG", mode="RGBA"),
        ("png", "a GIF"): _picture(format="GIF"),
        ("png", "a JPEG"): _picture(format="JPEG", quality=95, subsampling="4:4:4"),
        ("jpg", "empty"): lambda d: b"",
        ("jpg", "half"): lambda d: d[: len(d) // 2],
        ("jpg", "tables alone"): lambda d: d[:500],
        ("jpg", "zeros"): lambda d: bytes(len(d)),
        ("jpg", "4:2:0"): _picture(format="JPEG", quality=95, subsampling="4:2:0"),
        ("jpg", "grey"): _picture(format="JPEG", mode="L"),
        ("jpg", "CMYK"): _picture(format="JPEG", mode="CMYK"),
        ("jpg", "a bomb"): _jpeg_size(65_500, 65_500),
        ("jpg", "taller"): _jpeg_size(64, 1025),
        ("jpg", "of no height"): _jpeg_size(64, 0),
        ("jpg", "a PNG"): _picture(format="PNG"),
    }
    files = (f"{FIRST}.tar",)
    cases = [Case(f"raw/forged/{n}", forge(*how), files, (0, 0), refused=True) for n, how in raw.items()]
    for (codec, name), change in pictures.items():
        cases.append(Case(f"{codec}/forged/{name}", forge("obs", change), files, (0, 0), refused=True))
    # Other bytes for the very same pixels: no damage at all.
    cases.append(Case("png/forged/compressed again", forge("obs", _picture(format="PNG", compress_level=1)), files))
    return cases


def _jpeg_streams() -> list[Case]:
    places = [("tables", n) for n in range(4)] + [("data", n) for n in range(4)] + [("end", 0)]
    stem, files = "000000_000000", (f"{FIRST}.tar",)
    return [
        Case(f"jpg/stream/bit in its {place} {n}", flip_in("obs", stem, place), files, (0, 0), refused=True)
        for place, n in places
    ]


def _files() -> list[Case]:
    """Files that are something else, or not there."""
    cases = []
    for name in (f"{SECOND}.tar", f"{FIRST}.idx", MANIFEST):
        ways = {
            "missing": lambda path: None,
            "empty": Path.touch,
            "a folder": Path.mkdir,
            "a link to nowhere": lambda path: path.symlink_to("nowhere"),
            "a link to itself": lambda path: path.symlink_to(path),
            "a pipe": os.mkfifo,
            "an endless device": lambda path: path.symlink_to("/dev/zero"),
            "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        }
        # Without a manifest the folder is none of shards.
        names = (name, f"{name[:-4]}.tar") if name != MANIFEST else (name, "shards")
        cases += [Case(f"raw/files/{name} {how}", replaced(name, do), names, refused=True) for how, do in ways.items()]
    for how, tail in {"zeros": bytes(512), "noise": b"x" * 700}.items():
        cases.append(Case(f"raw/files/{how} appended", _appended(tail), (f"{FIRST}.tar",), refused=True))
    return cases


def _appended(tail: bytes) -> Callable[[Path, np.random.Generator], str]:
    def damage(folder: Path, random: np.random.Generator) -> str:
        with (folder / f"{FIRST}.tar").open("ab") as file:
            file.write(tail)
        return f"{FIRST}.tar: {len(tail)} bytes appended"

    return damage


SHARD_CASES: list[Case] = [
    *_random_places("raw", 3),
    *_random_places("png", 1),
    *_random_places("jpg", 2),
    *_jpeg_streams(),
    *_members(),
    *_manifest(),
    *_index(),
    *_forged(),
    *_files(),
]
