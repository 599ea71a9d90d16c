"""The verbs this node answers: name → doer, arguments and results decoded and encoded, errors turned into data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from novacron.agent.gauge import Gauge
from novacron.agent.images import Images
from novacron.agent.link_probe import LinkProber
from novacron.agent.machines import Machines
from novacron.agent.member import Member
from novacron.agent.mover import Mover
from novacron.agent.network.overlay import Overlay
from novacron.agent.snapshots import Snapshots
from novacron.agent.volumes import Volumes
from novacron.errors import InvalidInput, NovaCronError, Unsupported
from novacron.failpoint import reach
from novacron.wire.agent import VERBS, Call, Reply

Doer = Callable[[Any], Awaitable[Any]]

_decoders = {name: msgspec.json.Decoder(struct) for name, struct in VERBS.items()}
_encode = msgspec.json.Encoder().encode


def table(
    machines: Machines, mover: Mover, gauge: Gauge, volumes: Volumes, snapshots: Snapshots, images: Images
) -> Mapping[str, Doer]:
    """The verbs of wire.agent.VERBS and who does them, but for those about networks and links."""
    return {
        "machine.start": machines.start,
        "machine.stop": machines.stop,
        "machine.pause": machines.pause,
        "machine.resume": machines.resume,
        "machine.remove": machines.remove,
        "machine.console": machines.console,
        "machine.adjust": machines.adjust,
        "machine.park": machines.park,
        "migration.accept": mover.arrivals.accept,
        "migration.measure": gauge.measure,
        "migration.copy_disks": mover.departures.copy_disks,
        "migration.copy_here": mover.rehouse.copy_here,
        "migration.pivot": mover.rehouse.pivot,
        "migration.tidy": mover.rehouse.tidy,
        "rehearsal.copy_out": mover.copier.copy_out,
        "rehearsal.drop_copy": mover.copier.drop_copy,
        "migration.pack_belongings": mover.carry.pack,
        "migration.unpack_belongings": mover.carry.unpack,
        "migration.send": mover.departures.send,
        "migration.set_bandwidth": mover.bandwidth.change,
        "migration.halt": mover.cold.halt,
        "migration.open_postcopy": mover.postcopy.open_postcopy,
        "migration.fetch_rest": mover.postcopy.fetch_rest,
        "migration.reopen": mover.postcopy.reopen,
        "migration.take_over": mover.arrivals.take_over,
        "migration.settle": mover.arrivals.settle,
        "migration.verify": mover.arrivals.verify,
        "migration.examine": mover.examiner.examine,
        "migration.read_blocks": mover.examiner.read_blocks,
        "migration.whereabouts": mover.examiner.whereabouts,
        "migration.release": mover.departures.release,
        "migration.reclaim": mover.departures.reclaim,
        "migration.discard": mover.arrivals.discard,
        "migration.discard_copies": mover.source_copies.discard,
        "image.fetch": images.fetch,
        "image.held": images.held,
        "image.drop": images.drop,
        "pool.probe": volumes.probe,
        "volume.create": volumes.create,
        "volume.clone": volumes.clone,
        "volume.grow": volumes.grow,
        "volume.delete": volumes.delete,
        "volume.inspect": volumes.inspect,
        "snapshot.take": snapshots.take,
        "snapshot.revert": snapshots.revert,
        "snapshot.delete": snapshots.delete,
        "snapshot.export": snapshots.export,
    }


def network_table(overlay: Overlay) -> Mapping[str, Doer]:
    """The verbs of wire.network.VERBS."""
    return {"network.apply": overlay.apply, "network.forget": overlay.forget, "network.ping": overlay.ping}


def link_table(prober: LinkProber) -> Mapping[str, Doer]:
    """The verbs of wire.link.VERBS."""
    return {"link.listen": prober.listen, "link.probe": prober.probe}


def member_table(member: Member) -> Mapping[str, Doer]:
    """The verbs of wire.membership.VERBS."""
    return {"member.hold": member.hold}


class Verbs:
    """Answers calls. Always with a Reply, except when cancelled."""

    def __init__(self, doers: Mapping[str, Doer]) -> None:
        self._doers = doers
        self._log = structlog.get_logger("verbs")

    async def perform(self, call: Call) -> Reply:
        """Do what the call asks. Arguments are never logged: some carry a migration's key."""
        try:
            doer = self._doers.get(call.verb)
            if doer is None:
                raise Unsupported(f"this agent has no verb {call.verb!r}")  # noqa: TRY301
            reach(f"{call.verb}:before")
            result = await doer(_arguments(call))
            reach(f"{call.verb}:after")
            return Reply(id=call.id, result=msgspec.Raw(_encode(result)))
        except NovaCronError as error:
            self._log.info("refused", verb=call.verb, code=error.code, why=error.message)
            return Reply(id=call.id, error=error.as_data())
        except Exception as broken:  # noqa: BLE001  (whatever breaks, the caller is owed an answer)
            self._log.exception("a verb broke", verb=call.verb)
            internal = NovaCronError(f"{call.verb} broke on the node: {type(broken).__name__}: {broken}")
            return Reply(id=call.id, error=internal.as_data())


def _arguments(call: Call) -> Any:
    try:
        return _decoders[call.verb].decode(call.args)
    except msgspec.DecodeError as wrong:
        raise InvalidInput(f"the arguments of {call.verb} cannot be read: {wrong}") from wrong
