"""Training states on disk: written completely or not at all, with checksums and random states."""
