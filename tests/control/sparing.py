"""What FastAPI works out anew for every application though it is the same for all: here once in each test process.

A test's server has routes over a store of its own, so each test builds an application: half a second, most of it spent
on what every route depends on, and on pydantic's adapters of parameters that other routes have, too. Nothing of that
knows a store, or keeps anything of a request.
"""

from __future__ import annotations

import functools
from typing import Any, get_args

from fastapi import Depends, routing
from fastapi._compat import v2
from pydantic import TypeAdapter

from novacron.control.answers import noun

_ANYWHERE = frozenset(one.dependency for one in noun("any").dependencies)
_analysed = routing.get_parameterless_sub_dependant
_adapters: dict[object, tuple[TypeAdapter[Any], object]] = {}


@functools.cache
def share() -> None:
    """From now on, in this process."""
    routing.get_parameterless_sub_dependant = _sub_dependant
    v2.TypeAdapter = _adapter


def _sub_dependant(*, depends: Any, path: str) -> Any:
    """Of what no path has parameters for."""
    return _anywhere(depends.dependency) if depends.dependency in _ANYWHERE else _analysed(depends=depends, path=path)


@functools.cache
def _anywhere(dependency: Any) -> Any:
    return _analysed(depends=Depends(dependency), path="")


def _adapter(wanted: Any, *, config: Any = None) -> TypeAdapter[Any]:
    """One adapter for each type with its constraints. It keeps its type: so whatever its words name lives on."""
    bare, *more = get_args(wanted) or (wanted,)
    try:
        known = _adapters.get(key := (bare, repr(more), repr(config)))
    except TypeError:  # a type made of what cannot be hashed
        return TypeAdapter(wanted, config=config)
    if known is None:
        known = _adapters[key] = TypeAdapter(wanted, config=config), wanted
    return known[0]
