"""How accurate a trained classifier is."""
