"""How a server gets machines: the contract (`base`) and its implementations."""
