"""ColD Fusion on Flower: evolve a pretrained language model without sharing data."""

from cold_flower.identity import __version__

__all__ = ["__version__"]
