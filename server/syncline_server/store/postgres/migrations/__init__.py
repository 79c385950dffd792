"""The PostgreSQL schema, step by step.

Nodes of two versions may run side by side, so a step only adds what the older version can do without; what it uses is
taken away one version later. A function keeps its name and meaning for ever: another one has the next number.
"""
