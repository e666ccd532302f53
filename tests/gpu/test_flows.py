"""What tensors on GPUs do between models (``gpu_flows``), on a GPU."""

from __future__ import annotations

import pytest
from gpu_flows import Flows

pytestmark = pytest.mark.gpu


class TestFlows(Flows):
    """As it is."""
