"""Makes what a machine needs on this node (volumes, plugs, seed, its own directory) and takes it away again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TypeVar

from novacron.agent import belongings, seed
from novacron.agent.drivers.base import DiskFile, Launch, Medium
from novacron.agent.network import Network, Networks
from novacron.agent.network.user import port_was_taken
from novacron.agent.parking import Parking
from novacron.agent.storage import keys
from novacron.agent.storage.depot import Depot
from novacron.agent.undo import Undo
from novacron.errors import Conflict, MachineDied, NotFound, Reason, Unsupported
from novacron.model.identity import is_id
from novacron.model.machine import Disk, MachineSpec, Nic
from novacron.model.pool import PoolSpec

PORT_TRIES = 3

Result = TypeVar("Result")


class Provisioner:
    """Resolves specs to this node's paths.

    As root with a `uid_base` every machine gets a user of its own: base + isolation slot, the same on every node,
    so that volumes on shared storage keep their owner through a migration.
    """

    def __init__(self, depot: Depot, networks: Networks, run_dir: Path, uid_base: int) -> None:
        self._depot = depot
        self._networks = networks
        self._run_dir = run_dir
        self._uid_base = uid_base if os.geteuid() == 0 else 0
        self.parking = Parking(run_dir)
        self.deadline_of: Callable[[MachineSpec], float | None] = lambda _: None

    def run_dir(self, vm_id: str) -> Path:
        """The machine's own directory; it need not exist."""
        return self._run_dir / vm_id

    def run_dirs(self) -> list[Path]:
        """Every machine directory there is, known or not."""
        if not self._run_dir.exists():
            return []
        return sorted(entry for entry in self._run_dir.iterdir() if is_id(entry.name) and entry.is_dir())

    async def boot(
        self, spec: MachineSpec, act: Callable[[Launch], Awaitable[Result]], *, fresh: Collection[str] = ()
    ) -> Result:
        """Prepare and `act`; when either fails everything is taken back except volumes, which may hold data.

        Done again with other ports when another process took one of those chosen for user networks.
        """
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                async with Undo() as undo:
                    result = await act(await self.prepare(spec, undo, fresh=fresh))
                    undo.success()
                    return result
            except MachineDied as died:
                if tries_left == 0 or not port_was_taken(died):
                    raise
        raise AssertionError

    async def prepare(
        self, spec: MachineSpec, undo: Undo, *, running: bool = False, fresh: Collection[str] = ()
    ) -> Launch:
        """Everything made, or found made: idempotent. running: its guest has the seed open, which stays as it is.

        fresh: volumes that are made although the machine has run before: they are about to be filled.
        """
        uid = self.uid_of(spec)
        run_dir = self._make_run_dir(spec.vm_id, uid)
        disks = [
            keys.place(await self.volume(spec, disk, fresh=disk.volume_id in fresh), run_dir, uid)
            for disk in spec.disks
        ]
        plugs = []
        for nic in spec.nics:
            network = self._network(nic)
            undo.add(f"unplug {nic.id}", lambda network=network, nic=nic: network.unplug(nic))  # type: ignore[misc]
            plugs.append(await network.plug(nic, uid, spec.networks))
        image = self._image
        media = (
            Medium(id=one.id, path=image(one.digest), boot_order=one.boot_order, bus=one.bus) for one in spec.media
        )
        return Launch(
            spec=spec,
            run_dir=run_dir,
            keep=await self._keep(spec, uid),
            kernel=image(spec.boot.kernel),
            initrd=image(spec.boot.initrd),
            firmware=image(spec.boot.firmware),
            seed=None if running else await self._seed(spec, run_dir, uid),
            disks=tuple(disks),
            nics=tuple(plugs),
            media=tuple(media),
            uid=uid,
            gid=uid,
            deadline_s=self.deadline_of(spec),
        )

    async def volume(self, spec: MachineSpec, disk: Disk, *, fresh: bool = False) -> DiskFile:
        """One of its disks as its user opens it; made when missing, unless the machine has run before (or `fresh`)."""
        uid, ran_before = self.uid_of(spec), bool(spec.machine_type) and not fresh  # pinned by the first start
        pool = self._depot.pool_of(spec, disk)
        if spec.parent_id and disk.source_volume_id:
            await pool.clone_volume(disk, disk.source_volume_id)
        return await pool.ensure_volume(disk, uid=uid, gid=uid, in_use=ran_before)

    async def placed(self, spec: MachineSpec, disk: Disk) -> DiskFile:
        """A volume that is about to be filled, made when missing, as the machine's hypervisor can open it."""
        uid = self.uid_of(spec)
        return keys.place(await self.volume(spec, disk, fresh=True), self._make_run_dir(spec.vm_id, uid), uid)

    async def check_absent(self, spec: MachineSpec, volume_ids: Collection[str]) -> None:
        """Whether none of these volumes is here yet.

        :raise Conflict: one is. It may be the very one that is to be copied, seen from here too: it is not touched.
        """
        for disk in spec.disks:
            if disk.volume_id not in volume_ids:
                continue
            with contextlib.suppress(NotFound):
                await self._depot.pool_of(spec, disk).extent(disk.volume_id)
                raise Conflict(
                    f"volume {disk.volume_id} is on this node already, and cannot be copied here",
                    [
                        Reason(
                            "volume.exists",
                            "do the nodes share the pool after all, or was it left by a move that failed?",
                            subject=disk.volume_id,
                            remedy="make the pool a shared one, or take the old copy away",
                        )
                    ],
                )

    async def _keep(self, spec: MachineSpec, uid: int | None) -> Path | None:
        if not belongings.needed(spec):
            return None
        return await asyncio.to_thread(belongings.make, self._depot.own.machines_dir(), spec.vm_id, uid)

    async def belongings_of(self, vm_id: str) -> Path:
        """Where they lie; it need not exist. :raise Unavailable: the pool they lie in is not there."""
        await self._depot.own.pool_id()
        return belongings.path_of(self._depot.own.machines_dir(), vm_id)

    async def check_no_belongings(self, vm_id: str) -> None:
        """:raise Conflict: something of it lies here, maybe the very thing that is to be copied: it is not touched."""
        root = self._depot.own.machines_dir()
        if await asyncio.to_thread(belongings.is_there, root, vm_id):
            raise Conflict(
                f"UEFI variables or a TPM's state of machine {vm_id} are on this node already",
                [
                    Reason(
                        "belongings.exist",
                        "were they left by a move that failed, or do the nodes share the directory under two pool ids?",
                        subject=vm_id,
                        remedy=f"look at {root / vm_id}, and take it away if it is an old copy",
                    )
                ],
            )

    async def flush_belongings(self, spec: MachineSpec) -> None:
        """What its hypervisor wrote there is on the disk when this returns."""
        if belongings.needed(spec):
            await asyncio.to_thread(belongings.flush, self._depot.own.machines_dir(), spec.vm_id)

    async def remove_belongings(self, vm_id: str) -> None:
        """Delete what belongs to a machine and is no volume, by explicit order only."""
        await asyncio.to_thread(belongings.remove, self._depot.own.machines_dir(), vm_id)

    def uid_of(self, spec: MachineSpec) -> int | None:
        """As whom it runs; None: as the agent."""
        return self._uid_base + spec.isolation_slot if self._uid_base else None

    async def unplug(self, spec: MachineSpec | None, *, but: tuple[Nic, ...] = ()) -> None:
        """Take the machine's plugs away, except those of `but`."""
        kept = {nic.id for nic in but}
        for nic in spec.nics if spec else ():
            if nic.id not in kept:
                await self._network(nic).unplug(nic)

    async def clear_away(self, vm_id: str, spec: MachineSpec | None) -> None:
        """Take away everything of an ended machine on this node. Volumes stay: they may be another node's now."""
        await self.unplug(spec)
        run_dir = self.run_dir(vm_id)
        if run_dir.exists():
            await asyncio.to_thread(shutil.rmtree, run_dir)

    async def remove_volumes(self, volume_ids: tuple[str, ...], spec: MachineSpec | None) -> None:
        """Delete volumes, by explicit order only. Those the spec does not know lie in the default pool."""
        disks = {disk.volume_id: disk for disk in spec.disks} if spec else {}
        for volume_id in volume_ids:
            disk = disks.get(volume_id)
            pool = self._depot.pool_of(spec, disk) if spec and disk else self._depot.own
            await pool.remove_volume(volume_id)

    async def remove_volume(self, volume_id: str, lies_in: PoolSpec) -> None:
        """Delete one, by explicit order only. Absent: fine. :raise StateConflict: a running machine uses it."""
        await self._depot.pool(lies_in).remove_volume(volume_id)

    def _network(self, nic: Nic) -> Network:
        network = self._networks.get(nic.network)
        if network is None:
            raise Unsupported(f"this node has no {nic.network.value} networks")
        return network

    def _image(self, digest: str) -> Path | None:
        return self._depot.image_path(digest) if digest else None

    def _make_run_dir(self, vm_id: str, uid: int | None) -> Path:
        self._run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        run_dir = self.run_dir(vm_id)
        run_dir.mkdir(mode=0o700, exist_ok=True)
        if uid is not None:
            os.chown(run_dir, uid, uid, follow_symlinks=False)
        return run_dir

    async def _seed(self, spec: MachineSpec, run_dir: Path, uid: int | None) -> Path | None:
        if spec.cloud_init is None:
            return None
        path = run_dir / "seed.iso"
        await asyncio.to_thread(seed.write, path, spec.vm_id, spec.cloud_init, uid)
        return path
