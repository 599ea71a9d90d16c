"""VMs: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.devices import Disk, DiskIn, Media, MediaIn, MediaUpdate, Nic, NicIn, NicUpdate, QosIn
from novacron.client.ha import Ha
from novacron.client.placement import Placement

# -- sent --------------------------------------------------------------------------------------------------


class CloudInitIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """NoCloud documents."""

    user_data: str = ""
    network_config: str = ""
    meta_data: str = ""


class VmCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A VM to be made from an image. What is left at its default is left to the server."""

    name: str
    image: str
    description: str = ""
    labels: Mapping[str, str] = {}
    type: str | UnsetType = UNSET
    vcpus: int | UnsetType = UNSET
    memory_mib: int | UnsetType = UNSET
    machine: str | UnsetType = UNSET
    firmware: str | UnsetType = UNSET
    kernel_cmdline: str = ""
    root_disk_bytes: int | None = None
    root_pool: str | None = None
    root_qos: QosIn | None = None
    disks: Sequence[DiskIn] = ()
    nics: Sequence[NicIn] | UnsetType = UNSET
    media: Sequence[MediaIn] = ()
    cloud_init: CloudInitIn | None = None
    guest_agent: bool = False
    max_vcpus: int = 0
    max_memory_mib: int = 0
    tpm: bool = False
    secure_boot: bool = False
    shared_memory: bool = False
    node: str | None = None
    placement: Placement | UnsetType = UNSET
    ha: Ha | UnsetType = UNSET
    desired: str | UnsetType = UNSET


class VmUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    vcpus: int | UnsetType = UNSET
    memory_mib: int | UnsetType = UNSET
    max_vcpus: int | UnsetType = UNSET
    max_memory_mib: int | UnsetType = UNSET
    tpm: bool | UnsetType = UNSET
    secure_boot: bool | UnsetType = UNSET
    placement: Placement | UnsetType = UNSET
    ha: Ha | UnsetType = UNSET


class CopiesCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Copies of a parked VM: all or none. With count 1 the VM has that name, with more `<name>-1` and so on."""

    name: str
    count: int = 1
    first_index: int = 1
    labels: Mapping[str, str] = {}
    nics: Sequence[NicIn] = ()


class StopRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """force: at once; else the guest is asked, and forced when it has not ended at the deadline."""

    force: bool = False
    deadline_s: float | UnsetType = UNSET


# -- answered ----------------------------------------------------------------------------------------------


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why an object is not as wished, and what to do. refused: what was asked was not done, and it is as it was."""

    code: str
    message: str
    at: datetime.datetime
    remedy: str = ""
    refused: bool = False


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why a wish waits for the next start, and what to do."""

    code: str
    message: str
    subject: str = ""
    remedy: str = ""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a forwarded guest port is reachable now."""

    nic_id: str
    guest_port: int
    host: str
    host_port: int


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """The work under way on a VM."""

    id: str
    kind: str
    requested_at: datetime.datetime
    requested_by: str = ""
    force: bool = False


class Vm(msgspec.Struct, frozen=True, kw_only=True):
    """A VM: `desired` is what was asked, `state` what is, `task` what is being done, `problem` what is wrong.

    Words that may grow (state, task.kind …) are plain text, so that an old client can read a newer server.
    """

    id: str
    name: str
    description: str
    labels: dict[str, str]
    type: str
    state: str
    desired: str
    task: Task | None
    problem: Problem | None
    pending: list[Waiting]
    node: str | None
    node_id: str | None
    generation: int
    migration_id: str | None
    image_id: str
    vcpus: int
    memory_mib: int
    machine: str
    firmware: str
    kernel_cmdline: str
    machine_type: str | None
    cpu_model: str | None
    accelerator: str | None
    pid: int | None
    disks: list[Disk]
    nics: list[Nic]
    media: list[Media]
    endpoints: list[Endpoint]
    guest_agent: bool
    cloud_init: bool
    max_vcpus: int
    max_memory_mib: int
    tpm: bool
    secure_boot: bool
    shared_memory: bool
    placement: Placement
    ha: Ha = Ha()  # servers of before high availability do not say it
    parent_id: str | None
    snapshot_id: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    state_since: datetime.datetime | None
    revision: int
    warnings: list[Waiting] = []  # of answers to what changed it


class VmList(msgspec.Struct, frozen=True, kw_only=True):
    """VMs that were made by one request. warnings: of all of them together."""

    items: list[Vm]
    warnings: list[Waiting] = []


class ConsoleLog(msgspec.Struct, frozen=True, kw_only=True):
    """The last bytes of the serial console."""

    vm_id: str
    text: str
    truncated: bool


# -- calls -------------------------------------------------------------------------------------------------


