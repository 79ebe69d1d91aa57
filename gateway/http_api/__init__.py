"""HTTP adapters: the predict, metrics and admin listeners."""
