"""A VM as the API shows it: the shape of wire.rest.vms.Vm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.store.kinds import NETWORKS, NODES, VMS
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.errors import Reason
from novacron.model.ha import Protection
from novacron.model.machine import ENDED, Disk, MachineReport, Nic
from novacron.model.placement import NO_WISHES, PlacementWishes
from novacron.model.vm import Task, Vm, state_of, status_of

_all_of = msgspec.structs.asdict
_encode = msgspec.json.Encoder().encode


class VmView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.encoded = Encoded(records, VMS, self.data, self._names)

    def answered(self, stored: Stored[Vm], warnings: Sequence[Reason]) -> bytes:
        """The answer to a request that led to this record, with what it warns of."""
        if not warnings:
            return self.encoded(stored)
        return _encode(self.data(stored.record, stored.modified) | {"warnings": warnings})

    def answered_all(self, made: Sequence[Stored[Vm]], warnings: Sequence[Reason]) -> bytes:
        """The same of VMs made by one request, as wire.rest.vms.VmList."""
        items = b",".join(map(self.encoded, made))
        return b'{"items":[' + items + b'],"warnings":' + _encode(warnings) + b"}"

    def data(self, vm: Vm, revision: int) -> dict[str, Any]:
        spec, seen = vm.spec, vm.observed
        return {
            "id": vm.id,
            "name": vm.name,
            "description": vm.description,
            "labels": vm.labels,
            "type": spec.type,
            "state": state_of(vm),
            "desired": vm.desired,
            "task": _task(vm.task) if vm.task else None,
            "problem": _all_of(vm.problem) if vm.problem else None,
            "pending": [_all_of(reason) for reason in vm.pending] if status_of(vm) not in ENDED else [],
            "node": self._records.name(NODES, vm.node_id) or None,
            "node_id": vm.node_id or None,
            "generation": vm.generation,
            "migration_id": vm.migration_id or None,
            "image_id": spec.image_id,
            "vcpus": spec.vcpus,
            "memory_mib": spec.memory_mib,
            "machine": spec.machine,
            "firmware": spec.firmware,
            "kernel_cmdline": spec.kernel_cmdline,
            "machine_type": vm.pins.machine_type or None,
            "cpu_model": vm.pins.cpu_model or None,
            "disks": [_disk(disk) for disk in spec.disks],
            "nics": [_nic(nic, self._net_name(nic)) for nic in spec.nics],
            "media": [_all_of(drive) for drive in spec.media],
            "guest_agent": spec.guest_agent,
            "cloud_init": spec.cloud_init is not None,
            "max_vcpus": spec.max_vcpus,
            "max_memory_mib": spec.max_memory_mib,
            "tpm": spec.tpm,
            "secure_boot": spec.secure_boot,
            "shared_memory": spec.shared_memory,
            "placement": _NO_WISHES if vm.placement is NO_WISHES else _wishes(vm.placement),
            "ha": _ha(spec.ha),
            "parent_id": vm.parent_id or None,
            "snapshot_id": vm.snapshot_id or None,
            "created_at": vm.created_at,
            "updated_at": vm.updated_at,
            **_seen(seen),
            "revision": revision,
        }

    def _names(self, vm: Vm) -> str:
        """Of its node and its networks: what is shown and in other records."""
        return " ".join([self._records.name(NODES, vm.node_id), *(self._net_name(nic) for nic in vm.spec.nics)])

    def _net_name(self, nic: Nic) -> str:
        stored = self._records.get(NETWORKS, nic.network_id) if nic.network_id else None
        return stored.record.name if stored else ""


def _seen(report: MachineReport | None) -> dict[str, Any]:
    """What only a node can tell."""
    if report is None:
        return {"accelerator": None, "pid": None, "endpoints": [], "state_since": None}
    return {
        "accelerator": report.accelerator or None,
        "pid": report.pid or None,
        "endpoints": [_all_of(endpoint) for endpoint in report.endpoints],
        "state_since": report.since,
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "kind": task.kind,
        "requested_at": task.requested_at,
        "requested_by": task.requested_by,
        "force": task.force,
    }


def _ha(protection: Protection) -> dict[str, Any]:
    return {
        "policy": protection.policy,
        "min_fence_class": protection.min_class.name.lower(),
        "priority": protection.priority,
    }


def _wishes(wishes: PlacementWishes) -> dict[str, Any]:
    return {
        "policy": wishes.policy,
        "tolerations": [_all_of(one) for one in wishes.tolerations],
        "vm_rules": [_all_of(rule) for rule in wishes.vm_rules],
        "node_rules": [_all_of(rule) for rule in wishes.node_rules],
    }


_NO_WISHES = _wishes(NO_WISHES)  # as nearly all VMs have it


def _disk(disk: Disk) -> dict[str, Any]:
    shown = _all_of(disk)
    shown["qos"] = _all_of(disk.qos)
    return shown


def _nic(nic: Nic, net: str) -> dict[str, Any]:
    shown = _all_of(nic)
    shown["forwards"] = [_all_of(forward) for forward in nic.forwards]
    del shown["filter"]  # for nodes alone
    shown["net"] = net
    return shown
