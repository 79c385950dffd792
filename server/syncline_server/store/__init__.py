"""Where records are kept: ``abc`` is the contract, the rest are its backends."""
