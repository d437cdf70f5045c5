"""A search over training runs: settings to try, Optuna's choice among them, and the processes that train."""
