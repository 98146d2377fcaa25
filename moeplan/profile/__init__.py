"""Running and measuring a real MoE layer: the only part of moeplan that needs torch.

The package itself imports without torch; its modules need it, so a command calls `require_torch`
before it imports one of them.
"""

from __future__ import annotations

from importlib.util import find_spec

from moeplan.errors import UserError

__all__ = ["require_torch"]


def require_torch() -> None:
    """Raise UserError, saying what to install, where torch is not importable."""
    if find_spec("torch") is None:
        raise UserError(
            "measuring needs PyTorch 2.11 or newer, which is not installed: "
            "pip install 'moeplan[profile]'"
        )
