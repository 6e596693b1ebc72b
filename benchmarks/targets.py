"""The numbers to reach, and by hand, why some are not reached.

`benchmarks.table` holds the measurements against them and writes ``results/targets.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.candidates import LOSSES

ALL = tuple(LOSSES)
DENSE = (
    "multi-similarity",
    "multi-similarity-miner",
    "nt-xent",
    "sup-con",
    "lifted-structure",
    "lifted-structure-original",
    "circle",
)


@dataclass(frozen=True)
class Target:
    """A row of the table.

    Attributes:
        name: what is measured; forward and backward on the CPU backend.
        metric: a function of `benchmarks.results.Results`, with ``arguments``.
        ops: held to it one by one; the worst of them decides.
        must, stretch: at most these, or at least these if ``more``; None for a row that has but
            one of them.
        unit: of the numbers.
    """

    name: str
    metric: str
    ops: tuple[str, ...]
    must: float | None
    stretch: float | None
    unit: str = " G"
    more: bool = False
    arguments: tuple[int, ...] = ()


TARGETS = (
    Target("triplet hard, B = 4,096, D = 128", "times_g", ("triplet-hard",), 0.8, 0.55,
           arguments=(4096, 128)),
    Target("triplet hard, B = 4,096, D = 512", "times_g", ("triplet-hard",), 0.8, 0.55,
           arguments=(4096, 512)),
    Target("triplet all, 4 samples a class, B = 4,096, D = 128", "times_g", ("triplet-all",),
           3.0, 1.5, arguments=(4096, 128)),
    Target("triplet semihard, the same", "times_g", ("triplet-semihard",), 1.5, 0.8,
           arguments=(4096, 128)),
    Target("contrastive, margin; all pairs active, the same", "times_g",
           ("contrastive-all", "margin-all"), 2.5, 1.8, arguments=(4096, 128)),
    Target("contrastive, margin; 2 % of pairs active, the same", "times_g",
           ("contrastive-2%", "margin-2%"), 1.5, 0.7, arguments=(4096, 128)),
    Target("multi-similarity, NT-Xent, SupCon, lifted, circle, the same", "times_g", DENSE,
           3.0, 2.0, arguments=(4096, 128)),
    Target("any loss, B = 128, D = 128, against eager PyTorch", "over_eager", ALL, 4.0, 10.0,
           unit=" x faster", more=True, arguments=(128, 128)),
    Target("any loss, B = 4,096, D = 128, against its library", "over_library", ALL, 20.0, 50.0,
           unit=" x faster", more=True, arguments=(4096, 128)),
    Target("peak memory beyond the inputs and 64 MiB, B = 65,536, D = 128, any loss",
           "peak_beyond_64", ALL, 3.0, None, unit=" x input"),
    Target("peak memory beyond the inputs, the same", "peak", ALL, None, 2.0, unit=" x input"),
    Target("time per pair from B = 2,048 to 65,536, any loss", "spread", ALL, 25.0, 10.0,
           unit=" % apart"),
    Target("nearest, k = 1,000, 60,000 x 60,000, D = 512", "over_faiss", ("nearest k = 1000",),
           1.0, 1.5, unit=" x faster than faiss", more=True, arguments=(60_000, 512)),
    Target("a DMLAP training step against plain batches", "over_plain", ("contrastive step",),
           1.05, 1.02, unit=" x"),
)  # fmt: skip

# By name of the target: why its number is missed.
REASONS: dict[str, str] = {
    "any loss, B = 128, D = 128, against eager PyTorch": (
        "a call costs 112 to 176 us before pairs count (32 rows; 32 to 36 of them are the autograd "
        "engine's own), and 128 rows add 62 to 228 us. Eager PyTorch takes 0.25 ms (n-pairs: two "
        "products of 32 rows) to 10 ms (all triplets). Tried: leaner Python, packed rows and "
        "distances kept for backward, transposing in registers, panels that multiply only what "
        "exists, fewer forks. Arguments in fewer native calls would save no more than 1 us. Next: "
        "the gradient taken in forward, some 4 us less, at the price of a second sweep where no "
        "backward follows. For n-pairs the floor of a call alone is half of eager's time."
    ),
    "any loss, B = 4,096, D = 128, against its library": (
        "a loss in which every pair has a weight is 2 G of arithmetic, at the rate of the product "
        "itself, as long as distances are not kept; the libraries in question take 15 to 30 G. For "
        "proxies and n-pairs they build one B x C matrix and keep it: three products, as ours "
        "where distances take at most 32 MiB, four beyond."
    ),
    "triplet all, 4 samples a class, B = 4,096, D = 128": (
        "nearly every pair of this data is active, so that backward is dense: 2 G is its floor."
    ),
    "contrastive, margin; 2 % of pairs active, the same": (
        "backward takes the distances of every tile with an active pair again (0.5 G), and most "
        "tiles have one. Next: keep the active pairs of sparse tiles from forward."
    ),
    "time per pair from B = 2,048 to 65,536, any loss": (
        "2,048 rows are the dear end: a step of 4 to 5 ms, of which forks, packing and the "
        "gradient of the rows are a larger share than later. From 8,192 to 65,536 triplet hard is "
        "9 % apart, semi-hard 4 %, original lifted structure 4 %, n-pairs 3 %."
    ),
}
