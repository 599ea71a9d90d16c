"""How a stream ends badly, said in one error."""

from __future__ import annotations

from novacron.errors import MigrationFailed, NovaCronError


def one_of(group: BaseExceptionGroup) -> NovaCronError:
    """The reason behind a group of errors: the first of ours, else the first there is, in our words."""
    leaves = list(_leaves(group))
    for leaf in leaves:
        if isinstance(leaf, NovaCronError):
            return leaf
    return MigrationFailed(f"the stream broke: {leaves[0]!r}")


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
