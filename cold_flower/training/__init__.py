"""The finetuning loop, the linear probe, and the protocols that score a body.

A new protocol goes into `protocols`. Nothing here imports flwr, ray or datasets.
"""
