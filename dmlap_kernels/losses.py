"""nn.Module twins of `dmlap_kernels.functional`: the same keywords, given once."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dmlap_kernels import checks, functional
from dmlap_kernels.backends.registry import NAMES as BACKENDS
from dmlap_kernels.problem import PairStats

_Module = TypeVar("_Module", bound="_Loss")


class _Loss(nn.Module):
    """Holds the keywords of one function of `dmlap_kernels.functional`.

    A number that is an `nn.Parameter` becomes a parameter of the module, by the keyword's name; a
    tensor that needs no gradient becomes a buffer. Unknown keywords raise ``TypeError``; bad values
    raise as the function does, when the module is made.
    """

    function: Callable[..., Any]

    def __init__(self, options: dict[str, Any], *references: Tensor) -> None:
        super().__init__()
        parameters = inspect.signature(self.function).parameters.values()
        accepted = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        accepted = [name for name in accepted if name != "self_index"]  # of a batch
        for name in options:
            if name not in accepted:
                raise TypeError(f"{type(self).__name__} accepts {', '.join(accepted)}, got {name}")
        self.options: dict[str, Any] = {}
        self.tensors: tuple[str, ...] = ()
        for name, value in options.items():
            self._hold(name, value)
        # An empty problem on the portable backend runs every check and no kernel.
        function = type(self).function
        function(*_empty(options), *references, **self.keywords() | {"backend": "torch"})
        checks.choice("backend", options.get("backend", "auto"), BACKENDS)

    def _hold(self, name: str, value: Any) -> None:
        if not isinstance(value, Tensor):
            self.options[name] = value
            return
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        elif value.requires_grad:
            raise TypeError(
                f"{name} must be a number, an nn.Parameter or a tensor that needs no gradient, got "
                f"{checks.describe(value)} with requires_grad=True; what is computed anew at each "
                f"step is an argument of {self.function.__name__}"
            )
        else:
            self.register_buffer(name, value.detach().clone())
        self.tensors += (name,)

    def keywords(self) -> dict[str, Any]:
        """Those of the function: what the module was made with, its tensors as they are now."""
        return self.options | {name: getattr(self, name) for name in self.tensors}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _empty(options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of no row, on the device of a tensor among ``options``."""
    tensors = (value for value in options.values() if isinstance(value, Tensor))
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    rows = torch.empty(0, 1, dtype=torch.float32, device=device)
    return rows, torch.empty(0, dtype=torch.int64, device=device)


# What is said of a module that has nothing else to say than its function.
_TWIN = """`dmlap_kernels.{function}` as a module: its keywords are given once.

``forward(embeddings, labels, ref_embeddings=None, ref_labels=None, self_index=None)``. A number
that is an `nn.Parameter` is a parameter of the module.

Example:
    >>> import torch
    >>> from dmlap_kernels.losses import {name}
    >>> criterion = {name}()
    >>> embeddings = torch.randn(8, 16, requires_grad=True)
    >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
"""


