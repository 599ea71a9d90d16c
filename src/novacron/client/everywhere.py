"""httpx2 transports to whichever server of a cluster can be reached: one that cannot is passed over, at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import httpx2

from novacron.client.endpoint import Endpoint
from novacron.client.line import Line, transport_options

Transport = TypeVar("Transport")
_NOT_REACHED = (httpx2.ConnectError, httpx2.ConnectTimeout)
"""Nothing of the request was sent: whoever it is sent to next is the first to see it."""


class _Ways(Generic[Transport]):
    """A transport for each server, made when it is first used."""

    def __init__(self, line: Line, make: Callable[..., Transport]) -> None:
        self.line = line
        self._make = make
        self._made: dict[Endpoint, Transport] = {}

    def to(self, endpoint: Endpoint, request: httpx2.Request) -> Transport:
        """The one for that server; the request is addressed to it."""
        there = httpx2.URL(endpoint.base_url)
        if request.url.netloc != there.netloc or request.url.scheme != there.scheme:
            request.url = request.url.copy_with(scheme=there.scheme, host=there.host, port=there.port)
            request.headers["Host"] = there.netloc.decode("ascii")
        if endpoint not in self._made:
            self._made[endpoint] = self._make(**transport_options(endpoint))
        return self._made[endpoint]

    def others(self) -> int:
        """How many servers there are besides the one in use."""
        return len(self.line.endpoints.every) - 1

    def made(self) -> list[Transport]:
        return list(self._made.values())


class Everywhere(httpx2.BaseTransport):
    """The blocking one."""

    def __init__(self, line: Line) -> None:
        self._ways = _Ways(line, httpx2.HTTPTransport)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        endpoints = self._ways.line.endpoints
        for _ in range(self._ways.others()):
            tried = endpoints.now
            try:
                return self._ways.to(tried, request).handle_request(request)
            except _NOT_REACHED:
                endpoints.move_on(tried)
        return self._ways.to(endpoints.now, request).handle_request(request)

    def close(self) -> None:
        for one in self._ways.made():
            one.close()


class AsyncEverywhere(httpx2.AsyncBaseTransport):
    """The asyncio one."""

    def __init__(self, line: Line) -> None:
        self._ways = _Ways(line, httpx2.AsyncHTTPTransport)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        endpoints = self._ways.line.endpoints
        for _ in range(self._ways.others()):
            tried = endpoints.now
            try:
                return await self._ways.to(tried, request).handle_async_request(request)
            except _NOT_REACHED:
                endpoints.move_on(tried)
        return await self._ways.to(endpoints.now, request).handle_async_request(request)

    async def aclose(self) -> None:
        for one in self._ways.made():
            await one.aclose()
