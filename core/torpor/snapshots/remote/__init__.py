"""Snapshots in a store that several machines reach: pushed in chunks, pulled with every check.

push         cuts a snapshot into chunks, sends those that the store lacks, and writes the manifest last
opening      reads a manifest of the store: who signed it, what is in the snapshot; fetches no chunk
pull         fetches the chunks of an opened snapshot, checks each, and puts the folder in its place
portable     what a push sends beside the folder: kept weights, hashes of open files
comparing    whether an opened snapshot fits this machine: every reason against it, before a chunk is fetched
obtaining    compare, fetch, and note where its files lie here: for `up` and `restore` with a URL
finding      which snapshot of a store fits this machine
source       a snapshot of a store as a start is given it
listing      which snapshots a store holds
garbage      removes snapshots, and chunks that none needs

values       what the others hand to each other
location     a URL: the store, and the name of a snapshot in it
store        the store's files, over fsspec: attempts, deadlines, complete writes
"""

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.snapshots.remote.encryption import read_identities
    from torpor.snapshots.remote.finding import find_fitting
    from torpor.snapshots.remote.garbage import collect, remove
    from torpor.snapshots.remote.obtaining import obtain
    from torpor.snapshots.remote.signature import read_trust

__all__ = ["collect", "find_fitting", "obtain", "read_identities", "read_trust", "remove"]

__getattr__, __dir__ = lazy_names(
    __name__,  # a start without a store needs none of its packages
    {
        "torpor.snapshots.remote.encryption": ("read_identities",),
        "torpor.snapshots.remote.finding": ("find_fitting",),
        "torpor.snapshots.remote.garbage": ("collect", "remove"),
        "torpor.snapshots.remote.obtaining": ("obtain",),
        "torpor.snapshots.remote.signature": ("read_trust",),
    },
)
