"""VMs on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from novacron.model.machine import Firmware, MachineKind
from novacron.model.vm import Desired, TaskKind, VmState, VmType
from novacron.wire.rest.common import Description, Labels, Name, ReasonOut, Ref, Strict, VmProblem, example
from novacron.wire.rest.devices import DiskIn, DiskOut, MediaIn, MediaOut, NicIn, NicOut, QosIn, SizeBytes
from novacron.wire.rest.ha import Ha
from novacron.wire.rest.images import ImageRef
from novacron.wire.rest.placement import Placement

Text64K = Annotated[str, StringConstraints(max_length=65536, pattern=r"^[^\x00]*$")]


class CloudInitIn(Strict):
    """NoCloud documents. `user_data` usually begins with #cloud-config."""

    user_data: Text64K = ""
    network_config: Text64K = ""
    meta_data: Text64K = ""


class VmCreate(Strict):
    """A VM to be made from an image. It is started unless desired=stopped."""

    name: Name
    image: ImageRef
    description: Description = ""
    labels: Labels = {}
    type: VmType = VmType.KVM
    vcpus: Annotated[int, Field(ge=1, le=512)] = 1
    memory_mib: Annotated[int, Field(ge=16, le=4 << 20)] = 512
    machine: MachineKind = MachineKind.Q35
    firmware: Firmware = Firmware.AUTO
    kernel_cmdline: Annotated[str, StringConstraints(max_length=1024, pattern=r"^[\x20-\x7e]*$")] = ""
    root_disk_bytes: SizeBytes | None = None
    root_pool: Ref | None = None
    root_qos: QosIn | None = None
    disks: Annotated[list[DiskIn], Field(max_length=16)] = []
    nics: Annotated[list[NicIn], Field(max_length=8)] = [NicIn()]
    media: Annotated[list[MediaIn], Field(max_length=3)] = []
    cloud_init: CloudInitIn | None = None
    guest_agent: bool = False
    max_vcpus: Annotated[int, Field(ge=0, le=512, description="How far it can grow as it runs; 0: not at all")] = 0
    max_memory_mib: Annotated[int, Field(ge=0, le=4 << 20, description="As max_vcpus")] = 0
    tpm: bool = False
    secure_boot: bool = False
    shared_memory: Annotated[bool, Field(description="It may be parked, for copies that share its memory")] = False
    node: Ref | None = None
    placement: Placement = Placement()
    ha: Ha = Ha()
    desired: Literal[Desired.RUNNING, Desired.STOPPED] = Desired.RUNNING

    @model_validator(mode="after")
    def _can_grow_to_it(self) -> Self:
        if self.max_vcpus and self.max_vcpus < self.vcpus:
            raise ValueError("`max_vcpus` is less than `vcpus`")
        if self.max_memory_mib and self.max_memory_mib < self.memory_mib:
            raise ValueError("`max_memory_mib` is less than `memory_mib`")
        if (self.tpm or self.secure_boot) and self.machine is not MachineKind.Q35:
            raise ValueError("`tpm` and `secure_boot` go with machine=q35")
        if self.secure_boot and self.firmware is not Firmware.UEFI:
            raise ValueError("`secure_boot` goes with firmware=uefi")
        return self

    model_config = Strict.model_config | example(
        {
            "name": "web-1",
            "image": "debian-12",
            "vcpus": 2,
            "memory_mib": 2048,
            "labels": {"tier": "web"},
            "nics": [{"network": "user", "forwards": [{"guest_port": 22}]}],
        }
    )


class VmUpdate(Strict):
    """What may be changed; a field left out stays as it is. What runs is adjusted as far as it can be."""

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    vcpus: Annotated[int, Field(ge=1, le=512)] | None = None
    memory_mib: Annotated[int, Field(ge=16, le=4 << 20)] | None = None
    max_vcpus: Annotated[int, Field(ge=0, le=512)] | None = None
    max_memory_mib: Annotated[int, Field(ge=0, le=4 << 20)] | None = None
    tpm: bool | None = None
    secure_boot: bool | None = None
    placement: Annotated[Placement | None, Field(description="All of it; where the VM is, it stays")] = None
    ha: Annotated[Ha | None, Field(description="All of it; a machine that runs keeps what it was started with")] = None

    model_config = Strict.model_config | example({"labels": {"tier": "web", "stage": "test"}})


