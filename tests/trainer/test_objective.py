from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from dmlap_kernels.trainer import AlternatingObjective, defaults


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(16, 8, dtype=torch.float64))
    labels = torch.cat((torch.arange(4), torch.arange(4).repeat_interleave(3)))
    return embeddings.requires_grad_(), labels


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("side", ["references", "anchors"])
def test_representative_pairs_plus_weighted_in_batch_loss(loss: str, side: str) -> None:
    x, labels = _batch()
    function = LOSSES[loss](**defaults.loss_options(loss, {}))
    leading, samples = (x[:4], labels[:4]), (x[4:], labels[4:])
    pairs = (*samples, *leading) if side == "references" else (*leading, *samples)
    expected = function(*pairs) + 0.25 * function(x, labels)
    value, stats = AlternatingObjective(loss, {}, in_batch_weight=0.25, side=side)(x, labels, 4)
    torch.testing.assert_close(value, expected)
    got, want = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (value, expected))
    torch.testing.assert_close(got, want)
    # Representatives keep their gradient.
    assert (got[:4].norm(dim=1) > 0).any()
    # 4 representatives x 12 samples, and of them 12 positive pairs.
    counts = {"contrastive": 48, "margin": 48}
    counts |= {name: 12 for name in ("n_pairs", "nt_xent", "angular")}
    assert int(stats.constraints) == counts.get(loss, len(pairs[0]))


@pytest.mark.parametrize("loss", LOSSES)
def test_without_representatives_it_is_the_in_batch_loss(loss: str) -> None:
    x, labels = _batch()
    for reduction in ("mean_nonzero", "mean"):
        options = {} if reduction == "mean_nonzero" else {"reduction": reduction}
        value, _ = AlternatingObjective(loss, options, in_batch_weight=0.1)(x, labels, 0)
        expected = LOSSES[loss](**defaults.loss_options(loss, {"reduction": reduction}))
        torch.testing.assert_close(value, expected(x, labels))


def test_options_reach_the_loss() -> None:
    x, labels = _batch()
    options = {"neg_margin": 0.4, "reduction": "sum"}
    objective = AlternatingObjective("contrastive", options, in_batch_weight=0.0)
    expected = LOSSES["contrastive"](**options, normalize=False)(
        x[4:], labels[4:], x[:4], labels[:4]
    )
    torch.testing.assert_close(objective(x, labels, 4)[0], expected)


def test_both_sides_and_pairs_of_representatives() -> None:
    x, labels = _batch()
    function = LOSSES["contrastive"](normalize=False)
    leading, samples = (x[:4], labels[:4]), (x[4:], labels[4:])
    either = (function(*samples, *leading) + function(*leading, *samples)) / 2
    expected = either + 0.3 * function(*leading) + 0.25 * function(x, labels)
    objective = AlternatingObjective(
        "contrastive", {}, in_batch_weight=0.25, side="both", between_weight=0.3
    )
    torch.testing.assert_close(objective(x, labels, 4)[0], expected)


@pytest.mark.parametrize("loss", PROXY_LOSSES)
def test_representatives_are_proxies(loss: str) -> None:
    x, labels = _batch()
    objective = AlternatingObjective(loss, {}, in_batch_weight=0.25, num_classes=4, embedding_dim=8)
    objective.double()
    function = PROXY_LOSSES[loss].function
    own = objective.in_batch(x, labels)
    expected = function(x[4:], labels[4:], x[:4], labels[:4], reduction="mean_nonzero") + 0.25 * own
    value, _ = objective(x, labels, 4)
    torch.testing.assert_close(value, expected)
    (proxies,) = objective.parameters()
    for got, want in zip(
        torch.autograd.grad(value, (x, proxies), retain_graph=True),
        torch.autograd.grad(expected, (x, proxies)),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
        assert got.any()
    # Without representatives: its own proxies alone.
    torch.testing.assert_close(objective(x, labels, 0)[0], objective.in_batch(x, labels))


def test_a_learnable_beta_is_one() -> None:
    objective = AlternatingObjective("margin", {"learn_beta": True})
    assert len(list(objective.parameters())) == 1
    assert objective.relaxed.beta is objective.in_batch.beta


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"side": "anchors"}, "their side must be 'references'"),
        ({"between_weight": 0.5}, "between_weight 0, got 'references' and 0.5"),
        ({"num_classes": None}, "needs num_classes and embedding_dim"),
    ],
)
def test_what_proxies_refuse(changes: dict, named: str) -> None:
    settings = {"num_classes": 4, "embedding_dim": 8} | changes
    with pytest.raises(ValueError, match=named):
        AlternatingObjective("proxy_nca", {}, **settings)
