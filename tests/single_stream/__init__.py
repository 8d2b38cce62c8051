"""A second model, for the test of the contract: one Transformer layer over words and regions."""
