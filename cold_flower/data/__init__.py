"""Suites, tasks and their rows, up to tokens; who holds what. Nothing here knows a model.

A new source of rows goes into `sources`, a new field of a suite file into `task`.
"""
