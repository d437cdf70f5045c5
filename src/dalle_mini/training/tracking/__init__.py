"""A run's log, page, wandb run and line on the terminal."""
