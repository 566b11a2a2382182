"""Virtual disks: the block back end of domain 0.

``nodes`` says what the toolstack writes into xenstore for a disk, ``image`` opens what lies behind it, ``negotiate`` is the
protocol without any state, ``backend`` the state machine of one disk, ``service`` all disks of a host. Data never passes
here: once connected, the ring is served by csrc/io/blk.c.
"""

from .backend import AttachConfig, BlockBackend, BlockOps
from .image import DiskImage, ImageError, open_image
from .negotiate import FrontRing, NegotiationError
from .nodes import DiskNodes, disk_nodes
from .service import BlockService, DiskStatus

__all__ = ["AttachConfig", "BlockBackend", "BlockOps", "BlockService", "DiskImage", "DiskNodes", "DiskStatus", "FrontRing",
           "ImageError", "NegotiationError", "disk_nodes", "open_image"]
