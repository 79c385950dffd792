"""The benchmark: Syncline beside the systems that one would otherwise use, on the same machine in one run."""
