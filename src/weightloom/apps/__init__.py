"""Applications: each composes the rooms and adds only what is its own."""
