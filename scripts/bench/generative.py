"""Quality and speed of generators of molecules over seeds and step counts, with intervals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._molecules import Batch, plausible, strained
from .machine import commit, machine

if TYPE_CHECKING:
    from ...generative.model import EqgatDiff
    from ...generative.reference import Reference

STEPS = (25, 50, 100)  # besides all noise levels of a model
CONFIDENCE = 0.95
COMPARED = ("validity", "stability.corrected.molecule", "stability.legacy.molecule", "uniqueness")
WARM_UP = 8  # molecules drawn before the clock runs
PUBLISHED = {
    "EQGAT-diff": {
        "data": "QM9 with hydrogens and fluorine, 10,000 molecules, several seeds",
        "steps": 500,
        "numbers": {
            "validity": {"mean": 0.9896, "half_width": 0.0007},
            "stability.legacy.molecule": {"mean": 0.9868, "half_width": 0.0011},
            "stability.legacy.atom": {"mean": 0.9992, "half_width": None},
            "novelty": {"mean": 0.6403, "half_width": 0.0024},
        },
        "molecules_per_second": 3.4,
        "hardware": "NVIDIA H100, batches of 50",
        "source": "arXiv 2309.17296 as quoted by later papers; speed from the notebooks of its release",
    }
}


@dataclass(frozen=True)
class Plan:
    """What is drawn and which numbers are asked for.

    models: names or files. n: molecules per seed. steps: network calls; None: STEPS and all noise levels. reference:
    file of training data. kept: file of molecules that were kept aside. strain: mmff, gfn2 or a potential.
    """

    models: tuple[str, ...]
    n: int
    seeds: tuple[int, ...]
    steps: tuple[int, ...] | None = None
    eta: float = 1.0
    temperature: float = 1.0
    free_valences: bool = False
    device: str = "cpu"
    reference: str | None = None
    kept: str | None = None
    fcd: bool = False
    posebusters: bool = False
    strain: str | None = None
    processes: int | None = None


def bench(plan: Plan) -> dict[str, Any]:
    """The record: for each model and number of steps the mean, interval and values of every number.

    Raises:
        UserError: no such model or device, more steps than noise levels, a package that a number needs.
    """
    import torch

    from ...generative import load

    record: dict[str, Any] = {
        "settings": {
            "n_per_seed": plan.n,
            "seeds": list(plan.seeds),
            "eta": plan.eta,
            "temperature": plan.temperature,
            "free_valences": plan.free_valences,
            "reference": Path(plan.reference).name if plan.reference else None,
            "kept": Path(plan.kept).name if plan.kept else None,
            "interval": f"{100 * CONFIDENCE:.0f} %, Student's t over seeds",
        },
        "device": device_name(plan.device),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "commit": commit(),
        "models": {},
        "published": PUBLISHED,
    }
    for name in plan.models:
        model = load(name, device=plan.device)
        record["models"][Path(name).stem] = _measure(plan, name, model)
    return record


def _measure(plan: Plan, name: str, model: EqgatDiff) -> dict[str, Any]:
    """All numbers of one model."""
    from ...generative.reference import Reference

    levels = model.config.diffusion.steps
    reference = Reference.of_header(model.card)
    if plan.reference:
        reference = Reference.of_file(plan.reference, model.vocabulary).or_else(reference)
    if plan.kept:
        reference = replace(reference, kept=Reference.of_file(plan.kept, model.vocabulary).smiles)
    runs: dict[str, Any] = {}
    for steps in plan.steps or sorted({*(s for s in STEPS if s < levels), levels}):
        reports = list(_reports(plan, f"{Path(name).stem}, {steps} steps", model, reference, steps))
        flat = [flattened(report) for report in reports]
        runs[str(steps)] = {
            "numbers": {key: interval([f[key] for f in flat]) for key in flat[0] if all(key in f for f in flat)},
            "seeds": reports,
        }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "noise_levels": levels,
        "data": model.vocabulary.summary(),
        "runs": runs,
        "differences": differences(runs),
    }


def _reports(plan: Plan, label: str, model: EqgatDiff, reference: Reference, steps: int) -> Iterator[dict[str, Any]]:
    """The report of each seed."""
    from ...generative.chemistry import judge
    from ...generative.metrics import evaluate
    from ...generative.sampler import SamplerOptions
    from .._cli import progress

    options = SamplerOptions(steps, plan.eta, temperature=plan.temperature, free_valences=plan.free_valences)
    model.sample(WARM_UP, options=SamplerOptions(calls=min(2, steps)))
    for seed in progress(plan.seeds, description=label, unit="seeds"):
        wall, cpu = time.perf_counter(), time.process_time()
        structures = model.sample(plan.n, seed=seed, options=options)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        implicit = model.vocabulary.implicit_hydrogens
        verdicts = [judge(s, implicit_hydrogens=implicit) for s in structures]
        report = evaluate(structures, model.vocabulary, reference=reference, verdicts=verdicts, fcd=plan.fcd)
        report["sampling"] = {
            "seed": seed,
            "seconds": wall,
            "cpu_seconds": cpu,
            "molecules_per_second": plan.n / wall,
        }
        if model.device.type == "cpu":
            report["sampling"]["molecules_per_cpu_second"] = plan.n / cpu
        batch = Batch(structures, verdicts, implicit)
        if plan.posebusters:
            report["posebusters"] = plausible(batch, plan.processes)
        if plan.strain:
            report["strain"] = strained(batch, plan.strain, device=plan.device, processes=plan.processes)
        yield report


def device_name(device: str) -> str:
    """What computes: the GPU's name, or the processor's."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return str(machine()["processor"])


def flattened(report: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a nested report by its dotted name; counts of failures and seeds are left out."""
    found: dict[str, float] = {}
    for key, value in report.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and key not in ("failures", "failed"):
            found.update(flattened(value, f"{name}."))
        elif isinstance(value, int | float) and not isinstance(value, bool) and key != "seed":
            found[name] = float(value)
    return found


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, half width of the confidence interval of the mean (None for a single value), values."""
    from scipy.stats import t

    half = None
    if len(values) > 1:
        spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
        half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * spread
    return {"mean": float(np.mean(values)), "half_width": half, "values": list(values)}


def differences(runs: Mapping[str, Any]) -> dict[str, Any]:
    """What fewer steps cost: number − number at the most steps, seed by seed."""
    most = max(runs, key=int)
    return {
        steps: {
            name: interval(
                [
                    a - b
                    for a, b in zip(run["numbers"][name]["values"], runs[most]["numbers"][name]["values"], strict=True)
                ]
            )
            for name in COMPARED
            if name in run["numbers"] and name in runs[most]["numbers"]
        }
        for steps, run in runs.items()
        if steps != most
    }
