"""What `RunDoctor` is made of: watchers that see a run go by, and probes that leave no trace."""
