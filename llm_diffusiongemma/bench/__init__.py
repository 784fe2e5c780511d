"""`llm diffusiongemma bench`."""
