"""A base model and its body by name, a contributor's head, and what makes a model fast here.

A new family goes into `families`; nothing here trains.
"""
