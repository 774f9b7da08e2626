"""From a configuration to a finished run: checked, shared over the machine, run, followed.

A new way to run an experiment goes here, simulated or deployed.
"""