class CopiesCreate(Strict):
    """VMs to begin at once as copies of a parked one, on its node: all or none. Each gets cards of its own.

    With count 1 the VM has that name, with more `<name>-1` and so on.
    """

    name: Name
    count: Annotated[int, Field(ge=1, le=100)] = 1
    first_index: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    labels: Labels = {}
    nics: Annotated[list[NicIn], Field(max_length=2)] = []

    model_config = Strict.model_config | example({"name": "worker", "count": 20, "nics": [{"network": "user"}]})


class StopRequest(Strict):
    """Graceful: the guest is asked, and forced when it has not ended at the deadline. force: at once."""

    force: bool = False
    deadline_s: Annotated[float, Field(ge=0, le=3600)] = 60.0

    model_config = Strict.model_config | example({"deadline_s": 30})


class EndpointOut(Strict):
    """Where a forwarded guest port is reachable now."""

    nic_id: str
    guest_port: int
    host: str
    host_port: int


class TaskOut(Strict):
    id: str
    kind: TaskKind
    requested_at: datetime.datetime
    requested_by: str = ""
    force: bool = False


class Vm(Strict):
    """A VM: `desired` is what was asked, `state` what is, `task` what is being done, `problem` what is wrong.

    `pending`: what of its hardware waits for its next start, and why. `warnings`: only in answers to what changed it;
    code `ha.no_spare`: a node (`subject`) whose failure the others would no longer have room for.
    """

    id: str
    name: str
    description: str
    labels: dict[str, str]
    type: VmType
    state: VmState
    desired: Desired
    task: TaskOut | None
    problem: VmProblem | None
    pending: list[ReasonOut]
    node: str | None
    node_id: str | None
    generation: int
    migration_id: str | None
    image_id: str
    vcpus: int
    memory_mib: int
    machine: MachineKind
    firmware: Firmware
    kernel_cmdline: str
    machine_type: str | None
    cpu_model: str | None
    accelerator: str | None
    pid: int | None
    disks: list[DiskOut]
    nics: list[NicOut]
    media: list[MediaOut]
    endpoints: list[EndpointOut]
    guest_agent: bool
    cloud_init: bool
    max_vcpus: int
    max_memory_mib: int
    tpm: bool
    secure_boot: bool
    shared_memory: bool
    placement: Placement
    ha: Ha
    parent_id: str | None
    snapshot_id: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    state_since: datetime.datetime | None
    revision: int
    warnings: list[ReasonOut] = []

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000001",
            "name": "web-1",
            "description": "",
            "labels": {"tier": "web"},
            "type": "kvm",
            "state": "running",
            "desired": "running",
            "task": None,
            "problem": None,
            "pending": [],
            "node": "node-1",
            "node_id": "0190b36e-7c1a-7000-8000-000000000002",
            "generation": 1,
            "migration_id": None,
            "image_id": "0190b36e-7c1a-7000-8000-000000000003",
            "vcpus": 2,
            "memory_mib": 2048,
            "machine": "q35",
            "firmware": "auto",
            "kernel_cmdline": "",
            "machine_type": "pc-q35-7.2",
            "cpu_model": "qemu64",
            "accelerator": "kvm",
            "pid": 4711,
            "disks": [{"volume_id": "0190b36e-7c1a-7000-8000-000000000004", "size_bytes": 10737418240}],
            "nics": [
                {
                    "id": "0190b36e-7c1a-7000-8000-000000000005",
                    "mac": "52:4e:43:0a:0b:0c",
                    "network": "user",
                    "forwards": [{"guest_port": 22}],
                }
            ],
            "endpoints": [
                {
                    "nic_id": "0190b36e-7c1a-7000-8000-000000000005",
                    "guest_port": 22,
                    "host": "127.0.0.1",
                    "host_port": 40022,
                }
            ],
            "media": [],
            "guest_agent": False,
            "cloud_init": False,
            "max_vcpus": 0,
            "max_memory_mib": 0,
            "tpm": False,
            "secure_boot": False,
            "shared_memory": False,
            "placement": {"vm_rules": [{"kind": "apart", "labels": {"tier": "web"}}]},
            "ha": {"policy": "restart", "min_fence_class": "watchdog", "priority": 50},
            "parent_id": None,
            "snapshot_id": None,
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:09Z",
            "state_since": "2026-01-02T03:04:08Z",
            "revision": 42,
        }
    )


class ConsoleLog(Strict):
    """The last bytes of the serial console."""

    vm_id: str
    text: str
    truncated: bool


class VmList(Strict):
    """VMs that were made by one request, in order. `warnings`: as in Vm, of all of them together."""

    items: list[Vm]
    warnings: list[ReasonOut] = []
