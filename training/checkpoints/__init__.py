"""Training states on disk: written whole or not at all, with checksums and random states."""
