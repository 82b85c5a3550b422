"""Names and numbers to constructor calls; the tables are in `configs.build`."""