def create(vm: VmCreate) -> Call[Vm]:
    """Make a VM; the answer is its record, the work goes on behind it."""
    return Call(method="POST", path=path_of("vms"), answer=Vm, body=vm)


def get(ref: str) -> Call[Vm]:
    return Call(method="GET", path=path_of("vms", ref_of("vm", ref)), answer=Vm)


def search(
    *, labels: Sequence[str] = (), state: str = "", node: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[Vm]]:
    """One page of the VMs that meet all `labels`, that `state`, on that `node` (id or name); empty: any."""
    query: Query = {"label": labels, "state": state, "node": node, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("vms"), answer=Page[Vm], query=query)


def update(ref: str, change: VmUpdate, *, revision: int | None = None) -> Call[Vm]:
    """Change a VM; with `revision`, only when it is still that one."""
    return Call(method="PATCH", path=path_of("vms", ref_of("vm", ref)), answer=Vm, body=change, revision=revision)


def delete(ref: str, *, force: bool = False, revision: int | None = None) -> Call[Vm]:
    """Delete a stopped VM (force: also one that runs) with its disks; the answer is its record meanwhile."""
    query: Query = {"force": "true"} if force else {}
    return Call(method="DELETE", path=path_of("vms", ref_of("vm", ref)), answer=Vm, query=query, revision=revision)


def start(ref: str) -> Call[Vm]:
    return _act(ref, "start")


def stop(ref: str, how: StopRequest | None = None) -> Call[Vm]:
    return _act(ref, "stop", how or StopRequest())


def restart(ref: str, how: StopRequest | None = None) -> Call[Vm]:
    return _act(ref, "restart", how or StopRequest())


def pause(ref: str) -> Call[Vm]:
    return _act(ref, "pause")


def park(ref: str) -> Call[Vm]:
    """Keep its memory for copies, and end it."""
    return _act(ref, "park")


def copy(ref: str, wish: CopiesCreate) -> Call[VmList]:
    """VMs that begin where a parked one stood; the answer holds their records to watch."""
    return Call(method="POST", path=path_of("vms", ref_of("vm", ref), "copies"), answer=VmList, body=wish)


def resume(ref: str) -> Call[Vm]:
    return _act(ref, "resume")


def attach_nic(ref: str, nic: NicIn) -> Call[Vm]:
    """Give a VM one more network card, also while it runs."""
    return Call(method="POST", path=path_of("vms", ref_of("vm", ref), "nics"), answer=Vm, body=nic)


def update_nic(ref: str, nic: str, change: NicUpdate, *, revision: int | None = None) -> Call[Vm]:
    """Change what may pass a card (by its id), which counts at once, or its boot order, from the next start on."""
    path = path_of("vms", ref_of("vm", ref), f"nics/{ref_of('nic', nic)}")
    return Call(method="PATCH", path=path, answer=Vm, body=change, revision=revision)


def detach_nic(ref: str, nic: str, *, revision: int | None = None) -> Call[Vm]:
    """Take a network card (by its id) away, also while it runs; its addresses are free once it is gone."""
    path = path_of("vms", ref_of("vm", ref), f"nics/{ref_of('nic', nic)}")
    return Call(method="DELETE", path=path, answer=Vm, revision=revision)


def add_media(ref: str, media: MediaIn) -> Call[Vm]:
    """One more CD-ROM drive, from the next start on."""
    return Call(method="POST", path=path_of("vms", ref_of("vm", ref), "media"), answer=Vm, body=media)


def load_media(ref: str, media_id: str, image: str | None) -> Call[Vm]:
    """Put an image into a drive, or (None) take out what is in it."""
    path = path_of("vms", ref_of("vm", ref), f"media/{ref_of('drive', media_id)}")
    return Call(method="PATCH", path=path, answer=Vm, body=MediaUpdate(image=image))


def remove_media(ref: str, media_id: str) -> Call[Vm]:
    """One CD-ROM drive less, from the next start on."""
    path = path_of("vms", ref_of("vm", ref), f"media/{ref_of('drive', media_id)}")
    return Call(method="DELETE", path=path, answer=Vm)


def console_log(ref: str, max_bytes: int = 65536) -> Call[ConsoleLog]:
    """The last bytes (up to 1 MiB) that the guest wrote to its serial console."""
    path = path_of("vms", ref_of("vm", ref), "console-log")
    return Call(method="GET", path=path, answer=ConsoleLog, query={"max_bytes": max_bytes})


def _act(ref: str, verb: str, body: msgspec.Struct | None = None) -> Call[Vm]:
    return Call(method="POST", path=path_of("vms", ref_of("vm", ref), verb), answer=Vm, body=body)
