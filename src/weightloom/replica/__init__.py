"""Replicas of a base network, which run in its place with other parameters.

In:   a module, and tensors for some of its parameters and buffers.
Out:  a scan of everything that its `forward` may depend on; a replica that computes the module's
      output with the given tensors, without touching the module; arguments and outputs, opened
      into their tensors and rebuilt.
Knows nothing of tasks, nor of the source of the tensors.
Start at `Replica`, then read `Scan`.
"""

from weightloom.replica.contents import Contents as Contents
from weightloom.replica.replica import Places as Places
from weightloom.replica.replica import Replica as Replica
from weightloom.replica.replica import places_of as places_of
from weightloom.replica.scan import Scan as Scan
from weightloom.replica.scan import scan_of as scan_of
from weightloom.replica.tree import Shared as Shared
from weightloom.replica.tree import open_tree as open_tree
