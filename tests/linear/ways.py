"""Ways to records: what a client may do to a register, over the API, over a server's cache, and at a store itself."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from novacron.client import nodes, vms
from novacron.client.asynchronous import AsyncClient
from novacron.client.call import Call, consistent
from novacron.control.store.base import Delete, Expect, Put, Store
from novacron.control.store.kinds import NODES
from novacron.control.store.records import Records, remove, update
from novacron.control.store.shelf import Stored
from novacron.errors import NotFound
from novacron.model.node import Node, NodeState
from tests.linear.history import Kind
from tests.linear.register import LEAVING

LABEL = "v"
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
PATIENCE_S = 3.0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A record as it was read or written."""

    value: str
    revision: int
    object_id: str = ""
    generation: int = 0


class Way(Protocol):
    """One client's way to one server. Every method may raise NovaCronErrors.

    offers: what may be done beside reading and swapping. others_write: also who is not in the history writes the
    records, if never their values.
    """

    offers: ClassVar[Mapping[Kind, int]]
    others_write: ClassVar[bool]

    async def read(self, key: str, *, newest: bool) -> Found: ...
    async def swap(self, key: str, seen: Found, value: str) -> Found: ...
    async def write(self, key: str, value: str) -> Found: ...
    async def create(self, key: str, value: str) -> Found: ...
    async def delete(self, key: str, seen: Found | None) -> Found: ...
    async def reconnect(self) -> None: ...


class _Api:
    """Over one server's API, by a connection of its own."""

    others_write: ClassVar[bool] = False

    def __init__(self, address: str, token: str) -> None:
        self._address, self._token = address, token
        self._client = self._made()

    def _made(self) -> AsyncClient:
        return AsyncClient(self._address, self._token, tries=1, answer_within_s=PATIENCE_S, on_notice=lambda _: None)

    async def reconnect(self) -> None:
        await self.close()
        self._client = self._made()

    async def close(self) -> None:
        await self._client.close()

    async def _do(self, call: Call[Any]) -> Found:
        return _found(await self._client.do(call))

    async def _ask(self, call: Call[Any], newest: bool) -> Found:
        return await self._do(consistent(call) if newest else call)


def _found(record: vms.Vm | nodes.Node) -> Found:
    leaves = isinstance(record, vms.Vm) and record.desired == "deleted"
    return Found(
        value=LEAVING if leaves else record.labels.get(LABEL, ""),
        revision=record.revision,
        object_id=record.id,
        generation=record.generation if isinstance(record, vms.Vm) else 0,
    )


class VmWay(_Api):
    """VMs that are to stay off, by name."""

    offers: ClassVar[Mapping[Kind, int]] = {Kind.CREATE: 10, Kind.WRITE: 2, Kind.DELETE: 3}

    async def read(self, key: str, *, newest: bool) -> Found:
        return await self._ask(vms.get(key), newest)

    async def swap(self, key: str, seen: Found, value: str) -> Found:
        return await self._do(vms.update(key, vms.VmUpdate(labels={LABEL: value}), revision=seen.revision))

    async def write(self, key: str, value: str) -> Found:
        return await self._do(vms.update(key, vms.VmUpdate(labels={LABEL: value})))

    async def create(self, key: str, value: str) -> Found:
        wish = vms.VmCreate(name=key, image="ticker", memory_mib=32, nics=[], desired="stopped", labels={LABEL: value})
        return await self._do(vms.create(wish))

    async def delete(self, key: str, seen: Found | None) -> Found:
        return await self._do(vms.delete(key, revision=seen.revision if seen else None))


