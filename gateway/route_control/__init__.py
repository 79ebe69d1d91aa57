"""How route documents are stored, changed and brought to every replica."""
