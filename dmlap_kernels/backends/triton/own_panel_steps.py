"""Steps whose kernels write weights to a panel of their own, beside that of products: those of the
anchors' ends of pairs, so that a batch with itself has two products in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.kinds import Kind, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.panel_distances import near_sums_kernel
from dmlap_kernels.backends.triton.steps import Step


class OwnPanelKind(Kind):
    """``tile`` names the launch whose tiles have marks of near pairs."""

    tile: str

    def _partial_count(self, rows: int) -> int:
        return 0

    def _mark_count(self, rows: int) -> int:
        launch = configurations.panel_launch(self.tile)
        return blocks_in(rows, launch.BM) * blocks_in(self.columns, launch.BN)

    def _near(self, top: int, which: tuple[bool, bool], chunks: int) -> Launch:
        launch = configurations.panel_launch("panel_near")
        tile = configurations.panel_launch(self.tile)
        rows = min(self.height, self.anchors - top)
        blocks = blocks_in(self.anchors if self.self_case else rows, launch.BM)
        others = blocks_in(self.columns, launch.BM) if which[1] and not self.self_case else 0
        blocks = blocks if which[0] else 0
        sizes = top, self.anchors, self.columns, self.width, rows, blocks
        compiled_for = tile.BM, tile.BN, self._tiling(launch)
        return Launch((blocks + others, chunks, 1), (*sizes, *compiled_for), launch.options)


class OwnPanelStep(Step):
    """What `_weigh` fills is ``weights``, whose marks are those of `panel_distances`."""

    weights: Tensor | None = None

    def _room(self) -> Tensor:
        """For the weights of a panel."""
        if self.weights is None:
            self.weights = self.buffer.new_empty((self.kind.height, self.kind.stride))
        return self.weights

    def _add_near(
        self, launch: Launcher, near: Launch, pairs: tuple[Any, ...], ends: tuple[Any, ...]
    ) -> None:
        launch("near", near_sums_kernel, near, *pairs[:3], *ends[4:-1])

    def _multiply(
        self, weights: Tensor, top: int, rows: int, products: list[Tensor | None]
    ) -> None:
        kind, at_x = self.kind, products[0]
        own = self._room()[:rows, : kind.columns]
        if not kind.self_case:
            super()._multiply(own, top, rows, products)
        elif at_x is not None:
            others = self._piece(kind.y.packed, (kind.columns, kind.width), kind.width)
            mine = self._piece(kind.x.packed, (rows, kind.width), kind.width, top)
            if top:
                at_x.addmm_(own.T, mine)
            else:
                torch.mm(own.T, mine, out=at_x)
            at_x[top : top + rows].addmm_(own, others)
        if top + rows == kind.anchors:
            self.weights = None
