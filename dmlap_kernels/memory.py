"""A loss against a queue of past batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels import checks
from dmlap_kernels.distributed import gathered_rows, in_global_batch, replicated_references
from dmlap_kernels.losses import PROXY_LOSSES
from dmlap_kernels.problem import EMBEDDING_DTYPES, PairStats

Loss = Callable[..., Tensor | tuple[Tensor, PairStats]]


class CrossBatchMemory(nn.Module):
    """Any loss of pairs against a queue of the last ``memory_size`` rows (1912.06798).

    A call writes its batch over the oldest rows of the queue, and returns the loss of the batch
    against the queue. There each row of the batch lies among its own references: that pair is
    left out (`self_index`), the pairs with the other rows of the batch are not. The queue holds
    numbers, without a graph: the gradient flows to the batch alone. A call costs one sweep over
    B x memory_size pairs.

    Args:
        loss: a module of `dmlap_kernels.losses` or a ``fused_*_loss``, `functools.partial` of one,
            or any other function of ``(embeddings, labels, ref_embeddings, ref_labels,
            self_index=...)``. Not a loss of proxies, which has references of its own.
        embedding_size: D, at least 1.
        memory_size: rows of the queue, at least 1 and at least those of a call.
        dtype: that the queue is stored in, float32, float64, float16 or bfloat16. A half type
            takes half the memory between calls, and rounds what is enqueued (float16 has no finite
            number beyond 65,504); the loss is computed in the wider of this dtype and that of the
            embeddings.
        gather: False for a queue a rank, of its own rows. True to enqueue the rows of all ranks in
            the order of the ranks, so that every rank holds the same queue, memory_size rows in
            all; each computes the loss of its own batch. Wrapped in
            `dmlap_kernels.distributed.global_batch` the loss is that of one process with this
            queue and the batches of all ranks.
        group: the `torch.distributed` process group of ``gather``; None for all ranks.

    Attributes:
        embeddings: (memory_size, D), the buffer that holds the queue; its first ``filled`` rows
            count.
        labels: (memory_size,) int64.
        filled: how many rows the queue holds.
        position: the row that the next one will be written to.

    ``forward(embeddings, labels, *, enqueue=None, enqueue_labels=None, enqueue_mask=None)``:

    - embeddings (B, D) and labels (B,), as the loss takes them: the anchors.
    - enqueue (E, D): rows to be enqueued in the place of ``embeddings``, such as the keys of a
      momentum encoder (MoCo, 1911.05722), with enqueue_labels (E,), by default ``labels``. They are
      other rows than the anchors: none is left out, and the key of an anchor's own image is its
      positive if it has the same label.
    - enqueue_mask (B,) bool: rows where it is True are enqueued and are no anchors, the others are
      anchors and are not enqueued. The mask is read, so that a GPU is waited for. It is the form of
      pytorch-metric-learning; ``enqueue`` says the same without waiting.

    In evaluation mode (`eval()`) nothing is enqueued.

    ``state_dict`` holds the rows, their labels and the position, so that a resumed run goes on bit
    for bit. ``.to()`` moves the queue, and changes the dtype of its rows. DistributedDataParallel
    copies buffers from rank 0 at each call: leave a queue a rank out of what it wraps, or give it
    ``broadcast_buffers=False``. Call ``backward`` before the next call, which overwrites rows that
    it reads (autograd refuses it otherwise). Under torch.compile the call is a break of the graph
    and runs as it does without.

    Raises:
        ValueError, TypeError: an argument is not as above.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import ContrastiveLoss
        >>> from dmlap_kernels.memory import CrossBatchMemory
        >>> criterion = CrossBatchMemory(ContrastiveLoss(), embedding_size=16, memory_size=512)
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> criterion(embeddings, labels).backward()
        >>> criterion.filled
        8
        >>> keys = torch.randn(8, 16)  # of a momentum encoder
        >>> loss = criterion(embeddings, labels, enqueue=keys)
        >>> criterion.filled
        16
    """

    embeddings: Tensor
    labels: Tensor

    def __init__(
        self,
        loss: Loss,
        embedding_size: int,
        memory_size: int = 1024,
        *,
        dtype: torch.dtype = torch.float32,
        gather: bool = False,
        group: Any = None,
    ) -> None:
        super().__init__()
        if not callable(loss) or isinstance(loss, tuple(PROXY_LOSSES.values())):
            kind = type(loss).__name__
            raise TypeError(
                "loss must be a loss of pairs, called with references, such as ContrastiveLoss(), "
                f"got {kind if callable(loss) else f'{loss!r} ({kind})'}"
            )
        if dtype not in EMBEDDING_DTYPES:
            raise TypeError(f"dtype must be one of {checks.names(EMBEDDING_DTYPES)}, got {dtype}")
        most = 2**62
        sizes = ("embedding_size", embedding_size), ("memory_size", memory_size)
        embedding_size, memory_size = (
            checks.count(name, value, minimum=1, maximum=most, why="it is the size of a tensor")
            for name, value in sizes
        )
        if group is not None and not checks.flag("gather", gather):
            raise ValueError("group must be left out unless gather=True, got one with gather=False")
        self.loss = loss
        self.embedding_size, self.memory_size = embedding_size, memory_size
        self.gather, self.group = checks.flag("gather", gather), group
        self.register_buffer("embeddings", torch.zeros(memory_size, embedding_size, dtype=dtype))
        self.register_buffer("labels", torch.zeros(memory_size, dtype=torch.int64))
        self._enqueued = 0

    @property
    def filled(self) -> int:
        return min(self._enqueued, self.memory_size)

    @property
    def position(self) -> int:
        return self._enqueued % self.memory_size

    def reset(self) -> None:
        """Empties the queue."""
        self._enqueued = 0

    def get_extra_state(self) -> Tensor:
        """How many rows were enqueued so far: the position in the queue, and what it holds."""
        return torch.tensor(self._enqueued, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self._enqueued = int(state)

    @torch.compiler.disable
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        enqueue: Tensor | None = None,
        enqueue_labels: Tensor | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, PairStats]:
        labels = self._checked("embeddings", embeddings, "labels", labels)
        if in_global_batch() and not self.gather:
            raise ValueError(
                "CrossBatchMemory inside of global_batch must hold the same queue on every rank "
                "(gather=True), got gather=False"
            )
        if enqueue_mask is not None and enqueue is not None:
            raise ValueError("enqueue and enqueue_mask exclude each other, got both")
        if enqueue_labels is not None and enqueue is None:
            raise ValueError("enqueue_labels belong to enqueue, got them without it")
        itself = None
        if enqueue_mask is not None:
            mask = _mask(enqueue_mask, embeddings)
            self._enqueue("embeddings[enqueue_mask]", embeddings[mask], labels[mask])
            embeddings, labels = embeddings[~mask], labels[~mask]
        elif enqueue is not None:
            keys = labels if enqueue_labels is None else enqueue_labels
            name = "labels" if enqueue_labels is None else "enqueue_labels"
            self._enqueue("enqueue", enqueue, self._checked("enqueue", enqueue, name, keys))
        else:
            itself = self._enqueue("embeddings", embeddings, labels)
        queue = self.embeddings[: self.filled], self.labels[: self.filled]
        with replicated_references():
            return self.loss(embeddings, labels, *queue, self_index=itself)

    def extra_repr(self) -> str:
        shape = f"embedding_size={self.embedding_size}, memory_size={self.memory_size}"
        return f"{shape}, dtype={self.embeddings.dtype}, filled={self.filled}"

    def _checked(self, rows_argument: str, rows: Any, argument: str, labels: Any) -> Tensor:
        """The labels, once the rows may lie in the queue beside others."""
        checks.embeddings(rows_argument, rows)
        if rows.shape[1] != self.embedding_size:
            raise ValueError(
                f"{rows_argument} must have the {self.embedding_size} features of the queue "
                f"(embedding_size), got {tuple(rows.shape)}"
            )
        if rows.device != self.embeddings.device:
            raise ValueError(
                f"{rows_argument} must be on the device of the queue ({self.embeddings.device}; "
                f".to() moves it), got {rows.device}"
            )
        return checks.labels(argument, labels, rows, rows_argument)

    @torch.no_grad()
    def _enqueue(self, argument: str, rows: Tensor, labels: Tensor) -> Tensor | None:
        """Writes the rows over the oldest ones; where in the queue they are now (E,)."""
        if not self.training:
            return None
        own = slice(0, rows.shape[0])
        if self.gather:
            rows, labels, own = gathered_rows(rows.detach(), labels, self.group)
        count = rows.shape[0]
        if count > self.memory_size:
            raise ValueError(
                f"{argument} must have at most the {self.memory_size} rows of the queue "
                f"(memory_size), got {count}{' of all ranks together' if self.gather else ''}"
            )
        places = torch.arange(self.position, self.position + count, device=rows.device)
        places = places % self.memory_size
        self.embeddings.index_copy_(0, places, rows.detach().to(self.embeddings.dtype))
        self.labels.index_copy_(0, places, labels)
        self._enqueued += count
        return places[own]


def _mask(value: Any, rows: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise TypeError(f"enqueue_mask must be a bool tensor, got {checks.describe(value)}")
    if value.shape != rows.shape[:1]:
        raise ValueError(
            f"enqueue_mask must have shape ({rows.shape[0]},), one entry for each row of "
            f"embeddings, got {tuple(value.shape)}"
        )
    return value.to(rows.device)
