"""Settings: one dataclass a process, from a TOML file and overridden one by one; every field checked by name."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from novacron.errors import InvalidInput
from novacron.model.ha import HaAdmission
from novacron.model.identity import check_name
from novacron.model.placement import WEIGHTS, PlacementPolicy, Weights
from novacron.model.timing import STANDARD, Timing

MAX_PAGE_CACHE_MIB = 1 << 20
MAX_WEIGHT = 1000.0
SHORTEST_CERTIFICATE_S, LONGEST_CERTIFICATE_S = 10, 366 * 86_400
MIN_HEARTBEAT_S, MAX_HEARTBEAT_S = 0.2, 10.0
MAX_PLACE = 300
SRV, MDNS = "srv:", "mdns:"
_DOMAIN = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9-]{1,63}\.?\Z")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The control plane.

    name: what this server is called among several; empty: as its host.
    data_dir: first-start secrets and, unless `store` names another place, its store (mode 0700).
    store: `etcd://host:port,host:port/prefix?ca=FILE&cert=FILE&key=FILE` or `sqlite:FILE` (docs/store.md).
    pool_dir: the storage pool shared with the nodes.
    host, port: where the API listens; port 0 picks one. Off loopback it needs tls_cert and tls_key.
    socket: a unix socket for agents and tools on this machine, empty for none.
    advertise: `https://host:port` at which nodes reach this server, told to all of them; empty: where it listens, if
    that is one address of a network. Its certificate must have that name. mdns: whether the local network is told, too
    (docs/joining.md).
    cluster_dir: the cluster's CA and this server's certificate (`novacron cluster init`, docs/joining.md); it takes
    the place of tls_cert and tls_key, and nodes then come in by certificates.
    node_certificate_lasts_s: how long those last; nodes renew them at two thirds of that.
    agent_secret_file: the secret agents on this machine show, made at first start when missing.
    import_allow: hosts (`host`, `host:port`) and networks (CIDR) outside the public network from which image files may
    be imported; import_ca: certificates trusted there besides the system's.
    heartbeat_s: between heartbeats of each node; every other time of ownership (docs/high-availability.md) goes with
    it. All servers of a cluster have the same.
    cpu_overcommit, disk_overcommit: virtual CPUs promised per real one, bytes promised to disks per byte of a pool.
    memory_reserve_mib: kept for each host itself. placement_policy: where VMs go that wish for nothing else;
    placement_weights: what counts how much when nodes are compared.
    ha_admission: what becomes of a request that leaves too little room for the guarded VMs of a node that failed: it is
    done and warned of (`warn`), or refused (`refuse`).
    migrations_per_node: moves a node takes part in at once, as source or target; more wait in line. Two keep a link of
    1 to 10 Gbit/s busy: one streams while the other starts or hands over; more only stretch each other's last passes.
    migrations_at_once: in the whole cluster; 0: as many as nodes allow.
    """

    data_dir: Path
    pool_dir: Path
    name: str = ""
    store: str = ""
    host: str = "127.0.0.1"
    port: int = 8470
    socket: str = ""
    advertise: str = ""
    mdns: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cluster_dir: Path | None = None
    node_certificate_lasts_s: int = 30 * 86_400
    agent_secret_file: Path | None = None
    keep_revisions: int = 100_000
    heartbeat_s: float = STANDARD.heartbeat_s
    cpu_overcommit: float = 4.0
    memory_reserve_mib: int = 512
    disk_overcommit: float = 10.0
    placement_policy: PlacementPolicy = PlacementPolicy.SPREAD
    placement_weights: Weights = WEIGHTS
    ha_admission: HaAdmission = HaAdmission.WARN
    migrations_per_node: int = 2
    migrations_at_once: int = 0
    import_allow: tuple[str, ...] = ()
    import_ca: Path | None = None
    log_format: str = "text"

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name, "name")
        _check_port("port", self.port)
        _check_one_of("log_format", self.log_format, ("text", "json"))
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidInput.field("tls_cert", "needs tls_key and the other way round", "give both or neither")
        if self.tls_cert is not None and self.cluster_dir is not None:
            remedy = "give cluster_dir alone: agents trust only what the cluster's CA signed"
            raise InvalidInput.field("tls_cert", "stands beside cluster_dir", remedy)
        if not self.has_tls and not is_loopback(self.host):
            remedy = "give cluster_dir, or tls_cert and tls_key, or 127.0.0.1"
            raise InvalidInput.field("host", f"{self.host} is not loopback and there is no TLS", remedy)
        self._check_discovery()
        if not SHORTEST_CERTIFICATE_S <= self.node_certificate_lasts_s <= LONGEST_CERTIFICATE_S:
            bounds = f"give {SHORTEST_CERTIFICATE_S} to {LONGEST_CERTIFICATE_S} seconds"
            raise InvalidInput.field("node_certificate_lasts_s", "is out of bounds", bounds)
        if not MIN_HEARTBEAT_S <= self.heartbeat_s <= MAX_HEARTBEAT_S:
            bounds = f"give {MIN_HEARTBEAT_S:g} to {MAX_HEARTBEAT_S:g}"
            raise InvalidInput.field("heartbeat_s", "is out of bounds", bounds)
        self._check_room()

    def _check_room(self) -> None:
        """What bounds how VMs are placed and moved."""
        if self.cpu_overcommit < 1:
            raise InvalidInput.field("cpu_overcommit", "must be at least 1", "give a number from 1 up")
        if self.disk_overcommit <= 0:
            raise InvalidInput.field("disk_overcommit", "must be more than 0", "1 promises what there is, 2 twice that")
        for name, weight in msgspec.structs.asdict(self.placement_weights).items():
            if not 0 <= weight <= MAX_WEIGHT:
                field = f"placement_weights.{name}"
                raise InvalidInput.field(field, "is out of bounds", f"give a number from 0 to {MAX_WEIGHT:g}")
        if self.migrations_per_node < 1:
            raise InvalidInput.field("migrations_per_node", "must be at least 1", "give a number from 1 up")
        if self.migrations_at_once < 0:
            raise InvalidInput.field("migrations_at_once", "is negative", "give 0 for no bound, or a number from 1 up")

    def _check_discovery(self) -> None:
        if self.advertise and not (self.cluster_dir is not None and is_place(self.advertise)):
            remedy = "give https://host:port, and cluster_dir"
            raise InvalidInput.field("advertise", f"{self.advertise!r} is nowhere that nodes dial", remedy)
        if self.mdns and self.cluster_dir is None:
            remedy = "give cluster_dir: nodes know their servers by its CA, whoever names them"
            raise InvalidInput.field("mdns", "needs a cluster", remedy)
        if self.mdns and not self.advertise and not is_reachable(self.host):
            remedy = "give advertise = https://host:port"
            raise InvalidInput.field("mdns", f"does not know by which address nodes reach {self.host}", remedy)

    def place(self, listening: str) -> str:
        """Where nodes reach this server; empty: they are not told. listening: the URL of its listener."""
        return self.advertise or (listening if self.cluster_dir is not None and is_reachable(self.host) else "")

    @property
    def has_tls(self) -> bool:
        """Whether the TCP listener speaks TLS, and nothing else."""
        return self.tls_cert is not None or self.cluster_dir is not None

    @property
    def timing(self) -> Timing:
        """The times of ownership."""
        return STANDARD.shortened(STANDARD.heartbeat_s / self.heartbeat_s)

    @property
    def secret_file(self) -> Path:
        """Where the agents' shared secret lies."""
        return self.agent_secret_file or self.data_dir / "agent.secret"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """One node.

    server: `https://host:port`, `http://127.0.0.1:port` or `unix:/path` of the control plane; servers: those of several
    of its servers. The node keeps a line to each, and, if it has joined, to those that it is told of. It may also be
    `srv:NAME` (a DNS name that has SRV records) or `mdns:` (the local network; `mdns:ADDRESS`: of this interface).
    secret_file: a copy of the server's agent.secret; not for a node that has joined with `novacron agent join`, whose
    certificate lies in the state directory.
    state_dir: what must outlive a reboot (node id, machine records); run_dir: what must not (sockets, pids).
    pool_dir: the storage pool shared with the server. migration_host: address where streams are received.
    tunnel_host: address at which the other nodes reach this one's overlay networks; empty: migration_host.
    image_door_port: where other nodes fetch image files over TLS, on migration_host; 0: the
    system picks one; absent: it is not offered.
    page_cache_mib: of pages that came with machines are kept so many on disk, so that they need not come again over a
    slow link; 0: none.
    watchdog: the device that resets this host, as /dev/watchdog; absent: it has none. Once opened it resets the host
    whenever it is not fed: the agent's keeper does so as long as no guarded machine lives beyond its deadline.
    uid_base: as root each machine runs as uid_base + its isolation slot; 0: as the agent's own user.
    """

    server: str = ""
    servers: tuple[str, ...] = ()
    node_name: str
    state_dir: Path
    run_dir: Path
    pool_dir: Path
    secret_file: Path | None = None
    migration_host: str = "127.0.0.1"
    tunnel_host: str = ""
    tls_ca: Path | None = None
    image_door_port: int | None = None
    page_cache_mib: int = 2048
    watchdog: Path | None = None
    uid_base: int = 0x4E430000
    accelerator: str = "auto"
    qemu_binary: str = "qemu-system-x86_64"
    log_format: str = "text"

    def __post_init__(self) -> None:
        check_name(self.node_name, "node_name")
        _check_port("image_door_port", self.image_door_port or 0)
        if not 0 <= self.page_cache_mib <= MAX_PAGE_CACHE_MIB:
            raise InvalidInput.field("page_cache_mib", "is out of bounds", f"give 0 to {MAX_PAGE_CACHE_MIB}")
        if self.watchdog is not None and not self.watchdog.is_absolute():
            raise InvalidInput.field("watchdog", "is not an absolute path", "give /dev/watchdog, or leave it out")
        _check_one_of("accelerator", self.accelerator, ("auto", "kvm", "tcg"))
        _check_one_of("log_format", self.log_format, ("text", "json"))
        if bool(self.server) == bool(self.servers):
            raise InvalidInput.field(
                "server", "must be given, or servers, not both", "give servers when there are several"
            )
        for address in self._named:
            _check_server("server" if self.server else "servers", address)
        if len(set(self._named)) < len(self._named):
            raise InvalidInput.field("servers", "names one twice", "give each once")
        for name in ("migration_host", "tunnel_host"):
            _check_address(name, getattr(self, name) or self.migration_host)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The servers that are named."""
        return tuple(one for one in self._named if not one.startswith((SRV, MDNS)))

    @property
    def sources(self) -> tuple[str, ...]:
        """Where others are to be looked for."""
        return tuple(one for one in self._named if one.startswith((SRV, MDNS)))

    @property
    def _named(self) -> tuple[str, ...]:
        return self.servers or (self.server,)

    @property
    def tunnel_address(self) -> str:
        """Where the tunnels of overlay networks end on this node."""
        return self.tunnel_host or self.migration_host


def _check_server(field: str, address: str) -> None:
    if address.startswith(SRV):
        if _DOMAIN.match(address.removeprefix(SRV)) is None:
            raise InvalidInput.field(field, f"{address!r} names no domain", "give srv:_novacron._tcp.example.org")
        return
    if address.startswith(MDNS):
        if address != MDNS:
            _check_address(field, address.removeprefix(MDNS))
        return
    if not address.startswith(("https://", "http://", "unix:/")):
        known = "give https://host:port, unix:/path, srv:NAME or mdns:"
        raise InvalidInput.field(field, f"{address!r} has no known scheme", known)
    if address.startswith("http://") and not is_loopback(address[7:].rsplit(":", 1)[0].strip("[]")):
        raise InvalidInput.field(field, f"{address} is plain http off loopback", "use https://")


def _check_address(field: str, value: str) -> None:
    try:
        ipaddress.ip_address(value)
    except ValueError as wrong:
        raise InvalidInput.field(field, "is not an IP address", "give the node's address") from wrong


Config = TypeVar("Config", ServerConfig, AgentConfig)


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_reachable(host: str) -> bool:
    """Whether `host` is one address or name that other machines can dial."""
    try:
        return not (is_loopback(host) or ipaddress.ip_address(host).is_unspecified)
    except ValueError:
        return True


def is_place(address: str) -> bool:
    """Whether it is `https://host:port` and nothing more."""
    try:
        parts = urlsplit(address)
        rest = parts.username or parts.password or parts.path or parts.query or parts.fragment
        named = bool(parts.hostname) and parts.port is not None
    except ValueError:
        return False
    tidy = address.isascii() and address.isprintable() and " " not in address
    return len(address) <= MAX_PLACE and tidy and parts.scheme == "https" and named and not rest


def load(kind: type[Config], file: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Settings of `kind` from a TOML file (or none), with `overrides` that are not None on top.

    :raise InvalidInput: the file cannot be read, or a field is unknown, missing, of a wrong type or out of bounds.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as wrong:
            raise InvalidInput.field("config", f"cannot read {file}: {wrong}", "give a readable TOML file") from wrong
    values |= {name: value for name, value in overrides.items() if value is not None}
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise InvalidInput.field(name, "is not a setting", f"known settings: {', '.join(sorted(known))}")
        if str(known[name]).startswith("tuple") and isinstance(values[name], str):  # a flag: one,another
            values[name] = [part for part in values[name].split(",") if part]
        if known[name] == "Weights" and isinstance(values[name], str):  # a flag: memory=1,rules=3
            values[name] = {part.partition("=")[0]: part.partition("=")[2] for part in values[name].split(",")}
    try:
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as wrong:
        raise InvalidInput.field("config", str(wrong)) from wrong


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError(kind)


def _check_port(field: str, port: int) -> None:
    if not 0 <= port <= 65535:
        raise InvalidInput.field(field, f"{port} is not a port", "give a number from 0 to 65535")


def _check_one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput.field(field, f"{value!r} is not known", f"give one of {', '.join(allowed)}")
