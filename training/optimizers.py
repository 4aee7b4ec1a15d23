"""Optimisers by name, with weight decay on matrices only."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
from torch import nn

from .config import ConfigError
from .options import OptimizerOptions


def build_optimizer(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimiser of all weights of `module` that require a gradient.

    Weights with fewer than two axes (biases, scales, radii) get no weight decay.

    Raises:
        ConfigError: nothing to train, or the package of the optimiser is not installed.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    if not weights:
        raise ConfigError("no weight is left to train: every one is frozen; give fewer patterns in `freeze`")
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (options.betas[0], options.betas[1])
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=options.peak_lr, betas=betas, amsgrad=options.amsgrad, fused=True)
    try:
        from prodigyopt import Prodigy
    except ImportError:
        raise ConfigError("optimizer.name=prodigy needs the package prodigyopt: pip install prodigyopt") from None
    return Prodigy(groups, lr=options.peak_lr, betas=betas, safeguard_warmup=True)


def freeze(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Turn off the gradient of every parameter whose name matches a shell pattern; return the names.

    Raises:
        ConfigError: a pattern that matches no parameter; the text lists the names.
    """
    names = [name for name, _ in module.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ConfigError(f"freeze: {pattern!r} matches no parameter; there are: {', '.join(names)}")
        frozen.update(found)
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return sorted(frozen)
