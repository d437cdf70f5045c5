"""What a training run would take on chips that are not here."""