class NodeWay(_Api):
    """Nodes that are there, by name: their servers write other fields of them."""

    others_write: ClassVar[bool] = True
    offers: ClassVar[Mapping[Kind, int]] = {Kind.WRITE: 2}

    async def read(self, key: str, *, newest: bool) -> Found:
        return await self._ask(nodes.get(key), newest)

    async def swap(self, key: str, seen: Found, value: str) -> Found:
        return await self._do(nodes.update(key, self._labelled(value), revision=seen.revision))

    async def write(self, key: str, value: str) -> Found:
        return await self._do(nodes.update(key, self._labelled(value)))

    def _labelled(self, value: str) -> nodes.NodeUpdate:
        """It is cordoned and uncordoned with it, so that both are one write."""
        return nodes.NodeUpdate(labels={LABEL: value}, cordoned=value.endswith("7"))

    async def create(self, key: str, value: str) -> Found:
        raise NotImplementedError("nodes come by themselves")

    async def delete(self, key: str, seen: Found | None) -> Found:
        raise NotImplementedError("nodes stay")


class StoreWay:
    """Raw records of a store."""

    others_write: ClassVar[bool] = False
    offers: ClassVar[Mapping[Kind, int]] = {Kind.CREATE: 10, Kind.DELETE: 2}

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, key: str, *, newest: bool) -> Found:
        """newest: it always is."""
        entry = await self._store.get(f"linear/{key}")
        if entry is None:
            raise NotFound(key)
        return Found(value=entry.value.decode(), revision=entry.modified, object_id=f"{key} {entry.created}")

    async def swap(self, key: str, seen: Found, value: str) -> Found:
        return await self._put(key, value, seen.revision, seen.object_id)

    async def create(self, key: str, value: str) -> Found:
        return await self._put(key, value, 0, "")

    async def _put(self, key: str, value: str, expected: int, object_id: str) -> Found:
        put, expect = Put(f"linear/{key}", value.encode()), Expect(f"linear/{key}", expected)
        revision = await self._store.commit([put], [expect])
        return Found(value=value, revision=revision, object_id=object_id or f"{key} {revision}")

    async def write(self, key: str, value: str) -> Found:
        raise NotImplementedError("a write at the store would create")

    async def delete(self, key: str, seen: Found | None) -> Found:
        assert seen is not None
        revision = await self._store.commit([Delete(f"linear/{key}")], [Expect(f"linear/{key}", seen.revision)])
        return Found(value="", revision=revision)

    async def reconnect(self) -> None:
        """It is the store's affair."""


class RecordsWay:
    """Typed records through a server's cache: nodes, by name."""

    others_write: ClassVar[bool] = False
    offers: ClassVar[Mapping[Kind, int]] = {Kind.CREATE: 10, Kind.DELETE: 2}

    def __init__(self, records: Records) -> None:
        self._records = records

    async def read(self, key: str, *, newest: bool) -> Found:
        if newest:
            await self._records.refresh()
        stored = self._records.find(NODES, key)
        return self._found(stored.record, stored.modified)

    async def swap(self, key: str, seen: Found, value: str) -> Found:
        old = Stored(_node(seen.object_id, key, seen.value), seen.revision)
        new = _node(seen.object_id, key, value)
        return self._found(new, await self._records.commit(update(NODES, old, new)))

    async def create(self, key: str, value: str) -> Found:
        stored = await self._records.create(NODES, _node(self._records.new_id(), key, value))
        return self._found(stored.record, stored.modified)

    async def write(self, key: str, value: str) -> Found:
        raise NotImplementedError("a cache may be older")

    async def delete(self, key: str, seen: Found | None) -> Found:
        assert seen is not None
        old = Stored(_node(seen.object_id, key, seen.value), seen.revision)
        return Found(value="", revision=await self._records.commit(remove(NODES, old)))

    async def reconnect(self) -> None:
        """There is no connection."""

    def _found(self, node: Node, revision: int) -> Found:
        return Found(value=node.labels[LABEL], revision=revision, object_id=node.id)


def _node(node_id: str, name: str, value: str) -> Node:
    labels = {LABEL: value}
    return Node(
        id=node_id, name=name, state=NodeState.UP, labels=labels, created_at=NOW, updated_at=NOW, state_since=NOW
    )
