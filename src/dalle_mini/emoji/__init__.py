"""The world of the shipped model: small pictures made of emoji, what is said of them, and who judges them."""
