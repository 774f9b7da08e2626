"""ColD Fusion on Flower: evolve a pretrained language model without sharing data."""

__version__ = "0.1.0"
