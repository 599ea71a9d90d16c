"""Whether a move's stream goes through the stream proxies, and what the link is worth then. Pure.

The proxies spend processor time to send fewer bytes, so they help where the link is what a move waits for: where it
carries less than the proxies can pass. See docs/migration-wan.md for the figures.
"""

from __future__ import annotations

import msgspec

from novacron.control.migrations import choice
from novacron.control.migrations.choice import Choice, Course, Refusal
from novacron.control.migrations.goals import Effective
from novacron.control.migrations.history import MIB, Link
from novacron.errors import Reason
from novacron.model.migration import MigrationKind, Strategy, Transport
from novacron.model.prediction import Range
from novacron.model.vm import Vm

PASSES = Range(25.0 * MIB, 40.0 * MIB, 55.0 * MIB)
"""Bytes of QEMU's stream a second that pass the proxies, at most: 40 to 55 MB/s measured on two busy cores."""
BOTTLENECK_BYTES_PER_S = PASSES.expected / 2
"""A link of less (170 Mbit/s) is a bottleneck. Half of what passes, so that a link that turns out to be twice as fast
as was thought is not made slower by the proxies."""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """How the stream goes, why, and what the link is worth to it."""

    transport: Transport
    link: Link
    why: str


def decide(effective: Effective, link: Link, packs: Range, node: str, lacking: str) -> Sent | Reason:
    """How the stream to this node goes, or why it cannot go as it was asked to.

    packs: how many times fewer bytes the proxies send. lacking: why there are none between the two nodes; empty: there
    are.
    """
    asked, rate = effective.goals.transport, f"{link.rate.expected / MIB:.1f} MiB/s"
    by = effective.by("transport")
    if asked is Transport.PROXY and lacking:
        message = f"transport proxy cannot be had: {lacking} ({by})"
        return Reason("goal.transport", message, node, "allow transport auto, or renew the agents")
    if asked is Transport.PROXY:
        return _proxied(link, packs, f"through the stream proxies: {by}")
    if asked is Transport.DIRECT:
        return Sent(transport=asked, link=link, why=f"not through the stream proxies: {by}")
    if link.rate.expected >= BOTTLENECK_BYTES_PER_S:
        most = f"{BOTTLENECK_BYTES_PER_S / MIB:.0f} MiB/s"
        why = f"not through the stream proxies: the link ({rate}) is no bottleneck, which begins below {most}"
        return Sent(transport=Transport.DIRECT, link=link, why=why)
    if lacking:
        return Sent(transport=Transport.DIRECT, link=link, why=f"not through the stream proxies: {lacking}")
    return _proxied(link, packs, f"through the stream proxies: the link ({rate}) is the bottleneck")


def _proxied(link: Link, packs: Range, why: str) -> Sent:
    low, mid, high = (
        min(rate * ratio, most)
        for rate, ratio, most in zip(
            msgspec.structs.astuple(link.rate),
            msgspec.structs.astuple(packs),
            msgspec.structs.astuple(PASSES),
            strict=True,
        )
    )
    words = f"stream proxies: {packs.expected:.1f} times fewer bytes ({packs.low:.1f} to {packs.high:.1f})"
    through = Link(rate=Range(low, mid, high), basis=f"{link.basis}; {words}", packs=packs)
    return Sent(transport=Transport.PROXY, link=through, why=why)


IN_POSTCOPY = "in post-copy, what is under way in an agent's proxy would be lost with that agent"
_POSTCOPY = (Strategy.POSTCOPY, Strategy.HYBRID)


def choose(course: Course, effective: Effective, packs: Range, lacking: str) -> Choice | Refusal:
    """The way to take to this node and how its stream goes, or why there is none. packs, lacking: as `decide`.

    Post-copy never goes through the proxies: a move that needs it goes without them, or, told to take them, not at all.
    """
    if course.at_rest or course.asked_kind is MigrationKind.COLD:
        return choice.choose(course, effective)
    direct = msgspec.structs.replace(course, transport=Transport.DIRECT)
    postcopy, auto = course.asked_strategy in _POSTCOPY, effective.goals.transport is Transport.AUTO
    sent = decide(effective, course.link, packs, course.node, lacking)
    if isinstance(sent, Reason):
        return Refusal((sent,))
    through = msgspec.structs.replace(course, link=sent.link, transport=sent.transport, transport_why=sent.why)
    if sent.transport is Transport.DIRECT:
        return choice.choose(through, effective)
    without = msgspec.structs.replace(direct, transport_why=f"not through the stream proxies: {IN_POSTCOPY}")
    if postcopy and auto:
        return choice.choose(without, effective)
    if postcopy:
        by = effective.by("transport")
        message = f"strategy {course.asked_strategy} does not go with transport proxy ({by}): {IN_POSTCOPY}"
        return Refusal((Reason("goal.transport", message, course.node, "allow transport auto, or take pre-copy"),))
    answer = choice.choose(msgspec.structs.replace(through, no_postcopy=course.no_postcopy or IN_POSTCOPY), effective)
    if isinstance(answer, Refusal) and auto:
        other = choice.choose(without, effective)
        return other if isinstance(other, Choice) else answer
    return answer


PROJECT = "project"


def scope_of(vm: Vm) -> str:
    """Whose pages may be told apart by whether they have to be sent: those of VMs with the same label `project`, or its
    own alone.
    """
    project = vm.labels.get(PROJECT)
    return f"{PROJECT} {project}" if project else f"vm {vm.id}"
