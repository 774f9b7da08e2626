"""A base model by name, its body, a contributor's head, and what makes a model fast here.

A new model family goes into `families`. Nothing here trains.
"""
