"""What the disk may still lose when the power goes, told from the points of lives that ran on it one after the other.

The kernel writes files and directory entries back when it likes; only what was synced is sure to be there. Killing a
process loses nothing of that, so it is told from the order of the calls: what was written and not synced, and what was
renamed in a directory that was not synced.
"""

FLIP = ("rename", "slots.json")
COMMIT = ("sync", "journal.db-wal")


def undurable(lives):
    """Say what was relied upon before it was sure to be there; empty if nothing was.

    When the table of slots is replaced, the bundles are to be synced, content and name; when the journal says that
    the deployment has ended (its last two commits), the table. What was not synced in one life is no surer in the next.

    Args:
        lives: the points of each life, without the call that was not made.
    """
    dirty, unnamed, found = set(), set(), []
    ends = [point for points in lives for point in points if (point.call, point.path) == COMMIT][-2:]
    for points in lives:
        for point in points:
            if (point.call, point.path) == FLIP:
                found += [path for path in sorted(dirty | unnamed) if path.endswith(".edgeml")]
            if point.call in {"write", "truncate"}:
                dirty.add(point.path)
            elif point.call == "rename":
                source = f"{_parent(point.path)}/{point.source}".removeprefix("./")
                dirty = {point.path if path == source else path for path in dirty}
                unnamed.add(point.path)
            elif point.call == "sync":
                dirty.discard(point.path)
                unnamed = {path for path in unnamed if _parent(path) != point.path}
                if any(point is end for end in ends) and "slots.json" in dirty | unnamed:
                    found.append("slots.json")
    return found


def _parent(path):
    return path.rpartition("/")[0] or "."
