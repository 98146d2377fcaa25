"""Which (query, key) pairs are computed: causal masks, windows, chunks, top-k selections.

All formulas are in the workload's symbols (S new tokens, C context) and give pairs per sequence.
"""

from __future__ import annotations

from moeplan.model.workload import Workload

__all__ = [
    "compressed_pairs",
    "selected_pairs",
    "surrounding_pairs",
    "visible_keys",
    "visible_pairs",
]


def visible_pairs(work: Workload, *, window: str = "", chunk: str = "", keys: str = "C") -> str:
    """Formula of the (query, key) pairs per sequence whose scores are computed.

    Causal counts half of the rectangle (the diagonal's half token is ignored, as the field does);
    a window or chunk of W tokens cuts it further; "full" ignores masks. Decoding sees all keys.
    """
    if work.mask == "full" and work.phase != "decode":
        return f"S*{keys}"
    if work.phase == "decode":
        if window:
            return f"S*min({keys}, {window})"
        if chunk:
            return f"S*({keys} - {chunk}*(({keys} - 1)//{chunk}))"
        return f"S*{keys}"
    if window:
        return _until(f"{keys}", window) + f" - ({_until(f'({keys}-S)', window)})"
    if chunk:
        return _chunked(f"{keys}", chunk) + f" - ({_chunked(f'({keys}-S)', chunk)})"
    return f"S*{keys} - half(S**2)"


def surrounding_pairs(work: Workload, window: str) -> str:
    """Pairs where each query sees `window` tokens on either side of it, and nothing is causal.

    Each side is a causal window; as there, the query's own place counts half on each.
    """
    if work.mask == "full" or work.phase == "decode":
        return "S*C"
    return f"2*({_until('S', window)})"


def visible_keys(*, window: str = "", chunk: str = "") -> str:
    """Formula of the keys per sequence that some query of the pass sees, and that it must read.

    The first of the S new tokens sees the farthest back: W - 1 tokens before it in a window, the
    start of its own chunk where there are chunks.
    """
    if window:
        return f"min(C, {window} + S - 1)"
    return f"C - {chunk}*((C - S)//{chunk})" if chunk else "C"


def selected_pairs(work: Workload, top: str) -> str:
    """Pairs where each query attends to the `top` best of the keys it can see.

    A query that sees fewer keys than that attends to all of them, so the count is that of a
    window of `top` tokens. Unlike a mask, the selection is no matter of counting: "full" too
    computes at most `top` keys a query.
    """
    if work.mask == "full" or work.phase == "decode":
        return f"S*min(C, {top})"
    return visible_pairs(work, window=top)


def compressed_pairs(work: Workload, ratio: str, *, top: str = "") -> str:
    """Pairs with entries that each stand for `ratio` tokens, at most `top` of them a query.

    Entries of the open block do not exist yet; the causal count takes them in proportion.
    """
    if work.mask == "full" or work.phase == "decode":
        return f"S*min(C//{ratio}, {top})" if top else f"S*(C//{ratio})"
    window = f"({top}*{ratio})" if top else ""
    return f"per({visible_pairs(work, window=window)}, {ratio})"


def _until(x: str, window: str) -> str:
    """Pairs of the first x positions, each seeing at most `window` keys."""
    return f"{x}*min({x}, {window}) - half(min({x}, {window})**2)"


def _chunked(x: str, chunk: str) -> str:
    """Pairs of the first x positions, each seeing the earlier keys of its own chunk."""
    return f"half(({x}//{chunk})*{chunk}**2 + ({x}%{chunk})**2)"
