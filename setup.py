"""Build recipe: the repository root is the import package, its room folders are the sub-packages."""

from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
ROOMS = ["kernels", "datasets", "training", "potentials", "md", "generative", "models", "testing", "scripts"]

CORE = [
    "torch>=2.13,<3",
    "numpy>=2.0,<3",
    "scipy>=1.14,<2",
    "h5py>=3.11,<4",
    "safetensors>=0.5,<1",
    "ase>=3.25,<4",
    "rdkit>=2024.9.1",
    "pymatgen>=2025.1.9",
    "spglib>=2.5,<3",
    "lightning>=2.5,<3",
    "prodigyopt>=1.1,<2",
    "tensorboard>=2.17,<3",
    "vesin>=0.6,<0.7",
    "numba>=0.61,<1",
    "lmdb>=1.5",
    "orjson>=3.10,<4",
    "matplotlib>=3.9,<4",
    "pyyaml>=6.0,<7",
    "tqdm>=4.66,<5",
]

EXTRAS = {
    # torch brings the triton it was built with: no version of our own here
    "gpu": ["triton; platform_system == 'Linux'", "cupy-cuda13x>=14,<15"],
    "hamiltonian": ["pyscf>=2.7,<3"],
    "batch": ["torch-sim-atomistic>=0.3,<0.4"],
    "lammps": ["lammps>=2024.8.29"],
    "openmm": ["openmm>=8.2"],
    "reference": ["tblite>=0.4,<1"],
    # FCD, PoseBusters and GFN2-xTB strain of generated molecules
    "evaluation": ["fcd-torch>=1.0.7,<2", "posebusters>=0.6,<1", "tblite>=0.4,<1"],
    "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=1.0,<2"],
    "dev": [
        "pytest>=8.3,<10",
        "pytest-xdist>=3.6,<4",
        "hypothesis>=6.115,<7",
        "ruff>=0.9,<1",
        "mypy>=1.15,<3",
        "import-linter>=2.1,<3",
        "build>=1.2,<2",
        "setuptools>=77",
        "pre-commit>=4.0,<5",
        "types-PyYAML",
        # runs the GPU kernels' tests on the CPU, in its interpreter
        "triton>=3.5; platform_system == 'Linux'",
        # independent implementations that tests compare with
        "e3nn>=0.5.5,<1",
        "sphericart-torch>=1.0,<3",
    ],
}


def version() -> str:
    """Version string, read from the root `__init__.py` without importing it."""
    line = next(x for x in (ROOT / "__init__.py").read_text().splitlines() if x.startswith("__version__"))
    return line.split('"')[1]


class BuildPy(build_py):
    """Keep the root's `setup.py` out of the wheel: it lies where the package's own modules lie."""

    def find_package_modules(self, package: str, package_dir: str) -> list[Any]:
        """Modules of one package as (package, module, file), without `tesseral.setup`."""
        found = super().find_package_modules(package, package_dir)
        return [m for m in found if package != "tesseral" or m[1] != "setup"]


rooms = find_packages(include=[p for r in ROOMS for p in (r, r + ".*")])
setup(
    name="tesseral",
    version=version(),
    description="Equivariant machine learning of molecules and materials: potentials, dynamics, generation",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="The tesseral authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"tesseral": "."},
    packages=["tesseral", *(f"tesseral.{p}" for p in rooms)],
    package_data={
        "tesseral": ["py.typed"],
        "tesseral.scripts": ["assets/*"],
        "tesseral.potentials": ["weights/*"],
        "tesseral.potentials.hamiltonian": ["weights/*"],
        "tesseral.generative": ["weights/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tesseral = tesseral.scripts.main:main"]},
    cmdclass={"build_py": BuildPy},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Chemistry",
        "Topic :: Scientific/Engineering :: Physics",
        "Typing :: Typed",
    ],
)
