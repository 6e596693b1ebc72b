from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmlap_kernels.data import Dataset, glyphs
from dmlap_kernels.data.glyphs import drop_look_alikes, load_glyphs

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def masters() -> tuple[torch.Tensor, torch.Tensor]:
    return glyphs.render_masters()


@pytest.fixture(scope="module")
def kept(masters: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return drop_look_alikes(*masters)


@pytest.fixture
def data(kept: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> Dataset:
    # The slow half, done once.
    monkeypatch.setattr(glyphs, "render_masters", lambda: (None, None))
    monkeypatch.setattr(glyphs, "drop_look_alikes", lambda *masters: kept)
    return load_glyphs(drawings=4)


def test_over_a_thousand_classes_of_disjoint_splits(data: Dataset) -> None:
    train, test = data.train, data.test
    assert train.num_classes + test.num_classes > 1000
    assert test.num_classes > 300
    assert not set(train.class_names) & set(test.class_names)
    assert train.images.shape == (4 * train.num_classes, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    # Every drawing has ink, and drawings differ.
    assert (train.images.flatten(1).max(1).values > 100).all()
    assert len(train.images.flatten(1).unique(dim=0)) > 0.99 * len(train)


def test_look_alikes_are_one_class(kept: tuple[torch.Tensor, ...]) -> None:
    codes = {chr(code) for code in kept[0].tolist()}
    for group in ("AΑА", "oOοОо0"[:-1], "cCсС", "-‐–"):
        assert len(codes & set(group)) <= 1, group
    for distinct in "AB&é"[:3]:
        assert distinct in codes


def test_no_two_classes_have_shapes_alike(kept: tuple[torch.Tensor, ...]) -> None:
    codes, masters, owners = kept
    assert torch.equal(owners.unique(), torch.arange(len(codes)))
    shapes = F.avg_pool2d(masters[:, None].float(), 4)
    kernel = torch.tensor([1.0, 2.0, 1.0])
    shapes = F.conv2d(shapes, torch.outer(kernel, kernel)[None, None], padding=1)
    shapes = F.normalize(shapes.flatten(1))
    alike = (shapes @ shapes.T > glyphs.ALIKE + 1e-4) & (owners[:, None] != owners)
    assert not alike.any()


def test_look_alikes_by_hand() -> None:
    """Of 70 classes, two alike beyond the size of a block, and a chain through a dropped class."""
    masters = torch.zeros(70, 64, 64, dtype=torch.uint8)
    for i in range(70):
        row, column = divmod(i, 9)
        masters[i, row * 7 : row * 7 + 7, column * 7 : column * 7 + 7] = 255
    masters[69] = masters[2]
    masters[5] = masters[4]
    codes, kept, owners = drop_look_alikes(masters, torch.arange(100, 170))
    assert sorted(set(range(100, 170)) - set(codes.tolist())) == [105, 169]
    assert torch.equal(kept, masters[codes - 100])
    assert torch.equal(owners, torch.arange(68))


def test_drawings_depend_on_the_seed_alone(data: Dataset) -> None:
    again = load_glyphs(drawings=4)
    assert data.train.fingerprint() == again.train.fingerprint()
    assert data.test.fingerprint() == again.test.fingerprint()
    other = load_glyphs(drawings=4, seed=1)
    assert other.test.class_names != data.test.class_names
