"""What becomes of the values that training reports."""
