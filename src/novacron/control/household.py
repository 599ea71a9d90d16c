"""What everybody who serves or works in one server shares."""

from __future__ import annotations

import dataclasses

from novacron.clock import Clock
from novacron.config import ServerConfig
from novacron.control.balancer.loads import Loads, Meters
from novacron.control.images.service import ImageService
from novacron.control.room import Room
from novacron.control.store.records import Records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Household:
    """records: those of whoever asks; a leader's workers have its term's. pool_id: the default pool's."""

    config: ServerConfig
    records: Records
    clock: Clock
    pool_id: str
    room: Room
    images: ImageService
    loads: Loads


def household(config: ServerConfig, records: Records, lines: Meters, clock: Clock, pool_id: str) -> Household:
    """What is shared in a server of these; nothing runs yet."""
    room = Room(records, config)
    return Household(
        config=config,
        records=records,
        clock=clock,
        pool_id=pool_id,
        room=room,
        images=ImageService(records, room, clock, config.pool_dir),
        loads=Loads(lines, records, clock),
    )
