"""Batches larger than memory: the loss sees all embeddings, the encoder a part of the images."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels import checks
from dmlap_kernels.trainer.chunks import call, chunk_sizes, count_rows, map_tensors, tensors_of
from dmlap_kernels.trainer.replay import Autocast, Buffers, Modes, RandomState, module_of

Encoder = Callable[..., Tensor]


class GradientCache:
    """Embeds a batch in chunks, and backpropagates chunk by chunk (arXiv 2101.06983).

    `embed` runs the encoder without a graph; the loss is taken once over the whole batch;
    `backward` runs the encoder again, one chunk at a time, and hands each chunk its part of the
    gradient. One more forward pass of the encoder buys a memory that depends on the chunk alone::

        cache = GradientCache(encoder, chunk_size=512)
        loss = fused_triplet_loss(cache.embed(images), labels)
        cache.backward(loss)

    Several calls of `embed` may enter one loss, each with an encoder of its own if need be::

        images, texts = cache.embed(images), cache.embed(tokens, encoder=text_encoder)
        cache.backward(fused_nt_xent_loss(images, labels, texts, labels))

    So may embeddings of several caches, say of other chunks; `backward` of any of them serves all.

    The gradient is that of ``torch.cat([encoder(part) for part in images.split(chunk_size)])``, up
    to rounding: random numbers are drawn anew as they were (dropout), autocast and the mode of
    every module are those of `embed`, batch normalisation sees chunks, and buffers such as its
    running statistics change once. No chunk has a single row, which batch normalisation refuses,
    unless ``chunk_size`` or the batch is 1: the last two chunks share their rows, and with chunks
    of two the last has three.

    Args:
        encoder: module from inputs to embeddings (B, D), or a method of one.
        chunk_size: rows that the encoder gets at a time, at least 1.
    """

    def __init__(self, encoder: nn.Module | Encoder, chunk_size: int) -> None:
        module_of(encoder)
        self.encoder = encoder
        self.chunk_size = checks.at_least("chunk_size", chunk_size, 1)
        # The graph of the loss keeps the calls, so that nothing outlives it.
        self._calls: list[weakref.ref[_Call]] = []

    def embed(self, inputs: Any, *, encoder: nn.Module | Encoder | None = None) -> Tensor:
        """Embeddings (B, D): a leaf that requires grad, for a loss that `backward` gets.

        Where gradients are disabled (``torch.no_grad()``, ``torch.inference_mode()``) or nothing
        of the encoder and the inputs requires them, the embeddings require none either.

        Args:
            inputs: a tensor (B, ...); or a mapping (a dict, what a tokenizer returns), tuple or
                list whose tensors are all (B, ...). Entries that are no tensors, and tensors
                without dimensions, are handed on whole. A mapping is given to the encoder as
                keywords and a sequence as positional arguments where its signature takes them,
                else as one argument.
            encoder: instead of the cache's own: a module, or a method of one.

        Raises:
            TypeError: inputs without a tensor, or an encoder that returns no tensor.
            ValueError: inputs of different lengths, or an encoder that does not return one row for
                each of its inputs.
        """
        self._calls = [kept for kept in self._calls if kept() is not None]
        encoder = self.encoder if encoder is None else encoder
        record = _Call(encoder, inputs, self.chunk_size)
        embeddings = record.forward()
        if not record.needed:
            return embeddings
        embeddings.requires_grad_()

        # The graph of the loss holds the hook, and the hook the record.
        embeddings.register_hook(record.receive)
        self._calls.append(weakref.ref(record))
        return embeddings

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` (), a function of what `embed` returned, to the parameters.

        Embeddings of every `embed` since they were last used take part; those that the loss does
        not depend on wait for another one.

        Raises:
            RuntimeError: nothing was embedded since the last call, the loss does not depend on
                embeddings, they were used in a `backward` before, or weights or inputs have changed
                since.
        """
        if not self._calls:
            raise RuntimeError(
                "backward needs embeddings that require grad: call embed before each backward, "
                "with gradients enabled"
            )
        used: list[_Call] = []
        _receivers.append(used)
        try:
            if loss.requires_grad:
                loss.backward()
        finally:
            _receivers.remove(used)
        if not used:
            raise RuntimeError("loss must depend on the embeddings that embed returned")
        waiting = (kept for kept in self._calls if kept() not in used)
        self._calls = [kept for kept in waiting if kept() is not None]
        for record in used:
            record.backward()


# Of every backward of a cache that runs: the calls of embed whose gradients have come in.
_receivers: list[list[_Call]] = []


