"""Collection by Ray actors."""
