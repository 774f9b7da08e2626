"""Suites, tasks and their rows, up to tokens; which contributor holds what. Knows no model.

A new source of rows goes into `sources`, a new key of a suite file into `task`.
"""
