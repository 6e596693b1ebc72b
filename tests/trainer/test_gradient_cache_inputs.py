"""What `GradientCache` takes and in which surroundings: towers, autocast, mappings, states."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from dmlap_kernels import fused_nt_xent_loss
from dmlap_kernels.trainer import GradientCache
from dmlap_kernels.trainer.chunks import chunk_sizes

ROWS = 11


class Tower(nn.Module):
    """Batch normalisation, dropout and a buffer that the output depends on."""

    def __init__(self, inputs: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 8)
        )
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return self.layers(x) * (1 + 0.1 * self.calls)


class Words(nn.Module):
    """Takes what a tokenizer gives, by name or as one mapping, as text encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(30, 6), nn.Linear(6, 8)

    def pooled(self, ids: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        weights = mask.to(self.layer.weight.dtype)[..., None]
        return self.layer((self.table(ids) * weights).sum(1) / weights.sum(1)) * scale

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> torch.Tensor:
        assert attention_mask is not None
        return self.pooled(input_ids, attention_mask, scale)


class WordsOfMapping(Words):
    def forward(self, features: Any) -> torch.Tensor:  # type: ignore[override]
        return self.pooled(features["input_ids"], features["attention_mask"], features["scale"])


class WordsOfTuple(Words):
    def forward(self, features: Any) -> torch.Tensor:  # type: ignore[override]
        return self.pooled(*features)


class Encoding(UserDict):
    """As the tokenizers of transformers return it: entries also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class WordsOfAttributes(Words):
    def forward(self, features: Any) -> torch.Tensor:  # type: ignore[override]
        return self.pooled(features.input_ids, features.attention_mask, features.scale)


class Named(NamedTuple):
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    scale: float


def _features(rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _tokens() -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 30, (ROWS, 5), generator=g)
    mask = torch.rand(ROWS, 5, generator=g) < 0.7
    mask[:, 0] = True
    return {"input_ids": ids, "attention_mask": mask, "scale": 2.0}


def _loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    labels = torch.arange(len(first))
    return fused_nt_xent_loss(first.double(), labels, second.double(), labels, temperature=0.5)


def _in_chunks(encoder: Callable[..., torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder(part) for part in inputs.split(chunk_sizes(len(inputs), 4))])


def _state(*modules: nn.Module) -> list[torch.Tensor]:
    gradients = [p.grad for m in modules for p in m.parameters() if p.grad is not None]
    return [*gradients, *(b for m in modules for b in m.buffers()), torch.rand(3)]


def _assert_same(mine: list[torch.Tensor], wanted: list[torch.Tensor], **bounds: float) -> None:
    for a, b in zip(mine, wanted, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, **(bounds or {"rtol": 1e-9, "atol": 1e-11}))


@pytest.mark.parametrize("shared", [True, False], ids=["one encoder", "two encoders"])
def test_every_embed_before_a_backward_gets_its_gradient(shared: bool) -> None:
    found = []
    for cached in (False, True):
        torch.manual_seed(0)
        one = Tower().double()
        other = one if shared else Tower().double()
        if cached:
            cache = GradientCache(one, 4)
            first = cache.embed(_features())
            second = cache.embed(_features(seed=1), encoder=None if shared else other)
            cache.backward(_loss(first, second))
        else:
            first = _in_chunks(one, _features())
            _loss(first, _in_chunks(other, _features(seed=1))).backward()
        found.append(_state(*({one, other} if shared else (one, other))))
    _assert_same(found[1], found[0])


def test_backward_of_one_cache_serves_the_others_too() -> None:
    torch.manual_seed(0)
    one, other = Tower().double().eval(), Tower().double().eval()
    _loss(one(_features()), other(_features(seed=1))).backward()
    wanted = [p.grad.clone() for m in (one, other) for p in m.parameters()]
    one.zero_grad()
    other.zero_grad()
    caches = GradientCache(one, 4), GradientCache(other, 7)
    loss = _loss(caches[0].embed(_features()), caches[1].embed(_features(seed=1)))
    caches[1].backward(loss)
    _assert_same([p.grad for m in (one, other) for p in m.parameters()], wanted)
    with pytest.raises(RuntimeError, match="loss must depend on|backward through the graph"):
        caches[0].backward(loss)


def test_each_of_two_losses_takes_its_own_embeddings() -> None:
    torch.manual_seed(0)
    one = Tower().double().eval()
    cache = GradientCache(one, 4)
    losses = [
        _loss(cache.embed(_features(seed=s)), _features()[:, :1].expand(-1, 8)) for s in (1, 2)
    ]
    for loss in losses:
        cache.backward(loss)
    mine = [p.grad.clone() for p in one.parameters()]
    one.zero_grad()
    sum(_loss(one(_features(seed=s)), _features()[:, :1].expand(-1, 8)) for s in (1, 2)).backward()
    _assert_same(mine, [p.grad for p in one.parameters()])


@pytest.mark.parametrize("outside", [False, True], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("keep_casts", [True, False])
def test_autocast_is_that_of_embed(outside: bool, keep_casts: bool) -> None:
    """Recomputed in the same dtype, and no cast made without a graph cuts weights off."""
    found = []
    for cached in (False, True):
        torch.manual_seed(0)
        encoder = Tower()
        x, y = _features().float(), _features(seed=1).float()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=keep_casts):
            if cached:
                cache = GradientCache(encoder, 4)
                first, second = cache.embed(x), cache.embed(y)
            else:
                first, second = _in_chunks(encoder, x), _in_chunks(encoder, y)
            assert first.dtype == torch.bfloat16
            loss = _loss(first, second)
            if not outside:
                cache.backward(loss) if cached else loss.backward()
        if outside:
            cache.backward(loss) if cached else loss.backward()
        found.append(_state(encoder))
    assert len(found[0]) == len(found[1])
    _assert_same(found[1], found[0], rtol=0.02, atol=2e-3)


def test_an_ordinary_pass_under_the_same_autocast_keeps_its_gradient() -> None:
    encoder = nn.Linear(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = GradientCache(encoder, 4).embed(_features().float())
        encoder(_features().float()).sum().backward()
    assert embeddings.dtype == torch.bfloat16
    assert encoder.weight.grad is not None and encoder.weight.grad.abs().max() > 0


def test_embedded_in_full_precision_and_backward_under_autocast() -> None:
    encoder = nn.Linear(6, 8)
    cache = GradientCache(encoder, 4)
    loss = _loss(cache.embed(_features().float()), _features(seed=3)[:, :1].expand(-1, 8))
    with torch.autocast("cpu", torch.bfloat16):
        cache.backward(loss)
    mine = encoder.weight.grad.clone()
    encoder.zero_grad()
    _loss(encoder(_features().float()), _features(seed=3)[:, :1].expand(-1, 8)).backward()
    torch.testing.assert_close(mine, encoder.weight.grad, rtol=1e-5, atol=1e-7)


def test_no_chunk_has_one_row() -> None:
    for rows, size in itertools.product((*range(1, 20), 33), range(1, 9)):
        sizes = chunk_sizes(rows, size)
        assert sum(sizes) == rows
        assert max(sizes) <= size + (size == 2 and rows % 2)
        assert min(sizes) > 1 or size == 1 or rows == 1


@pytest.mark.parametrize("rows", [5, 9, 3])
def test_batch_normalisation_gets_no_single_row(rows: int) -> None:
    cache = GradientCache(Tower().double(), 4 if rows > 3 else 2)
    cache.backward(cache.embed(_features(rows)).square().sum())


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (Words, dict),
        (Words, UserDict),
        (Words, Encoding),
        (Words, lambda tokens: tuple(tokens.values())),
        (Words, lambda tokens: list(tokens.values())),
        (WordsOfMapping, dict),
        (WordsOfAttributes, Encoding),
        (WordsOfTuple, lambda tokens: tuple(tokens.values())),
        (WordsOfTuple, lambda tokens: Named(**tokens)),
    ],
)
def test_inputs_with_several_tensors(kind: type[Words], made: Callable[[dict], Any]) -> None:
    torch.manual_seed(0)
    encoder = kind().double()
    tokens = _tokens()
    wanted = encoder.pooled(*tokens.values())
    wanted.square().sum().backward()
    gradients = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    cache = GradientCache(encoder, 4)
    embeddings = cache.embed(made(tokens))
    torch.testing.assert_close(embeddings.detach(), wanted.detach())
    cache.backward(embeddings.square().sum())
    _assert_same([p.grad for p in encoder.parameters()], gradients)


def test_a_wrapper_that_takes_everything_is_looked_through() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any, **options: Any) -> torch.Tensor:
            return self.module(*inputs, **options)

    cache = GradientCache(Wrapper(WordsOfMapping()), 4)
    assert cache.embed(_tokens()).shape == (ROWS, 8)
    assert GradientCache(Wrapper(Words()), 4).embed(_tokens()).shape == (ROWS, 8)


def test_a_method_of_a_module_is_an_encoder() -> None:
    encoder = Words().double()
    cache = GradientCache(encoder, 4)
    ids, mask, scale = _tokens().values()
    cache.backward(cache.embed((ids, mask, scale), encoder=encoder.pooled).sum())
    assert encoder.table.weight.grad.abs().max() > 0


def test_inputs_that_require_grad_get_it() -> None:
    torch.manual_seed(0)
    encoder, stem = nn.Linear(6, 8).double(), nn.Linear(6, 6).double()
    encoder(stem(_features())).square().sum().backward()
    wanted = [p.grad.clone() for m in (encoder, stem) for p in m.parameters()]
    encoder.zero_grad()
    stem.zero_grad()
    cache = GradientCache(encoder, 4)
    cache.backward(cache.embed(stem(_features())).square().sum())
    _assert_same([p.grad for m in (encoder, stem) for p in m.parameters()], wanted)


def test_modes_are_those_of_embed_and_are_put_back() -> None:
    encoder = Tower().double()
    encoder.layers[1].eval()
    cache = GradientCache(encoder, 4)
    loss = cache.embed(_features()).square().sum()
    before = encoder.calls.clone()
    encoder.eval()
    cache.backward(loss)
    assert not any(part.training for part in encoder.modules())
    assert torch.equal(before, encoder.calls)
    assert int(encoder.layers[1].num_batches_tracked) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_embeddings_without_gradients_are_plain(mode: Any) -> None:
    cache = GradientCache(Tower().double().eval(), 4)
    with mode():
        embeddings = cache.embed(_features())
    assert not embeddings.requires_grad
    with pytest.raises(RuntimeError, match="call embed before each backward, with gradients"):
        cache.backward(torch.ones((), requires_grad=True))


def test_a_frozen_tower_is_a_constant() -> None:
    frozen, learned = Tower().double().requires_grad_(False), Tower().double()
    cache = GradientCache(frozen, 4)
    first = cache.embed(_features())
    assert not first.requires_grad
    cache.backward(_loss(first, cache.embed(_features(seed=1), encoder=learned)))
    assert all(p.grad is not None for p in learned.parameters())


def test_what_was_embedded_for_a_step_that_failed_is_forgotten() -> None:
    encoder = Tower().double()
    cache = GradientCache(encoder, 4)
    inputs = _features()
    kept = weakref.ref(inputs)
    try:
        loss = cache.embed(inputs).square().sum()
        raise ArithmeticError
    except ArithmeticError:
        del loss, inputs
    gc.collect()
    assert kept() is None
    cache.backward(cache.embed(_features(seed=1)).square().sum())
    assert encoder.layers[0].weight.grad.abs().max() > 0


def test_mistakes_are_one_sentence_each() -> None:
    encoder = Tower().double()
    cache = GradientCache(encoder, 4)
    loss = cache.embed(_features()).square().sum()
    cache.backward(loss)
    with pytest.raises(RuntimeError, match="call embed before each backward"):
        cache.backward(loss)
    embeddings = cache.embed(_features())
    cache.backward(embeddings.square().sum())
    cache.embed(_features())
    with pytest.raises(RuntimeError, match="used in a backward before"):
        embeddings.square().sum().backward()
    loss = cache.embed(_features()).square().sum()
    with pytest.warns(UserWarning, match=r"call cache.backward\(loss\) in place of"):
        loss.backward()
    loss = cache.embed(_features()).square().sum()
    with torch.no_grad():
        encoder.layers[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="parameters have changed between embed and backward"):
        cache.backward(loss)
    inputs = _features()
    loss = cache.embed(inputs).square().sum()
    inputs.mul_(2)
    with pytest.raises(RuntimeError, match="inputs have been written to between embed and back"):
        cache.backward(loss)


@pytest.mark.parametrize(
    ("encoder", "inputs", "error", "named"),
    [
        (lambda x: x[:-1], torch.zeros(5, 6), ValueError, "one row for each of the 5 inputs"),
        (lambda x: x.mean(), torch.zeros(5, 6), ValueError, r"got shape \(\)"),
        (lambda x: {"out": x}, torch.zeros(5, 6), TypeError, "must return a tensor .*, got dict"),
        (lambda x: (x, x), torch.zeros(5, 6), TypeError, "must return a tensor .*, got tuple"),
        (None, ["a", "b"], TypeError, "inputs must be a tensor .*, got list without any"),
        (None, "text", TypeError, "got str without any"),
        (None, {"a": torch.zeros(5, 1), "b": torch.zeros(4, 1)}, ValueError, "same number of rows"),
        (None, torch.zeros(0, 6), ValueError, "at least one row"),
        (None, torch.tensor(1.0), TypeError, "inputs must be a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(
    encoder: Any, inputs: Any, error: type[Exception], named: str
) -> None:
    class Wrong(nn.Linear):
        def forward(self, x: Any) -> Any:
            return x if encoder is None else encoder(super().forward(x))

    with pytest.raises(error, match=named):
        GradientCache(Wrong(6, 6), 8).embed(inputs)
    with pytest.raises(TypeError, match="encoder must be a torch.nn.Module or a method of one"):
        GradientCache(lambda x: x, 8)
