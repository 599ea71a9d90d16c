"""What a node remembers of its networks across restarts: the newest it heard, and what is plugged in."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

from novacron.durable import write_durably
from novacron.model.identity import is_id
from novacron.model.network import Location, NetworkSpec, NetworkState, PortFilter

NONE_YET = -1


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A card that is plugged in here, with the newest filter heard of."""

    nic_id: str
    mac: str
    addresses: tuple[str, ...] = ()
    filter: PortFilter = PortFilter()


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network as this node has it. revision: of the newest state applied; locations and ports by MAC."""

    spec: NetworkSpec
    revision: int = NONE_YET
    endpoints: tuple[str, ...] = ()
    locations: dict[str, Location] = {}
    ports: dict[str, Port] = {}


def merged(known: Known | None, state: NetworkState) -> Known:
    """What is known after hearing `state`. An older revision, and a location of an older generation, change nothing."""
    if known is None:
        known = Known(spec=state.spec)
    if state.revision < known.revision:
        return known
    locations = {one.mac: newer(known.locations.get(one.mac), one) for one in state.locations}
    ports = {mac: _refiltered(port, state.filters.get(mac)) for mac, port in known.ports.items()}
    return Known(spec=state.spec, revision=state.revision, endpoints=state.endpoints, locations=locations, ports=ports)


def newer(known: Location | None, heard: Location) -> Location:
    """The one of two that holds."""
    return known if known is not None and known.generation > heard.generation else heard


def plugged(known: Known, port: Port) -> Known:
    """With a card. Of two filters the newer one holds."""
    before = known.ports.get(port.mac)
    if before is not None and before.filter.revision > port.filter.revision:
        port = msgspec.structs.replace(port, filter=before.filter)
    return msgspec.structs.replace(known, ports={**known.ports, port.mac: port})


def unplugged(known: Known, mac: str) -> Known:
    return msgspec.structs.replace(known, ports={at: port for at, port in known.ports.items() if at != mac})


def alike(port: Port, other: Port | None) -> bool:
    """Whether the same passes both, however often it was said."""
    if other is None:
        return False
    return port == msgspec.structs.replace(
        other, filter=msgspec.structs.replace(other.filter, revision=port.filter.revision)
    )


def located(known: Known, location: Location) -> Known:
    """With a card's place, unless a newer one is known."""
    place = newer(known.locations.get(location.mac), location)
    return msgspec.structs.replace(known, locations={**known.locations, location.mac: place})


def _refiltered(port: Port, heard: PortFilter | None) -> Port:
    if heard is None or heard.revision < port.filter.revision:
        return port
    return msgspec.structs.replace(port, filter=heard)


class Memory:
    """The files, one a network, each replaced whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = structlog.get_logger("networks")

    def read(self) -> dict[str, Known]:
        """What was remembered. A file that cannot be read is logged and left; the next state heard replaces it."""
        found: dict[str, Known] = {}
        for file in sorted(self._directory.glob("*.json")):
            try:
                if not is_id(file.stem):
                    continue
                found[file.stem] = msgspec.json.decode(file.read_bytes(), type=Known)
            except (OSError, msgspec.DecodeError) as wrong:
                self._log.error("a network's file cannot be read", file=str(file), why=str(wrong))
        return found

    def write(self, known: Known) -> None:
        """Blocks until it is on disk."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._directory / f"{known.spec.id}.json", msgspec.json.encode(known))

    def remove(self, network_id: str) -> None:
        (self._directory / f"{network_id}.json").unlink(missing_ok=True)
        if self._directory.exists():
            handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
