"""Servers by the SRV records of a DNS name."""

from __future__ import annotations

import dns.asyncresolver
import dns.exception
import dns.resolver

from novacron.errors import NotFound, Unavailable
from novacron.wire.discovery import MAX_PLACES

ASK_WITHIN_S = 5.0


def usual() -> dns.asyncresolver.Resolver:
    """As this host is set up now. :raise Unavailable: it is not."""
    try:
        return dns.asyncresolver.Resolver()
    except dns.exception.DNSException as wrong:
        raise Unavailable(f"this host has no DNS: {wrong}") from wrong


async def resolved(name: str, resolver: dns.asyncresolver.Resolver, within_s: float = ASK_WITHIN_S) -> tuple[str, ...]:
    """The servers that the records stand for, best priority first. Weights say nothing here: all are dialled.

    :raise NotFound: there is no such name, or no SRV record of it. :raise Unavailable: nobody answers.
    """
    try:
        answer = await resolver.resolve(name, "SRV", search=False, lifetime=within_s)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as none:
        raise NotFound(f"DNS has no SRV record of {name}") from none
    except (dns.exception.DNSException, OSError) as failed:
        raise Unavailable(f"DNS does not answer for {name}: {failed}") from failed
    records = sorted((record.priority, record.target.to_text(omit_final_dot=True), record.port) for record in answer)
    return tuple(f"https://{target}:{port}" for _, target, port in records if target not in ("", "."))[:MAX_PLACES]
