"""`dmlap_kernels.info`: one truth, told to people and to programs."""

from __future__ import annotations

import json

from dmlap_kernels import info
from dmlap_kernels.backends import cpu, registry


def test_collect_is_json_and_names_every_backend():
    collected = json.loads(json.dumps(info.collect()))
    assert set(collected["backends"]) == set(registry.backends())
    assert set(collected["backends"]) == set(registry.NAMES) - {"auto"}
    for state in collected["backends"].values():
        assert state["usable"] == (state["reason"] is None)


def test_render_shows_reasons_and_levels():
    collected = info.collect()
    page = info.render(collected)
    assert page.startswith(f"dmlap_kernels {collected['version']}\n")
    for name, state in collected["backends"].items():
        line = next(x for x in page.splitlines() if x.split()[:1] == [name])
        assert (state["reason"] or "usable") in line
    if collected["simd"]:
        assert collected["simd"]["level"] in page


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(cpu, "native", lambda: "the reason")
    monkeypatch.setattr(info, "native", lambda: "the reason")
    collected = json.loads(json.dumps(info.collect()))
    assert collected["built"] is None
    assert collected["extension"] == "the reason"
    assert collected["backends"]["cpu"] == {"usable": False, "reason": "the reason"}
    assert "no usable extension" in info.render(collected)


def test_render_lists_gpus():
    collected = info.collect()
    collected["built"] = {
        "compiler": "a compiler 1.0",
        "instruction_sets": ["baseline"],
        "cuda_archs": ["80", "90"],
        "nvcc": "13.0.88",
    }
    collected["cuda"] = info._plain(
        {"error": "", "devices": [{"name": "a device", "capability": (9, 0)}]}
    )
    page = info.render(collected)
    assert "a device (9.0)" in page
    assert "for 80, 90, with nvcc 13.0.88" in page
