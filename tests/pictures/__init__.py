"""The pictures of README.md and docs/, made of what the product really does."""
