"""The commands behind the Makefile: `python -m tools.NAME`, from the top of the tree."""
