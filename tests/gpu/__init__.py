"""What is measured and proved on a card: `first_light` is run by hand, the tests are marked `gpu`."""
