"""A small data set of your own kind: 500 silanes with geometries, as an SD file to train a generator on.

    python examples/silanes.py silanes.sdf [NUMBER]
    tesseral train examples/train_silanes.yaml
    tesseral generate runs/silanes/best.safetensors -n 100 -o new.sdf --reference silanes.sdf

Every choice of four substituents at a silicon atom, evenly thinned; ETKDG geometries relaxed by MMFF94 or UFF.
The same molecules and geometries on every run.
"""

import sys
from itertools import combinations_with_replacement

from tesseral.datasets.write import write
from tesseral.generative.data import embedded

SUBSTITUENTS = ("[H]", "C", "CC", "C=C", "C#N", "O", "OC", "F", "Cl", "N(C)C")


def smiles(number: int) -> list[str]:
    """So many of the 715 silanes, evenly spread."""
    every = ["[Si]({})({})({}){}".format(*four) for four in combinations_with_replacement(SUBSTITUENTS, 4)]
    return [every[k * len(every) // number] for k in range(number)]


if __name__ == "__main__":
    output, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500
    print(write(output, (embedded(text) for text in smiles(count)), overwrite=True), "silanes in", output)
