"""What the plugins of engines stand on; and how to hook an engine of one's own.

    from microspec_kernels.integrations.engine import EngineHead, Settings

    head = EngineHead(draft.lm_head.weight, Settings(capacity=3072))  # attach, before capture
    head.observe(tokens)                                              # eager, between replays
    tokens = head.argmax(hidden)                                      # captured

docs/engines.md tells it from the start.
"""

from .head import EngineHead, Figures, Shard
from .refused import Refused
from .seams import Seam, check_seams, package_root, problems
from .settings import SWITCH, Settings

__all__ = [
    "SWITCH",
    "EngineHead",
    "Figures",
    "Refused",
    "Seam",
    "Settings",
    "Shard",
    "check_seams",
    "package_root",
    "problems",
]
