"""Configurations, and the tables of names that they use (`configs.tables`)."""
