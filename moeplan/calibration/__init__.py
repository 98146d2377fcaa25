"""Op times: fitted to few measured points, with error bands from points that the fit did not see.

Nothing here is imported by the commands that do not predict times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeplan.calibration.records import ProfileTimes

__all__ = ["for_profile"]


def for_profile(device: str, backend: str, dtype: str) -> ProfileTimes | None:
    """The calibration that ships for a device, backend and number format, or None."""
    from moeplan.calibration.records import for_profile as find

    return find(device, backend, dtype)
