"""The radio: how far, how fast, who gets how much band, and how long a recorded run takes on a wireless network."""

from fedgen_lab.wireless.channel import Network, path_loss_db, rate_bps
from fedgen_lab.wireless.replay import Timeline, replay

__all__ = ["Network", "Timeline", "path_loss_db", "rate_bps", "replay"]
