"""Import and export of other dataset formats."""