class PairLoss(_Loss):
    """``forward(embeddings, labels, ref_embeddings=None, ref_labels=None, self_index=None,
    match=None)`` is the function with the keywords that the module was made with; a ``match`` of
    the call goes before that of the module."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__doc__ is None and "function" in vars(cls):
            cls.__doc__ = _TWIN.format(function=cls.function.__name__, name=cls.__name__)

    def __init__(self, **options: Any) -> None:
        if isinstance(options.get("match"), Tensor):
            raise TypeError(
                "match must be a function, got a tensor: a matrix belongs to one batch and is an "
                "argument of forward"
            )
        super().__init__(options)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        self_index: Tensor | None = None,
        match: Any = None,
    ) -> Tensor | tuple[Tensor, PairStats]:
        tensors = embeddings, labels, ref_embeddings, ref_labels
        keywords = self.keywords()
        if match is not None:
            keywords["match"] = match
        return type(self).function(*tensors, self_index=self_index, **keywords)


class TripletLoss(PairLoss):
    function = staticmethod(functional.fused_triplet_loss)


class ContrastiveLoss(PairLoss):
    function = staticmethod(functional.fused_contrastive_loss)


class MarginLoss(PairLoss):
    """`dmlap_kernels.fused_margin_loss` as a module.

    Args:
        beta: as in the function; an `nn.Parameter` is learned, another tensor becomes a buffer.
        learn_beta: make it the parameter ``beta``, float32 where a number was given.
        num_classes: with ``learn_beta`` and one number: one ``beta`` for each label in
            0..num_classes - 1, starting there.
        options: the other keywords of the function.

    ``forward(embeddings, labels, ref_embeddings=None, ref_labels=None, self_index=None)``.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import MarginLoss
        >>> criterion = MarginLoss(learn_beta=True, num_classes=4)
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
        >>> criterion.beta.grad.shape
        torch.Size([4])
    """

    function = staticmethod(functional.fused_margin_loss)

    def __init__(
        self,
        *,
        beta: float | Tensor = 1.2,
        learn_beta: bool = False,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        if num_classes is not None:
            num_classes = _at_least_one("num_classes", num_classes)
            if not checks.flag("learn_beta", learn_beta) or isinstance(beta, Tensor):
                raise ValueError(
                    "num_classes must be left out unless beta is a number and learn_beta=True, got "
                    f"num_classes={num_classes}, beta={beta!r} and learn_beta={learn_beta}"
                )
        if checks.flag("learn_beta", learn_beta) and not isinstance(beta, nn.Parameter):
            shape = () if num_classes is None else (num_classes,)
            if not isinstance(beta, Tensor):
                beta = torch.full(shape, float(checks.number("beta", beta)), dtype=torch.float32)
            beta = nn.Parameter(beta.detach().clone())
        super().__init__(beta=beta, **options)


class SigLIPLoss(PairLoss):
    function = staticmethod(functional.fused_siglip_loss)


class MultiSimilarityLoss(PairLoss):
    function = staticmethod(functional.fused_multi_similarity_loss)


class LiftedStructureLoss(PairLoss):
    function = staticmethod(functional.fused_lifted_structure_loss)


class NPairsLoss(PairLoss):
    function = staticmethod(functional.fused_n_pairs_loss)


class NTXentLoss(PairLoss):
    """`dmlap_kernels.fused_nt_xent_loss` as a module: its keywords are given once.

    ``forward(embeddings, labels, ref_embeddings=None, ref_labels=None, self_index=None)``. A number
    that is an `nn.Parameter` is a parameter of the module.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import NTXentLoss
        >>> criterion = NTXentLoss(temperature=torch.nn.Parameter(torch.tensor(0.07)))
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
        >>> [name for name, _ in criterion.named_parameters()]
        ['temperature']
    """

    function = staticmethod(functional.fused_nt_xent_loss)


class SupConLoss(PairLoss):
    function = staticmethod(functional.fused_sup_con_loss)


class AngularLoss(PairLoss):
    function = staticmethod(functional.fused_angular_loss)


class CircleLoss(PairLoss):
    function = staticmethod(functional.fused_circle_loss)


class ProxyLoss(_Loss):
    """A loss that holds its proxies: ``forward(embeddings, labels)``, labels in 0..num_classes - 1.

    Other labels raise ``ValueError`` on the CPU; on a device they stop it, as they do in PyTorch's
    cross entropy.

    Args:
        num_classes, embedding_size: at least 1; shape of the parameter ``proxies`` (num_classes,
            embedding_size), which starts as in pytorch-metric-learning.
        options: keywords of the function.
    """

    proxies: Tensor
    proxy_labels: Tensor

    def __init__(self, num_classes: int, embedding_size: int, **options: Any) -> None:
        self._set_up(num_classes, embedding_size, 1, options)

    def _set_up(
        self, num_classes: int, embedding_size: int, centers: int, options: dict[str, Any]
    ) -> None:
        num_classes = _at_least_one("num_classes", num_classes)
        embedding_size = _at_least_one("embedding_size", embedding_size)
        centers = _at_least_one("centers_per_class", centers)
        super().__init__(options, *_empty(options))
        self.num_classes = num_classes
        proxies = torch.empty(num_classes * centers, embedding_size)
        self.proxies = nn.Parameter(self._start(proxies))
        labels = torch.arange(num_classes).repeat_interleave(centers)
        self.register_buffer("proxy_labels", labels, persistent=False)

    def _start(self, proxies: Tensor) -> Tensor:
        return nn.init.normal_(proxies)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, PairStats]:
        checks.embeddings("embeddings", embeddings)
        labels = checks.labels("labels", labels, embeddings, "embeddings")
        checks.classes_known("proxies", self.num_classes, labels)
        return type(self).function(
            embeddings, labels, self.proxies, self.proxy_labels, **self.keywords()
        )

    def extra_repr(self) -> str:
        return ", ".join((f"proxies={tuple(self.proxies.shape)}", super().extra_repr()))


class ProxyNCALoss(ProxyLoss):
    """`dmlap_kernels.fused_proxy_nca_loss` as a module that holds its proxies.

    Args:
        num_classes, embedding_size: shape of the parameter ``proxies``, which starts as in
            pytorch-metric-learning.
        options: keywords of the function.

    ``forward(embeddings, labels)``, with labels in 0..num_classes - 1.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import ProxyNCALoss
        >>> criterion = ProxyNCALoss(num_classes=4, embedding_size=16)
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
    """

    function = staticmethod(functional.fused_proxy_nca_loss)


class CosFaceLoss(ProxyLoss):
    """`dmlap_kernels.fused_cosface_loss` as a module that holds its proxies, the class weights.

    Args:
        num_classes, embedding_size: shape of the parameter ``proxies``, which starts as in
            pytorch-metric-learning.
        options: keywords of the function.

    ``forward(embeddings, labels)``, with labels in 0..num_classes - 1.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import CosFaceLoss
        >>> criterion = CosFaceLoss(num_classes=4, embedding_size=16)
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
    """

    function = staticmethod(functional.fused_cosface_loss)

    def _start(self, proxies: Tensor) -> Tensor:
        return _transposed(nn.init.normal_, proxies)


class ArcFaceLoss(ProxyLoss):
    """`dmlap_kernels.fused_arcface_loss` as a module that holds its proxies, the class weights.

    Args:
        num_classes, embedding_size: shape of the parameter ``proxies``, which starts as in
            pytorch-metric-learning.
        options: keywords of the function.

    ``forward(embeddings, labels)``, with labels in 0..num_classes - 1.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import ArcFaceLoss
        >>> criterion = ArcFaceLoss(num_classes=4, embedding_size=16, margin=20.0)
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
    """

    function = staticmethod(functional.fused_arcface_loss)

    def _start(self, proxies: Tensor) -> Tensor:
        return _transposed(nn.init.normal_, proxies)


class ProxyAnchorLoss(ProxyLoss):
    """`dmlap_kernels.fused_proxy_anchor_loss` as a module that holds its proxies.

    Args:
        num_classes, embedding_size: shape of the parameter ``proxies``, which starts as in
            pytorch-metric-learning.
        options: keywords of the function.

    ``forward(embeddings, labels)``, with labels in 0..num_classes - 1.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import ProxyAnchorLoss
        >>> criterion = ProxyAnchorLoss(num_classes=4, embedding_size=16)
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
    """

    function = staticmethod(functional.fused_proxy_anchor_loss)

    def _start(self, proxies: Tensor) -> Tensor:
        return nn.init.kaiming_normal_(proxies, mode="fan_out")


class SoftTripleLoss(ProxyLoss):
    """`dmlap_kernels.fused_soft_triple_loss` as a module that holds its proxies.

    Args:
        num_classes, embedding_size: at least 1.
        centers_per_class: proxies of each class, at least 1; the parameter ``proxies``
            (num_classes * centers_per_class, embedding_size) lists them class by class, and starts
            as in pytorch-metric-learning.
        options: keywords of the function.

    ``forward(embeddings, labels)``, with labels in 0..num_classes - 1.

    Example:
        >>> import torch
        >>> from dmlap_kernels.losses import SoftTripleLoss
        >>> criterion = SoftTripleLoss(num_classes=4, embedding_size=16, centers_per_class=2)
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
    """

    function = staticmethod(functional.fused_soft_triple_loss)

    def __init__(
        self, num_classes: int, embedding_size: int, centers_per_class: int = 10, **options: Any
    ) -> None:
        self._set_up(num_classes, embedding_size, centers_per_class, options)

    def _start(self, proxies: Tensor) -> Tensor:
        # With as many inputs as there are proxies.
        return _transposed(functools.partial(nn.init.kaiming_uniform_, a=math.sqrt(5)), proxies)


def _transposed(start: Callable[[Tensor], Tensor], proxies: Tensor) -> Tensor:
    """``proxies`` started where the peer holds the transpose."""
    return start(proxies.t().contiguous()).t().contiguous()


def _at_least_one(argument: str, value: Any) -> int:
    whole = checks.integer(value)
    if whole is None:
        raise TypeError(f"{argument} must be an integer, got {checks.describe(value)}")
    if whole < 1:
        raise ValueError(f"{argument} must be at least 1, got {whole}")
    return whole


def _by_name(modules: list[type[_Module]]) -> dict[str, type[_Module]]:
    """By the X of ``fused_X_loss``."""
    names = (module.function.__name__ for module in modules)
    return dict(zip((n[len("fused_") : -len("_loss")] for n in names), modules, strict=True))


LOSSES = _by_name(PairLoss.__subclasses__())
PROXY_LOSSES = _by_name(ProxyLoss.__subclasses__())
