"""`torchrun --nproc-per-node N -m moeplan.profile ...`: the all-to-all over N ranks (`exchange`).

One process measures a layer with `moeplan profile`.
"""

from __future__ import annotations

import sys

from moeplan.profile import require_torch


def main() -> int:
    """Run the exchange; torch is imported once it is known to be there."""
    from moeplan.errors import UserError

    try:
        require_torch()
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    from moeplan.profile.exchange import main as exchange

    return exchange()


if __name__ == "__main__":
    sys.exit(main())
