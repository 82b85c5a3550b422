"""Readers for files of a user's own: folders, archives, arrays, shards and the Hugging Face hub."""
