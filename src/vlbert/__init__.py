"""VL-BERT (Su et al., ICLR 2020): one stream of BERT layers over words and image regions."""
