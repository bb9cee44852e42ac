"""What the whole suite shares: examples are drawn alike in every run, so that a failure is a change of the code.

`PELAGIA_EXAMPLES=random` draws new ones.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile("random" if os.environ.get("PELAGIA_EXAMPLES") == "random" else "same")
