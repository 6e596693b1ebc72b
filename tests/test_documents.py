"""README and documentation: examples run, links resolve, and what they repeat is what it is."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import dmlap_kernels
import dmlap_kernels.distributed
import dmlap_kernels.evaluation
import dmlap_kernels.losses
import dmlap_kernels.memory
import dmlap_kernels.trainer
from dmlap_kernels import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKED = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
FUNCTIONS = [name for name in dmlap_kernels.__all__ if name.startswith("fused_")]
# What every loss has, which `losses/index.md` describes for all of them.
SHARED = {
    *("embeddings", "labels", "ref_embeddings", "ref_labels", "self_index", "match"),
    *("proxies", "proxy_labels", "backend", "precision", "return_stats"),
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.M | re.S)


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", path.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text(), "python")], ids=relative
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace a page, in their order."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    encoder = torch.nn.Linear(12, 8)
    batch = torch.randn(8, 12), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    # The loop that a reader of the README has already.
    names: dict[str, Any] = {
        "encoder": encoder,
        "loader": [batch] * 2,
        "optimizer": torch.optim.SGD(encoder.parameters(), lr=0.1),
    }
    if page.name == "training.md":
        pytest.importorskip("sklearn")
    if page.name == "your-photographs.md":
        run_commands(page)
    for library in ("pytorch_metric_learning", "sentence_transformers"):
        if page.stem.replace("-", "_") == library:
            pytest.importorskip(library)
    for code in blocks(page.read_text(), "python"):
        exec(compile(inspect.cleandoc(code), relative(page), "exec"), names)


def run_commands(page: Path) -> None:
    """Those in blocks of sh, in the current folder, with few steps."""
    for module in ("matplotlib", "PIL", "safetensors", "sklearn", "tqdm"):
        pytest.importorskip(module)
    spec = importlib.util.spec_from_file_location("your_photographs", DOCS / "your_photographs.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.CLASSES, script.IMAGES = 8, 8
    script.make(Path("mine"))
    lines = "".join(blocks(page.read_text(), "sh")).splitlines()
    assert {line.split()[1] for line in lines} == {"train", "report", "embed", "export"}
    for line in lines:
        command, *arguments = re.sub(r"--steps \d+", "--steps 2", line).split()
        assert command == "dmlap" and cli.main(arguments) == 0, line


def lines_that_change() -> list[str]:
    table = (ROOT / "README.md").read_text().partition("| you have | the line |")[2]
    return re.findall(r"^\|.*\| `(.+)` \|$", table.partition("\n\n")[0], re.M)


@pytest.mark.parametrize("line", lines_that_change())
def test_the_line_that_changes(line: str) -> None:
    """Each as it stands in the README, in the program of somebody who has the rest."""
    if library := re.search(r"compat\.(\w+)|(fuse)\(", line):
        pytest.importorskip(library[1] or "pytorch_metric_learning")
    torch.manual_seed(0)
    rows, labels = torch.randn(8, 16, requires_grad=True), torch.arange(8) // 2
    names: dict[str, Any] = vars(dmlap_kernels) | vars(dmlap_kernels.losses)
    names |= {"embeddings": rows, "labels": labels}
    names["retrieval_metrics"] = dmlap_kernels.evaluation.retrieval_metrics
    names["CrossBatchMemory"] = dmlap_kernels.memory.CrossBatchMemory
    names["global_batch"] = dmlap_kernels.distributed.global_batch
    names["criterion"] = dmlap_kernels.losses.SupConLoss()
    if "fuse(" in line:
        from pytorch_metric_learning import losses, miners

        from dmlap_kernels.compat.pytorch_metric_learning import fuse

        names |= {"fuse": fuse, "criterion": losses.TripletMarginLoss()}
        names["miner"] = miners.BatchHardMiner()
    exec(line, names)
    if "criterion" in line:
        names["loss"] = names["criterion"](rows, labels)
    elif "losses, miners" in line:
        found = names["miners"].BatchHardMiner()(rows, labels)
        names["loss"] = names["losses"].TripletMarginLoss()(rows, labels, found)
    elif "Ranking" in line:
        loss = names["MultipleNegativesRankingLoss"](torch.nn.Identity())
        sides = [{"sentence_embedding": part} for part in rows.split(4)]
        names["loss"] = loss(sides, None)
    if "metrics" in names:
        assert 0 <= names["metrics"]["recall@1"] <= 1
    else:
        names["loss"].backward()
        assert rows.grad is not None and rows.grad.isfinite().all()


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", LINKED, ids=relative)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{relative(page)} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{relative(page)} links to {target}: no such heading"


def sections() -> dict[str, str]:
    """The section of each function in the pages of the losses."""
    found: dict[str, str] = {}
    for page in sorted((DOCS / "losses").glob("*.md")):
        for title, body in re.findall(
            r"^## (.*?)\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S
        ):
            if name := re.search(r"`(fused_\w+)`", title):
                assert name[1] not in found, f"two sections of {name[1]}"
                found[name[1]] = body
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_loss_has_its_section(name: str) -> None:
    """With formula, source, peer, an example, and all parameters at their defaults."""
    section = sections()[name]
    for part in ("$$", "**Source", "**Peer", "```python"):
        assert part in section, part
    loss = name.removeprefix("fused_").removesuffix("_loss")
    module = (dmlap_kernels.losses.LOSSES | dmlap_kernels.losses.PROXY_LOSSES)[loss]
    code = "".join(blocks(section, "python"))
    assert f"{name}(" in code or f"{module.__name__}(" in code
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.M)
    signature = inspect.signature(getattr(dmlap_kernels, name)).parameters
    told = [(key, value.replace('"', "'")) for key, value in rows]
    assert told == [(key, repr(one.default)) for key, one in signature.items() if key not in SHARED]


def test_no_other_loss_has_a_section() -> None:
    assert set(sections()) == set(FUNCTIONS)


def test_the_table_of_losses_lists_each() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]", (DOCS / "losses" / "index.md").read_text(), re.M)
    assert sorted(rows) == sorted(FUNCTIONS)


def test_the_reference_lists_every_public_name() -> None:
    listed: set[str] = set()
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), re.M):
            module = name if kind == "currentmodule" else module
            if kind == "automodule":
                members = importlib.import_module(name)
                listed |= {f"{name}.{n}" for n in getattr(members, "__all__", vars(members))}
            elif kind.startswith("auto"):
                listed.add(name if "." in name else f"{module}.{name}")
    modules = (dmlap_kernels, dmlap_kernels.evaluation, dmlap_kernels.trainer)
    public = {
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if not isinstance(getattr(module, name), tuple)
    }
    losses = dmlap_kernels.losses.LOSSES | dmlap_kernels.losses.PROXY_LOSSES
    public |= {f"dmlap_kernels.losses.{one.__name__}" for one in losses.values()}
    assert public <= listed


def test_the_pictures_are_what_the_script_draws() -> None:
    """Numbers within a fifth of a pixel, all else to the letter."""
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    number = re.compile(r"-?\d+\.\d+")
    drawn = script.pictures()
    assert {path.stem for path in (DOCS / "pictures").glob("*.svg")} == set(drawn)
    for name, text in drawn.items():
        kept = (DOCS / "pictures" / f"{name}.svg").read_text()
        assert number.sub("#", kept) == number.sub("#", text), f"draw {name}.svg again"
        pairs = zip(number.findall(kept), number.findall(text), strict=True)
        assert all(abs(float(a) - float(b)) < 0.2 for a, b in pairs), f"draw {name}.svg again"


def test_the_map_of_the_house_names_what_exists() -> None:
    """A name without a folder lies in the folder of the one before it in its row."""
    table = (DOCS / "design.md").read_text().partition("## Where things lie")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    assert len(rows) > 40
    for row in rows:
        folder = ROOT
        for name in re.findall(r"`([^`]+)`", row):
            path = name.rstrip("/")
            base = ROOT if (ROOT / path.partition("/")[0]).exists() and "/" in name else folder
            assert list(base.glob(path)), f"docs/design.md names {name}, which is not there"
            folder = (base / path).parent


def test_options_of_the_command_line_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = ""
    for command in ("train", "eval", "embed", "report", "info"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        known += capsys.readouterr().out
    page = (DOCS / "training.md").read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", page))
    assert len(options) > 20
    assert not {option for option in options if option not in known}


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