class _Call:
    """One `GradientCache.embed`, and what is needed to run it again."""

    def __init__(self, encoder: Encoder, inputs: Any, chunk_size: int) -> None:
        self._encoder = encoder
        self._module = module_of(encoder)
        self._inputs = inputs
        self._sizes = chunk_sizes(count_rows(inputs), chunk_size)
        tensors, parameters = tensors_of(inputs), list(self._module.parameters())
        learns = any(tensor.requires_grad for tensor in (*parameters, *tensors))
        self.needed = learns and torch.is_grad_enabled()
        self._devices = tuple(dict.fromkeys(t.device for t in (*tensors, *parameters)))
        self._autocast = Autocast(self._devices)
        self._modes = Modes(self._module)
        self._parameters = _versions(parameters) if self.needed else []
        self._tensors = _versions(tensors) if self.needed else []
        self._before: list[tuple[RandomState, Buffers]] = []
        self._spent = False
        self.gradient: Tensor | None = None

    def forward(self) -> Tensor:
        """The embeddings, without a graph."""
        parts = []
        with torch.no_grad(), self._autocast.again():
            for begin, size in self._chunks():
                chunk = map_tensors(self._inputs, lambda t: _cut(t, begin, size))  # noqa: B023
                if not self.needed:
                    parts.append(self._run(chunk, size))
                    continue
                random, buffers = RandomState(self._devices), Buffers(self._module)
                parts.append(self._run(chunk, size))
                self._before.append((random, buffers.without_constants()))
        return torch.cat(parts)

    def receive(self, gradient: Tensor) -> None:
        """Take the gradient at the embeddings."""
        if self._spent:
            raise RuntimeError(
                "the embeddings were used in a backward before: embed again, or add the losses up"
            )
        if not _receivers:
            warnings.warn(
                "a gradient reached embeddings of a GradientCache outside of its backward, so the "
                "encoder gets none of it: call cache.backward(loss) in place of loss.backward()",
                stacklevel=2,
            )
            return
        self.gradient = gradient
        _receivers[-1].append(self)

    def backward(self) -> None:
        """Run every chunk again, with its part of the gradient."""
        assert self.gradient is not None
        gradient, self.gradient, self._spent = self.gradient, None, True
        inputs, self._inputs = self._inputs, None
        before, self._before = self._before, []
        if _written(self._parameters):
            raise RuntimeError(
                "the encoder's parameters have changed between embed and backward: take the "
                "optimizer's step after backward"
            )
        if _written(self._tensors):
            raise RuntimeError(
                "the inputs have been written to between embed and backward, by the encoder or "
                "since, but the encoder needs them again: give it a copy"
            )
        after = RandomState(self._devices), Modes(self._module), Buffers(self._module)
        self._modes.restore()
        sources = [tensor for tensor in tensors_of(inputs) if tensor.requires_grad]
        gradients: list[list[Tensor]] = [[] for _ in sources]
        try:
            for (begin, size), part, states in zip(
                self._chunks(), gradient.split(self._sizes), before, strict=True
            ):
                for state in states:
                    state.restore()
                leaves = self._replay(inputs, begin, size, part)
                for found, leaf in zip(gradients, leaves, strict=True):
                    found.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        finally:
            random, modes, buffers = after
            random.restore()
            modes.restore()
            buffers.restore()
        if sources:
            whole = [
                torch.cat(parts) if source.ndim else torch.stack(parts).sum(0)
                for source, parts in zip(sources, gradients, strict=True)
            ]
            torch.autograd.backward(sources, whole)

    def _replay(self, inputs: Any, begin: int, size: int, gradient: Tensor) -> list[Tensor]:
        """One chunk, forward and backward; those of its tensors that require grad, with it."""
        leaves: list[Tensor] = []

        def leaf(tensor: Tensor) -> Tensor:
            part = _cut(tensor.detach(), begin, size)
            if tensor.requires_grad:
                leaves.append(part.requires_grad_())
            return part

        with torch.enable_grad(), self._autocast.again():
            embeddings = self._run(map_tensors(inputs, leaf), size)
        if embeddings.requires_grad:
            # Backward takes the dtypes of forward by itself; autocast would round on top of it.
            with self._autocast.off():
                embeddings.backward(gradient)
        return leaves

    def _run(self, chunk: Any, rows: int) -> Tensor:
        embeddings = call(self._encoder, chunk)
        if not isinstance(embeddings, Tensor):
            raise TypeError(
                "encoder must return a tensor of embeddings (B, D), got "
                f"{type(embeddings).__name__}: give a module, or a method of one, that picks it"
            )
        if not embeddings.ndim or len(embeddings) != rows:
            raise ValueError(
                f"encoder must return one row for each of the {rows} inputs of a chunk, got shape "
                f"{tuple(embeddings.shape)}"
            )
        return embeddings

    def _chunks(self) -> list[tuple[int, int]]:
        """Where each chunk begins, and its size."""
        begins = itertools.accumulate(self._sizes, initial=0)
        return list(zip(begins, self._sizes, strict=False))


def _versions(tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    # Tensors made in inference mode do not count what is written to them.
    return [(tensor, tensor._version) for tensor in tensors if not tensor.is_inference()]


def _written(versions: list[tuple[Tensor, int]]) -> bool:
    return any(tensor._version != version for tensor, version in versions)


def _cut(tensor: Tensor, begin: int, size: int) -> Tensor:
    return tensor[begin : begin + size] if tensor.ndim else tensor
