"""GANBERT: synthesise PET from T1-weighted MRI (Shin et al. 2020)."""

__version__ = "0.1.0"
