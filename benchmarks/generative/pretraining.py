"""Pre-training on many molecules with force-field geometries, then fine-tuning on few with better ones, side by side
with the same fine-tuning from fresh weights.

    python benchmarks/generative/pretraining.py SMILES MOLECULES OUT [--pretrain 5000] [--finetune 1000]

SMILES is a file of SMILES (ZINC, PubChem, …), embedded by ETKDG and MMFF94 into OUT/pretrain.h5; MOLECULES any file
that generators are trained from, with the elements, charges and bonds of the former among its own or fewer (QM9 from
qm9.py). All without hydrogen atoms, which the authors found to work better. OUT/pretraining.json gets the validation
loss and the validity of both generators. Run again after an interruption: finished parts are kept, others resumed.

Source of the recipe: Le et al., EQGAT-diff, arXiv 2309.17296 (there 95 M molecules of PubChem3D, days on four A100).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tesseral.datasets.read import read
from tesseral.datasets.store_writer import write_store
from tesseral.generative import load
from tesseral.generative.chemistry import judge
from tesseral.generative.data import MoleculeOptions, read_molecules
from tesseral.generative.fit import GeneratorTraining, train
from tesseral.training.config import from_dict

COMMON: dict[str, Any] = {
    "optimizer": {"lr": 2e-3, "weight_decay": 1e-12, "betas": [0.9, 0.999], "amsgrad": True, "clip": 1.0},
    "data": {"molecules": {"check": False}, "val": 0.05, "batch_size": 64, "max_edges": 20_000},
}
MODEL = {"config": {"preset": "cpu", "network": {"norm": "corrected"}, "diffusion": {"steps": 100}}}


def prepare(source: str, store: Path, n: int) -> None:
    """A store of the first n usable molecules without hydrogen atoms, unless it is there already."""
    if not store.exists():
        molecules, left_out = read_molecules(source, MoleculeOptions(hydrogens="remove", max_molecules=n))
        write_store(store, molecules)
        print(f"{store}: {len(molecules)} molecules, left out {left_out or 'none'}")


def run(out: Path, name: str, epochs: int, model: dict[str, Any], args: argparse.Namespace) -> float:
    """One training in OUT/name; its last validation loss."""
    store = out / ("pretrain.h5" if name == "pretrained" else "finetune.h5")
    settings = {
        "run": str(out / name),
        "model": model,
        **COMMON,
        "data": {**COMMON["data"], "train": str(store)},
        "training": {
            "epochs": epochs,
            "device": args.device,
            "precision": args.precision,
            "threads": args.threads,
            "tensorboard": False,
        },
    }
    folder = out / name
    if not (folder / "model.safetensors").exists():
        config = from_dict(GeneratorTraining, settings)
        train(config, resume=(folder / "last.state.safetensors").exists())
    return float(load(folder / "model.safetensors").card["training_metrics"]["val_loss"])


def quality(path: Path, n: int, steps: int | None) -> dict[str, float]:
    """Shares of valid (one fragment, RDKit accepts it) and of distinct molecules among the valid ones."""
    from tesseral.generative.sampler import SamplerOptions

    model = load(path)
    drawn = model.sample(n, options=SamplerOptions(calls=steps))
    smiles = [v.smiles for v in (judge(s, implicit_hydrogens=True) for s in drawn) if v.valid]
    return {"validity": len(smiles) / n, "uniqueness": len(set(smiles)) / max(len(smiles), 1)}


def main(argv: list[str] | None = None) -> None:
    """Prepare, pre-train, fine-tune twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smiles")
    parser.add_argument("molecules")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pretrain", type=int, default=5000, help="molecules of SMILES")
    parser.add_argument("--finetune", type=int, default=1000, help="molecules of MOLECULES")
    parser.add_argument("--epochs", type=int, nargs=2, default=(20, 60), help="of pre-training and fine-tuning")
    parser.add_argument("--draw", type=int, default=500, help="molecules drawn from each")
    parser.add_argument("--steps", type=int, help="network calls for them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    prepare(args.smiles, args.out / "pretrain.h5", args.pretrain)
    prepare(args.molecules, args.out / "finetune.h5", args.finetune)
    start = {"init": str(args.out / "pretrained" / "model.safetensors")}
    losses = {
        "pretrained": run(args.out, "pretrained", args.epochs[0], MODEL, args),
        "finetuned": run(args.out, "finetuned", args.epochs[1], start, args),
        "fresh": run(args.out, "fresh", args.epochs[1], MODEL, args),
    }
    result: dict[str, Any] = {"epochs": list(args.epochs)}
    for name, loss in losses.items():
        path = args.out / name / "model.safetensors"
        steps = load(path).card["training_metrics"]["step"]
        result[name] = {"val_loss": loss, "steps": steps, **quality(path, args.draw, args.steps)}
    for part in ("pretrain", "finetune"):
        result[f"n_{part}"] = len(read(args.out / f"{part}.h5"))
    (args.out / "pretraining.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
