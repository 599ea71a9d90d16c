"""Whether a certificate counts, whether a request is signed, whether a token opens: every refusal, and what passes."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from novacron.model.node_identity import (
    Asked,
    JoinToken,
    NodeIdentity,
    Shown,
    named_by,
    renewal_due,
    uri_of,
    why_line_ends,
    why_not_current,
    why_not_honoured,
    why_not_joined,
    why_not_signed,
    why_token_fails,
)

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
NODE = "01890000-0000-7000-8000-000000000001"
OTHER = "01890000-0000-7000-8000-000000000002"
SHOWN = Shown(node_id=NODE, term=2, serial="ab", not_before=NOW - DAY, not_after=NOW + DAY)
IDENTITY = NodeIdentity(id=NODE, name="node-1", term=2, joined_at=NOW - DAY, expires_at=NOW + DAY)
TOKEN = JoinToken(created_at=NOW - DAY, expires_at=NOW + DAY, created_by="admin")
ASKED = Asked(key="ec secp256r1", is_genuine=True, name="node-1", alternatives=(uri_of(NODE),), extensions=(), seal="s")


def changed(record: msgspec.Struct, **fields: object) -> object:
    return msgspec.structs.replace(record, **fields)


def code(reason: object) -> str:
    return getattr(reason, "code", "")


@pytest.mark.parametrize(
    ("shown", "identity", "refused"),
    [
        ({}, {}, ""),
        ({"not_before": NOW}, {}, ""),
        ({"not_before": NOW + DAY / 24}, {}, "certificate.clock"),
        ({"not_after": NOW}, {}, "certificate.expired"),
        ({"term": 1}, {}, "certificate.superseded"),
        ({"term": 3}, {}, "certificate.superseded"),
        ({}, {"revoked": True, "reason": "stolen"}, "certificate.revoked"),
        ({}, None, "certificate.unknown"),
    ],
)
def test_what_a_certificate_opens(shown: dict[str, object], identity: dict[str, object] | None, refused: str) -> None:
    known = None if identity is None else changed(IDENTITY, **identity)
    reason = why_not_honoured(changed(SHOWN, **shown), known, NOW)  # type: ignore[arg-type]
    assert code(reason) == refused
    assert reason is None or reason.remedy


def test_an_error_about_dates_names_both_clocks() -> None:
    early = why_not_honoured(SHOWN, IDENTITY, SHOWN.not_before - DAY)
    assert early is not None
    assert "clock" in early.message
    assert "2026-01-01 03:04:05 UTC" in early.message
    assert "2025-12-31 03:04:05 UTC" in early.message
    late = why_not_honoured(SHOWN, IDENTITY, SHOWN.not_after)
    assert late is not None
    assert "clock" in late.message


def test_an_open_line_lives_on_by_the_newest_certificate_of_its_node() -> None:
    after = SHOWN.not_after + DAY
    assert code(why_line_ends(SHOWN, IDENTITY, after)) == "certificate.expired"
    renewed = msgspec.structs.replace(IDENTITY, expires_at=after + DAY)
    assert why_line_ends(SHOWN, renewed, after) is None
    assert code(why_line_ends(SHOWN, msgspec.structs.replace(renewed, term=3), after)) == "certificate.superseded"
    assert code(why_line_ends(SHOWN, None, NOW)) == "certificate.unknown"
    assert why_not_current(SHOWN, IDENTITY) is None


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({}, ""),
        ({"is_genuine": False}, "csr.signature"),
        ({"key": "rsa"}, "csr.key"),
        ({"key": "ec secp384r1"}, "csr.key"),
        ({"seal": ""}, "csr.token"),
        ({"seal": "another"}, "csr.token"),
        ({"name": "node-2"}, "csr.names"),
        ({"alternatives": (uri_of(OTHER),)}, "csr.names"),
        ({"alternatives": (uri_of(NODE), "localhost")}, "csr.names"),
        ({"alternatives": (uri_of(NODE, 2),)}, "csr.names"),
        ({"alternatives": ()}, "csr.names"),
        ({"extensions": ("2.5.29.19",)}, "csr.extensions"),
    ],
)
def test_what_a_request_may_ask(fields: dict[str, object], refused: str) -> None:
    reason = why_not_signed(changed(ASKED, **fields), NODE, "node-1", "s")  # type: ignore[arg-type]
    assert code(reason) == refused


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({}, ""),
        (None, "join_token.unknown"),
        ({"used_by": "node-7"}, "join_token.used"),
        ({"expires_at": NOW}, "join_token.expired"),
        ({"node": "node-1"}, ""),
        ({"node": "node-2"}, "join_token.other_node"),
    ],
)
def test_what_a_token_opens(fields: dict[str, object] | None, refused: str) -> None:
    token = None if fields is None else changed(TOKEN, **fields)
    assert code(why_token_fails(token, "node-1", NOW)) == refused  # type: ignore[arg-type]


def test_only_a_token_made_for_a_known_node_lets_it_join_anew() -> None:
    bound = msgspec.structs.replace(TOKEN, node="node-1")
    assert why_not_joined(TOKEN, NODE, "node-1", "") is None
    assert code(why_not_joined(TOKEN, NODE, "node-1", "node-1")) == "node.known"
    assert why_not_joined(bound, NODE, "node-1", "node-1") is None
    assert code(why_not_joined(bound, NODE, "node-1", "node-9")) == "node.known"


@pytest.mark.parametrize(
    "alternatives",
    [
        (),
        ("localhost",),
        (uri_of(NODE, 1), uri_of(OTHER, 1)),
        (uri_of(NODE),),
        (uri_of("../etc", 1),),
        (uri_of(NODE) + ":0",),
        (uri_of(NODE) + ":-1",),
        (uri_of(NODE) + ":٣",),
        (uri_of(NODE) + ":1:2",),
        (uri_of(NODE) + ":99999999999",),
    ],
)
def test_no_other_names_stand_for_a_node(alternatives: tuple[str, ...]) -> None:
    assert named_by(alternatives) is None
    assert named_by((uri_of(NODE, 7),)) == (NODE, 7)


def test_a_certificate_is_renewed_at_two_thirds_of_its_life() -> None:
    assert renewal_due(NOW, NOW + 3 * DAY) == NOW + 2 * DAY
