"""How close images are to real ones."""
