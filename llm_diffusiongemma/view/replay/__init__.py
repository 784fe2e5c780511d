"""A reply's denoising steps as a page to look at later."""
