"""Recipes: what a job computes, checked before anything starts."""
