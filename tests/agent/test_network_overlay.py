"""Networks over several nodes: frames through real kernels, in namespaces of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.agent.overlay_nodes import Site, nic, place, site, spec

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
pytestmark = [pytest.mark.system, pytest.mark.root, needs_root]


@pytest.fixture
def two() -> Iterator[Site]:
    with site(2) as made:
        yield made


def test_guests_on_two_nodes_reach_each_other(two: Site) -> None:
    a, b = two.nodes
    one, other = nic(2), nic(3)
    left, right = two.plug(a, one, spec()), two.plug(b, other, spec())
    two.apply(two.state(1, place(one, a), place(other, b)))
    left.with_kernel("10.5.0.2/24", "fd05::2/64")
    right.with_kernel("10.5.0.3/24", "fd05::3/64")
    assert left.pings("10.5.0.3")
    assert right.pings("fd05::2")
    assert left.pings("10.5.0.1"), "the gateway answers at each node"
    assert right.pings("fd05::1")
