"""moeplan: what a Mixture-of-Experts model costs, exact and explained.

>>> import moeplan
>>> moeplan.estimate("mixtral").to_dict()["params"]["total"]
46702792704
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeplan._version import __version__

if TYPE_CHECKING:
    from moeplan.api import compare, estimate, explain, sweep
    from moeplan.errors import UserError

__all__ = ["UserError", "__version__", "compare", "estimate", "explain", "sweep"]


def __getattr__(name: str) -> Any:
    """Load the library on first use, so that importing the package costs nothing."""
    if name == "UserError":
        from moeplan.errors import UserError

        return UserError
    if name in __all__:
        from moeplan import api

        return getattr(api, name)
    raise AttributeError(f"module 'moeplan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
