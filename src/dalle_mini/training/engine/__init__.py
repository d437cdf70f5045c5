"""How an update is made."""
