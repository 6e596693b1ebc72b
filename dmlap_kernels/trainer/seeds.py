"""Random numbers as pure functions of a seed, a purpose and a counter.

Nothing that is drawn depends on what was drawn before, so a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, *counters: int, part: int = 0) -> torch.Generator:
    """A CPU generator that depends on the arguments alone.

    ``part`` is one more counter, of what usually is a single draw.
    """
    counters += (part,) * (part > 0)
    text = "/".join(map(str, (seed, purpose, *counters)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
