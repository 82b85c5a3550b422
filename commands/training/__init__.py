"""What every command that trains has: resuming, saving, a log, progress, and what is due by the clock."""
