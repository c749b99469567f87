"""The storeroom: whether one more bundle has room among all that a device stores.

Decides what counts (every file of the store: bundles of all slots, what was fetched in part, deltas) and says with
numbers why something does not fit, before a byte is fetched. The length is the signed one. What is removed, and when, is
`slots`' business.
"""

from __future__ import annotations

from pathlib import Path

from edgeml.errors import BudgetError
from edgeml.trustfacts import SignedTarget


def stored_bytes(store: Path) -> int:
    """Add up every file of a store; one that vanishes meanwhile counts as nothing.

    Raises:
        OSError: The store cannot be read.
    """
    return sum(_size(path) for path in store.iterdir()) if store.exists() else 0


def check_room(store: Path, target: SignedTarget, storage_bytes: int) -> None:
    """Refuse a bundle that does not fit beside what is stored.

    Raises:
        BudgetError: It does not; in bytes.
        OSError: The store cannot be read.
    """
    own = (
        sum(_size(path) for path in store.glob(f"{target.digest}.*") if path.suffix != ".chunks")
        if store.exists()
        else 0
    )
    others = stored_bytes(store) - own
    if others + target.length_bytes > storage_bytes:
        raise BudgetError(
            f"{target.path} has {target.length_bytes} bytes, this device may store {storage_bytes} in all and has "
            f"{others} already",
            hint="raise budget.storage_bytes, or build a smaller variant",
            budget=max(storage_bytes - others, 0),
            observed=target.length_bytes,
            unit="bytes",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
