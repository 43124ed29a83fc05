"""A base network as it stands, and replicas of it that run in its place.

In:   a module, and tensors for some of its parameters and buffers.
Out:  a scan of all that its `forward` may follow; a module that computes what it would with the
      tensors, while the module itself is never touched; and whatever holds tensors, taken apart and
      put together again.
Knows nothing of tasks, nor of where the tensors came from.
Start at `Replica`, then read what a `Scan` finds.
"""

from weightloom.replica.contents import Contents as Contents
from weightloom.replica.replica import Places as Places
from weightloom.replica.replica import Replica as Replica
from weightloom.replica.replica import places_of as places_of
from weightloom.replica.scan import Scan as Scan
from weightloom.replica.scan import scan_of as scan_of
from weightloom.replica.tree import Shared as Shared
from weightloom.replica.tree import open_tree as open_tree
