"""`llm diffusiongemma serve`: a model that stays loaded, for whoever speaks OpenAI's format."""
