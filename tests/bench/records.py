"""Records of the size real ones have, for benches."""

from __future__ import annotations

import datetime

from novacron.model.machine import Disk, Endpoint, Forward, MachineReport, MachineStatus, Nic
from novacron.model.node import DriverFacts, Node, NodeFacts, NodeState
from novacron.model.vm import Desired, Pins, Vm, VmSpec

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def a_node(node_id: str) -> Node:
    """A node that is up and has reported."""
    driver = DriverFacts(name="qemu", version="7.2", default_machine_types={"q35": "pc-q35-7.2"})
    facts = NodeFacts(
        hostname="node-1",
        kernel="6.1",
        architecture="x86_64",
        boot_id="b",
        cpu_model="any",
        cpu_flags=("sse2", "avx2"),
        cpu_count=64,
        memory_mib=1 << 20,
        agent_version="0.1.0",
        drivers=(driver,),
    )
    return Node(
        id=node_id, name="node-1", state=NodeState.UP, created_at=NOW, updated_at=NOW, state_since=NOW, facts=facts
    )


def a_vm(vm_id: str, name: str, node_id: str) -> Vm:
    """A stopped VM that ran before: nothing is left to be done for it."""
    nic_id = vm_id
    spec = VmSpec(
        image_id=vm_id,
        vcpus=2,
        memory_mib=2048,
        disks=(Disk(volume_id=vm_id, size_bytes=10 << 30, backing_digest="d" * 64),),
        nics=(Nic(id=nic_id, mac="52:4e:43:00:00:01", forwards=(Forward(guest_port=22),)),),
    )
    seen = MachineReport(
        vm_id=vm_id,
        generation=1,
        status=MachineStatus.STOPPED,
        since=NOW,
        machine_type="pc-q35-7.2",
        cpu_model="qemu64",
        accelerator="tcg",
        endpoints=(Endpoint(nic_id=nic_id, guest_port=22, host="127.0.0.1", host_port=40022),),
    )
    return Vm(
        id=vm_id,
        name=name,
        spec=spec,
        desired=Desired.STOPPED,
        labels={"tier": "web", "stage": "test"},
        observed=seen,
        node_id=node_id,
        generation=1,
        pins=Pins(machine_type="pc-q35-7.2", cpu_model="qemu64"),
        created_at=NOW,
        updated_at=NOW,
    )
