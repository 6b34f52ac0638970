"""Every test starts from the same threads, seeds and signals."""

import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples on every run and machine, however slow it is; `--hypothesis-profile=explore` draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")

# The suite runs one worker per core, and tiny models lose more to waiting threads than they gain.
torch.set_num_threads(1)

# A shell that starts the suite in the background has it ignore Ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
