"""Engine tests start real Flower processes; they share the helpers of flower.py beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
