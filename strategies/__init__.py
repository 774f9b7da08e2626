"""ColD Fusion as a Flower strategy: fusion rules, screening, inbox, strategy.

This folder imports torch, safetensors and flwr only, so it can be lifted into any
Flower app.
"""
