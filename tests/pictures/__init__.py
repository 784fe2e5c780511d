"""The pictures of the documentation, made of real replies: `python -m tests.pictures`."""
