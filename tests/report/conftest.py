"""Tiny runs, and the parts of a page."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from dmlap_kernels.data import Dataset, Split, load_digits
from dmlap_kernels.trainer import TrainConfig, Trainer

ODD_CLASS = 'a<b>&"$x$'
VOID = {"img", "meta"}


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """These problems are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def few_digits(*args: object, **kwargs: object) -> Dataset:
    """Every sixth digit: a map of 150 points takes a second, not ten."""
    whole = load_digits()

    def some(split: Split, names: tuple[str, ...]) -> Split:
        return Split(split.images[::6], split.labels[::6], names)

    names = (ODD_CLASS, *whole.test.class_names[1:])
    return Dataset("digits", some(whole.train, whole.train.class_names), some(whole.test, names))


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmlap_kernels.report.runs.load_data", few_digits)


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one configuration and another method, in folders with odd names."""
    root = tmp_path_factory.mktemp("runs")
    made = []
    for name, method, seed in (
        ('<b>one</b> & "$x$', "dmlap", 0),
        ("_two", "dmlap", 1),
        ("plain", "plain", 0),
    ):
        config = TrainConfig(
            data="digits",
            method=method,
            steps=6,
            seed=seed,
            classes_per_batch=4,
            samples_per_class=2,
            embedding_dim=8,
            eval_every=3,
            augment=False,
        )
        made.append(root / name)
        Trainer(config, data=few_digits(), out=made[-1]).run()
    return made


class Page(HTMLParser):
    """Text, tags with their attributes, and whether elements are nested well."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.tags if attrs.get("id")]  # type: ignore[misc]

    def classes(self, tag: str, name: str) -> list[dict[str, str | None]]:
        return [attrs for found, attrs in self.tags if found == tag and attrs.get("class") == name]
