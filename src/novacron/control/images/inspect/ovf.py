"""The description in an OVA (OVF, an XML document): which file is the disk, and what the machine should have.

Read by expat event by event: no document type, so no entities; bounded in depth, elements and text.
"""

from __future__ import annotations

from xml.parsers import expat

import msgspec

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_ELEMENTS = 20_000
MAX_TEXT = 256
CPU, MEMORY = "3", "4"
_UNITS = {"byte * 2^20": 1, "byte*2^20": 1, "megabytes": 1, "mb": 1, "byte * 2^30": 1024, "byte*2^30": 1024}
_UNITS |= {"gigabytes": 1024, "gb": 1024}


class BadOvf(Exception):
    """It is not an OVF that is taken; the message says why."""


class Ovf(msgspec.Struct, frozen=True):
    """disk: the name of its one disk file within the archive. vcpus, memory_mib: 0 when it does not say."""

    disk: str
    vcpus: int = 0
    memory_mib: int = 0


class _File(msgspec.Struct):
    href: str
    whole: bool


class _Reader:
    """What is gathered while expat reads."""

    def __init__(self) -> None:
        self.files: dict[str, _File] = {}
        self.disks: list[str] = []  # references to files
        self.items: list[dict[str, str]] = []
        self._path: list[str] = []
        self._seen = 0
        self._item: dict[str, str] | None = None
        self._text = ""

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        self._seen += 1
        local = name.rpartition(" ")[2]
        self._path.append(local)
        if len(self._path) > MAX_DEPTH or self._seen > MAX_ELEMENTS:
            raise BadOvf("its description is nested too deeply or too long")
        self._text = ""
        plain = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
        if local == "File":
            whole = "chunkSize" not in plain and plain.get("compression", "identity") in ("", "identity")
            self.files[plain.get("id", "")] = _File(plain.get("href", ""), whole)
        elif local == "Disk" and "fileRef" in plain:
            self.disks.append(plain["fileRef"])
        elif local == "Item":
            self._item = {}

    def end(self, _name: str) -> None:
        local = self._path.pop()
        if local == "Item" and self._item is not None:
            self.items.append(self._item)
            self._item = None
        elif self._item is not None:
            self._item.setdefault(local, self._text.strip())
        self._text = ""

    def text(self, data: str) -> None:
        if self._item is not None and len(self._text) < MAX_TEXT:
            self._text += data[:MAX_TEXT]


def _refuse(*_: object) -> None:
    raise BadOvf("its description has a document type, which could bring in anything")


def read(content: bytes) -> Ovf:
    """The description as data. :raise BadOvf"""
    if len(content) > MAX_BYTES:
        raise BadOvf(f"its description has more than {MAX_BYTES} bytes")
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.StartElementHandler = reader.begin
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as wrong:
        raise BadOvf("its description is no well-formed XML") from wrong
    vcpus = _amount(reader.items, CPU)
    return Ovf(disk=_disk(reader), vcpus=vcpus, memory_mib=_amount(reader.items, MEMORY))


def _disk(reader: _Reader) -> str:
    used = list(dict.fromkeys(reader.disks))
    if len(used) != 1:
        raise BadOvf(f"it has {len(used)} disks, and an image has one")
    file = reader.files.get(used[0])
    if file is None or not file.href:
        raise BadOvf("its disk is not among its files")
    if not file.whole:
        raise BadOvf("its disk is split or compressed once more")
    return file.href


def _amount(items: list[dict[str, str]], resource: str) -> int:
    """VirtualQuantity of the first such resource; memory in MiB. 0: not said, or not sensible."""
    item = next((one for one in items if one.get("ResourceType") == resource), {})
    quantity = item.get("VirtualQuantity", "")
    if not (quantity.isascii() and quantity.isdigit() and len(quantity) <= 9):
        return 0
    factor = 1 if resource == CPU else _UNITS.get(item.get("AllocationUnits", "byte * 2^20").lower(), 0)
    return int(quantity) * factor
